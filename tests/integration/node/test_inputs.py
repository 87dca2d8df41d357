"""Inputs of containers while casemated dies: they stay open, and what they feed does not wait for anybody."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons, running_daemons

from casemate.sdk.attach import Attached
from casemate.sdk.websocket import WebSocket

pytestmark = pytest.mark.root

HOW = [signal.SIGKILL, signal.SIGTERM]


@pytest.fixture(scope="module")
def pair() -> Iterator[Daemons]:
    with running_daemons() as daemons:
        daemons.import_busybox()
        yield daemons


def connections(pair: Daemons) -> int:
    """Unix sockets that hostd has open."""
    inodes = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    folder = Path(f"/proc/{pair.processes['casemate-hostd'].pid}/fd")
    found = (os.readlink(one) for one in folder.iterdir() if one.is_symlink())
    return sum(one.removeprefix("socket:[").rstrip("]") in inodes for one in found)


def settled(pair: Daemons, count: int) -> bool:
    deadline = time.monotonic() + 5
    while connections(pair) != count:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def read_line(attached: Attached) -> bytes:
    piece = attached.read()
    assert piece is not None
    return piece[1]


def restart(pair: Daemons, how: int) -> None:
    pair.kill("casemated", how)
    time.sleep(0.3)
    pair.start()


@pytest.mark.parametrize("how", HOW)
def test_cat_goes_on_and_a_new_client_can_write(pair: Daemons, how: int) -> None:
    client = pair.client
    before = connections(pair)
    created = client.create("busybox", ["cat"], stdin=True)
    first = client.attach(created.id, stdin=True, start=True)
    first.write(b"one\n")
    assert read_line(first) == b"one\n"
    restart(pair, how)
    first.close()
    assert client.inspect(created.id).summary.status == "running"
    with client.attach(created.id, stdin=True) as second:
        second.write(b"two\n")
        assert read_line(second) == b"two\n"
        second.end_input()
        while second.read() is not None:
            pass
        assert second.exit_code == 0
    assert b"".join(data for _, data in client.logs(created.id)) == b"one\ntwo\n"
    client.remove(created.id)
    assert settled(pair, before), "hostd keeps connections of a container that is gone"


def test_what_writes_much_does_not_wait_for_a_dead_reader(pair: Daemons) -> None:
    client = pair.client
    script = "read start; i=0; while [ $i -lt 400 ]; do printf '%02000d\\n' $i; i=$((i+1)); done"
    created = client.create("busybox", ["sh", "-c", f"{script}; echo done; read line; echo got $line"], stdin=True)
    first = client.attach(created.id, stdin=True, start=True)
    first.write(b"go\n")
    assert read_line(first)
    pair.kill("casemated")  # 800 KB come: four times what a socket holds
    time.sleep(1.5)
    pair.start()
    first.close()
    with client.attach(created.id, stdin=True) as second:
        second.write(b"this\n")
        while second.read() is not None:
            pass
        assert second.exit_code == 0
    text = b"".join(data for _, data in client.logs(created.id))
    assert text.endswith(b"done\ngot this\n")
    assert text.count(b"\n") == 402
    client.remove(created.id)


def test_who_leaves_ends_the_input_as_ever(pair: Daemons) -> None:
    client = pair.client
    before = connections(pair)
    created = client.create("busybox", ["sh", "-c", "cat; echo ended"], stdin=True)
    first = client.attach(created.id, stdin=True, start=True)
    first.write(b"one\n")
    assert read_line(first) == b"one\n"
    first.close()
    assert client.wait(created.id).exit_code == 0
    assert b"".join(data for _, data in client.logs(created.id)) == b"one\nended\n"
    assert settled(pair, before)
    client.remove(created.id)


def test_an_exec_with_input_survives_too(pair: Daemons) -> None:
    client = pair.client
    created = client.create("busybox", ["sh", "-c", "while [ ! -e /end ]; do sleep 0.05; done; cat /end"])
    client.start(created.id)
    before = connections(pair)
    body = json.dumps({"command": ["sh", "-c", "cat > /tmp/it; echo ended > /end"], "stdin": True}).encode()
    answer = json.loads(client.transport.ask("POST", f"/v1/containers/{created.id}/exec", body=body))
    attached = Attached(WebSocket(client.transport, f"/v1/exec/{answer['id']}/attach"))
    attached.write(b"one\n")
    time.sleep(0.3)
    restart(pair, signal.SIGKILL)
    attached.close()
    assert client.exec(created.id, ["cat", "/tmp/it"]).stdout == b"one\n"
    time.sleep(0.5)
    assert client.inspect(created.id).summary.status == "running"  # its input has not ended
    client.exec(created.id, ["sh", "-c", "kill -9 $(pidof cat)"])
    assert client.wait(created.id).exit_code == 0
    assert settled(pair, before)
    client.remove(created.id)
