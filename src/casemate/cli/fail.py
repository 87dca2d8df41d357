"""Makes errors: the classes (and ``typing`` with them, 13 ms) are imported only when something failed."""

from __future__ import annotations


def usage(detail: str, remedy: str = "", path: str = "") -> Exception:
    """Something typed is not valid; *path* is the command whose ``--help`` shows the form."""
    from casemate.cli.errors import UsageError

    command = f"casemate {path} --help" if path else "casemate --help"
    return UsageError(detail, remedy=remedy or f"`{command}` shows the flags and their forms.")


def bad_value(flag: str, seen: str, wanted: str) -> Exception:
    """The value *seen* of *flag* has not the form *wanted*."""
    shown = seen if len(seen) <= 120 else seen[:117] + "..."
    return usage(f"{flag}: {shown!r} is not valid", f"Write {flag} {wanted}.")


def broken_answer(detail: str) -> Exception:
    """What the daemon sent breaks the protocol or a bound."""
    from casemate.cli.errors import AnswerInvalid

    return AnswerInvalid(detail)


def lost(detail: str, remedy: str = "") -> Exception:
    from casemate.cli.errors import ConnectionLost

    return ConnectionLost(detail, remedy=remedy or None)


def file_trouble(detail: str, remedy: str = "") -> Exception:
    from casemate.cli.errors import FileUnusable

    return FileUnusable(detail, remedy=remedy or None)


def unreadable(what: str, error: OSError | ValueError) -> Exception:
    """*what* (a flag, and the path, which the system's own words would say once more) cannot be read."""
    return file_trouble(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}")


def remote(problem: dict[str, object]) -> Exception:
    """The daemon's own problem document, as an error that keeps its code."""
    from casemate.spec.errors import RemoteError

    return RemoteError(problem)


def code_of(error: BaseException) -> str:
    """The error's code; that of the other process for an error it reported."""
    problem = getattr(error, "problem", None)
    if isinstance(problem, dict):
        return str(problem.get("code", ""))
    return str(getattr(error, "code", ""))
