"""Processes: how they begin, what they are given, how they end."""

# ruff: noqa: E501 - a script and what it prints stand in one line

from __future__ import annotations

import hashlib
import os

from tests.conformance.case import box_prints, case, run_ends, run_prints
from tests.conformance.chamber import Chamber, until

run_ends("process.exit_0", "a command that succeeds", ("true",), 0)
run_ends("process.exit_42", "the exit code is the command's", ("sh", "-c", "exit 42"), 42)
run_ends("process.exit_255", "the largest exit code", ("sh", "-c", "exit 255"), 255)
run_ends("process.not_found", "a command that is not there", ("no-such-program",), 127)
run_ends("process.path_not_found", "a path that is not there", ("/no/such/program",), 127)
run_ends("process.not_executable", "a file that is no program", ("/etc/passwd",), 126)
run_ends("process.killed", "a command that a signal ends", ("sh", "-c", "kill -9 $$; sleep 5"), 137, ("--init",))
run_ends("process.terminated", "the same by TERM", ("sh", "-c", "kill -TERM $$; sleep 5"), 143, ("--init",))
run_prints("process.child_killed", "a child that a signal ends", 'sh -c "kill -TERM \\$\\$"; echo $?', "143")
run_prints("process.pid_1", "the command is process 1", "echo $$", "1")
run_prints("process.init", "--init: process 1 is an init", "cat /proc/1/comm", "catatonit|init", ("--init",))
run_prints("process.environment", "-e", 'echo "$A|$B"', "one\\|two words", ("-e", "A=one", "-e", "B=two words"))
run_prints("process.path", "the default PATH", "echo $PATH", ".*/usr/bin:.*")
run_prints("process.home", "HOME is the user's", "echo $HOME", "/root")
run_prints("process.home_of_user", "HOME of another user", "echo $HOME", "/home/app", ("-u", "app"))
run_prints("process.hostname", "-h", "hostname; cat /proc/sys/kernel/hostname", "chamber\nchamber", ("-h", "chamber"))
run_prints("process.workdir", "-w", "pwd; cd ..; pwd", "/home/app\n/home", ("-w", "/home/app"))
run_prints("process.workdir_made", "-w makes a folder that is missing", "pwd", "/made/here", ("-w", "/made/here"))
run_prints("process.nothing_leaks", "no variable of the host's", "env | cut -d= -f1 | grep -c .", "[2-8]")
run_prints("process.stdin_empty", "without -i standard input is empty", "cat | wc -c", "0")
run_prints("process.umask", "the umask", "umask", "0022")
run_prints("process.zombies", "an init reaps orphans",
           "(sleep 0.1 &) ; sleep 0.5; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l", "0", ("--init",))  # fmt: skip
run_prints("process.threads_and_forks", "a hundred children one after another",
           "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done; echo $i", "100")  # fmt: skip
run_prints("process.pipes", "pipes and subshells", "seq 1 1000 | grep 7 | sort -n | tail -1", "997")
run_prints("process.status_rows", "/proc/self/status tells of signals and of no_new_privs",
           "grep -E 'Sig(Ign|Blk)|NoNewPrivs' /proc/self/status | tr -d '\\t'",
           "SigBlk:0+\nSigIgn:0*(180000000)?\nNoNewPrivs:1")  # fmt: skip


@case("process.signals_are_default", "no signal is ignored or blocked at the start, by the kernel's own answer")
def signals_are_default(chamber: Chamber) -> None:
    assert chamber.run(*chamber.probe, script="exec /probe signals").stdout == b"looked\n"


box_prints("process.proc_self", "/proc/self is the reader", "readlink /proc/self | grep -c '^[0-9]*$'", "1")
box_prints("process.cmdline", "/proc/1/cmdline", "tr '\\0' ' ' < /proc/1/cmdline", "sleep 100000 ?")
box_prints("process.file_descriptors", "nothing but standard files is open", "ls /proc/self/fd | wc -l", "[34]")
box_prints("process.random", "two reads of urandom differ",
           "a=$(head -c 16 /dev/urandom | od -An -tx1); b=$(head -c 16 /dev/urandom | od -An -tx1); [ \"$a\" != \"$b\" ] && echo yes",
           "yes")  # fmt: skip
box_prints("process.clock", "the clock is the host's to a second or two",
           "t=$(date +%s); echo $t | grep -c '^[0-9]*$'", "1")  # fmt: skip
box_prints("process.sleep", "time passes", "a=$(date +%s); sleep 1; b=$(date +%s); echo $((b-a))", "[12]")


@case("process.arguments", "arguments arrive as they are")
def arguments(chamber: Chamber) -> None:
    odd = ["a b", "", "new\nline", "$HOME", "ünïcode", '"quotes"', "*"]
    done = chamber.cm("run", "--rm", *chamber.level_flags, chamber.image, "printf", "%s|", *odd)
    assert done.stdout.decode() == "|".join(odd) + "|", done


@case("process.entrypoint", "--entrypoint")
def entrypoint(chamber: Chamber) -> None:
    argv = ("run", "--rm", *chamber.level_flags, "--entrypoint", "echo", chamber.image, "hello", "there")
    assert chamber.ok(*argv) == "hello there"


@case("process.outputs", "standard output and error are two")
def outputs(chamber: Chamber) -> None:
    done = chamber.run(script="echo out; echo err >&2")
    assert (done.stdout, done.stderr.splitlines()[-1]) == (b"out\n", b"err"), done


@case("process.stdin", "-i: standard input, to its end")
def stdin(chamber: Chamber) -> None:
    assert chamber.run("-i", script="cat; echo end", stdin=b"given\n").stdout == b"given\nend\n"


@case("process.binary", "every byte, both ways")
def binary(chamber: Chamber) -> None:
    data = bytes(range(256)) * 40 + os.urandom(300_000)
    assert chamber.run("-i", script="cat", stdin=data).stdout == data


@case("process.much_output", "a megabyte is complete at the end")
def much_output(chamber: Chamber) -> None:
    done = chamber.run(script="yes 0123456789abcde | head -c 1048576")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(b"0123456789abcde\n" * 65_536).digest()


@case("process.environment_file", "--env-file")
def environment_file(chamber: Chamber) -> None:
    (chamber.folder / "env").write_text("# a comment\nFROM=file\nOTHER=x y\n")
    done = chamber.run("--env-file", str(chamber.folder / "env"), script='echo "$FROM $OTHER"')
    assert done.stdout == b"file x y\n", done


@case("process.default_hostname", "the host name is the container's id")
def default_hostname(chamber: Chamber) -> None:
    with chamber.started() as name:
        assert chamber.ok("exec", name, "hostname") == chamber.inspect(name)["Id"][:12]


@case("process.end_takes_all", "the end of process 1 is the end of all")
def end_takes_all(chamber: Chamber) -> None:
    with chamber.started(script="sleep 100000 & sleep 0.3") as name:
        assert chamber.ok("wait", name) == "0"
        assert chamber.state(name) == "exited"


@case("process.wait", "wait prints the exit code")
def wait(chamber: Chamber) -> None:
    with chamber.started(script="sleep 0.2; exit 9") as name:
        assert chamber.ok("wait", name) == "9"
        assert chamber.inspect(name)["State"]["ExitCode"] == 9


@case("process.logs", "logs have both outputs, in order")
def logs(chamber: Chamber) -> None:
    with chamber.started(script="echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three") as name:
        chamber.ok("wait", name)
        done = chamber.cm("logs", name)
        assert (done.stdout, done.stderr) == (b"one\nthree\n", b"two\n"), done


@case("process.restart_keeps_files", "stop and start: the files stay, the processes do not")
def restart_keeps_files(chamber: Chamber) -> None:
    with chamber.started(script="echo more >> /data/log; wc -l < /data/log; sleep 100000") as name:
        until(lambda: chamber.cm("logs", name).stdout == b"1\n")
        chamber.ok("restart", "-t", "0", name)
        until(lambda: chamber.cm("logs", name).stdout == b"1\n2\n")


@case("process.restart_policy", "--restart on-failure:2")
def restart_policy(chamber: Chamber) -> None:
    with chamber.started("--restart", "on-failure:2", script="echo again; exit 3") as name:
        until(lambda: chamber.cm("logs", name).stdout == b"again\n" * 3, 2)
        until(lambda: chamber.state(name) == "exited", 2)


@case("process.concurrent", "four at a time")
def concurrent(chamber: Chamber) -> None:
    running = [
        chamber.begin("run", "--rm", *chamber.level_flags, chamber.image, "sh", "-c", f"echo {n}; exit {n}")
        for n in range(4)
    ]
    for number, process in enumerate(running):
        out, _ = process.communicate(timeout=60)
        assert (out, process.returncode) == (f"{number}\n".encode(), number)
