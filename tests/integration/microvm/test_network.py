"""The guest's network: its tap, address and route; both directions; nothing left when the machine ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import harness
import pytest

from casemate.host.rtnetlink import RouteSocket
from casemate.isolation.microvm import bundles, tap
from casemate.isolation.microvm.errors import BundleUnsupported, NetworkFailed

pytestmark = pytest.mark.root

#: 198.18.0.0/15 is for tests of networks (RFC 2544); the last bytes are this process's own.
NUMBER = os.getpid() % 250 + 1
GUEST, GATEWAY, TAP = f"198.18.{NUMBER}.2", f"198.18.{NUMBER}.1", f"cmt{NUMBER}"


def annotation(**change: object) -> str:
    mac = f"02:00:00:00:{NUMBER:02x}:02"
    return json.dumps({"tap": TAP, "address": f"{GUEST}/32", "gateway": GATEWAY, "mac": mac, "mtu": 1400} | change)


def test_both_directions(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "sh", "-c", "echo served | nc -l -p 8080; sleep 1000")
    config["annotations"] |= {bundles.NETWORK: annotation()}  # type: ignore[operator]
    process, folder = harness.conmon(host, "net", host.bundle("net", config))
    with RouteSocket() as routes:
        link = routes.link(TAP)
        assert link is not None, (folder / "answer").read_text()
        routes.set_up(link.index)
        routes.add_address(link.index, GATEWAY, link_scope=True)
        routes.add_route(f"{GUEST}/32", link.index)
        assert host.vm("start", "net").returncode == 0
        shown = host.vm("exec", "net", "ip", "addr", "show", "eth0").stdout
        assert f"inet {GUEST}/32" in shown
        assert f"02:00:00:00:{NUMBER:02x}:02" in shown
        assert "mtu 1400" in shown
        assert "192.0.2." not in shown, "nothing of the template's rehearsal (warming.NETWORK) stays"
        assert f"default via {GATEWAY}" in host.vm("exec", "net", "ip", "route").stdout
        with socket.create_server((GATEWAY, 0)) as server:
            server.settimeout(20)
            command = f"echo from the guest | nc {GATEWAY} {server.getsockname()[1]}"
            sender = subprocess.Popen(
                [str(host.shim), "--socket", str(host.socket), "exec", "net", "sh", "-c", command]
            )
            connection, peer = server.accept()
            with connection:
                assert peer[0] == GUEST
                assert connection.recv(100) == b"from the guest\n"
            assert sender.wait(20) == 0
        with socket.create_connection((GUEST, 8080), timeout=20) as client:
            assert client.recv(100) == b"served\n"
        assert host.vm("delete", "--force", "net").returncode == 0
        process.wait(20)
        end = time.monotonic() + 60
        while routes.link(TAP) is not None:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_without_a_network_there_is_loopback_alone(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "sh", "-c", "ip addr; ip route")
    process, folder = harness.conmon(host, "nonet", host.bundle("nonet", config))
    assert host.vm("start", "nonet").returncode == 0
    process.wait(30)
    text = (folder / "log").read_text()
    assert "127.0.0.1/8" in text
    assert text.count("inet ") == 1
    assert "default" not in text
    assert host.vm("delete", "nonet").returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        annotation(tap="a/b"),
        annotation(tap="x" * 16),
        annotation(address="1.2.3"),
        annotation(mac="xx"),
        annotation(mtu=10),
        annotation(more=1),
    ],
)
def test_annotations_that_are_none(text: str) -> None:
    with pytest.raises(BundleUnsupported):
        tap.parse(text)


def test_a_name_that_is_taken_by_another_kind_of_link() -> None:
    with pytest.raises(NetworkFailed) as caught:
        os.close(tap.open_tap("lo"))
    assert caught.value.code == "microvm.network"
