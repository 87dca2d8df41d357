"""exec, and terminals."""

from __future__ import annotations

import os
import signal
import time

from tests.conformance.case import box_prints, case
from tests.conformance.chamber import Chamber, until

box_prints("exec.exit_code", "the exit code is the command's", "exit 33", "", code=33)
box_prints("exec.environment", "exec -e", "echo $A", "given", ("-e", "A=given"))
box_prints("exec.workdir", "exec -w", "pwd", "/home/app", ("-w", "/home/app"))
box_prints("exec.sees_process_1", "process 1 is the container's", "cat /proc/1/comm", "sleep")
box_prints("exec.not_process_1", "the exec is not process 1", "[ $$ -gt 1 ] && echo yes", "yes")
box_prints("exec.no_terminal", "without -t there is no terminal", "tty", "not a tty", code=1)
box_prints("exec.fork", "processes of its own", "(echo a; echo b) | wc -l", "2")


@case("exec.not_found", "a command that is not there")
def not_found(chamber: Chamber) -> None:
    assert chamber.cm("exec", chamber.box, "no-such-program").returncode == 127


@case("exec.not_executable", "a file that is no program")
def not_executable(chamber: Chamber) -> None:
    assert chamber.cm("exec", chamber.box, "/etc/passwd").returncode == 126


@case("exec.outputs", "standard output and error are two")
def outputs(chamber: Chamber) -> None:
    done = chamber.exec(script="echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


box_prints("exec.dev_stdout", "/dev/stdout can be opened", "echo also > /dev/stdout; echo err > /dev/stderr", "also")

box_prints(
    "exec.dev_stdout_user",
    "and so by another user than root",
    "echo also > /dev/stdout; echo err > /dev/stderr; id -u",
    r"also\s1234",
    ("-u", "1234:1234"),
)


@case("exec.dev_stdin", "and /dev/stdin")
def dev_stdin(chamber: Chamber) -> None:
    done = chamber.cm("exec", "-i", "-u", "1234", chamber.box, "sh", "-c", "cat < /dev/stdin", stdin=b"given")
    assert done.stdout == b"given", done


@case("exec.stdin", "exec -i")
def stdin(chamber: Chamber) -> None:
    data = os.urandom(200_000)
    assert chamber.cm("exec", "-i", chamber.box, "cat", stdin=data).stdout == data


@case("exec.files", "it has the container's files")
def files(chamber: Chamber) -> None:
    with chamber.started() as name:
        chamber.ok("exec", name, "sh", "-c", "echo x > /data/x")
        assert chamber.ok("exec", name, "cat", "/data/x") == "x"


@case("exec.ten", "ten, one after another")
def ten(chamber: Chamber) -> None:
    assert [chamber.exec(script=f"exit {n}").returncode for n in range(10)] == list(range(10))


@case("exec.at_once", "four at a time")
def at_once(chamber: Chamber) -> None:
    running = [chamber.begin("exec", chamber.box, "sh", "-c", f"sleep 0.2; echo {n}; exit {n}") for n in range(4)]
    for number, process in enumerate(running):
        out, _ = process.communicate(timeout=30)
        assert (out, process.returncode) == (f"{number}\n".encode(), number)


@case("exec.detached", "exec -d")
def detached(chamber: Chamber) -> None:
    with chamber.started() as name:
        chamber.ok("exec", "-d", name, "sh", "-c", "echo later > /data/x")
        until(lambda: chamber.cm("exec", name, "cat", "/data/x").stdout == b"later\n")


@case("exec.not_running", "in what has ended it is refused")
def not_running(chamber: Chamber) -> None:
    with chamber.started(script="true") as name:
        chamber.ok("wait", name)
        done = chamber.cm("exec", name, "true")
        assert done.returncode not in (0, 127), done


@case("exec.ends_with_container", "it ends with the container")
def ends_with_container(chamber: Chamber) -> None:
    with chamber.started(script="echo ready; sleep 100000") as name:
        running = chamber.begin("exec", name, "sh", "-c", "echo in; sleep 100000")
        assert running.stdout
        assert running.stdout.readline() == b"in\n"
        chamber.ok("kill", name)
        assert running.wait(20) != 0
        running.communicate()


@case("exec.user_limits", "the container's rlimits hold in an exec")
def user_limits(chamber: Chamber) -> None:
    with chamber.started("--ulimit", "nofile=99:99") as name:
        assert chamber.ok("exec", name, "sh", "-c", "ulimit -n") == "99"


@case("exec.capabilities", "so do its capabilities")
def capabilities(chamber: Chamber) -> None:
    with chamber.started("--cap-drop", "ALL") as name:
        assert chamber.ok("exec", name, "grep", "CapEff", "/proc/self/status").split()[1].strip("0") == ""


@case("exec.environment_of_container", "so does its environment")
def environment_of_container(chamber: Chamber) -> None:
    with chamber.started("-e", "OWN=kept") as name:
        assert chamber.ok("exec", name, "sh", "-c", "echo $OWN") == "kept"


def shell(chamber: Chamber) -> tuple[str, ...]:
    return ("run", "-it", "--rm", *chamber.level_flags, chamber.image, "sh")


@case("tty.is_one", "-it: a terminal, and it ends with exit")
def is_one(chamber: Chamber) -> None:
    terminal = chamber.terminal(*shell(chamber))
    terminal.until(b"# ")
    terminal.type(b"[ -t 0 ] && [ -t 1 ] && stty size && echo t''ty\n")
    terminal.until(b"33 99")
    terminal.until(b"tty\r\n")
    terminal.type(b"exit 4\n")
    assert terminal.finish() == 4


@case("tty.size", "it has the size of the caller's")
def size(chamber: Chamber) -> None:
    terminal = chamber.terminal(*shell(chamber))
    terminal.until(b"# ")
    terminal.type(b"stty size\n")
    terminal.until(b"33 99")
    terminal.type(b"exit\n")
    assert terminal.finish() == 0


@case("tty.resize", "and follows it")
def resize(chamber: Chamber) -> None:
    terminal = chamber.terminal(*shell(chamber))
    terminal.until(b"# ")
    terminal.type(b"stty size\r")
    terminal.until(b"33 99")
    terminal.resize(44, 101)
    terminal.process.send_signal(signal.SIGWINCH)
    time.sleep(0.5)  # the shell hears of it a moment later
    terminal.type(b"stty size\r")
    terminal.until(b"44 101")
    terminal.type(b"exit\r")
    assert terminal.finish() == 0


@case("tty.interrupt", "control-C interrupts")
def interrupt(chamber: Chamber) -> None:
    terminal = chamber.terminal(*shell(chamber))
    terminal.until(b"# ")
    terminal.type(b"sleep 1000\n")
    time.sleep(0.5)
    terminal.seen = b""
    terminal.type(b"\x03")
    terminal.until(b"# ")
    terminal.type(b"exit 5\n")
    assert terminal.finish() == 5


@case("tty.end_of_file", "control-D ends a shell")
def end_of_file(chamber: Chamber) -> None:
    terminal = chamber.terminal(*shell(chamber))
    terminal.until(b"# ")
    terminal.type(b"\x04")
    assert terminal.finish() == 0


@case("tty.one_stream", "-t: both outputs are one, lines end in CR LF")
def one_stream(chamber: Chamber) -> None:
    done = chamber.run("-t", script="echo out; echo err >&2")
    assert done.stdout == b"out\r\nerr\r\n", done


@case("tty.exec", "exec -it")
def exec_it(chamber: Chamber) -> None:
    terminal = chamber.terminal("exec", "-it", chamber.box, "sh")
    terminal.until(b"# ")
    terminal.type(b"[ -t 0 ] && stty size\n")
    terminal.until(b"33 99")
    terminal.type(b"exit 6\n")
    assert terminal.finish() == 6


@case("tty.name", "the terminal has a name below /dev/pts")
def tty_name(chamber: Chamber) -> None:
    terminal = chamber.terminal("exec", "-it", chamber.box, "sh")
    terminal.until(b"# ")
    terminal.type(b"tty; exit 0\n")
    try:
        terminal.until(b"/dev/pts/")
    finally:
        terminal.finish()


@case("tty.detach", "control-P control-Q leaves it running")
def detach(chamber: Chamber) -> None:
    name = chamber.name()
    terminal = chamber.terminal("run", "-it", "--name", name, *chamber.level_flags, chamber.image, "sh")
    try:
        terminal.until(b"# ")
        terminal.type(b"\x10\x11")
        terminal.finish()
        assert chamber.state(name) == "running"
    finally:
        chamber.cm("rm", "-f", name)


@case("tty.attach", "attach comes back to it")
def attach(chamber: Chamber) -> None:
    name = chamber.name()
    chamber.ok("run", "-dit", "--name", name, *chamber.level_flags, chamber.image, "sh")
    try:
        terminal = chamber.terminal("attach", name)
        terminal.type(b"echo ba''ck\n")
        terminal.until(b"back")
        terminal.type(b"exit 3\n")
        assert terminal.finish() == 3
    finally:
        chamber.cm("rm", "-f", name)
