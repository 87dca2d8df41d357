"""``flows`` and ``flows map``: who talks to whom, seen from outside."""

from __future__ import annotations

import time

from casemate.cli.asked.quantities import moment, whole
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.human import size
from casemate.cli.show.plain import clean
from casemate.cli.wire.client import object_of, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context
    from casemate.cli.wire.client import Pairs

_WIDTHS = (24, 30, 36, 9)
_TITLES = ("TIME", "FROM", "TO", "VERDICT", "RULE AND COUNTERS")


def flows(arguments: Arguments, context: Context) -> int:
    pairs = _pairs(arguments)
    following = arguments.on("follow")
    if following:
        from casemate.cli.wire import json
        from casemate.cli.wire.events import read_events

        if not context.json:
            context.write(_line(_TITLES))
        answer = context.client.send("GET", "/v1/flows/follow", pairs)
        for _, event in read_events(answer.chunks):
            row = event if isinstance(event, dict) else {}
            context.write(json.dumps(row) + "\n" if context.json else _flow(row))
        return 0
    found = object_of(context.client.get("/v1/flows", pairs))
    if context.json:
        context.answer(found)
        return 0
    lines = [_flow(row) for row in rows_of(found, "flows")]
    context.write(_line(_TITLES) + "".join(lines))
    _note_losses(found, context)
    return 0


def _pairs(arguments: Arguments) -> Pairs:
    pairs: Pairs = []
    for flag, name in (("from", "from"), ("to", "to"), ("end", "end"), ("protocol", "protocol")):
        if text := arguments.text(flag):
            pairs.append((name, text))
    for verdict in arguments.texts("verdict"):
        pairs += [("verdict", word) for word in verdict.split(",") if word]
    now = time.time()
    for name in ("since", "until"):
        if text := arguments.text(name):
            pairs.append((name, moment(f"--{name}", text, now)))
    if text := arguments.text("port"):
        pairs.append(("port", str(whole("--port", text, 1, 65_535))))
    if text := arguments.text("tail"):
        pairs.append(("limit", str(whole("--tail", text, 1, 10_000))))
    return pairs


def _line(cells: tuple[str, ...]) -> str:
    """One line of fixed columns: a stream has no widest row to wait for."""
    head = "".join(cell.ljust(width - 1) + " " for cell, width in zip(cells, _WIDTHS, strict=False))
    return f"{head}{cells[-1]}".rstrip() + "\n"


def _flow(row: dict[str, object]) -> str:
    source, destination = object_of(row.get("source")), object_of(row.get("destination"))
    told = [str(row["rule"])] if row.get("rule") else []
    for key in ("dns", "tls"):
        if row.get(key):
            told.append(f"{key}={row[key]}")
    if row.get("via"):
        told.append(f"via {row['via']}")
    if row.get("verdict") == "deny":
        times = row.get("times")
        if isinstance(times, int) and times > 1:
            told.append(f"{times} times")
    elif row.get("ended"):
        told.append(f"{_bytes(row, 'bytes_out')} out, {_bytes(row, 'bytes_in')} in, {_lasted(row)}")
    if row.get("note"):
        told.append(f"({row['note']})")
    end = f"{_name(destination)} {row.get('protocol')}"
    if destination.get("port"):
        end += f"/{destination['port']}"
    return _line((
        str(row.get("began", ""))[:23], clean(_name(source)), clean(end), str(row.get("verdict", "")),
        clean(" ".join(told)),
    ))  # fmt: skip


def _name(end: dict[str, object]) -> str:
    if end.get("name"):
        project = end.get("project", "default")
        return str(end["name"]) if project == "default" else f"{project}/{end['name']}"
    return str(end.get("address", ""))


def _bytes(row: dict[str, object], key: str) -> str:
    found = row.get(key)
    return size(found if isinstance(found, int) else 0)


def _lasted(row: dict[str, object]) -> str:
    from casemate.cli.show.human import parse_time

    began, ended = parse_time(str(row.get("began", ""))), parse_time(str(row.get("ended", "")))
    if began is None or ended is None:
        return "?"
    lasted_s = max(ended - began, 0.0)
    return f"{lasted_s * 1000:.0f} ms" if lasted_s < 10 else f"{lasted_s:.0f} s"


def _note_losses(found: dict[str, object], context: Context) -> None:
    """What is missing is said, always."""
    counters = object_of(found.get("counters"))
    if not counters.get("capacity"):
        context.note("Nothing is recorded: the setting flows.records is 0.\n")
    elif not counters.get("watching"):
        context.note("Nothing is recorded at this time: casemate-hostd is away, or the recorder starts again.\n")
    lost, overruns = counters.get("lost_log"), counters.get("overruns")
    if lost:
        context.note(f"{lost} refused or audited packets were lost on their way to the recorder.\n")
    if overruns:
        context.note(f"{overruns} times more connections began or ended than could be read; some are missing.\n")
    if counters.get("unruled"):
        context.note(f"{counters['unruled']} records bear no rule: nobody said in time which one decided.\n")


def flow_map(arguments: Arguments, context: Context) -> int:
    found = object_of(context.client.get("/v1/flows/map", _pairs(arguments)))
    page, picture = arguments.text("html"), arguments.text("svg")
    if context.json or not (page or picture):
        if context.json:
            context.answer(found)
        else:
            context.write(_edges(found))
        return 0
    from casemate.cli.show.flowmap import html, svg

    for path, render in ((page, html), (picture, svg)):
        if path == "-":
            context.write(render(found))
        elif path:
            with open(path, "w", encoding="utf-8") as file:
                file.write(render(found))
    return 0


def _edges(found: dict[str, object]) -> str:
    from casemate.cli.show.table import aligned

    names = {str(node.get("id")): clean(_name({**node, "address": node.get("name")}))
             for node in rows_of(found, "nodes")}  # fmt: skip
    lines = [["FROM", "TO", "PORT", "VERDICT", "CONNECTIONS", "OUT", "IN", "RULE"]]
    for edge in rows_of(found, "edges"):
        lines.append([
            names.get(str(edge.get("source")), ""), names.get(str(edge.get("destination")), ""),
            f"{edge.get('protocol')}/{edge.get('port')}", str(edge.get("verdict")), str(edge.get("count")),
            _bytes(edge, "bytes_out"), _bytes(edge, "bytes_in"), str(edge.get("rule")),
        ])  # fmt: skip
    return aligned(lines)


_CHOICE = (
    value("from", "END", "Opened by: NAME, PROJECT/NAME, address, network, world or node"),
    value("to", "END", "Opened to: the same, or a DNS or TLS name"),
    value("end", "END", "With this end on either side"),
    values("verdict", "WORD", "allow, audit, referred or deny", completes="allow,audit,referred,deny"),
    value("port", "NUMBER", "To this port"),
    value("protocol", "NAME", "tcp, udp, sctp, icmp", completes="tcp,udp,sctp,icmp"),
    value("since", "TIME", "From this time, or age (10m), on"),
    value("until", "TIME", "Up to this time"),
)
FLOWS = Command(
    "[OPTIONS]", flows,
    (switch("follow", "Go on with what happens", "f"), *_CHOICE, value("tail", "N", "The last N records (200)", "n")),
    0, 0, (), "A connection shows when it begins, and with -f once more, with its counters, when it ends.",
    ("casemate flows -f --verdict deny", "casemate flows --from web --since 10m --json"),
)  # fmt: skip
MAP = Command(
    "[OPTIONS]", flow_map,
    (value("html", "FILE", "Write a page with the picture; - for standard output", completes="file"),
     value("svg", "FILE", "Write the picture alone; - for standard output", completes="file"), *_CHOICE),
    0, 0, (), "", ("casemate flows map --since 1h --html map.html",),
)  # fmt: skip
