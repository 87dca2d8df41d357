"""``events``: what happened and what happens on the node."""

from __future__ import annotations

import time

from casemate.cli.asked.quantities import moment
from casemate.cli.commands.listing import FILTER, FORMAT, filters
from casemate.cli.flags import Arguments, Command, switch, value
from casemate.cli.show.plain import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context
    from casemate.cli.wire.client import Pairs


def events(arguments: Arguments, context: Context) -> int:
    from casemate.cli.wire import json
    from casemate.cli.wire.events import read_events

    pairs: Pairs = filters(arguments)
    now = time.time()
    until = arguments.text("until")
    for name, text in (("since", arguments.text("since")), ("until", until)):
        if text is not None:
            pairs.append((name, moment(f"--{name}", text, now)))
    # What ends in the past needs no waiting.
    past = until is not None and moment("--until", until, now) <= moment("--until", str(int(now) + 1), now)
    pairs.append(("follow", "false" if past or arguments.on("no-follow") else "true"))
    template = arguments.text("format")
    compiled = None
    if template is not None:
        from casemate.cli.show.template import Template

        compiled = Template("{{json .}}" if template == "json" else template)
    answer = context.client.send("GET", "/v1/events", pairs)
    for _, event in read_events(answer.chunks):
        row = event if isinstance(event, dict) else {}
        if context.json:
            context.write(json.dumps(row) + "\n")
        elif compiled is not None:
            context.write(compiled.render(_fields(row)) + "\n")
        else:
            context.write(_line(row) + "\n")
    return 0


def _fields(row: dict[str, object]) -> dict[str, object]:
    """Docker's names (``.Type``, ``.Action``, ``.Actor.ID``) beside ours."""
    facts = row.get("facts")
    attributes = dict(facts) if isinstance(facts, dict) else {}
    if row.get("name"):
        attributes.setdefault("name", row["name"])
    return {
        "Type": row.get("kind"), "Action": row.get("action"), "Status": row.get("action"), "ID": row.get("subject"),
        "Actor": {"ID": row.get("subject"), "Attributes": attributes}, "Time": row.get("at"),
        "Name": row.get("name", ""), "Number": row.get("number"), "Project": row.get("project", "default"),
        "Facts": attributes,
    }  # fmt: skip


def _line(row: dict[str, object]) -> str:
    """``2026-11-22T10:30:17Z container start <id> (name=web, ...)``."""
    facts = row.get("facts")
    pairs = [("name", row["name"])] if row.get("name") else []
    pairs += sorted(facts.items()) if isinstance(facts, dict) else []
    told = f" ({', '.join(f'{key}={value}' for key, value in pairs)})" if pairs else ""
    return clean(f"{row.get('at')} {row.get('kind')} {row.get('action')} {row.get('subject')}{told}")


EVENTS = Command(
    "[OPTIONS]", events,
    (FILTER, FORMAT, value("since", "TIME", "From this time, or age (10m), on"),
     value("until", "TIME", "Up to this time"), switch("no-follow", "End at the present")),
    0, 0, (), "Filters: kind (or type), action (or event), subject, name, project.\n"
    "Fields: .Time .Type .Action .ID .Name .Actor.Attributes .Number .Project",
    ("casemate events --since 1h --no-follow", "casemate events -f kind=container --format '{{.Action}} {{.Name}}'"),
)  # fmt: skip
