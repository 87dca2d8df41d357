"""Pods, the network, and what fails."""

# ruff: noqa: E501 - a script and what it prints stand in one line

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.request
from collections.abc import Iterator

from tests.addresses import free_port
from tests.conformance.case import box_prints, case, run_prints
from tests.conformance.chamber import Chamber, until

SERVE = "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' | nc -l -p 80 >/dev/null; done"


@contextlib.contextmanager
def member(chamber: Chamber, pod: str, *flags: str, script: str = "sleep 100000") -> Iterator[str]:
    name = chamber.name()
    chamber.ok("run", "-d", "--name", name, "--pod", pod, *flags, chamber.image, "sh", "-c", script)
    try:
        yield name
    finally:
        chamber.cm("rm", "-f", name)


@case("pod.localhost", "containers of a pod meet on localhost")
def localhost(chamber: Chamber) -> None:
    with (
        chamber.pod() as pod,
        member(chamber, pod, script="echo through | nc -l -p 7000; sleep 100000"),
        member(chamber, pod) as two,
    ):
        until(lambda: chamber.cm("exec", two, "nc", "-w", "3", "127.0.0.1", "7000").stdout == b"through\n")


@case("pod.address", "they have one address")
def pod_address(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod) as one, member(chamber, pod) as two:
        show = ("ip", "-o", "-4", "addr")
        # gVisor names its interfaces in no order.
        both = [sorted(chamber.ok("exec", name, *show).split()) for name in (one, two)]
        assert both[0] == both[1]


@case("pod.hostname", "and one host name")
def pod_hostname(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod) as one, member(chamber, pod) as two:
        assert chamber.ok("exec", one, "hostname") == chamber.ok("exec", two, "hostname")


@case("pod.files", "files are each one's own")
def pod_files(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod) as one, member(chamber, pod) as two:
        chamber.ok("exec", one, "touch", "/data/x")
        assert chamber.cm("exec", two, "test", "-e", "/data/x").returncode == 1


@case("pod.processes", "so are processes")
def pod_processes(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod, script="sleep 77777") as one, member(chamber, pod) as two:
        assert chamber.ok("exec", one, "cat", "/proc/1/comm") == chamber.ok("exec", two, "cat", "/proc/1/comm")
        assert "77777" not in chamber.ok("exec", two, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")


@case("pod.one_ends", "the end of one is not the end of the other")
def one_ends(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod) as one, member(chamber, pod) as two:
        chamber.ok("kill", one)
        assert chamber.ok("wait", one) == "137"
        assert chamber.ok("exec", two, "echo", "alive") == "alive"


@case("pod.one_again", "one can be started anew beside the other")
def one_again(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod) as one, member(chamber, pod) as two:
        chamber.ok("restart", "-t", "0", one)
        assert chamber.ok("exec", one, "echo", "again") == "again"
        assert chamber.ok("exec", two, "echo", "alive") == "alive"


@case("pod.exit_codes", "exit codes are each one's own")
def exit_codes(chamber: Chamber) -> None:
    with (
        chamber.pod() as pod,
        member(chamber, pod, script="exit 3") as one,
        member(chamber, pod, script="exit 4") as two,
    ):
        assert (chamber.ok("wait", one), chamber.ok("wait", two)) == ("3", "4")


@case("pod.three", "three containers, one of which comes late")
def three(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod), member(chamber, pod), member(chamber, pod) as late:
        assert chamber.ok("exec", late, "echo", "here") == "here"


@case("pod.stop_and_start", "pod stop, pod start")
def stop_and_start(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod) as one, member(chamber, pod) as two:
        chamber.ok("pod", "stop", "-t", "0", pod)
        assert {chamber.state(one), chamber.state(two)} == {"exited"}
        chamber.ok("pod", "start", pod)
        assert {chamber.state(one), chamber.state(two)} == {"running"}


@case("pod.remove", "pod rm -f takes all")
def pod_remove(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod) as one:
        chamber.ok("pod", "rm", "-f", pod)
        assert chamber.cm("inspect", one).returncode != 0


@case("pod.volume", "a volume between two containers of a pod")
def pod_volume(chamber: Chamber) -> None:
    with chamber.volume() as volume, chamber.pod() as pod, contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(member(chamber, pod, "-v", f"{volume}:/v")) for _ in range(2))
        chamber.ok("exec", one, "sh", "-c", "echo x > /v/x")
        until(lambda: chamber.cm("exec", two, "cat", "/v/x").stdout == b"x\n")


@case("pod.limit_of_one", "one container's memory limit is its own")
def limit_of_one(chamber: Chamber) -> None:
    eat = "exec dd if=/dev/zero of=/dev/null bs=80M count=1"
    with chamber.pod() as pod, member(chamber, pod) as other:
        with member(chamber, pod, "-m", "24m", "--memory-swap", "24m", script=eat) as greedy:
            assert chamber.ok("wait", greedy) == "137"
        assert chamber.ok("exec", other, "echo", "alive") == "alive"


@case("pod.same_name", "two containers of one name are refused")
def same_name(chamber: Chamber) -> None:
    with chamber.pod() as pod, member(chamber, pod) as one:
        done = chamber.cm("run", "-d", "--name", one, "--pod", pod, chamber.image, "true")
        assert done.returncode == 125, done


box_prints("network.loopback", "localhost", "ip -o -4 addr show lo | grep -c 127.0.0.1/8", "1")
box_prints("network.route", "a default route", "ip route | grep -c ^default", "1")
box_prints("network.mtu", "an MTU that suffices",
           "m=$(cat /sys/class/net/eth0/mtu 2>/dev/null || ip -o link show eth0 | sed 's/.*mtu \\([0-9]*\\).*/\\1/'); [ $m -ge 1280 ] && echo yes",
           "yes")  # fmt: skip
box_prints(
    "network.own_ports",
    "a port below 1024 can be listened on",
    "(nc -l -p 81 & p=$!; sleep 0.2; kill $p && echo yes)",
    "yes",
)
run_prints("network.none", "--network none: nothing but lo", "ls /sys/class/net 2>/dev/null || ip -o link | cut -d: -f2 | tr -d ' '", "lo",
           ("--network", "none"))  # fmt: skip
run_prints(
    "network.sysctl",
    "--sysctl",
    "cat /proc/sys/net/ipv4/ip_default_ttl",
    "99",
    ("--sysctl", "net.ipv4.ip_default_ttl=99"),
)


@case("network.address", "the address is what inspect says")
def address(chamber: Chamber) -> None:
    assert f" {chamber.address(chamber.box)}/" in chamber.ok("exec", chamber.box, "ip", "-o", "-4", "addr")


@case("network.tcp", "from one container to another")
def tcp(chamber: Chamber) -> None:
    with chamber.started(script="while :; do echo through | nc -l -p 7000; done") as server:
        where = chamber.address(server)
        until(lambda: chamber.cm("exec", chamber.box, "nc", "-w", "3", where, "7000").stdout == b"through\n")


@case("network.ping", "ping, with NET_RAW")
def ping(chamber: Chamber) -> None:
    with chamber.started() as other, chamber.started("--cap-add", "NET_RAW") as one:
        where = chamber.address(other)
        until(lambda: chamber.cm("exec", one, "ping", "-c", "1", "-W", "2", where).returncode == 0)


@case("network.same_port", "two containers listen on one port")
def same_port(chamber: Chamber) -> None:
    script = "while :; do hostname | nc -l -p 80; done"
    with chamber.started("-h", "one", script=script) as one, chamber.started("-h", "two", script=script) as two:
        for name, wanted in ((one, b"one\n"), (two, b"two\n")):
            where = chamber.address(name)
            until(lambda w=where, t=wanted: chamber.exec(script=f"nc -w 3 {w} 80").stdout == t)  # type: ignore[misc]


@case("network.published", "-p: from the host")
def published(chamber: Chamber) -> None:
    port = free_port()
    with chamber.started("-p", f"127.0.0.1:{port}:80", script=SERVE):

        def answers() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=3) as answer:
                return bool(answer.read() == b"hello")
            return False

        until(answers)


@case("network.port_command", "port prints what is published")
def port_command(chamber: Chamber) -> None:
    port = free_port()
    with chamber.started("-p", f"127.0.0.1:{port}:80") as name:
        assert f"127.0.0.1:{port}" in chamber.ok("port", name)


@case("network.closed_after", "a published port is closed when its container has gone")
def closed_after(chamber: Chamber) -> None:
    port = free_port()
    with chamber.started("-p", f"127.0.0.1:{port}:80", script=SERVE):
        pass
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 3):
        raise AssertionError("somebody answers")


@case("network.stays", "a connection that is open stays open")
def stays(chamber: Chamber) -> None:
    with chamber.started(script="while :; do cat /etc/hostname - | nc -l -p 7000; done") as server:
        where = chamber.address(server)
        script = f"(sleep 1; echo x) | nc -w 5 {where} 7000 | wc -c"
        until(lambda: chamber.exec(script=script).returncode == 0)


@case("failure.image_absent", "an image that is not there: nothing is made")
def image_absent(chamber: Chamber) -> None:
    done = chamber.cm("run", "--rm", *chamber.level_flags, "--pull", "never", "no-such-image", "true")
    assert done.returncode == 125
    assert chamber.ok("ps", "-aq", "--filter", "ancestor=no-such-image") == ""


@case("failure.bind_missing", "a folder that is not there")
def bind_missing(chamber: Chamber) -> None:
    argv = (
        "run",
        "--rm",
        *chamber.level_flags,
        "--mount",
        "type=bind,source=/no/such/folder,target=/b",
        chamber.image,
        "true",
    )
    done = chamber.cm(*argv)
    assert done.returncode == 125
    assert b"/no/such/folder" in done.stderr, done


@case("failure.unknown_user", "a user that is not there")
def unknown_user(chamber: Chamber) -> None:
    assert chamber.run("-u", "nobody-there", script="true").returncode in (125, 126)


@case("failure.name_taken", "a name that is taken")
def name_taken(chamber: Chamber) -> None:
    with chamber.started() as name:
        assert chamber.cm("create", "--name", name, *chamber.level_flags, chamber.image).returncode in (1, 125)


@case("failure.remove_running", "rm of what runs is refused without -f")
def remove_running(chamber: Chamber) -> None:
    with chamber.started() as name:
        assert chamber.cm("rm", name).returncode != 0
        assert chamber.state(name) == "running"


@case("failure.starts_again", "what could not start can be started when the cause is gone")
def starts_again(chamber: Chamber) -> None:
    with chamber.made(script="test -e /data/x") as name:
        assert chamber.cm("start", "-a", name).returncode == 1
        (chamber.folder / "x").write_text("x")
        chamber.ok("cp", str(chamber.folder / "x"), f"{name}:/data/x")
        assert chamber.cm("start", "-a", name).returncode == 0


@case("failure.not_found_leaves_nothing", "a command that is not there leaves nothing behind")
def not_found_leaves_nothing(chamber: Chamber) -> None:
    before = chamber.ok("ps", "-aq")
    chamber.cm("run", "--rm", *chamber.level_flags, chamber.image, "no-such-program")
    assert chamber.ok("ps", "-aq") == before


@case("failure.supervisor_killed", "its supervisor is killed: the state is told, nothing hangs")
def supervisor_killed(chamber: Chamber) -> None:
    with chamber.started() as name:
        chamber.kill_host_process(chamber.inspect(name)["State"]["Pid"])
        until(lambda: chamber.state(name) in ("exited", "dead"))
        assert json.loads(chamber.ok("inspect", name))[0]["State"]["ExitCode"] != 0


@case("failure.twenty", "twenty starts, one after another, and no more is left than before")
def twenty(chamber: Chamber) -> None:
    before = chamber.ok("ps", "-aq")
    start = time.monotonic()
    for _ in range(20):
        assert chamber.run(script="true").returncode == 0
    assert time.monotonic() - start < 60
    assert chamber.ok("ps", "-aq") == before
