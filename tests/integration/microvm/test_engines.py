"""casemate-vm below Debian's Podman, Docker and containerd, and below Kubernetes' CRI: not one of them is changed.

The four are asked the same things: output, exit codes, standard input, a terminal, exec, a volume both ways, a
published port, stop and kill, and that nothing is left; all that with clones, and then once with a machine that waits.
Each test has its engine for itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cri
import engines
import harness
import pytest

pytestmark = pytest.mark.root

SERVE = "echo up; while true; do echo served by $(hostname) | nc -l -p 8080; done"

CAP_SYS_ADMIN = 21  # linux/capability.h

#: A server that sees the end of our input before it has read its own answers nothing: asked until it does.
ASK = 'for i in $(seq 40); do x=$(nc 127.0.0.1 8080 </dev/null) && [ "$x" ] && break; sleep 0.2; done; echo "$x"'


@pytest.fixture
def at(host: harness.Host) -> Iterator[engines.Place]:
    # Beside the machines' folder, whose name is short: sockets' names have at most 107 bytes.
    folder = Path(f"{host.folder}-e")
    folder.mkdir()
    try:
        with engines.place(folder, host) as made:
            yield made
        assert host.machines is not None
        assert [one.record for one in host.machines.all()] == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None and not Path(program).exists():
            pytest.skip(f"missing: {program}")


def judge(at: engines.Place, run: Callable[..., object], flags: list[str], network: list[str]) -> None:
    """What Podman's and Docker's command lines have in common."""

    def ask(*words: str, stdin: str | None = None) -> tuple[int, str, str]:
        done = run(*words, stdin=stdin)
        return done.returncode, done.stdout, done.stderr  # type: ignore[attr-defined]

    start = ["run", *flags]
    code, out, err = ask(
        *start, "--rm", *network, engines.IMAGE, "sh", "-c", "echo out; echo err >&2; uname -r; exit 7"
    )
    assert code == 7, err
    assert out.split("\n")[0] == "out"
    assert "err" in err
    # The kernel is the guest's.
    assert out.split("\n")[1] != Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert ask(*start, "--rm", "-i", *network, engines.IMAGE, "cat", stdin="through\n")[1] == "through\n"
    code, _, err = ask(*start, "--rm", *network, engines.IMAGE, "no-such-program")
    assert (code, "executable file not found" in err) == (127, True), err
    assert ask(*start, "--rm", *network, engines.IMAGE, "/etc/passwd")[0] == 126
    # With every device of the host by its number: each is the guest's own of that number, where it has one.
    code, out, err = ask(*start, "--rm", "--privileged", *network, engines.IMAGE, "grep", "CapEff", "/proc/self/status")
    assert code == 0, err
    assert int(out.split()[1], 16) >> CAP_SYS_ADMIN & 1, out
    words = [*run.words, "run", *flags, "--rm", "-it", *network, engines.IMAGE]  # type: ignore[attr-defined]
    code, shown = at.at_a_terminal(*words, "sh", "-c", "tty; sleep 1; stty size; exit 5")
    assert code == 5, shown
    assert "/dev/pts/0" in shown
    assert "31 77" in shown
    volume = at.folder / "volume"
    volume.mkdir()
    (volume / "from-host").write_text("host\n")
    more = ["-d", "--name", "life", "-p", "127.0.0.1:18090:8080", "-v", f"{volume}:/data", "-v", f"{volume}:/fixed:ro"]
    more += ["--hostname", "lively", "--read-only", "--tmpfs", "/scratch", "--env", "ONE=1", "--workdir", "/tmp"]
    more += ["--ulimit", "nofile=200:300", "--cap-drop", "all", "--user", "33:33", "--pids-limit", "50", *network]
    code, out, err = ask(*start, *more, engines.IMAGE, "sh", "-c", SERVE)
    assert code == 0, err
    script = "id -u; echo $ONE; pwd; ulimit -n; cat /data/from-host; touch /x; echo s > /scratch/s || exit 99; exit 3"
    code, out, err = ask("exec", "life", "sh", "-c", script)
    assert code == 3, err
    assert out.split() == ["33", "1", "/tmp", "200", "host"]
    assert "Read-only" in err
    assert ask("exec", "--user", "0", "life", "sh", "-c", "echo guest > /data/from-guest")[0] == 0
    assert (volume / "from-guest").read_text() == "guest\n"
    assert ask("exec", "life", "sh", "-c", "echo x > /fixed/x")[0] != 0
    (volume / "later").write_text("later\n")
    assert ask("exec", "life", "cat", "/fixed/later")[1] == "later\n"
    assert ask("exec", "-i", "life", "cat", stdin="exec in")[1] == "exec in"
    code, shown = at.at_a_terminal(*run.words, "exec", "-it", "life", "sh", "-c", "tty; exit 4")  # type: ignore[attr-defined]
    assert (code, "/dev/pts/" in shown) == (4, True), shown
    assert at.fetch(18090) == "served by lively\n"
    assert "up" in ask("logs", "life")[1]
    assert ask("pause", "life")[0] == 0
    assert "aused" in ask("ps", "--all")[1]
    assert ask("unpause", "life")[0] == 0
    (at.folder / "copied").write_text("copied\n")
    assert ask("exec", "life", "cat", "/etc/kept")[1] == "of the image\n"
    assert ask("kill", "life")[0] == 0
    assert ask("wait", "life")[1].strip() == "137"
    assert ask("rm", "life")[0] == 0


def with_one_that_waits(at: engines.Place, run: Callable[..., object], *flags: str) -> None:
    """A container of Podman's or Docker's in the very machine that waited, its network taken over."""
    with at.host.waiting() as qemu:
        start = ["run", "-d", "--name", "waited", "-p", "127.0.0.1:18090:8080", "--hostname", "waited", *flags]
        made = run(*start, engines.IMAGE, "sh", "-c", SERVE)
        assert made.returncode == 0, made  # type: ignore[attr-defined]
        assert machines_of(at) == [qemu]
        assert at.fetch(18090) == "served by waited\n"
        assert run("rm", "--force", "waited").returncode == 0  # type: ignore[attr-defined]


def machines_of(at: engines.Place) -> list[int]:
    """The QEMU of each machine that is somebody's."""
    assert at.host.machines is not None
    return [one.record.qemu_pid for one in at.host.machines.all()]


def test_podman(at: engines.Place) -> None:
    need("podman", "conmon", "/usr/lib/cni/bridge")
    with engines.podman(at) as run:
        judge(at, run, [], [])
        # A pod of two: one machine, one network; the infra container is one of them.
        assert (
            run(
                "pod", "create", "--name", "two", "--infra-image", engines.IMAGE, "--infra-command", "/bin/pause"
            ).returncode
            == 0
        )
        one = run("run", "-d", "--pod", "two", "--name", "one", engines.IMAGE, "sh", "-c", SERVE)
        assert one.returncode == 0, one.stderr
        other = run("run", "--rm", "--pod", "two", engines.IMAGE, "sh", "-c", ASK)
        assert other.stdout == "served by two\n", other.stderr
        assert at.host.machines is not None
        assert len(at.host.machines.all()) == 1
        # The first to have come may go and come again: the machine is the pod's, not its.
        infra = run("ps", "--all", "--quiet", "--filter", "name=infra").stdout.strip()
        assert run("kill", infra).returncode == 0
        assert run("exec", "one", "hostname").stdout == "two\n"
        assert run("pod", "rm", "--force", "--time", "0", "two").returncode == 0
        # The process that stands for the container, and none of the host's; ps(1)'s own flags ask the guest.
        assert run("run", "-d", "--name", "topped", engines.IMAGE, "sleep", "1000").returncode == 0
        shown = run("top", "topped", "pid", "comm").stdout.split()
        assert shown == ["PID", "COMMAND", "1", "casemate-vm"]
        assert "sleep" in run("top", "topped", "-o", "pid,comm").stdout
        # Podman copies in the namespace of that process: where it can leave nothing, it says so.
        assert run("cp", "/etc/hostname", "topped:/etc/copied").returncode != 0
        assert run("rm", "--force", "--time", "0", "topped").returncode == 0
        # User namespaces of the engine's: what the guest's root writes is the mapped id's.
        volume = at.folder / "mapped"
        volume.mkdir()
        volume.chmod(0o777)
        mapped = ["--uidmap", "0:700000:65536", "--gidmap", "0:700000:65536", "--network", "none"]
        made = run(
            "run", "--rm", *mapped, "-v", f"{volume}:/data", engines.IMAGE, "sh", "-c", "echo x > /data/x; id -u"
        )
        assert made.stdout == "0\n", made.stderr
        assert (volume / "x").stat().st_uid == 700_000
        with_one_that_waits(at, run)


def test_docker(at: engines.Place) -> None:
    need("dockerd", "docker", "containerd", "iptables")
    with engines.dockerd(at) as run:
        judge(at, run, ["--runtime", "casemate"], ["--network", "cmt"])
        made = run(
            "run", "-d", "--name", "stays", "--runtime", "casemate", "--network", "none", engines.IMAGE, "sleep", "1000"
        )
        assert made.returncode == 0, made.stderr
        # What is written is in the engine's own layer: cp, diff and a second start know it.
        assert run("exec", "stays", "sh", "-c", "echo kept > /root/made").returncode == 0
        assert "A /root/made" in run("diff", "stays").stdout
        run("cp", "stays:/root/made", str(at.folder / "taken"))
        assert (at.folder / "taken").read_text() == "kept\n"
        stats = json.loads(run("stats", "--no-stream", "--format", "{{json .}}", "stays").stdout)
        assert 5 < float(stats["MemUsage"].split("MiB")[0]) < 200, stats
        assert "eth0: <BROADCAST>" in run("exec", "stays", "ip", "link").stdout
        assert run("restart", "--time", "0", "stays").returncode == 0
        assert run("exec", "stays", "cat", "/root/made").stdout == "kept\n"
        # Engines look the pid up among the host's processes: it is the waiter's, and nobody else's.
        shown = run("top", "stays", "-o", "pid,comm").stdout.split()
        assert shown == ["PID", "COMMAND", shown[2], "casemate-vm"]
        assert run("update", "--memory", "100m", "--memory-swap", "100m", "--pids-limit", "40", "stays").returncode == 0
        assert run("rm", "--force", "stays").returncode == 0
        names_by_the_engine(at, run)
        on_two_networks(at, run)
        with_one_that_waits(at, run, "--runtime", "casemate", "--network", "cmt")


def on_two_networks(at: engines.Place, run: engines.Run) -> None:
    """A network that is connected before the start is a card of the guest's, by its name and address there."""
    made = run("create", "--name", "both", "--runtime", "casemate", "--network", "cmt", engines.IMAGE, "sleep", "1000")
    assert made.returncode == 0, made
    assert run("network", "create", "--subnet", f"{at.subnet}.128/25", "cmt2").returncode == 0
    try:
        assert run("network", "connect", "cmt2", "both").returncode == 0
        started = run("start", "both")
        assert started.returncode == 0, started
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        addresses = run("inspect", "--format", form, "both").stdout.split()
        shown = [run("exec", "both", "ip", "addr", "show", name).stdout for name in ("eth0", "eth1")]
        found = [any(f"inet {one}/" in text for text in shown) for one in addresses]
        assert found == [True, True], (addresses, shown)
    finally:
        assert run("rm", "--force", "both").returncode == 0
        assert run("network", "rm", "cmt2").returncode == 0


def names_by_the_engine(at: engines.Place, run: engines.Run) -> None:
    """Docker's resolver listens at 127.0.0.11 of the namespace on the host; a guest has a loopback of its own."""
    start = ["run", "--runtime", "casemate", "--network", "cmt"]
    health = ["--health-cmd", "test -e /healthy || ! touch /healthy", "--health-interval", "1s"]
    assert run(*start, "-d", "--name", "peer", *health, engines.IMAGE, "sleep", "1000").returncode == 0
    found = run("inspect", "--format", "{{.NetworkSettings.Networks.cmt.IPAddress}}", "peer").stdout.strip()
    script = "busybox nslookup peer | tail -n +3; ping -c 1 -W 5 peer; busybox nslookup no-such-name. || echo none"
    done = run(*start, "--rm", engines.IMAGE, "sh", "-c", script)
    assert f"Address: {found}" in done.stdout, done
    assert "1 packets received" in done.stdout, done
    assert done.stdout.endswith("none\n"), done
    engines.until(
        lambda: run("inspect", "--format", "{{.State.Health.Status}}", "peer").stdout.strip() == "healthy", "healthy"
    )
    assert run("rm", "--force", "peer").returncode == 0
    pids = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    left = [pid for pid in pids if engines.words_of(pid)[:2] == [bytes(at.host.shim), b"resolver"]]
    assert left == []


def test_containerd(at: engines.Place) -> None:
    need("containerd", "ctr", "containerd-shim-runc-v2")
    with engines.containerd(at) as own:
        archive = engines.oci_archive(own, engines.IMAGE, ["/bin/sh"])
        ctr = ["ctr", "-a", own / "sock"]
        assert at.run(*ctr, "images", "import", archive).returncode == 0
        start = [*ctr, "run", "--runtime", "io.containerd.runc.v2", "--runc-binary", at.runtime]
        done = at.run(
            *start, "--rm", engines.IMAGE, "one", "sh", "-c", "echo out; read x; echo $x; exit 6", stdin="in\n"
        )
        assert (done.returncode, done.stdout) == (6, "out\nin\n"), done.stderr
        code, shown = at.at_a_terminal(*start, "--rm", "-t", engines.IMAGE, "tty", "sh", "-c", "tty; exit 3")
        assert (code, "/dev/pts/0" in shown) == (3, True), shown
        volume = at.folder / "volume"
        volume.mkdir()
        bind = f"type=bind,src={volume},dst=/data,options=rbind:rw"
        done = at.run(*start, "-d", "--mount", bind, engines.IMAGE, "life", "sleep", "1000")
        assert done.returncode == 0, done.stderr
        task = [*ctr, "task"]
        done = at.run(*task, "exec", "--exec-id", "x", "life", "sh", "-c", "echo guest > /data/x; exit 9")
        assert done.returncode == 9, done.stderr
        assert (volume / "x").read_text() == "guest\n"
        assert at.run(*task, "pause", "life").returncode == 0
        assert "PAUSED" in at.run(*task, "ls").stdout
        assert at.run(*task, "resume", "life").returncode == 0
        figures = at.run(*task, "metrics", "life").stdout
        assert "memory.usage_in_bytes" in figures or "memory.usage" in figures
        assert at.run(*task, "kill", "-s", "KILL", "life").returncode == 0
        engines.until(lambda: "STOPPED" in at.run(*task, "ls").stdout, "the task does not stop")
        assert at.run(*task, "rm", "life").returncode in (0, 137)
        assert at.run(*ctr, "container", "rm", "life").returncode == 0
        with at.host.waiting() as qemu:
            assert at.run(*start, "-d", engines.IMAGE, "waited", "sleep", "1000").returncode == 0
            assert machines_of(at) == [qemu]
            assert at.run(*task, "exec", "--exec-id", "y", "waited", "cat", "/etc/kept").stdout == "of the image\n"
            assert at.run(*task, "rm", "--force", "waited").returncode in (0, 137)
            assert at.run(*ctr, "container", "rm", "waited").returncode == 0


def test_kubernetes_cri(at: engines.Place) -> None:
    """A pod of two containers by the runtime handler: one machine, one network, a published port, logs, exec."""
    need("containerd", "ctr", "curl", "/usr/lib/cni/portmap")
    with engines.containerd(at) as own:
        ctr, socket = ["ctr", "-a", own / "sock", "-n", "k8s.io"], own / "sock"
        for name, command in ((engines.IMAGE, ["/bin/sh"]), ("localhost/pause:1", ["/bin/sleep", "100000"])):
            assert at.run(*ctr, "images", "import", engines.oci_archive(own, name, command)).returncode == 0
        f = cri.field
        port = f(2, 8080) + f(3, 18091) + f(4, "127.0.0.1")
        meta = f(1, "pod") + f(2, "uid") + f(3, "default")
        sandbox = f(1, meta) + f(2, "pod-host") + f(3, str(own / "logs")) + f(5, port)

        def sandboxed() -> str:
            return cri.text(cri.call(socket, "RuntimeService/RunPodSandbox", f(1, sandbox) + f(2, "casemate")), 1)

        def removed() -> None:
            cri.call(socket, "RuntimeService/StopPodSandbox", f(1, pod))
            cri.call(socket, "RuntimeService/RemovePodSandbox", f(1, pod))

        def container(name: str, *command: str) -> str:
            config = f(1, f(1, name)) + f(2, f(1, engines.IMAGE)) + b"".join(f(3, word) for word in command)
            config += f(11, f"{name}.log")
            made = cri.call(socket, "RuntimeService/CreateContainer", f(1, pod) + f(2, config) + f(3, sandbox))
            cri.call(socket, "RuntimeService/StartContainer", f(1, cri.text(made, 1)))
            return cri.text(made, 1)

        pod = sandboxed()
        first, second = container("first", "sh", "-c", SERVE), container("second", "sleep", "1000")
        assert at.host.machines is not None
        assert len(at.host.machines.all()) == 1
        script = f"hostname; {ASK}; exit 3"
        words = b"".join(f(2, word) for word in ("sh", "-c", script))
        done = cri.call(socket, "RuntimeService/ExecSync", f(1, second) + words + f(3, 30))
        assert (cri.text(done, 1), done[3]) == ("pod-host\nserved by pod-host\n", [3])
        assert at.fetch(18091) == "served by pod-host\n"
        assert "stdout F up" in (own / "logs/first.log").read_text()
        for one in (first, second):
            cri.call(socket, "RuntimeService/StopContainer", f(1, one))
            status = cri.parse(cri.call(socket, "RuntimeService/ContainerStatus", f(1, one))[1][0])  # type: ignore[arg-type]
            # CONTAINER_EXITED, and its code.
            assert (status[3], status[7]) == ([2], [137])
            cri.call(socket, "RuntimeService/RemoveContainer", f(1, one))
        removed()
        with at.host.waiting() as qemu:
            pod = sandboxed()
            container("third", "sh", "-c", SERVE)
            assert machines_of(at) == [qemu]
            assert at.fetch(18091) == "served by pod-host\n"
            removed()
