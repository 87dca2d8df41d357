"""What the code in a container may do, tried from inside with the product as people start it."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.integration.daemons import rootfs_tar
from tests.integration.system.site import IMAGE, Site, settle

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_made")]


def inside(site: Site, script: str, *flags: str) -> list[str]:
    done = site("run", "--rm", *flags, IMAGE, "sh", "-c", script)
    return done.stdout.decode().splitlines()


#: (number on x86-64, name, first argument) of calls that no container needs; errno 1 is EPERM, 38 ENOSYS.
CALLS = (
    (165, "mount"), (166, "umount2"), (155, "pivot_root"), (272, "unshare"), (308, "setns"), (248, "add_key"),
    (249, "request_key"), (250, "keyctl"), (321, "bpf"), (298, "perf_event_open"), (175, "init_module"),
    (313, "finit_module"), (246, "kexec_load"), (169, "reboot"), (167, "swapon"), (323, "userfaultfd"),
    (304, "open_by_handle_at"), (425, "io_uring_setup"), (428, "open_tree"), (429, "move_mount"), (430, "fsopen"),
    (442, "mount_setattr"), (227, "clock_settime"), (163, "acct"),
)  # fmt: skip


def probe_tar(tmp_path: Path) -> bytes:
    """The root file system with a static program that makes each call with zeros and prints its errno; setuid root."""
    source = tmp_path / "probe.c"
    lines = "".join(f'  errno = 0; r = syscall({n}, 0x10000000L, 0, 0, 0, 0); printf("{name} %ld %d\\n", r, errno);\n'
                    for n, name in CALLS)  # fmt: skip
    source.write_text(
        "#define _GNU_SOURCE\n#include <stdio.h>\n#include <errno.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n"
        'int main(int c, char **v) { long r; if (c > 1) { printf("%d\\n", geteuid()); return 0; }\n'
        + lines
        + "  return 0; }\n"
    )
    built = subprocess.run(["gcc", "-static", "-O1", "-o", str(tmp_path / "probe"), str(source)], capture_output=True,
                           check=False)  # fmt: skip
    if built.returncode != 0:
        pytest.skip("missing: a C compiler with a static libc")
    raw = io.BytesIO(rootfs_tar())
    with tarfile.open(fileobj=raw, mode="a") as tar:
        info = tarfile.TarInfo("bin/probe")
        data = (tmp_path / "probe").read_bytes()
        info.size, info.mode = len(data), 0o4755
        tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def test_system_calls_that_no_container_needs(site: Site, tmp_path: Path) -> None:
    archive = tmp_path / "probe.tar"
    archive.write_bytes(probe_tar(tmp_path))
    assert site("image", "import", "--format", "rootfs", str(archive), "probe:1").returncode == 0
    try:
        done = site("run", "--rm", "probe:1", "/bin/probe")
        answers = {name: (int(result), int(number)) for name, result, number in
                   (line.split() for line in done.stdout.decode().splitlines())}  # fmt: skip
        assert set(answers) == {name for _, name in CALLS}, done
        let_through = {name: answer for name, answer in answers.items() if answer[0] >= 0 or answer[1] not in (1, 38)}
        assert not let_through, let_through
        # A setuid binary of root gives nothing to a user who runs it: no_new_privs.
        assert site("run", "--rm", "-u", "1000", "probe:1", "/bin/probe", "x").stdout == b"1000\n"
        lent = site(
            "run", "--rm", "-u", "1000", "--security-opt", "no-new-privileges:false", "probe:1", "/bin/probe", "x"
        )
        assert lent.stdout == b"0\n", "without it the same binary works: the test can fail"
    finally:
        assert site("rmi", "probe:1").returncode == 0


@pytest.mark.parametrize(
    "path",
    ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats", "/sys/firmware",
     "/proc/acpi", "/proc/scsi", "/proc/interrupts"],
)  # fmt: skip
def test_masked_paths_show_nothing(site: Site, path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"missing: {path} on this kernel")
    assert inside(site, f"if [ -d {path} ]; then ls {path}; else head -c 100 {path} 2>/dev/null; fi | wc -c") == ["0"]


def test_what_is_read_only(site: Site) -> None:
    places = ("/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/proc/irq/x",
              "/proc/bus/x", "/proc/fs/x", "/sys/kernel/x",
              "/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/pids/x", "/sys/class/x")  # fmt: skip
    script = "".join(f"(echo 1 > {place}) 2>/dev/null && echo {place}; mkdir {place}d 2>/dev/null && echo {place}d;"
                     for place in places)  # fmt: skip
    assert inside(site, script + "echo end") == ["end"]


def test_it_sees_itself_only(site: Site) -> None:
    pids, one, host, devices = inside(
        site, "ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; hostname; ls /dev | tr '\\n' ' '", "-h", "inner"
    )
    assert int(pids) <= 6
    assert one in ("sh", "init")
    assert host == "inner"
    assert not set(devices.split()) & {"sda", "vda", "mem", "kmem", "loop0", "loop-control", "kvm", "fuse", "kmsg"}


def test_capabilities_are_cut(site: Site) -> None:
    [line] = inside(site, "grep CapEff /proc/self/status")
    effective = int(line.split()[1], 16)
    forbidden = {"SYS_ADMIN": 21, "SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_PTRACE": 19, "SYS_BOOT": 22, "SYS_TIME": 25,
                 "NET_ADMIN": 12, "MAC_ADMIN": 33, "SYSLOG": 34, "BPF": 39, "DAC_READ_SEARCH": 2}  # fmt: skip
    assert not [name for name, bit in forbidden.items() if effective >> bit & 1]
    [line] = inside(site, "grep CapEff /proc/self/status", "--cap-drop", "ALL")
    assert int(line.split()[1], 16) == 0
    [line] = inside(site, "grep CapEff /proc/self/status", "--privileged")
    assert effective < int(line.split()[1], 16), "the test can fail"


def test_root_of_the_container_is_nobody_to_the_host(site: Site, tmp_path: Path) -> None:
    """Even privileged: the user namespace stays. A file of the host's root in a granted bind is not its to change."""
    outer = inside(site, "cat /proc/self/uid_map", "--privileged")[0].split()
    assert int(outer[1]) >= 100_000
    assert int(outer[2]) == 65_536
    secret = site.folder / "shadow"
    secret.write_text("host\n")
    secret.chmod(0o600)
    done = site("run", "--rm", "--privileged", IMAGE, "sh", "-c", "mknod /d b 254 0 && cat /d")
    assert done.returncode != 0, "no device of the host can be made and opened"
    secret.unlink()


def test_init_reaps(site: Site) -> None:
    orphans = "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done; exec 3>/zombies; sleep 0.5; "
    count = "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"
    assert inside(site, orphans + count, "--init") == ["0"]
    # A first process that does not reap keeps them: the test can fail.
    site("run", "-d", "--name", "keeper", IMAGE, "sh", "-c", "(sleep 0.05 &) ; exec sleep 1000")
    try:
        assert settle(lambda: site("exec", "keeper", "sh", "-c", count).stdout == b"1\n")
    finally:
        site("rm", "-f", "keeper")


def test_limits_change_while_it_runs(site: Site) -> None:
    site("run", "-d", "--name", "live", "-m", "64m", "--pids-limit", "50", IMAGE, "sleep", "1000")

    def seen() -> list[bytes]:
        show = ("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; "
                "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; "
                "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null")  # fmt: skip
        return site("exec", "live", "sh", "-c", show).stdout.split()

    try:
        assert seen()[:2] == [b"%d" % (64 << 20), b"50"]
        done = site("update", "-m", "128m", "--memory-swap", "128m", "--pids-limit", "70", "--cpus", "0.5", "live")
        assert done.returncode == 0, done.stderr
        assert seen()[:3] == [b"%d" % (128 << 20), b"70", b"50000"]
        assert site("update", "--cpus", "1.5", "live").returncode == 0
        assert seen()[:3] == [b"%d" % (128 << 20), b"70", b"150000"], "what was not named stays"
        assert site("restart", "-t", "0", "live").returncode == 0
        assert settle(lambda: seen()[:3] == [b"%d" % (128 << 20), b"70", b"150000"]), "and holds over a restart"
    finally:
        site("rm", "-f", "live")


def test_a_limit_above_the_hosts_is_lowered_and_said(site: Site) -> None:
    """Without CAP_SYS_RESOURCE a limit cannot be raised above the host's; with it, it is as asked."""
    done = site("run", "--rm", "--ulimit", "nofile=9999999:9999999", IMAGE, "sh", "-c", "ulimit -Hn")
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() != b"9999999":
        assert b"warning: " in done.stderr, "lowered without a warning"
        assert b"nofile" in done.stderr, "lowered without a warning"
        detached = site("run", "-d", "--name", "low", "--ulimit", "nofile=9999999:9999999", IMAGE, "true")
        assert b"nofile" in detached.stderr, detached
        site("rm", "-f", "low")
