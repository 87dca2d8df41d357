"""Tells what went wrong, on standard error, and answers the exit code. Loaded only when something failed."""

from __future__ import annotations

import posix

from casemate.cli.errors import FileUnusable, ObjectsFailed
from casemate.cli.show.plain import clean, coloured
from casemate.spec.errors import CasemateError, LimitExceeded

#: 128 + SIGINT, 128 + SIGPIPE: what a shell says of a program that the signal ended.
INTERRUPTED = 130
PIPE_BROKEN = 141


def report(error: BaseException, as_json: bool) -> int:
    """Print *error* (as a problem document when *as_json*); the exit code of the process."""
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case KeyboardInterrupt():
            if posix.isatty(2):
                write_error("\n")  # behind the ^C that the terminal shows
            return INTERRUPTED
        case BrokenPipeError():
            return PIPE_BROKEN
        case ObjectsFailed():
            return 1
        case CasemateError():
            return tell(error, as_json)
        case MemoryError():
            return tell(LimitExceeded("this side has no memory left for the answer"), as_json)
        case OSError():
            name = f" ({error.filename})" if error.filename else ""
            return tell(FileUnusable(f"{error.strerror or error}{name}"), as_json)
        case UnicodeEncodeError():
            return tell(FileUnusable(f"the text {error.object[:80]!r} is not UTF-8; the API takes UTF-8 only"), as_json)
        case _:
            return _bug(error, as_json)


def tell(error: CasemateError, as_json: bool) -> int:
    problem = error.to_problem()
    if as_json:
        from casemate.cli.wire import json

        write_error(json.dumps(problem) + "\n")
    else:
        write_error(as_text(problem))
    code = problem.get("exit_code")
    return code if isinstance(code, int) and 0 < code < 256 else 125


def as_text(problem: dict[str, object]) -> str:
    """``casemate: detail`` and, below, what to do; nothing from outside may steer the terminal."""
    detail = clean(str(problem.get("detail") or problem.get("title") or "failed"), newlines=True)
    text = f"{coloured('casemate:', '31;1', 2)} {detail}\n"
    remedy = problem.get("remedy")
    if remedy:
        text += f"  {coloured('remedy:', '1', 2)} {clean(str(remedy), newlines=True)}\n"
    trace, status = problem.get("trace_id"), problem.get("status")
    if trace and not (isinstance(status, int) and status < 500):
        text += f"  trace id: {clean(str(trace))}\n"
    return text


def write_error(text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[posix.write(2, data) :]
    except OSError:
        return  # nobody can be told that nobody listens


def _bug(error: BaseException, as_json: bool) -> int:
    """An error that nobody foresaw: the place in the source goes along, since there is no journal on this side."""
    import traceback

    place = ""
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        place = f" at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}"
    if b"CASEMATE_DEBUG" in posix.environ:
        write_error("".join(traceback.format_exception(error)))
    detail = f"internal error{place}: {type(error).__name__}: {error}"
    remedy = "Please report it, with what CASEMATE_DEBUG=1 prints."
    return tell(CasemateError(detail, remedy=remedy), as_json)
