"""Fuzzer of hostd's messages: decoding, the number for the error's answer, and every check that follows.

``python tests/fuzz/hostd_protocol.py [seconds] [folder]`` (default 60) keeps what finds new paths in the folder,
by default ``tests/fuzz/hostd-corpus``.
Whatever the bytes, there is a request or a CasemateError, never another exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

if __name__ == "__main__":
    import atheris

    # Only what is under test: instrumenting everything takes 20 seconds.
    with atheris.instrument_imports(include=["casemate.hostd", "casemate.isolation", "casemate.network"]):
        pass

from casemate.host.granted import GRANTS
from casemate.hostd import checks, protocol
from casemate.hostd.grants import NOBODY, Caller
from casemate.hostd.server import decode, request_number
from casemate.hostd.state import State
from casemate.isolation import oci
from casemate.isolation.bundle import BundleInput, HostFacts, Sandbox
from casemate.spec.errors import CasemateError
from casemate.spec.settings import Settings
from casemate.spec.workload import (
    BindMount,
    ContainerSpec,
    Device,
    PodSpec,
    Process,
    Resources,
    Rlimit,
    Security,
    Sysctl,
    TmpfsMount,
    VolumeMount,
)

CORPUS = Path(__file__).with_name("hostd-corpus")
_SETTINGS = Settings({})
_CALLERS = (NOBODY, Caller(0, 0, (), frozenset(GRANTS)))
_FACTS = HostFacts("x86_64", (1 << 41) - 1, {"nofile": 1024}, 0, "/usr/bin/catatonit")


def one_input(data: bytes) -> None:
    """Handle one message as hostd does before it has an effect."""
    number = request_number(data)
    assert 0 <= number < 1 << 62
    try:
        operation = decode(data).operation
    except CasemateError:
        return
    pod: PodSpec | None = getattr(operation, "pod", None)
    container: ContainerSpec | None = getattr(operation, "container", None)
    for caller in _CALLERS:
        if isinstance(pod, PodSpec):
            _quietly(lambda pod=pod, caller=caller: checks.check_pod(pod, caller, State(), _SETTINGS))
        if isinstance(container, ContainerSpec):
            home = pod if isinstance(pod, PodSpec) else PodSpec(id=container.pod, name="p", hostname="p")
            _quietly(lambda home=home, caller=caller: _container(container, home, caller))
    resources = getattr(operation, "resources", None)
    if resources is not None:
        _quietly(lambda: checks.check_resources(resources))


def _container(container: ContainerSpec, pod: PodSpec, caller: Caller) -> None:
    checks.check_container(container, pod, caller, State(), lambda _layer: True)
    sandbox = Sandbox({"user": "/u", "network": "/n", "ipc": "/i", "uts": "/t"}, 1_000_000_000, "casemate/p")
    config = oci.configuration(BundleInput(pod, container, sandbox, "/rootfs", _FACTS)).config
    for mount in config["mounts"]:
        assert ".." not in mount["destination"].split("/")
    assert config["process"]["capabilities"]["ambient"] == []


def _quietly(function: object) -> None:
    assert callable(function)
    with contextlib.suppress(CasemateError):
        function()


def seeds() -> list[bytes]:
    """One message of each kind, filled."""
    pod = PodSpec(id="a" * 64, name="p", hostname="h")
    container = ContainerSpec(
        id="b" * 64,
        pod=pod.id,
        name="c",
        layers=("c" * 64,),
        process=Process(args=("sh",), env=("A=b",), rlimits=(Rlimit("nofile", 1, 2),)),
        mounts=(BindMount("/a", "/b"), TmpfsMount("/t"), VolumeMount("v", "/v")),
        devices=(Device("/dev/null", "/dev/x"),),
        sysctls=(Sysctl("net.core.somaxconn", "1"),),
        security=Security(capabilities=("CAP_NET_ADMIN",)),
        init=True,
    )
    return [
        msgspec.msgpack.encode(protocol.Request(1, operation))
        for operation in (
            protocol.Hello(),
            protocol.Observe(),
            protocol.Prune(pods=("a" * 64,)),
            protocol.LayerAdopt("a" * 64),
            protocol.VolumeCreate("default", "v"),
            protocol.PodCreate(pod),
            protocol.ContainerKill("a" * 64, 9),
            protocol.ContainerUpdate("a" * 64, Resources(memory_bytes=64 << 20, cpuset="0-3,5")),
            protocol.ContainerRun(pod, container),
        )
    ]


def main() -> None:
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    found = Path(sys.argv[2]) if len(sys.argv) > 2 else CORPUS
    found.mkdir(exist_ok=True)
    for seed in seeds():
        (found / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    arguments = [
        sys.argv[0],
        str(found),
        str(CORPUS),
        f"-max_total_time={seconds}",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
