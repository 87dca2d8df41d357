"""Machines that end as they should not, from the command line: what is said, what is left, who goes on.

QEMU is made to ask for memory without end, as one that leaks or was broken into would: its cgroup ends it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons
from tests.integration.levels.conftest import Run, environment, words_of_cli
from tests.integration.levels.test_microvm import container, machines, monitor_of, until

from casemate.hostd.processes import conmons
from casemate.isolation.microvm import ending, hostlimits
from casemate.isolation.microvm.argv import Accelerator
from casemate.sdk import ApiError
from casemate.spec.workload import Level

pytestmark = pytest.mark.root

INJECT = Path(__file__).parents[1] / "microvm/inject/inject.c"
MMAP, POPULATED = 9, 0x8022  # mmap(2): MAP_PRIVATE, MAP_ANONYMOUS, MAP_POPULATE


@pytest.fixture(scope="module")
def inject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inject") / "inject"
    subprocess.run(["gcc", "-O1", "-o", str(out), str(INJECT)], check=True, timeout=60)
    return out


def qemu_of(pair: Daemons, machine: str) -> int:
    monitor = monitor_of(pair, machine)
    return int(Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()[0])


def cgroup_of(pid: int, controller: str) -> Path:
    """The folder of the process's cgroup for *controller*, in either version."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(",") and path != "/":
            return Path(f"/sys/fs/cgroup/{controller}{path}")
        if not names and path != "/":
            return Path(f"/sys/fs/cgroup{path}")
    raise AssertionError(f"process {pid} is in no cgroup")


def number(folder: Path, *names: str) -> int:
    return next(int((folder / name).read_text()) for name in names if (folder / name).exists())


def state(vm: Run, name: str) -> dict[str, str]:
    (found,) = json.loads(vm("inspect", name).stdout)
    return {
        "status": found["State"]["Status"],
        "code": str(found["State"]["ExitCode"]),
        "reason": found["Casemate"]["Reason"],
    }


def test_a_qemu_that_leaks_is_killed_and_nothing_else(pair: Daemons, vm: Run, inject: Path) -> None:
    with container(vm, "beside", "busybox", "sleep", "100000"):
        beside = machines(pair)
        with container(vm, "leaks", "busybox", "sleep", "100000"):
            (machine,) = set(machines(pair)) - set(beside)
            qemu, monitor = qemu_of(pair, machine), monitor_of(pair, machine)
            folder = cgroup_of(qemu, "memory")
            assert cgroup_of(monitor, "memory") == folder
            record = json.loads((pair.scope.folder / f"host-run/vm/{machine}/machine.json").read_text())
            most = number(folder, "memory.max", "memory.limit_in_bytes")
            assert most == hostlimits.memory_bytes(record["memory_bytes"], Accelerator("tcg"))
            assert number(cgroup_of(qemu, "pids"), "pids.max") == hostlimits.MOST_PROCESSES
            words = [
                str(inject),
                "step",
                str(qemu),
                str(MMAP),
                "0",
                str(most),
                "3",
                str(POPULATED),
                str(2**64 - 1),
                "0",
            ]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            assert done.stdout.strip() == f"killed {signal.SIGKILL.value}", done
            until(lambda: state(vm, "leaks")["status"] == "exited")
            found = state(vm, "leaks")
            assert found["code"] == "137"
            assert "took more memory than its cgroup may have" in found["reason"]
            assert "(microvm.machine_memory)" in found["reason"]
            until(lambda: machines(pair) == beside)
        assert vm("exec", "beside", "echo", "goes on").stdout == "goes on\n"


@pytest.mark.parametrize("victim", ["qemu", "monitor"])
def test_who_runs_is_told_why_the_machine_ended(pair: Daemons, vm: Run, victim: str) -> None:
    before = set(machines(pair))
    words = [*words_of_cli(), "run", "--name", "watched", "--isolation", "microvm", "busybox", "sleep", "100000"]
    with subprocess.Popen(words, env=environment(pair), stderr=subprocess.PIPE, text=True) as running:
        try:
            until(lambda: vm("exec", "watched", "true").returncode == 0)
            # Of others only what came meanwhile counts: one of an earlier test may be on its way out.
            (machine,) = set(machines(pair)) - before
            os.kill(qemu_of(pair, machine) if victim == "qemu" else monitor_of(pair, machine), signal.SIGKILL)
            _, said = running.communicate(timeout=170)
            assert running.returncode == 137, said
            assert "(microvm.machine_lost)" in said, (said, state(vm, "watched"))
            until(lambda: state(vm, "watched")["status"] == "exited")
            assert state(vm, "watched")["reason"] in said, (said, state(vm, "watched"))
            until(lambda: machine not in machines(pair))
        finally:
            running.kill()
            vm("rm", "-f", "watched")


def test_an_end_that_no_hostd_saw_has_its_reason(pair: Daemons, vm: Run) -> None:
    with container(vm, "unseen", "busybox", "sleep", "100000"):
        (machine,) = machines(pair)
        qemu = qemu_of(pair, machine)
        pair.kill("casemate-hostd")
        os.kill(qemu, signal.SIGKILL)
        pair.start()
        until(lambda: state(vm, "unseen")["status"] == "exited")
        assert state(vm, "unseen")["code"] == "137"
        assert state(vm, "unseen")["reason"] == "the machine's QEMU was killed by SIGKILL (microvm.machine_lost)"
        assert machines(pair) == []


def test_a_kill_for_want_of_memory_that_no_hostd_saw(pair: Daemons, vm: Run) -> None:
    # More than the machine has; with a limit of its own it would be of another size, and have another template.
    words = ("busybox", "sh", "-c", "sleep 2; exec dd if=/dev/zero of=/dev/null bs=400M count=1")
    made = vm("run", "-d", "--name", "hungry", "--isolation", "microvm", *words)
    try:
        assert made.returncode == 0, made.stderr
        conmon = conmons(pair.scope.folder / "host-run")[made.stdout.strip()]
        pair.kill("casemate-hostd")
        until(lambda: ending.is_over(conmon))
        pair.start()
        until(lambda: state(vm, "hungry")["status"] == "exited")
        (found,) = json.loads(vm("inspect", "hungry").stdout)
        assert (found["State"]["ExitCode"], found["State"]["OOMKilled"]) == (137, True)
    finally:
        pair.start()
        vm("rm", "-f", "hungry")


@pytest.mark.parametrize("level", ["namespace", "gvisor", "microvm"])
def test_a_signal_in_the_moment_of_the_end(pair: Daemons, vm: Run, level: Level) -> None:
    """It has ended and nobody was told yet: who sends a signal hears that, and who stops it has what was wanted."""
    del vm  # the level is there
    client, script = pair.client, "while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 7"
    made = client.create("busybox", ("sh", "-c", script), name="ending", level=level).id
    try:
        client.start(made)
        conmon = conmons(pair.scope.folder / "host-run")[made]
        os.kill(conmon, signal.SIGSTOP)
        try:
            assert client.exec(made, ("touch", "/tmp/end")).exit_code == 0
            if level != "namespace":  # there whoever is not reaped yet takes every signal
                until(lambda: _refusal(lambda: client.kill(made, "SIGWINCH")))
                assert _refusal(lambda: client.kill(made, "SIGWINCH")) == 409
            with concurrent.futures.ThreadPoolExecutor() as pool:
                stopping = pool.submit(client.stop, made, 60)
                until(lambda: client.inspect(made).summary.status == "stopping")
                os.kill(conmon, signal.SIGCONT)
                stopping.result()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(conmon, signal.SIGCONT)
        ended = client.inspect(made).summary
        assert (ended.status, ended.exit_code) == ("exited", 7)
    finally:
        client.remove(made, force=True)


def _refusal(call: Callable[[], None]) -> int:
    """The status with which *call* is refused; 0: it is not."""
    try:
        call()
    except ApiError as error:
        return int(error.problem["status"])
    return 0
