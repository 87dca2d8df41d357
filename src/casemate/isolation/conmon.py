"""conmon's command line and its answers: pure. conmon supervises one container, or one exec (conmon(8), 2.1)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from casemate.isolation.level import Runtime
from casemate.spec.errors import CasemateError, CommandNotExecutable, CommandNotFound, ProgramFailed, error_classes

#: What conmon says through its pipe is a pid, or the runtime's last words.
MAX_ANSWER_BYTES = 64 << 10
#: Numbers of the descriptors in conmon.
SYNC_FD, START_FD, ATTACH_FD = 3, 4, 5


@dataclass(frozen=True, slots=True)
class ConmonPlan:
    """One conmon to be started. *folder* holds its attach socket, control FIFO and pid files.

    *log_path* empty: nothing is kept. *exec_spec*: the path of a process document makes it an exec, whose *exit*
    folder must be its own, since conmon names the exit file by the container.
    """

    program: str
    runtime: Runtime
    container: str
    unique: str
    bundle: str
    folder: str
    exit_folder: str
    log_path: str = ""
    log_max_bytes: int = 0
    terminal: bool = False
    stdin: bool = False
    exec_spec: str = ""
    exec_attach: bool = False

    def argv(self) -> list[str]:
        found = [self.program, "--api-version", "1", "--sync", "--full-attach", "--no-sync-log"]
        found += ["--cid", self.container, "--cuuid", self.unique, "--name", self.container[:12]]
        found += ["--bundle", self.folder if self.exec_spec else self.bundle]
        found += ["--persist-dir", self.folder, "--exit-dir", self.exit_folder]
        found += ["--container-pidfile", f"{self.folder}/pid"]
        found += ["--runtime", self.runtime.program]
        for argument in self.runtime.global_arguments:
            found += ["--runtime-arg", argument]
        found += ["--log-level", "error"]
        if self.log_path:
            found += ["--log-path", f"k8s-file:{self.log_path}"]
            found += ["--log-size-max", str(self.log_max_bytes)] if self.log_max_bytes else []
        else:
            found += ["--log-path", "off"]
        if self.terminal:
            found.append("--terminal")
        if self.stdin:
            found += ["--stdin"]
        if self.stdin and self.terminal:
            # Who detaches from a terminal, or loses the daemon, has not ended its input: a shell would end with it.
            found += ["--leave-stdin-open"]
        if self.exec_spec:
            found += ["--exec", "--exec-process-spec", self.exec_spec]
            found += ["--exec-attach"] if self.exec_attach else []
        return found


def parse_pid(line: bytes) -> int:
    """The pid in conmon's answer; raises the error that the runtime's message stands for.

    The form is ``{"pid": 123}``, or ``{"pid": -1, "message": "..."}``; other versions call the first ``data``.
    """
    try:
        # An attached exec that has ended already has written its exit code as a second line.
        value = json.loads(line.partition(b"\n")[0])
        pid = value.get("pid", value.get("data"))
        message = value.get("message", "")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ProgramFailed(f"conmon answered {line[:200]!r}", program="conmon") from error
    if not isinstance(pid, int) or not isinstance(message, str):
        raise ProgramFailed(f"conmon answered {line[:200]!r}", program="conmon")
    if pid > 0:
        return pid
    raise runtime_error(message)


def parse_exit(text: bytes) -> int:
    """The exit code in an exit file (0 to 255); raises :class:`ProgramFailed` for anything else."""
    try:
        code = int(text[:16].decode("ascii").strip())
    except ValueError as error:
        raise ProgramFailed(f"conmon wrote {text[:40]!r} as an exit code", program="conmon") from error
    return code if 0 <= code <= 255 else 255


#: crun's and runc's words, casemate-vm's, runsc's.
_NO_FOLDER = ("chdir ", "exec: working directory", "initial working directory")
#: "error finding executable" and "failed to load" are runsc's words.
_NOT_FOUND = ("executable file not found", "no such file or directory", "not found in $path")
#: "operation not permitted" is crun's word for a folder.
_NOT_EXECUTABLE = (
    "permission denied",
    "operation not permitted",
    "exec format error",
    "is a directory",
    "text file busy",
)


def runtime_error(message: str) -> CasemateError:
    """The error for what crun or runc said when they could not run a command.

    Only words about the command itself count: a bind mount's "no such file or directory" is no missing command.
    """
    words = _last_line(message)
    named = _named_error(words)
    if named is not None:
        return named
    words = words[:_MAX_WORDS]
    lowered = words.lower()
    about_command = any(
        mark in lowered
        for mark in (
            "exec: ",
            "executable file",
            "open executable",
            "execve",
            "exec `",
            "finding executable",
            "to load ",
        )
    )
    if any(mark in lowered for mark in _NO_FOLDER):
        return CommandNotExecutable(
            f"the working directory cannot be entered: {words}",
            remedy="Give --workdir a folder of the container: `casemate exec CONTAINER ls -d PATH` looks for it.",
        )
    if about_command and any(mark in lowered for mark in _NOT_FOUND):
        return CommandNotFound(f"the command cannot be started: {words}")
    if about_command and any(mark in lowered for mark in _NOT_EXECUTABLE):
        return CommandNotExecutable(f"the command cannot be started: {words}")
    return ProgramFailed(f"the OCI runtime failed: {words or 'it said nothing'}", program="runtime")


#: casemate-vm ends its words with the code of its error.
_CODE = re.compile(r" \((microvm\.[a-z_]{1,40})\)\Z")
_MAX_WORDS = 1000


def _named_error(words: str) -> CasemateError | None:
    """The error whose code ends *words*, when it is one of the micro-VMs' that says more than "it failed"."""
    found = _CODE.search(words)
    if found is None:
        return None
    detail = words[: found.start()].rpartition("casemate-vm: ")[2]
    if detail.startswith("exec: "):
        return None  # about the command: engines and we tell it by its words
    for kind in error_classes():
        if kind.code == found[1]:
            return kind(detail if len(detail) <= _MAX_DETAIL else f"{detail[:1000]} ... {detail[-1000:]}")
    return None


_MAX_DETAIL = 2000


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    # runc's log form: time="..." level=error msg="..."
    _, mark, rest = last.partition('msg="')
    return rest.rstrip('"').replace('\\"', '"') if mark else last
