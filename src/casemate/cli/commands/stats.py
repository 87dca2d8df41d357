"""``stats``: what containers use, once or live."""

from __future__ import annotations

import posix

from casemate.cli.flags import Arguments, Command, switch
from casemate.cli.show.rows import STATS_COLUMNS, stats
from casemate.cli.show.table import shown
from casemate.cli.wire.client import rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.cli.context import Context
    from casemate.cli.wire.client import Pairs

#: Cursor home; erase the rest of a line; erase below. Nothing is scrolled, nothing flickers.
_HOME, _END_OF_LINE, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def show_stats(arguments: Arguments, context: Context) -> int:
    pairs: Pairs = [("container", name) for name in arguments.words]
    if arguments.on("no-stream"):
        answer = context.client.get("/v1/stats", [*pairs, ("stream", "false")])
        if context.json:
            context.answer(answer)
        else:
            context.write(_table(arguments, answer))
        return 0
    live = posix.isatty(1) and not context.json
    first = True
    for answer in _live(context, pairs):
        if context.json:
            from casemate.cli.wire import json

            context.write(json.dumps(answer) + "\n")
            continue
        text = _table(arguments, answer)
        if live:
            text = _HOME + text.replace("\n", f"{_END_OF_LINE}\n") + _BELOW
            text = "\x1b[2J" + text if first else text
        first = False
        context.write(text)
    return 0


def _live(context: Context, pairs: Pairs) -> Iterator[object]:
    from casemate.cli.wire.events import read_events

    answer = context.client.send("GET", "/v1/stats", [*pairs, ("stream", "true")])
    for _, value in read_events(answer.chunks):
        yield value


def _table(arguments: Arguments, answer: object) -> str:
    found = answer | {"rows": answer.get("rows", [])} if isinstance(answer, dict) else answer
    rows = [stats(row, arguments.on("no-trunc")) for row in rows_of(found, "rows")]
    return shown(STATS_COLUMNS, rows, arguments.text("format"))


def _command() -> Command:
    from casemate.cli.commands.listing import FORMAT, NO_TRUNC

    return Command(
        "[OPTIONS] [CONTAINER...]",
        show_stats,
        (switch("no-stream", "Once, not live"), FORMAT, NO_TRUNC, switch("all", "Accepted, as Docker has it", "a")),
        0,
        None,
        ("running",),
        "Without names: all that run. Ctrl-C ends it.\n"
        "Fields: .ID .Name .CPUPerc .MemUsage .MemPerc .NetIO .BlockIO .PIDs",
        ("casemate stats", "casemate stats --no-stream web"),
    )


STATS = _command()
