"""Limits, signals, pausing, statistics."""

# ruff: noqa: E501 - a script and what it prints stand in one line

from __future__ import annotations

import json
import time

from tests.conformance.case import case, run_prints
from tests.conformance.chamber import Chamber, until

run_prints("limit.nofile", "--ulimit nofile", "ulimit -n; ulimit -Hn", "123\n456", ("--ulimit", "nofile=123:456"))
run_prints("limit.core", "--ulimit core", "ulimit -c", "0", ("--ulimit", "core=0"))
run_prints("limit.fsize", "--ulimit fsize", "dd if=/dev/zero of=/x bs=1k count=100 2>/dev/null; stat -c %s /x", "51200",
           ("--ulimit", "fsize=51200"))  # fmt: skip
run_prints("limit.nofile_default", "many files by default", "[ $(ulimit -n) -ge 1024 ] && echo yes", "yes")
run_prints("limit.pids", "--pids-limit", "for i in $(seq 40); do sleep 5 & done 2>&1 | grep -c -i fork; echo end", "[1-9].*",
           ("--pids-limit", "15"))  # fmt: skip
run_prints("limit.cpus", "--cpus leaves the command alive", "seq 1 1000 | wc -l", "1000", ("--cpus", "0.5"))
run_prints(
    "limit.memory_enough", "a limit that suffices", "head -c 4000000 /dev/zero | wc -c", "4000000", ("-m", "32m")
)

#: One buffer of 80 MiB, filled.
EAT = "exec dd if=/dev/zero of=/dev/null bs=80M count=1"


@case("limit.memory", "-m: whoever takes more is killed, and that is told")
def memory(chamber: Chamber) -> None:
    with chamber.started("-m", "24m", "--memory-swap", "24m", script=EAT) as name:
        assert chamber.ok("wait", name) == "137"
        assert chamber.inspect(name)["State"]["OOMKilled"] is True


@case("limit.memory_child", "a child that takes more dies, and the container lives")
def memory_child(chamber: Chamber) -> None:
    script = f"sh -c '{EAT}'; echo child $?; sleep 100000"
    with chamber.started("-m", "24m", "--memory-swap", "24m", script=script) as name:
        until(lambda: b"child 137" in chamber.cm("logs", name).stdout, 2)
        assert chamber.state(name) == "running"


@case("limit.memory_one_of_two", "one container's limit is not another's")
def memory_one_of_two(chamber: Chamber) -> None:
    with chamber.started() as other:
        assert chamber.run("-m", "24m", "--memory-swap", "24m", script=EAT).returncode == 137
        assert chamber.state(other) == "running"


@case("limit.shown", "inspect shows the limits")
def shown(chamber: Chamber) -> None:
    with chamber.started("-m", "48m", "--cpus", "0.5", "--pids-limit", "77") as name:
        limits = chamber.inspect(name)["HostConfig"]
        assert (limits["Memory"], limits["NanoCpus"], limits["PidsLimit"]) == (48 << 20, 500_000_000, 77)


@case("limit.update_memory", "update of memory holds at once")
def update_memory(chamber: Chamber) -> None:
    with chamber.started("-m", "64m", "--memory-swap", "64m") as name:
        chamber.ok("update", "-m", "24m", "--memory-swap", "24m", name)
        assert chamber.cm("exec", name, "sh", "-c", EAT).returncode != 0


@case("limit.update_cpus", "update of cpus is taken")
def update_cpus(chamber: Chamber) -> None:
    with chamber.started("--cpus", "1") as name:
        chamber.ok("update", "--cpus", "0.2", name)
        assert chamber.inspect(name)["HostConfig"]["NanoCpus"] == 200_000_000
        assert chamber.ok("exec", name, "echo", "alive") == "alive"


@case("limit.update_pids", "update of the number of processes holds at once")
def update_pids(chamber: Chamber) -> None:
    with chamber.started("--pids-limit", "100") as name:
        chamber.ok("update", "--pids-limit", "10", name)
        done = chamber.cm("exec", name, "sh", "-c", "for i in $(seq 30); do sleep 2 & done")
        assert b"fork" in done.stderr, done


TRAP = "trap 'echo got; exit 7' {}; echo ready; while :; do sleep 0.1; done"


def ready(chamber: Chamber, name: str) -> None:
    until(lambda: b"ready" in chamber.cm("logs", name).stdout)


@case("signal.stop", "stop sends TERM and waits")
def stop(chamber: Chamber) -> None:
    with chamber.started(script=TRAP.format("TERM")) as name:
        ready(chamber, name)
        chamber.ok("stop", name)
        assert chamber.inspect(name)["State"]["ExitCode"] == 7


@case("signal.stop_deaf", "stop kills whoever does not listen")
def stop_deaf(chamber: Chamber) -> None:
    with chamber.started(script="trap '' TERM; echo ready; while :; do sleep 0.1; done") as name:
        ready(chamber, name)
        chamber.ok("stop", "-t", "1", name)
        assert chamber.inspect(name)["State"]["ExitCode"] == 137


@case("signal.stop_signal", "--stop-signal")
def stop_signal(chamber: Chamber) -> None:
    with chamber.started("--stop-signal", "USR2", script=TRAP.format("USR2")) as name:
        ready(chamber, name)
        chamber.ok("stop", name)
        assert chamber.inspect(name)["State"]["ExitCode"] == 7


@case("signal.kill", "kill, without a name, is KILL")
def kill(chamber: Chamber) -> None:
    with chamber.started() as name:
        chamber.ok("kill", name)
        assert chamber.ok("wait", name) == "137"


@case("signal.kill_named", "kill -s NAME")
def kill_named(chamber: Chamber) -> None:
    with chamber.started(script=TRAP.format("USR1")) as name:
        ready(chamber, name)
        chamber.ok("kill", "-s", "USR1", name)
        assert chamber.ok("wait", name) == "7"


@case("signal.kill_numbered", "kill -s NUMBER")
def kill_numbered(chamber: Chamber) -> None:
    with chamber.started(script=TRAP.format("HUP")) as name:
        ready(chamber, name)
        chamber.ok("kill", "-s", "1", name)
        assert chamber.ok("wait", name) == "7"


@case("signal.kill_ended", "kill of what has ended is refused")
def kill_ended(chamber: Chamber) -> None:
    with chamber.started(script="true") as name:
        chamber.ok("wait", name)
        assert chamber.cm("kill", name).returncode != 0


@case("signal.proxy", "a signal to `run` reaches the command")
def proxy(chamber: Chamber) -> None:
    name = chamber.name()
    running = chamber.begin(
        "run", "--rm", "--name", name, *chamber.level_flags, chamber.image, "sh", "-c", TRAP.format("TERM")
    )
    assert running.stdout
    assert running.stdout.readline() == b"ready\n"
    running.terminate()
    assert running.communicate(timeout=30)[0] == b"got\n"
    assert running.returncode == 7


def ticks(chamber: Chamber, name: str) -> int:
    return len(chamber.cm("logs", name).stdout)


@case("signal.pause", "pause stops everything, unpause lets it go on")
def pause(chamber: Chamber) -> None:
    with chamber.started(script="while :; do echo; sleep 0.05; done") as name:
        until(lambda: ticks(chamber, name) > 3)
        chamber.ok("pause", name)
        assert chamber.state(name) == "paused"
        time.sleep(0.3)  # what was on its way
        before = ticks(chamber, name)
        time.sleep(0.6)
        assert ticks(chamber, name) == before
        # Asked of a sandbox that stands still, too.
        assert "while :; do echo" in chamber.ok("top", name)
        chamber.ok("stats", "--no-stream", name)
        chamber.ok("unpause", name)
        until(lambda: ticks(chamber, name) > before)


@case("signal.stop_paused", "a paused container can be stopped")
def stop_paused(chamber: Chamber) -> None:
    with chamber.started() as name:
        chamber.ok("pause", name)
        chamber.ok("stop", "-t", "1", name)
        assert chamber.state(name) == "exited"


@case("signal.remove_paused", "a paused container can be removed by force")
def remove_paused(chamber: Chamber) -> None:
    with chamber.started() as name:
        chamber.ok("pause", name)
        chamber.ok("rm", "-f", name)
        assert chamber.cm("inspect", name).returncode != 0


@case("signal.exec_paused", "exec in a paused container is refused")
def exec_paused(chamber: Chamber) -> None:
    with chamber.started() as name:
        chamber.ok("pause", name)
        assert chamber.cm("exec", name, "true").returncode != 0
        chamber.ok("unpause", name)
        assert chamber.cm("exec", name, "true").returncode == 0


@case("stats.memory", "stats: memory is used")
def stats_memory(chamber: Chamber) -> None:
    with chamber.started() as name:
        assert 0 < chamber.usage(name)["memory_bytes"] < 1 << 30


@case("stats.cpu", "stats: work takes cpu time")
def stats_cpu(chamber: Chamber) -> None:
    with chamber.started(script="while :; do :; done") as name:
        chamber.usage(name)
        until(lambda: chamber.usage(name)["cpu_percent"] > 5)


@case("stats.pids", "stats: processes are counted")
def stats_pids(chamber: Chamber) -> None:
    with chamber.started(script="sleep 100000 & sleep 100000 & wait") as name:
        until(lambda: chamber.usage(name)["pids"] >= 3)


@case("stats.command", "stats prints a line for the container")
def stats_command(chamber: Chamber) -> None:
    with chamber.started() as name:
        assert name in chamber.ok("stats", "--no-stream", name)


@case("stats.top", "top lists the processes")
def top(chamber: Chamber) -> None:
    with chamber.started(script="sleep 54321 & wait") as name:
        until(lambda: "sleep 54321" in chamber.ok("top", name))


@case("stats.top_user", "top names the user inside")
def top_user(chamber: Chamber) -> None:
    with chamber.started("-u", "4242", script="sleep 54321") as name:
        assert "4242" in chamber.ok("top", name)


@case("stats.ps", "ps shows it, and its end")
def ps(chamber: Chamber) -> None:
    with chamber.started(script="sleep 0.5; exit 5") as name:
        assert name in chamber.ok("ps", "--format", "{{.Names}}").split()
        chamber.ok("wait", name)
        assert name not in chamber.ok("ps", "--format", "{{.Names}}").split()
        assert "(5)" in chamber.ok("ps", "-a", "--filter", f"name={name}")


@case("stats.inspect", "inspect knows level, process and time")
def inspect(chamber: Chamber) -> None:
    with chamber.started() as name:
        found = chamber.inspect(name)
        assert found["State"]["Pid"] > 1
        assert found["State"]["StartedAt"].startswith("20")
        assert chamber.level in json.dumps(found)


@case("stats.events", "events tell start and end")
def events(chamber: Chamber) -> None:
    with chamber.started(script="exit 6") as name:
        chamber.ok("wait", name)
        told = chamber.ok("events", "--since", "1h", "--no-follow", "--filter", f"name={name}")
        assert "start" in told
        assert "die" in told or "exit" in told, told
