"""conmon's answers, as bytes that may be anything."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.isolation import conmon
from casemate.isolation.level import Runtime
from casemate.isolation.microvm.errors import AgentFailed, RootfsFailed, TemplateFailed
from casemate.spec.errors import CasemateError, CommandNotExecutable, CommandNotFound, ProgramFailed


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("executable file `x` not found in $PATH: No such file or directory", CommandNotFound),
        (
            'time="x" level=error msg="runc create failed: exec: \\"x\\": executable file not found in $PATH"',
            CommandNotFound,
        ),
        ("open executable: Permission denied", CommandNotExecutable),
        ("open executable: Operation not permitted", CommandNotExecutable),
        ('msg="exec: \\"/x\\": permission denied"', CommandNotExecutable),
        ("chdir `/nope`: No such file or directory", CommandNotExecutable),
        (
            'msg="exec failed: chdir to cwd (\\"/nope\\") set in config.json failed: no such file or directory"',
            CommandNotExecutable,
        ),
        (
            'executing command "id": failed to find initial working directory "/nope": no such file',
            CommandNotExecutable,
        ),
        ("casemate-vm: exec: working directory: No such file or directory (microvm.agent)", CommandNotExecutable),
        ("error stat'ing file `/dev/mqueue`: No such file or directory", ProgramFailed),
        ("mount `x` to `y`: Permission denied", ProgramFailed),
        ("casemate-vm: rootfs: mount of a layer: Invalid argument (microvm.rootfs)", RootfsFailed),
        ("x\ncasemate-vm: no word within 90 s; console: a | b (microvm.template)", TemplateFailed),
        ("casemate-vm: " + "x" * 9000 + " (microvm.agent)", AgentFailed),
        ("casemate-vm: exec: executable file not found in $PATH (microvm.agent)", CommandNotFound),
        ("casemate-vm: something (microvm.no_such_code)", ProgramFailed),
        ("casemate-vm: something (settings.invalid)", ProgramFailed),
        ("", ProgramFailed),
    ],
)
def test_what_the_runtimes_words_mean(message: str, kind: type[CasemateError]) -> None:
    assert type(conmon.runtime_error(message)) is kind


@pytest.mark.parametrize("line", [b'{"pid": 12}\n', b'{"data": 12}\n'])
def test_a_pid(line: bytes) -> None:
    assert conmon.parse_pid(line) == 12


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"12", b'{"pid": "x"}', b"{}", b'{"pid": -1, "message": 3}', b"[" * 60_000, b"\xff"]
)
def test_answers_that_are_none(line: bytes) -> None:
    with pytest.raises(ProgramFailed):
        conmon.parse_pid(line)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_number_or_one_of_our_errors(data: bytes) -> None:
    for function in (conmon.parse_pid, conmon.parse_exit):
        with contextlib.suppress(CasemateError):
            assert isinstance(function(data), int)


def test_exit_codes() -> None:
    assert conmon.parse_exit(b"137") == 137
    assert conmon.parse_exit(b"-1") == 255
    assert conmon.parse_exit(b"99999") == 255


def test_the_command_line() -> None:
    runtime = Runtime("/usr/bin/crun", "/run/r", ("--cgroup-manager", "cgroupfs"))
    plan = conmon.ConmonPlan(
        "/usr/bin/conmon", runtime, "c" * 64, "c" * 64, "/b", "/b", "/x", terminal=True, stdin=True
    )
    argv = plan.argv()
    assert argv[argv.index("--bundle") + 1] == "/b"
    assert argv[argv.index("--log-path") + 1] == "off"
    assert {"--terminal", "--stdin"} <= set(argv)
    assert "--exec" not in argv
    assert runtime.name == "crun"
    assert runtime.kill("x", 9, every=True)[-4:] == ("kill", "--all", "x", "9")
