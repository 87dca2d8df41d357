"""A QEMU and a monitor that are broken into: made, from outside, to ask the kernel for what their filters deny.

``inject/inject.c`` takes a thread over and lets it make one system call, as an exploit's code would.
"""

from __future__ import annotations

import errno
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from test_machines import gone, monitor_of, qemu_of, started

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[3]
#: x86-64, by name.
CALLS = {
    "socket": 41,
    "connect": 42,
    "execve": 59,
    "ptrace": 101,
    "setuid": 105,
    "bpf": 321,
    "process_vm_readv": 310,
    "io_uring_setup": 425,
    "openat": 257,
    "kill": 62,
    "mmap": 9,
    "getpid": 39,
    "fork": 57,
    "read": 0,
}
AT_FDCWD = (1 << 64) - 100


@pytest.fixture(scope="module")
def inject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inject") / "inject"
    source = Path(__file__).parent / "inject/inject.c"
    subprocess.run(["gcc", "-O1", "-Wall", "-o", str(out), str(source)], check=True, timeout=60)
    return out


def made(inject: Path, pid: int, call: str, *arguments: int | str, how: str = "step") -> str:
    """What the call answered in the process: a number, ``trapped``, or ``killed SIGNAL``; nothing for *how* leave."""
    words = [str(inject), how, str(pid), str(CALLS[call]), *(str(one) for one in arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ending_of(host: harness.Host, name: str) -> str:
    """Why the machine's container ended, as soon as it is known."""
    assert host.machines is not None
    found = host.machines.get(name)
    assert found is not None
    end = time.monotonic() + 10
    while found.container(name) is None or found.container(name).status != "stopped":  # type: ignore[union-attr]
        assert time.monotonic() < end
        time.sleep(0.02)
    return found.ending_of(name)


@pytest.fixture
def machine(host: harness.Host, base_layer: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    name = "broken" + re.sub(r"\W", "", str(request.node.name))[-40:]
    process, _folder = started(host, name, base_layer, "sleep", "1000")
    yield name
    assert host.vm("delete", "--force", name).returncode == 0
    process.wait(20)
    assert not (host.folder / "vm" / name).exists()


def test_a_broken_qemu_gets_nothing(host: harness.Host, inject: Path, machine: str) -> None:
    qemu = qemu_of(host, machine)
    # That the call is made at all: one that is allowed answers, in QEMU's own namespace of processes.
    assert made(inject, qemu, "getpid") == "1"
    denied = {
        "socket": (2, 1, 0),
        "connect": (0, 0, 0),
        "bpf": (0, 0, 0),
        "io_uring_setup": (1, 0),
        "process_vm_readv": (1, 0, 0, 0, 0, 0),
        "ptrace": (16, 1, 0, 0),
        "kill": (1, 9),
    }
    for call, arguments in denied.items():
        assert made(inject, qemu, call, *arguments) == str(-errno.EPERM), call
    # What may be opened is what its root holds: no file of the host's. Of /sys there is the size of large pages alone.
    of_sys = ("/sys/class", "/sys/devices", "/sys/fs", "/sys/module", "/sys/kernel/debug", "/sys/kernel/mm/ksm")
    for path in ("/etc/passwd", "/root", "/dev/mem", "/proc/1/../../etc/shadow", *of_sys):
        assert made(inject, qemu, "openat", AT_FDCWD, f"={path}", 0) == str(-errno.ENOENT), path
    assert host.vm("exec", machine, "echo", "works").stdout == "works\n"


@pytest.mark.parametrize(("call", "arguments"), [("execve", ("=/usr/bin/env", 0, 0)), ("setuid", (0,))])
def test_a_broken_qemu_that_starts_programs_or_changes_users_ends(
    host: harness.Host, inject: Path, machine: str, call: str, arguments: tuple[int | str, ...]
) -> None:
    qemu, monitor = qemu_of(host, machine), monitor_of(host, machine)
    made(inject, qemu, call, *arguments, how="leave")
    assert gone(qemu)
    assert gone(monitor)
    why = ending_of(host, machine)
    assert "a system call that its jail does not allow" in why
    assert why.endswith("(microvm.machine_lost)")
    assert host.state_of(machine)["status"] == "stopped"


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("socket", (2, 1, 0)),
        ("openat", (AT_FDCWD, "=/etc/passwd", 0)),
        ("execve", ("=/usr/bin/env", 0, 0)),
        ("fork", ()),
        ("kill", (1, 9)),
        ("mmap", (0, 4096, 7, 0x22, (1 << 64) - 1, 0)),
        ("getpid", ()),
    ],
)
def test_a_broken_monitor_ends_by_what_it_asks_for(
    host: harness.Host, inject: Path, machine: str, call: str, arguments: tuple[int | str, ...]
) -> None:
    qemu, monitor = qemu_of(host, machine), monitor_of(host, machine)
    assert made(inject, monitor, call, *arguments) == f"killed {signal.SIGSYS.value}"
    assert gone(monitor)
    assert gone(qemu), "with its monitor"
    assert ending_of(host, machine) == "the machine's monitor was killed (microvm.machine_lost)"
    assert host.state_of(machine)["status"] == "stopped"


def test_a_monitor_may_take_memory_that_is_not_code(host: harness.Host, inject: Path, machine: str) -> None:
    answer = made(inject, monitor_of(host, machine), "mmap", 0, 4096, 3, 0x22, (1 << 64) - 1, 0)
    assert int(answer) > 0
    assert host.vm("exec", machine, "echo", "works").stdout == "works\n"
