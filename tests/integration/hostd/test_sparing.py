"""A pod that has been there for a while gets the program that spares its packets the guard; it outlives hostd."""

from __future__ import annotations

import os
import time

import pytest
from tests.integration.hostd.driver import Client, Hostd, running

from casemate.host import bpf
from casemate.hostd import protocol
from casemate.hostd.sparing import AGE_S
from casemate.network import links
from casemate.network.firewall import sparing
from casemate.network.plan import interface_name
from casemate.spec.workload import PodSpec


def programs(hostd: Hostd, pod: PodSpec) -> list[str]:
    index = links.index(interface_name(hostd.scope.link_prefix, pod.id))
    return [name for _, name in bpf.attached_ingress(index)] if index else []


def own(pod: PodSpec) -> list[str]:
    return [sparing.name(bytes(map(int, pod.network.address.split("."))))]


def rename(hostd: Hostd, pod: PodSpec) -> None:
    """Have another version's program at the pod's interface."""
    index = links.index(interface_name(hostd.scope.link_prefix, pod.id))
    code = sparing.program(bytes(map(int, pod.network.address.split("."))))
    (number, _), other = bpf.attached_ingress(index)[0], bpf.load_ingress(f"{sparing.OURS}0_old", code)
    present = bpf.by_number(number)
    bpf.attach_ingress(index, other, replace=present)
    os.close(present)
    os.close(other)


def wait_for(hostd: Hostd, pod: PodSpec, wanted: list[str]) -> None:
    began = time.monotonic()
    while programs(hostd, pod) != wanted:
        assert time.monotonic() < began + AGE_S + 60, f"{programs(hostd, pod)} instead of {wanted}"
        time.sleep(0.1)


def test_a_pod_gets_its_program_later_and_keeps_it_over_hostds_end() -> None:
    if not bpf.serves_ingress(sparing.NOTHING, sparing.nothing()):
        pytest.skip("missing: BPF programs at interfaces (Linux 6.6)")
    with running() as hostd:
        client = hostd.wait_ready()
        old, new = hostd.pod(), hostd.pod()
        before = time.monotonic()
        client.call(protocol.PodCreate(old))
        wait_for(hostd, old, own(old))
        assert time.monotonic() - before >= AGE_S, "a start waits for no program"
        assert doctor(client).endswith("plain packets of 1 pods are spared the guard")
        client.close()
        hostd.kill()
        assert programs(hostd, old) == own(old)
        hostd.start()
        client = hostd.wait_ready()
        assert doctor(client).endswith("plain packets of 1 pods are spared the guard"), "it found what there was"
        client.close()
        hostd.kill()
        rename(hostd, old)
        hostd.start()
        client = hostd.wait_ready()
        assert doctor(client).endswith("plain packets of 0 pods are spared the guard")
        assert programs(hostd, old) == [sparing.NOTHING], "what another version brought says nothing any more"
        wait_for(hostd, old, own(old))
        # One whose program is still to come: when the pod goes before, nothing is left to be done.
        client.call(protocol.PodCreate(new))
        client.call(protocol.PodRemove(new.id, force=True))
        client.call(protocol.PodRemove(old.id, force=True))
        assert programs(hostd, old) in ([], [sparing.NOTHING]), "no word of it from then on"
        assert doctor(client).endswith("plain packets of 0 pods are spared the guard")
        client.close()


def doctor(client: Client) -> str:
    """What is said of the firewall."""
    findings = client.call(protocol.Doctor()).findings
    (line,) = [one.detail for one in findings if one.check == "firewall"]
    return str(line)
