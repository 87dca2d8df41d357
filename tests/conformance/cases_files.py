"""The root file system, what is mounted in it, volumes, and files copied in and out."""

# ruff: noqa: E501 - a script and what it prints stand in one line

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path

from tests.conformance.case import box_prints, case, run_prints
from tests.conformance.chamber import TIMEOUT_S, Chamber, until

run_prints("mount.root_writable", "the root can be written", "echo x > /new; cat /new", "x")
run_prints("mount.read_only_root", "--read-only", "echo x > /new", "", ("--read-only",), code=1)
run_prints("mount.read_only_with_tmpfs", "--read-only with a --tmpfs", "echo x > /tmp/new; cat /tmp/new", "x",
           ("--read-only", "--tmpfs", "/tmp"))  # fmt: skip
run_prints("mount.read_only_dev_shm", "--read-only leaves /dev/shm", "echo x > /dev/shm/new; cat /dev/shm/new", "x",
           ("--read-only",))  # fmt: skip
run_prints("mount.tmpfs_size", "a --tmpfs is as large as was said", "dd if=/dev/zero of=/t/x bs=1M count=4 2>/dev/null; echo $?",
           "1", ("--tmpfs", "/t:size=1m"))  # fmt: skip
run_prints("mount.tmpfs_mode", "and has its mode", "stat -c %a /t", "700", ("--tmpfs", "/t:mode=700"))
run_prints("mount.tmpfs_noexec", "and runs nothing", "cp /bin/busybox /t/true; /t/true 2>/dev/null; echo $?", "126",
           ("--tmpfs", "/t"))  # fmt: skip
run_prints(
    "mount.tmpfs_nosuid", "and raises nobody", "grep ' /t ' /proc/mounts | grep -c nosuid", "1", ("--tmpfs", "/t")
)
run_prints(
    "mount.shm_size", "--shm-size", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", "8192", ("--shm-size", "8m")
)
run_prints("mount.removed_file", "a file of the image can be removed", "rm /etc/group; ls /etc/group 2>/dev/null; ls /etc | grep -c group",
           "0", code=1)  # fmt: skip
run_prints(
    "mount.changed_file", "and changed, for this container alone", "echo more >> /etc/group; tail -1 /etc/group", "more"
)
run_prints(
    "mount.renamed_folder",
    "a folder of the image can be renamed",
    "mv /home/app /home/b && ls -d /home/b && ls /home",
    "/home/b\nb",
)
run_prints(
    "mount.replaced_folder",
    "removed and made again it is empty",
    "cd /home; touch app/x; rm -r app; mkdir app; ls -A app | wc -l",
    "0",
)
run_prints(
    "mount.links", "hard and symbolic links", "echo x > /a; ln /a /b; ln -s a /c; cat /b /c; stat -c %h /a", "x\nx\n2"
)
run_prints("mount.fifo", "fifos", "mkfifo /f; (echo through > /f &); cat /f", "through")
run_prints(
    "mount.modes",
    "modes and owners",
    "touch /a; chmod 4711 /a; chown 3:4 /a; chmod 4711 /a; stat -c '%a %u:%g' /a",
    "4711 3:4",
)
run_prints("mount.times", "times", "touch -d '2001-02-03 04:05:06' /a; stat -c %Y /a", "981173106")
run_prints(
    "mount.sparse", "sparse files", "truncate -s 50M /a; stat -c %s /a; du -k /a | cut -f1", "52428800\n[0-9]{1,3}"
)
run_prints("mount.big_file", "twenty megabytes, read back", "dd if=/dev/zero of=/a bs=1M count=20 2>/dev/null; sha256sum < /a | cut -c1-16",
           "c1ff5c2bb0fd7f2c|[0-9a-f]{16}")  # fmt: skip
run_prints(
    "mount.many_files",
    "a thousand files",
    "mkdir /m; cd /m; i=0; while [ $i -lt 1000 ]; do : > f$i; i=$((i+1)); done; ls | wc -l",
    "1000",
)
run_prints(
    "mount.append",
    "appending by two",
    "for n in 1 2 3 4; do (for i in 1 2 3 4 5; do echo $n >> /a; done) & done; wait; wc -l < /a",
    "20",
)
box_prints(
    "mount.devices",
    "the devices that programs want",
    "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo $d; done",
    "",
)
box_prints("mount.dev_null", "/dev/null", "echo x > /dev/null; wc -c < /dev/null", "0")
box_prints("mount.dev_zero", "/dev/zero", "head -c 4 /dev/zero | od -An -tx1", " 00 00 00 00")
box_prints("mount.dev_full", "/dev/full", "echo x 2>/dev/null > /dev/full; echo $?", "1")
box_prints("mount.dev_fd", "/dev/fd and its kin", "echo through | cat /dev/fd/0", "through")
box_prints("mount.dev_pts", "a devpts of its own", "grep -c ' /dev/pts devpts' /proc/mounts", "1")
box_prints("mount.dev_shm", "/dev/shm is a tmpfs of 64 MiB", "grep -c ' /dev/shm tmpfs' /proc/mounts; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2",
           "1\n65536")  # fmt: skip
box_prints("mount.dev_mqueue", "/dev/mqueue", "grep -c ' /dev/mqueue mqueue' /proc/mounts", "1")
box_prints("mount.proc", "/proc is a proc", "grep -c ' /proc proc ' /proc/mounts", "1")
box_prints("mount.sysfs", "/sys is a sysfs", "grep -c ' /sys sysfs' /proc/mounts", "1")
box_prints("mount.cgroup", "/sys/fs/cgroup is there", "ls -d /sys/fs/cgroup", "/sys/fs/cgroup")
box_prints("mount.root", "mountinfo has one root", "cut -d' ' -f5 /proc/self/mountinfo | grep -c -x /", "1")
box_prints("mount.order", "mountinfo has the mounts in the bundle's order",
           "cut -d' ' -f5 /proc/self/mountinfo | grep -E '^/(proc|dev|dev/pts|dev/shm|sys)$' | tr '\\n' ' '",
           "/proc /dev /dev/pts /dev/shm /sys ?")  # fmt: skip
box_prints("mount.etc_hosts", "/etc/hosts names the container", "grep -c $(hostname) /etc/hosts", "1")
box_prints("mount.resolv_conf", "/etc/resolv.conf", "grep -c nameserver /etc/resolv.conf", "[1-9]")
run_prints(
    "mount.add_host", "--add-host", "grep -c '192.0.2.7.*other' /etc/hosts", "1", ("--add-host", "other:192.0.2.7")
)
run_prints("mount.dns", "--dns", "cat /etc/resolv.conf", ".*192\\.0\\.2\\.53.*", ("--dns", "192.0.2.53"))


run_prints("mount.dev_stdout", "/dev/stdout can be opened", "echo also > /dev/stdout; echo err > /dev/stderr", "also")


@case("volume.shared", "a named volume: what one wrote the next one reads")
def shared(chamber: Chamber) -> None:
    with chamber.volume() as volume:
        assert chamber.run("-v", f"{volume}:/v", script="echo kept > /v/x").returncode == 0
        assert chamber.run("-v", f"{volume}:/w", script="cat /w/x").stdout == b"kept\n"


@case("volume.at_once", "two containers at a time see each other's changes")
def at_once(chamber: Chamber) -> None:
    with (
        chamber.volume() as volume,
        chamber.started("-v", f"{volume}:/v") as one,
        chamber.started("-v", f"{volume}:/v") as two,
    ):
        chamber.ok("exec", one, "sh", "-c", "echo news > /v/x")
        until(lambda: chamber.cm("exec", two, "cat", "/v/x").stdout == b"news\n")


@case("volume.read_only", "a volume with :ro")
def read_only(chamber: Chamber) -> None:
    with chamber.volume() as volume:
        done = chamber.run("-v", f"{volume}:/v:ro", script="echo x > /v/x; echo $?; ls /v | wc -l")
        assert done.stdout == b"1\n0\n", done


@case("volume.copy_up", "an empty volume begins with the image's content")
def copy_up(chamber: Chamber) -> None:
    with chamber.volume() as volume:
        assert chamber.run("-v", f"{volume}:/etc", script="grep -c app /etc/passwd").stdout == b"1\n"


@case("volume.owner", "owners inside a volume are the container's own")
def owner(chamber: Chamber) -> None:
    with chamber.volume() as volume:
        chamber.run("-v", f"{volume}:/v", script="chmod 777 /v")
        chamber.run("-v", f"{volume}:/v", "-u", "app", script="touch /v/x")
        assert chamber.run("-v", f"{volume}:/v", script="stat -c '%u %g' /v/x").stdout == b"1000 1000\n"


@case("volume.survives", "a volume outlives its containers")
def survives(chamber: Chamber) -> None:
    with chamber.volume() as volume:
        with chamber.started("-v", f"{volume}:/v", script="echo x > /v/x; sync; sleep 100000") as name:
            until(lambda: chamber.cm("exec", name, "cat", "/v/x").stdout == b"x\n")
        assert chamber.run("-v", f"{volume}:/v", script="cat /v/x").stdout == b"x\n"


@case("volume.inside_another", "a tmpfs inside a volume")
def inside_another(chamber: Chamber) -> None:
    with chamber.volume() as volume:
        done = chamber.run(
            "-v", f"{volume}:/v", "--tmpfs", "/v/t", script="echo x > /v/t/x; cat /v/t/x; grep -c ' /v/t ' /proc/mounts"
        )
        assert done.stdout == b"x\n1\n", done
        assert chamber.run("-v", f"{volume}:/v", script="ls /v/t | wc -l").stdout == b"0\n"


@case("volume.mount_flag", "--mount type=volume")
def mount_flag(chamber: Chamber) -> None:
    with chamber.volume() as volume:
        assert (
            chamber.run("--mount", f"type=volume,source={volume},target=/v", script="echo x > /v/x; cat /v/x").stdout
            == b"x\n"
        )


@case("volume.large", "ten megabytes through a volume are the same")
def large(chamber: Chamber) -> None:
    with chamber.volume() as volume:
        wrote = chamber.run(
            "-v", f"{volume}:/v", script="dd if=/dev/urandom of=/v/x bs=1M count=10 2>/dev/null; sha256sum < /v/x"
        ).stdout
        assert wrote == chamber.run("-v", f"{volume}:/v", script="sha256sum < /v/x").stdout


def host_folder(chamber: Chamber) -> Path:
    folder = chamber.folder / "host"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "given").write_text("by the host\n")
    return folder


@case("bind.folder", "a folder of the host's: both see what the other writes")
def bind_folder(chamber: Chamber) -> None:
    folder = host_folder(chamber)
    done = chamber.run("-v", f"{folder}:/b", script="cat /b/given; echo answer > /b/taken")
    assert done.stdout == b"by the host\n", done
    assert (folder / "taken").read_text() == "answer\n"


@case("bind.read_only", "a folder of the host's with :ro")
def bind_read_only(chamber: Chamber) -> None:
    folder = host_folder(chamber)
    done = chamber.run("-v", f"{folder}:/b:ro", script="cat /b/given; echo x > /b/taken; echo $?")
    assert done.stdout == b"by the host\n1\n", done
    assert not (folder / "taken").exists()


@case("bind.file", "a file of the host's")
def bind_file(chamber: Chamber) -> None:
    file = host_folder(chamber) / "given"
    assert chamber.run("-v", f"{file}:/etc/given:ro", script="cat /etc/given").stdout == b"by the host\n"


@case("bind.live", "a change on the host is seen inside")
def bind_live(chamber: Chamber) -> None:
    folder = host_folder(chamber)
    with chamber.started("-v", f"{folder}:/b") as name:
        assert chamber.ok("exec", name, "cat", "/b/given") == "by the host"
        (folder / "given").write_text("another time\n")
        (folder / "fresh").write_text("new\n")
        until(lambda: chamber.cm("exec", name, "cat", "/b/given", "/b/fresh").stdout == b"another time\nnew\n")


@case("bind.no_way_out", "a link in a folder leads to the container's own files")
def bind_no_way_out(chamber: Chamber) -> None:
    folder = host_folder(chamber)
    (chamber.folder / "secret").write_text("of the host\n")
    os.symlink(chamber.folder / "secret", folder / "way")
    assert b"of the host" not in chamber.run("-v", f"{folder}:/b", script="cat /b/way; cat /b/../secret").stdout


@case("copy.in", "cp into a container that runs")
def copy_in(chamber: Chamber) -> None:
    (chamber.folder / "x").write_text("given\n")
    with chamber.started() as name:
        chamber.ok("cp", str(chamber.folder / "x"), f"{name}:/data/x")
        assert chamber.ok("exec", name, "cat", "/data/x") == "given"


@case("copy.out", "cp out of a container that runs")
def copy_out(chamber: Chamber) -> None:
    with chamber.started(script="echo made > /data/x; sleep 100000") as name:
        until(lambda: chamber.cm("exec", name, "cat", "/data/x").stdout == b"made\n")
        chamber.ok("cp", f"{name}:/data/x", str(chamber.folder / "x"))
        assert (chamber.folder / "x").read_text() == "made\n"


@case("copy.folder", "cp of a folder, there and back")
def copy_folder(chamber: Chamber) -> None:
    folder = chamber.folder / "d"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/x").write_text("x\n")
    os.symlink("deep/x", folder / "link")
    with chamber.started() as name:
        chamber.ok("cp", str(folder), f"{name}:/data/")
        assert chamber.ok("exec", name, "cat", "/data/d/link") == "x"
        chamber.ok("cp", f"{name}:/data/d", str(chamber.folder / "back"))
        assert (chamber.folder / "back/deep/x").read_text() == "x\n"
        assert (chamber.folder / "back/link").readlink() == Path("deep/x")


@case("copy.ended", "cp out of a container that has ended")
def copy_ended(chamber: Chamber) -> None:
    with chamber.started(script="echo last > /data/x") as name:
        chamber.ok("wait", name)
        chamber.ok("cp", f"{name}:/data/x", str(chamber.folder / "x"))
        assert (chamber.folder / "x").read_text() == "last\n"


@case("copy.slow", "cp that goes on when the container has ended, however slowly it is read")
def copy_slow(chamber: Chamber) -> None:
    with chamber.started(script="head -c 16000000 /dev/zero > /data/large") as name:
        chamber.ok("wait", name)
        copy = chamber.begin("cp", f"{name}:/data/large", "-")
        assert copy.stdout is not None
        try:
            head = copy.stdout.read(512)
            # Longer than what has ended is kept ready for its files.
            time.sleep(2)
            with tarfile.open(fileobj=io.BytesIO(head + copy.stdout.read())) as tar:
                assert [(one.name, one.size) for one in tar] == [("large", 16_000_000)]
            assert copy.wait(TIMEOUT_S) == 0, copy.stderr
        finally:
            copy.kill()
            copy.communicate()


@case("copy.diff", "diff lists what was added, changed and removed")
def copy_diff(chamber: Chamber) -> None:
    with chamber.started(script="echo x > /data/new; echo x >> /etc/passwd; rm /etc/group; sleep 100000") as name:
        until(lambda: chamber.cm("exec", name, "test", "-e", "/etc/group").returncode == 1)
        lines = set(chamber.ok("diff", name).splitlines())
        assert {"A /data/new", "C /etc/passwd", "D /etc/group"} <= lines, lines


@case("copy.export", "export is a tar of the files")
def copy_export(chamber: Chamber) -> None:
    with chamber.started(script="echo x > /data/new; sleep 100000") as name:
        until(lambda: chamber.cm("exec", name, "test", "-s", "/data/new").returncode == 0)
        done = chamber.cm("export", name)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            names = {member.name.removeprefix("./") for member in tar}
        assert {"data/new", "etc/passwd", "bin/busybox"} <= names, sorted(names)[:20]
