"""User namespaces, idmapped binds, control groups, network namespaces: on the real kernel."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from tests.integration.leaks import Scope

from casemate.host import cgroups, hierarchy, loop, mountinfo, mounts, netns, nft, rtnetlink, syscalls, userns
from casemate.host.cgroups_v2 import CgroupsV2
from casemate.host.inotify import FolderWatch
from casemate.host.peer import peer_of
from casemate.spec.errors import TimedOut

pytestmark = pytest.mark.root
FIRST_ID = 1_700_000_000


def test_a_user_namespace_has_its_map_and_leaves_no_process() -> None:
    before = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    number = userns.userns_fd(FIRST_ID, 65536)
    try:
        command = ["nsenter", f"--user=/proc/self/fd/{number}", "cat", "/proc/self/uid_map", "/proc/self/gid_map"]
        seen = subprocess.run(command, pass_fds=[number], capture_output=True, check=True, timeout=20).stdout
        assert [line.split() for line in seen.decode().splitlines()] == [["0", str(FIRST_ID), "65536"]] * 2
    finally:
        os.close(number)
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == before


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 0), ((1 << 32) - 2, 2)])
def test_ids_that_do_not_exist_are_refused(first: int, count: int) -> None:
    with pytest.raises(ValueError, match="ids"):
        userns.userns_fd(first, count)


def test_without_user_namespaces_the_host_lacks_them() -> None:
    limit = Path("/proc/sys/user/max_user_namespaces")
    script = (
        "import os, sys; from casemate.host import syscalls, userns; syscalls.unshare(syscalls.CLONE_NEWUSER);"
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "try: userns.userns_fd(0, 1)\n"
        "except userns.UserNamespacesMissing as error: sys.exit(42)\n"
    )
    if not limit.exists():
        pytest.skip("missing: /proc/sys/user/max_user_namespaces")
    # In a namespace of its own: the limit of the host itself is not touched.
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script],
        check=False,
        capture_output=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": "src"},
    )
    assert done.returncode == 42, done.stderr.decode()


def test_a_bind_for_one_person_gives_the_pod_no_more_than_that_person(scope: Scope) -> None:
    source, target = scope.folder / "source", scope.folder / "target"
    source.mkdir()
    target.mkdir()
    for name, owner in (("mine", 1000), ("roots", 0)):
        (source / name).write_text(name)
        os.chown(source / name, owner, owner)
        (source / name).chmod(0o600)
    os.chown(source, 1000, 1000)
    number = userns.single_user_fd(1000, 1000, FIRST_ID)
    pod = userns.userns_fd(FIRST_ID, 65536)
    try:
        mounts.bind(source, target, idmap_fd=number)
        # As the pod's root, with every capability in the pod's namespace.
        enter = ["nsenter", f"--user=/proc/self/fd/{pod}", "--setuid=0", "--setgid=0", "sh", "-c"]
        script = f"cat {target}/mine; cat {target}/roots; chown 5 {target}/mine; touch {target}/new"
        done = subprocess.run([*enter, script], pass_fds=[pod], capture_output=True, check=False, timeout=20)
        assert done.stdout == b"mine"
        assert done.stderr.count(b"\n") == 2, done.stderr
        assert (source / "new").stat().st_uid == 1000
        assert (source / "mine").stat().st_uid == 1000
    finally:
        mounts.unmount(target)
        os.close(number)
        os.close(pod)


def test_a_bind_is_read_only_and_private_before_anybody_sees_it(scope: Scope) -> None:
    source, target = scope.folder / "s", scope.folder / "t"
    source.mkdir()
    target.mkdir()
    number = os.open(source, os.O_PATH)
    mounts.bind(number, target, read_only=True, attributes=syscalls.MOUNT_ATTR_NOSUID)
    os.close(number)
    (mount,) = mountinfo.mounts_below(target)
    assert {"ro", "nosuid"} <= set(mount.options.split(","))
    with pytest.raises(OSError, match="Read-only"):
        (target / "x").touch()
    with pytest.raises(mounts.MountFailed):
        mounts.bind(scope.folder / "nope", target)
    assert mounts.unmount_below(scope.folder) == [target]
    assert not mounts.unmount(target)


def test_tmpfs_is_bounded(scope: Scope) -> None:
    target = scope.folder / "t"
    target.mkdir()
    mounts.tmpfs(target, size_bytes=1 << 20, mode=0o1777, uid=5)
    assert (target.stat().st_uid, target.stat().st_mode & 0o7777) == (5, 0o1777)
    with pytest.raises(OSError, match="No space"):
        (target / "big").write_bytes(bytes(2 << 20))
    mounts.unmount(target)


def test_proc_cannot_be_idmapped_and_says_so() -> None:
    number = userns.userns_fd(FIRST_ID, 65536)
    try:
        assert not mounts.supports_idmap(Path("/proc"), number)
        assert mounts.supports_idmap(Path("/var/tmp"), number)
        with pytest.raises(mounts.IdmapUnsupported):
            mounts.idmapped_clone_fd(Path("/proc"), number)
    finally:
        os.close(number)


def test_loop_devices_go_with_their_last_user(scope: Scope) -> None:
    image = scope.folder / "image"
    image.write_bytes(bytes(1 << 20))
    number = os.open(image, os.O_RDONLY)
    device, path = loop.attach(number)
    os.close(number)
    assert [(str(one.device), one.deleted) for one in loop.devices_below(scope.folder)] == [(path, False)]
    image.unlink()
    assert loop.devices_below(scope.folder)[0].deleted
    assert loop.detach(Path(path))
    os.close(device)
    deadline = time.monotonic() + 3
    while loop.devices_below(scope.folder):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_folder_watch_sees_names_at_once(scope: Scope) -> None:
    async def body() -> list[str | None]:
        watch = FolderWatch(scope.folder)
        found: list[str | None] = []
        try:
            async with asyncio.timeout(5):
                (scope.folder / "exit-1").write_text("0")
                (scope.folder / ".tmp").write_text("0")
                (scope.folder / ".tmp").rename(scope.folder / "exit-2")
                async for name in watch.names():
                    found.append(name)
                    if name == "exit-2":
                        return found
        finally:
            watch.close()
            watch.close()
        return found

    found = asyncio.run(body())
    assert {"exit-1", "exit-2"} <= set(found)
    with pytest.raises(FileNotFoundError):
        asyncio.run(_watch(scope.folder / "nope"))


async def _watch(folder: Path) -> None:
    FolderWatch(folder).close()


@pytest.fixture
def groups() -> cgroups.Cgroups:
    return hierarchy.detect()


FORKER = "trap '' TERM; while :; do sleep 60 & sleep 0.01; done"


def test_a_fork_bomb_is_counted_bounded_frozen_and_ended(scope: Scope, groups: cgroups.Cgroups) -> None:
    path = f"{scope.cgroup}/pod"
    groups.create(path)
    groups.create(path)
    assert groups.set_limits(path, cgroups.Limits(memory_bytes=64 << 20, pids=20, cpu_millis=500, cpu_weight=50)) == []
    with subprocess.Popen(["sh", "-c", FORKER], stderr=subprocess.DEVNULL) as bomb:
        groups.join(path, bomb.pid)
        deadline = time.monotonic() + 5
        while len(groups.pids(path)) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        stats = groups.stats(path)
        assert stats.pids is not None
        assert 15 <= stats.pids <= 20
        assert (stats.pids_limit, stats.memory_limit_bytes) == (20, 64 << 20)
        assert stats.cpu_usage_ns
        groups.freeze(path, True)
        while not groups.is_frozen(path):
            assert time.monotonic() < deadline
        assert groups.set_limits(path, cgroups.Limits(memory_bytes=128 << 20, pids=0)) == []
        assert groups.stats(path).memory_limit_bytes == 128 << 20
        assert groups.stats(path).pids_limit is None
        with pytest.raises(cgroups.CgroupBusy):
            groups.remove(path)
        asyncio.run(_end_while_reaping(groups, path, bomb))
    assert not groups.exists(path)
    assert groups.children(scope.cgroup) == []
    groups.remove(scope.cgroup)


async def _end_while_reaping(groups: cgroups.Cgroups, path: str, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(process.wait, 10))
        group.create_task(cgroups.end(groups, path))


def test_memory_above_the_limit_is_an_oom_kill_that_is_counted(scope: Scope, groups: cgroups.Cgroups) -> None:
    path = f"{scope.cgroup}/oom"
    groups.create(path)
    groups.set_limits(path, cgroups.Limits(memory_bytes=16 << 20, memory_swap_bytes=16 << 20))
    eater = ["/usr/bin/python3", "-c", "input(); x = bytearray(256 << 20); print(len(x))"]
    with subprocess.Popen(eater, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        groups.join(path, process.pid)
        process.communicate(b"\n", timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert groups.stats(path).oom_kills == 1
    groups.remove(path)
    groups.remove(scope.cgroup)


@pytest.mark.parametrize("path", ["../x", "/x", "x//y", "a/./b", "", "x/" * 9 + "y", "a\nb", "x" * 500])
def test_cgroup_paths_cannot_lead_out(groups: cgroups.Cgroups, path: str) -> None:
    with pytest.raises(cgroups.CgroupFailed):
        groups.create(path)
    with pytest.raises(cgroups.CgroupFailed):
        groups.remove(path)


def test_no_hierarchy_is_what_the_host_lacks(tmp_path: Path) -> None:
    with pytest.raises(cgroups.CgroupsMissing):
        hierarchy.detect(tmp_path)


def test_a_limit_that_the_kernel_refuses_is_named(scope: Scope, groups: cgroups.Cgroups) -> None:
    path = f"{scope.cgroup}/x"
    groups.create(path)
    with pytest.raises(cgroups.CgroupFailed, match=r"cpuset.cpus"):
        groups.set_limits(path, cgroups.Limits(cpuset_cpus="9999"))
    groups.remove(path)
    groups.remove(scope.cgroup)


def test_version_2_on_the_part_of_it_that_this_host_has(scope: Scope) -> None:
    """Processes, freezing, killing and removal on the real v2 tree; its controllers may be v1's here."""
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (root / "cgroup.controllers").exists():
            break
    else:
        pytest.skip("missing: a mounted cgroup2")
    groups, path = CgroupsV2(root), f"{scope.cgroup}/pod"
    groups.create(path)
    warnings = groups.set_limits(path, cgroups.Limits(pids=20))
    assert (root / path / "pids.max").exists() or warnings
    with subprocess.Popen(["sh", "-c", FORKER], stderr=subprocess.DEVNULL) as bomb:
        groups.join(path, bomb.pid)
        groups.freeze(path, True)
        deadline = time.monotonic() + 5
        while not groups.is_frozen(path):
            assert time.monotonic() < deadline
        asyncio.run(_end_while_reaping(groups, path, bomb))
    assert not groups.exists(path)
    groups.remove(scope.cgroup)


def test_version_2_files_are_written_and_read(tmp_path: Path) -> None:
    """The arithmetic, on files that stand for the kernel's: what is written where, and how figures are read."""
    groups = CgroupsV2(tmp_path)
    folder = tmp_path / "pod"
    folder.mkdir()
    names = [
        "memory.max",
        "memory.swap.max",
        "memory.low",
        "cpu.max",
        "cpu.weight",
        "cpuset.cpus",
        "pids.max",
        "io.weight",
    ]
    for name in names:
        (folder / name).write_text("")
    limits = cgroups.Limits(64 << 20, 96 << 20, 1 << 20, 1500, 200, "0-1", 10, 50)
    assert groups.set_limits("pod", limits) == []
    assert [(folder / name).read_text() for name in names] == [
        str(64 << 20), str(32 << 20), str(1 << 20), "150000 100000", "200", "0-1", "10", "50",
    ]  # fmt: skip
    (folder / "cpu.stat").write_text("usage_usec 5\nnr_throttled 2\nthrottled_usec 7\n")
    (folder / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n")
    (folder / "memory.events").write_text("oom 3\noom_kill 2\n")
    stats = groups.stats("pod")
    assert (stats.cpu_usage_ns, stats.cpu_throttled_ns, stats.cpu_throttled_periods) == (5000, 7000, 2)
    assert (stats.io_read_bytes, stats.io_write_bytes, stats.oom_kills) == (11, 22, 2)
    assert len(groups.set_limits("pod", cgroups.Limits(memory_bytes=0))) == 0
    assert (folder / "memory.max").read_text().startswith("max")
    (folder / "io.weight").unlink()
    assert len(groups.set_limits("pod", cgroups.Limits(io_weight=10))) == 1


def test_a_network_namespace_is_pinned_entered_and_gone(scope: Scope) -> None:
    pin = scope.folder / "ns"

    async def body() -> None:
        inside = await netns.create(pin, lambda: os.readlink("/proc/thread-self/ns/net"))
        assert inside != os.readlink("/proc/self/ns/net")
        assert netns.is_pinned(pin)
        number = rtnetlink.open_netns(pin)
        assert await netns.inside(number, lambda: os.readlink("/proc/thread-self/ns/net")) == inside
        assert await netns.in_own_thread(lambda: os.readlink("/proc/thread-self/ns/net")) != inside
        os.close(number)
        with pytest.raises(FileExistsError):
            await netns.create(pin, lambda: None)
        assert netns.is_pinned(pin)

    asyncio.run(body())
    assert netns.remove(pin)
    assert not netns.is_pinned(pin)
    assert not netns.remove(pin)


def test_what_fails_inside_leaves_no_pin(scope: Scope) -> None:
    pin = scope.folder / "ns"

    def fail() -> None:
        raise OSError(5, "inside")

    with pytest.raises(OSError, match="inside"):
        asyncio.run(netns.create(pin, fail))
    assert not pin.exists()


def test_a_cancelled_creation_leaves_no_pin(scope: Scope) -> None:
    pin = scope.folder / "ns"

    async def body() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await netns.create(pin, lambda: time.sleep(0.3))
        assert not pin.exists()
        with pytest.raises(TimedOut):
            await netns.in_own_thread(lambda: time.sleep(0.3), timeout_s=0.05)

    asyncio.run(body())
    time.sleep(0.5)


def test_a_peer_in_more_groups_than_fit_is_told_with_all(scope: Scope) -> None:
    path = scope.folder / "socket"
    script = "import os, socket, sys; os.setgroups(range(7000, 7300)); s = socket.socket(1, 1); s.connect(sys.argv[1])"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with subprocess.Popen(
            ["/usr/bin/python3", "-c", f"{script}; input()", str(path)], stdin=subprocess.PIPE
        ) as client:
            connection, _ = server.accept()
            with connection:
                peer = peer_of(connection)
            client.communicate(b"\n", timeout=20)
    assert (peer.pid, peer.groups) == (client.pid, tuple(range(7000, 7300)))


def test_netlink_errors_are_named(scope: Scope) -> None:
    with rtnetlink.RouteSocket() as route:
        assert route.link("no-such-link") is None
        assert not route.delete_link("no-such-link")
        with pytest.raises(rtnetlink.NetlinkFailed) as caught:
            route.add_route("10.0.0.0/8", 999_999)
        assert caught.value.errno == 19  # ENODEV
        assert any(link.name == "lo" for link in route.links())


def test_without_loop_control_or_nftables_the_host_lacks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real_open, real_library = os.open, ctypes.CDLL

    def no_loop(path: str, flags: int, mode: int = 0o777) -> int:
        if path == "/dev/loop-control":
            raise FileNotFoundError(2, "No such file or directory", path)
        return real_open(path, flags, mode)

    def no_library(name: str) -> ctypes.CDLL:
        return real_library("/nonexistent.so")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_loop)
        with pytest.raises(loop.LoopMissing):
            loop.attach(0)
        patch.setattr(ctypes, "CDLL", no_library)
        with pytest.raises(nft.NftMissing, match="libnftables"):
            nft.Nft()
