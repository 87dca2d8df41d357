"""Following long work: an operation's events, shown as bars on a terminal and as plain lines elsewhere.

Ctrl-C cancels the operation on the daemon, and says so; it does not leave it running behind one's back.
"""

from __future__ import annotations

import posix

from casemate.cli.fail import broken_answer, lost, remote
from casemate.cli.show.human import short_item, size
from casemate.cli.show.plain import clean
from casemate.cli.wire.client import object_of, text_of
from casemate.cli.wire.events import read_events
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from casemate.cli.context import Context

    class Show(Protocol):
        def progress(self, row: dict[str, object]) -> None: ...
        def close(self) -> None: ...


#: How often the daemon is asked again when the stream of events breaks off.
MAX_RECONNECTS = 5


def follow(context: Context, operation: object, quiet: bool, fd: int) -> dict[str, object]:
    """Follow *operation* (the API's Operation) to its end, showing it on *fd* unless *quiet*; the ended Operation.

    Raises the operation's problem where it failed, Cancelled after Ctrl-C.
    """
    id_ = text_of(operation, "id")
    show = _show(quiet or context.json, fd)
    try:
        ended = _watch(context, id_, show)
    except KeyboardInterrupt:
        show.close()
        raise _cancel(context, id_, str(object_of(operation).get("kind", "operation"))) from None
    finally:
        show.close()
    problem = ended.get("problem")
    if isinstance(problem, dict):
        raise remote(problem)
    status = ended.get("status")
    if status == "cancelled":
        from casemate.cli.errors import Cancelled

        raise Cancelled(f"the {ended.get('kind', 'operation')} was cancelled on the daemon")
    if status != "done":
        raise broken_answer(f"the operation ended as {status!r} without a reason")
    return ended


def _watch(context: Context, id_: str, show: Show) -> dict[str, object]:
    path = f"/v1/operations/{segment(id_)}"
    for _ in range(MAX_RECONNECTS):
        answer = context.client.send("GET", f"{path}/events")
        try:
            for event, value in read_events(answer.chunks):
                if event == "end":
                    return object_of(value)
                if event == "progress" and isinstance(value, dict):
                    show.progress(value)
        except ConnectionError:
            pass
        state = object_of(context.client.get(path))
        if state.get("status") != "running":
            return state
    raise lost("the daemon breaks the stream of events off again and again", f"Ask again: `casemate image ls` ({id_}).")


def _cancel(context: Context, id_: str, kind: str) -> Exception:
    """Tell the daemon on a connection of its own: the first one is in the middle of the stream."""
    from casemate.cli.errors import Cancelled

    other = context.new_client()
    try:
        other.delete(f"/v1/operations/{segment(id_)}")
    except Exception as error:  # whatever it was, the operation may go on, and that is what is said
        return Cancelled(f"the {kind} could not be cancelled and may go on: {error}")
    finally:
        other.close()
    return Cancelled(f"the {kind} was cancelled on the daemon")


def _show(quiet: bool, fd: int) -> Show:
    if quiet:
        return Silent()
    if posix.isatty(fd) and posix.environ.get(b"TERM", b"dumb") != b"dumb":
        try:
            from casemate.cli.bars import Bars
        except ImportError:
            return Lines(fd)  # rich is not installed beside the launcher: lines say the same
        return Bars(fd)
    return Lines(fd)


class Silent:
    def progress(self, row: dict[str, object]) -> None:
        """Nothing is shown."""

    def close(self) -> None:
        """Nothing was opened."""


class Lines:
    """A line for each change of phase of each item; figures in between are not told."""

    __slots__ = ("_fd", "_phases")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._phases: dict[str, str] = {}

    def progress(self, row: dict[str, object]) -> None:
        item, phase = clean(str(row.get("item", ""))), clean(str(row.get("phase", "")))
        detail = clean(str(row.get("detail") or ""))
        if self._phases.get(item) == phase + detail:
            return
        self._phases[item] = phase + detail
        total = row.get("total")
        told = f" ({size(total)})" if isinstance(total, int) and total > 0 else ""
        text = f"{short_item(item)}: {phase}{told}" + (f" {detail}" if detail else "")
        from casemate.cli.context import write_all

        write_all(self._fd, f"{text}\n".encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Each line is whole already."""
