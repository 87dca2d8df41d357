"""The level in hostd: what is missing is said, what a pod's link means to a guest, what the host limits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from casemate.host import tun
from casemate.hostd import checks, microvm, pods
from casemate.hostd.grants import Caller
from casemate.hostd.state import State
from casemate.isolation.level import Levels
from casemate.isolation.microvm import bundles, kernel
from casemate.isolation.microvm.errors import ShimMissing
from casemate.network import links, plan
from casemate.network.links import TapUnavailable
from casemate.spec.errors import InvalidArgument
from casemate.spec.settings import Settings
from casemate.spec.workload import NetworkSpec, PodSpec, Resources

ID = "ab" * 32


def pod(**values: object) -> PodSpec:
    return PodSpec(ID, "p", "p", level="microvm", **values)  # type: ignore[arg-type]


def test_without_the_shim_the_level_says_so(tmp_path: Path) -> None:
    context = SimpleNamespace(settings=Settings({"microvm.shim": str(tmp_path / "none")}))
    with pytest.raises(ShimMissing):
        asyncio.run(microvm.find_host(context))  # type: ignore[arg-type]


def test_without_a_kernel_the_level_is_missing_and_the_remedy_is_named(tmp_path: Path) -> None:
    levels = Levels({}, {})
    context = SimpleNamespace(id_shift=0, levels=levels)
    machines = SimpleNamespace(settings=SimpleNamespace(state=tmp_path))
    microvm.refresh(context, machines)  # type: ignore[arg-type]
    assert "casemate system kernel install" in levels.describe()["microvm"]
    context.id_shift = 1_000_000_000
    microvm.refresh(context, machines)  # type: ignore[arg-type]
    assert "owners are shifted" in levels.describe()["microvm"]


def test_a_kernel_with_another_agent_is_not_used(tmp_path: Path) -> None:
    levels = Levels({}, {})
    agent = tmp_path / "agent"
    agent.write_bytes(b"the installed one")
    context = SimpleNamespace(id_shift=0, levels=levels, settings=Settings({"microvm.agent": str(agent)}))
    machines = SimpleNamespace(settings=SimpleNamespace(state=tmp_path))
    with agent.open("rb") as file:
        kernel.adopt(tmp_path / "kernels", "6.1", file.fileno(), file.fileno(), agent="0" * 64)
    microvm.refresh(context, machines)  # type: ignore[arg-type]
    assert "another version of the agent" in levels.describe()["microvm"]
    agent.unlink()
    assert microvm.agent_digest(context) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"host_pid": True}, {"host_ipc": True}, {"network": NetworkSpec("host")}])
def test_a_machine_shares_no_namespace_of_the_host(change: dict[str, object]) -> None:
    caller = Caller(0, 0, (), frozenset(("host_namespaces",)))
    with pytest.raises(InvalidArgument, match="kernel of its own"):
        checks.check_pod(pod(**change), caller, State(), Settings({}))


def test_the_host_bounds_a_machines_cpu_and_not_its_memory() -> None:
    wanted = Resources(memory_bytes=64 << 20, cpu_millis=500, pids=10)
    limits = pods.pod_limits(pod(), wanted)
    assert (limits.cpu_millis, limits.memory_bytes, limits.pids) == (500, None, None)


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        (0, 256 << 20),
        (16 << 20, 128 << 20),
        (32 << 20, 128 << 20),
        (33 << 20, 256 << 20),
        (900 << 20, 1 << 30),
        (1 << 30, 1280 << 20),
        (4 << 30, 5 << 30),
        (8 << 30, 10 << 30),
        (16 << 30, 20 << 30),
        (63 << 30, 64 << 30),
        (1 << 40, 64 << 30),
    ],
)
def test_a_machine_has_room_for_the_limit_and_the_guest(limit: int, size: int) -> None:
    assert bundles.machine_memory(limit, 256 << 20) == size


def test_machines_come_in_few_sizes() -> None:
    found = {bundles.machine_memory(limit << 20, 256 << 20) for limit in range(1, 64 << 10, 7)}
    assert len(found) == 4 + 4 * 6


def test_a_host_without_tun_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tun, "DEVICE", str(tmp_path / "none"))
    link = plan.pod_link(
        ID, "198.18.0.9", prefix="nt-", pool="198.18.0.0/24", netns_folder=tmp_path, mtu_bytes=1500, tap=True
    )
    assert link.describe()[0].startswith("make the tap nt-")
    with pytest.raises(TapUnavailable):
        asyncio.run(links.apply(link))
