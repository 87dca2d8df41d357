"""The OCI configuration: namespaces, process, mounts, refusals."""

from __future__ import annotations

import json

import msgspec
import pytest

from casemate.isolation import oci
from casemate.isolation.bundle import BindSource, BundleInput, HostFacts, Sandbox
from casemate.isolation.level import Levels, LevelUnavailable
from casemate.isolation.process import process
from casemate.spec import targets
from casemate.spec.errors import InvalidArgument
from casemate.spec.workload import (
    ContainerSpec,
    PodSpec,
    Process,
    Resources,
    Rlimit,
    Security,
    Sysctl,
    TmpfsMount,
    User,
)

FACTS = HostFacts("x86_64", (1 << 41) - 1 & ~(1 << 24), {"nofile": 1000}, 0, "/usr/bin/catatonit")
OWN = {"user": "/ns/u", "network": "/ns/n", "ipc": "/ns/i", "uts": "/ns/t"}
POD = PodSpec(id="a" * 64, name="p", hostname="box")
CONTAINER = ContainerSpec(id="b" * 64, pod="a" * 64, name="c", layers=(), process=Process(args=("sh",)))


def given(pod: PodSpec = POD, own: dict[str, str] = OWN, facts: HostFacts = FACTS, **values: object) -> BundleInput:
    container = msgspec.structs.replace(CONTAINER, **values)
    return BundleInput(pod, container, Sandbox(own, 1_000_000_000, "casemate/p"), "/root", facts)


def test_the_default_is_confined() -> None:
    config = oci.configuration(given()).config
    json.dumps(config)
    linux = config["linux"]
    kinds = {one["type"]: one.get("path") for one in linux["namespaces"]}
    assert kinds == {
        "pid": None,
        "mount": None,
        "cgroup": None,
        "user": "/ns/u",
        "network": "/ns/n",
        "ipc": "/ns/i",
        "uts": "/ns/t",
    }
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1_000_000_000, "size": 65536}]
    assert config["process"]["noNewPrivileges"]
    assert "/proc/kcore" in linux["maskedPaths"]
    assert "/proc/sys" in linux["readonlyPaths"]
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert linux["seccomp"]["defaultErrnoRet"] == 38
    assert {one["destination"]: one["options"] for one in config["mounts"]}["/sys"][-1] == "ro"


def test_shared_namespaces_are_not_in_the_list_and_their_mounts_are_binds() -> None:
    pod = msgspec.structs.replace(POD, host_pid=True, host_ipc=True)
    config = oci.configuration(given(pod, {"user": "/ns/u", "uts": "/ns/t"})).config
    assert not {"pid", "ipc", "network"} & {one["type"] for one in config["linux"]["namespaces"]}
    kinds = {one["destination"]: one["type"] for one in config["mounts"]}
    assert kinds["/proc"] == kinds["/sys"] == kinds["/dev/shm"] == "bind"


def test_privileged_is_so_inside_its_own_namespace_only() -> None:
    config = oci.configuration(given(security=Security(privileged=True))).config
    assert config["linux"]["maskedPaths"] == []
    assert "seccomp" not in config["linux"]
    assert "CAP_SYS_ADMIN" in config["process"]["capabilities"]["bounding"]
    assert "CAP_SYS_RESOURCE" not in config["process"]["capabilities"]["bounding"]
    assert any(one["type"] == "user" for one in config["linux"]["namespaces"])


def test_init_is_put_in_front_and_must_be_there() -> None:
    config = oci.configuration(given(init=True)).config
    assert config["process"]["args"] == ["/dev/init", "--", "sh"]
    with pytest.raises(oci.InitMissing) as caught:
        oci.configuration(given(init=True, facts=HostFacts("x86_64", 0)))
    assert caught.value.code == "isolation.init_missing"


def test_another_user_gains_nothing_but_by_executing() -> None:
    security = Security(capabilities=("CAP_CHOWN",))
    body, _ = process(Process(args=("x",), user=User(uid=1)), security, FACTS)
    assert body["capabilities"]["bounding"] == ["CAP_CHOWN"]
    assert body["capabilities"]["effective"] == body["capabilities"]["permitted"] == []
    body, warnings = process(Process(args=("x",)), Security(capabilities=("CAP_SYS_RESOURCE",)), FACTS)
    assert body["capabilities"]["effective"] == []
    assert warnings == ["CAP_SYS_RESOURCE: the host itself does not hold it"]


def test_limits_are_lowered_with_a_warning_and_nonsense_is_refused() -> None:
    body, warnings = process(Process(args=("x",), rlimits=(Rlimit("nofile", -1, -1),)), Security(), FACTS)
    assert body["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 1000}]
    assert len(warnings) == 1
    for bad in ((Rlimit("bogus", 1, 1),), (Rlimit("nofile", 2, 1),), (Rlimit("core", 1, 1), Rlimit("core", 1, 1))):
        with pytest.raises(InvalidArgument):
            process(Process(args=("x",), rlimits=bad), Security(), FACTS)


def test_the_daemons_own_protection_is_never_inherited() -> None:
    protected = HostFacts("x86_64", 0, oom_score_adj=-900)
    assert process(Process(args=("x",)), Security(), protected)[0]["oomScoreAdj"] == 0
    exposed = HostFacts("x86_64", 0, oom_score_adj=300)
    body, warnings = process(Process(args=("x",)), Security(), exposed, oom_score_adj=-5)
    assert body["oomScoreAdj"] == 300
    assert warnings
    plan = oci.configuration(given(resources=Resources(oom_score_adj=500)))
    assert plan.config["process"]["oomScoreAdj"] == 500


@pytest.mark.parametrize("text", ["A=\0", "x" * 130_000])
def test_arguments_that_the_kernel_would_not_take(text: str) -> None:
    count = 1 if "\0" in text else 20
    with pytest.raises(InvalidArgument):
        process(Process(args=("x",), env=(text,) * count), Security(), FACTS)


def test_an_empty_command() -> None:
    with pytest.raises(InvalidArgument):
        process(Process(args=("",)), Security(), FACTS)


@pytest.mark.parametrize(
    "name", ["kernel.core_pattern", "vm.swappiness", "net", "net..x", "fs.file-max", "kernel.shmx"]
)
def test_settings_of_the_host(name: str) -> None:
    with pytest.raises(oci.SysctlRefused) as caught:
        oci.configuration(given(sysctls=(Sysctl(name, "1"),)))
    assert caught.value.code == "isolation.sysctl_refused"


def test_settings_of_a_namespace_that_is_shared_are_the_hosts() -> None:
    assert oci.configuration(given(sysctls=(Sysctl("net.core.somaxconn", "1"), Sysctl("kernel.sem", "1 2 3 4"))))
    with pytest.raises(oci.SysctlRefused):
        oci.configuration(given(own={"user": "/u", "uts": "/t"}, sysctls=(Sysctl("net.core.somaxconn", "1"),)))
    with pytest.raises(oci.SysctlRefused):
        oci.configuration(given(own={"user": "/u", "network": "/n"}, sysctls=(Sysctl("kernel.sem", "1"),)))


@pytest.mark.parametrize(
    "target", ["/", "//", "/.", "/proc", "/proc/", "/proc/self", "/sys/fs", "/dev", "relative", "/a/.."]
)
def test_targets_that_are_refused(target: str) -> None:
    with pytest.raises(targets.TargetRefused) as caught:
        targets.check_target(target)
    assert caught.value.code == "isolation.mount_target_refused"


def test_outer_mounts_come_before_inner_ones() -> None:
    one = given(mounts=(TmpfsMount("/a/b/c"), TmpfsMount("/a")))
    binds = (BindSource("/h", "/a/b", ("rbind",)),)
    plan = oci.configuration(BundleInput(one.pod, one.container, one.sandbox, "/root", FACTS, binds))
    assert [mount["destination"] for mount in plan.config["mounts"]][-3:] == ["/a", "/a/b", "/a/b/c"]


def test_a_level_without_a_driver_says_why() -> None:
    levels = Levels({}, {"microvm": "no QEMU"})
    with pytest.raises(LevelUnavailable) as caught:
        levels.find("microvm")
    assert caught.value.code == "isolation.level_unavailable"
    assert "no QEMU" in caught.value.detail
    assert levels.describe() == {"microvm": "unavailable: no QEMU"}
