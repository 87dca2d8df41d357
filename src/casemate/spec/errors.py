"""The one error root.

A class carries what is true of every instance: ``code`` (API: never renamed), HTTP ``status``, ``title``,
``remedy`` and whether a retry can help. An instance carries ``detail`` (what failed, on which object, the
value seen, the value allowed) and ``facts`` (the same as data). No secret may enter either.

``exit_code`` is what the command line ends with: 125 for Casemate's own refusals, 126 for a command that
cannot be executed, 127 for one that is not there (the convention of Docker and Podman).
"""

from __future__ import annotations

from typing import ClassVar

Fact = str | int | bool | None


class CasemateError(Exception):
    """Root of every error that Casemate raises on purpose."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Casemate failed"
    remedy: ClassVar[str] = "See the daemon's journal for the trace id, and report it."
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 125

    def __init__(self, detail: str = "", *, remedy: str | None = None, **facts: Fact) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.facts: dict[str, Fact] = facts
        self.instance_remedy = remedy

    def to_problem(self) -> dict[str, object]:
        """The RFC 9457 members of this error, with our extensions ``code``, ``remedy``, ``retryable``."""
        return {
            "type": f"urn:casemate:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "remedy": self.instance_remedy or self.remedy,
            "retryable": self.retryable,
            "exit_code": self.exit_code,
            "facts": self.facts,
        }


class RemoteError(CasemateError):
    """An error that another Casemate process reported; it keeps that process's code."""

    code = "remote"

    def __init__(self, problem: dict[str, object]) -> None:
        super().__init__(str(problem.get("detail", "")))
        self.problem = problem

    def to_problem(self) -> dict[str, object]:
        return self.problem


class InvalidArgument(CasemateError):
    code = "argument.invalid"
    status = 400
    title = "An argument is not valid"
    remedy = "Correct the value; the command's --help shows the form."


class NotFound(CasemateError):
    code = "object.not_found"
    status = 404
    title = "No such object"
    remedy = "List what exists with `casemate ps -a`, `casemate image ls` or `casemate pod ps`."


class Conflict(CasemateError):
    code = "object.conflict"
    status = 409
    title = "The object is in another state, or the name is taken"
    remedy = "Choose another name, or remove the object that holds it."


class PermissionDenied(CasemateError):
    code = "access.denied"
    status = 403
    title = "Not allowed"
    remedy = "Ask the administrator for the grant, or run the command as root."


class GrantMissing(PermissionDenied):
    code = "access.grant_missing"
    title = "This needs a grant that the caller does not hold"
    remedy = "The administrator adds the grant under [grants] in /etc/casemate/casemate.toml."


class Unavailable(CasemateError):
    code = "daemon.unavailable"
    status = 503
    title = "A daemon does not answer"
    remedy = "Start the daemons: `systemctl start casemated casemate-hostd`, or `sudo make start` in a checkout."
    retryable = True


class LimitExceeded(CasemateError):
    code = "limit.exceeded"
    status = 413
    title = "A bound was passed"
    remedy = "Make the input smaller, or raise the setting that the message names."


class TimedOut(CasemateError):
    code = "operation.timed_out"
    status = 504
    title = "The operation did not end in time"
    remedy = "Try again; `casemate system doctor` names what is slow or stuck."
    retryable = True


class DiskFull(CasemateError):
    code = "disk.full"
    status = 507
    title = "No space is left on the device"
    remedy = "`casemate system df` shows what takes the space; `casemate system prune` and `image prune` free it."
    retryable = True


class HostLacks(CasemateError):
    code = "host.lacks"
    status = 501
    title = "The host lacks something that this needs"
    remedy = "`casemate system doctor` names what is missing and how to get it."


class ProgramFailed(CasemateError):
    code = "host.program_failed"
    title = "A program that Casemate runs failed"
    remedy = "The detail holds the program's own words; `casemate system doctor` checks the host."


class Corrupt(CasemateError):
    code = "store.corrupt"
    title = "Stored data does not match its digest or its schema"
    remedy = "Remove the object and fetch it again; `casemate system doctor` lists what is damaged."


class CommandNotFound(CasemateError):
    code = "container.command_not_found"
    status = 400
    title = "The command is not in the image"
    remedy = "Check the name and the image's PATH: `casemate image inspect IMAGE`."
    exit_code = 127


class CommandNotExecutable(CasemateError):
    code = "container.command_not_executable"
    status = 400
    title = "The command cannot be executed"
    remedy = "Check its mode, its interpreter and its architecture."
    exit_code = 126


def error_classes(root: type[CasemateError] = CasemateError) -> list[type[CasemateError]]:
    """Every error class that has been imported, the root first; the reference page and its test read it."""
    found = [root]
    for sub in root.__subclasses__():
        found.extend(error_classes(sub))
    return found
