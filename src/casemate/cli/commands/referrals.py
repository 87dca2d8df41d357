"""``referral ls allow deny forget watch`` and ``quarantine``, ``quarantine ls release``."""

from __future__ import annotations

from casemate.cli.commands.listing import FORMAT
from casemate.cli.commands.several import each
from casemate.cli.fail import bad_value, usage
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.plain import clean, coloured
from casemate.cli.show.table import show
from casemate.cli.wire.client import object_of, rows_of
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

_COLUMNS = (("Number", "NUMBER"), ("At", "AT"), ("From", "FROM"), ("To", "TO"), ("Port", "PORT"),
            ("State", "STATE"), ("Reason", "REASON"))  # fmt: skip
_HELD = (("Workload", "WORKLOAD"), ("Since", "SINCE"), ("Until", "UNTIL"), ("By", "BY"), ("Cause", "CAUSE"),
         ("Reason", "REASON"))  # fmt: skip
_ENDS = (*_HELD, ("Released", "RELEASED"), ("ReleaseReason", "WHY RELEASED"))
MAX_SECONDS = 31_536_000


def ls(arguments: Arguments, context: Context) -> int:
    from casemate.cli.asked.quantities import whole

    limit = whole("--last", arguments.text("last") or ("50" if arguments.on("all") else "0"), 0, 1000)
    answer = object_of(context.client.get("/v1/referrals", [("limit", str(limit)), *context.of_project()]))
    if context.json:
        context.answer(answer)
        return 0
    rows = [_row(row, "waits") for row in _rows(answer, "waiting")]
    rows += [_row(row, "") for row in _rows(answer, "decided")]
    if arguments.on("all"):
        rows += [_row(row, "remembered: ") for row in _rows(answer, "remembered")]
    show(context, _COLUMNS, rows, arguments.text("format"), "Number" if arguments.on("quiet") else "")
    lost = _lost(object_of(answer.get("counters", {})))
    if lost:
        context.note(lost)
    return 0


#: Counters of packets that have no row, and what each says.
_LOST = (
    ("lost_bound", "beyond the bound of what may wait"), ("lost_queue", "dropped by the kernel's full queue"),
    ("lost_away", "while casemated was away"), ("lost_unreadable", "could not be read"),
    ("rows_dropped", "decided, but more than could be written"),
)  # fmt: skip


def _lost(counters: dict[str, object]) -> str:
    """What the list does not show, since casemated began; empty where there is nothing."""
    found = [f"{count} {why}" for name, why in _LOST if isinstance(count := counters.get(name, 0), int) and count]
    return f"Not in this list, since casemated began: {', '.join(found)}.\n" if found else ""


def _rows(answer: dict[str, object], name: str) -> list[dict[str, object]]:
    return rows_of(answer | {name: answer.get(name, [])}, name)


def _row(row: dict[str, object], state: str) -> dict[str, object]:
    answer = str(row.get("answer") or "")
    until = f" until {row.get('until')}" if row.get("until") else ""
    told = f"{state} until {row.get('deadline')}" if not answer else f"{state}{answer}{until}"
    why = row.get("reason") or f"asked by {row.get('asked_by')}"
    return {
        "Number": row.get("number"), "At": row.get("at"), "Source": row.get("source"),
        "From": _end(row, "source"), "To": _end(row, "destination"), "Name": row.get("dns") or "",
        "Destination": row.get("destination"), "Port": f"{row.get('protocol')}/{row.get('port')}", "State": told,
        "Reason": why, "By": row.get("by"),
    }  # fmt: skip


def _end(row: dict[str, object], side: str) -> str:
    """A pod by its name, with its address; an outside address with the name that the pod asked for, if one is known."""
    name, address = str(row.get(side)), str(row.get(f"{side}_address") or "")
    if side == "destination" and row.get("dns"):
        return f"{address} (asked for as {row.get('dns')})"
    return f"{name} ({address})" if address and address != name else name


def _answer(arguments: Arguments, context: Context, allow: bool) -> int:
    request: dict[str, object] = {"allow": allow}
    seconds = _seconds(arguments, "for")
    if seconds:
        request["for_s"] = seconds
    if arguments.on("remember"):
        request["remember"] = True
    if arguments.text("reason"):
        request["reason"] = arguments.text("reason")
    return each(
        context, arguments.words, lambda name: context.client.post(f"/v1/referrals/{segment(name)}", request),
        "allowed" if allow else "denied", lambda answer: f"{_told(answer)}",
    )  # fmt: skip


def _told(answer: object) -> str:
    row = object_of(answer)
    text = f"{row.get('number')} {row.get('answer')}: {_end(row, 'source')} to {_end(row, 'destination')}"
    return clean(f"{text} {row.get('protocol')}/{row.get('port')}, {row.get('reason')}")


def _seconds(arguments: Arguments, flag: str) -> int:
    text = arguments.text(flag)
    if text is None:
        return 0
    from casemate.cli.asked.quantities import seconds

    found = int(seconds(f"--{flag}", text))
    if not 1 <= found <= MAX_SECONDS:
        raise bad_value(f"--{flag}", text, "DURATION from 1s to 365d")
    return found


def allow(arguments: Arguments, context: Context) -> int:
    return _answer(arguments, context, True)


def deny(arguments: Arguments, context: Context) -> int:
    return _answer(arguments, context, False)


def forget(arguments: Arguments, context: Context) -> int:
    return each(
        context, arguments.words, lambda name: context.client.delete(f"/v1/referrals/{segment(name)}"), "forgotten",
        lambda answer: str(object_of(answer).get("number")),
    )  # fmt: skip


def watch(arguments: Arguments, context: Context) -> int:
    from casemate.cli.wire import json
    from casemate.cli.wire.events import read_events

    pairs = [] if arguments.on("all") else [("waiting", "true")]
    answer = context.client.send("GET", "/v1/referrals/events", [*pairs, *context.of_project()])
    for _, event in read_events(answer.chunks):
        row = event if isinstance(event, dict) else {}
        if context.json:
            context.write(json.dumps(row) + "\n")
            continue
        held = _row(row, "waits")
        text = f"{held['Number']} {held['At']} {held['From']} to {held['To']} {held['Port']}"
        word = str(row.get("answer") or "")
        colour = {"allow": "32", "deny": "31"}.get(word, "36")
        context.write(coloured(clean(f"{text}: {held['State']} ({held['Reason']})"), colour, 1) + "\n")
    return 0


def quarantine(arguments: Arguments, context: Context) -> int:
    if not arguments.words:
        raise usage("quarantine needs a workload", "`casemate quarantine NAME`, `quarantine ls`, `quarantine release`.")
    request: dict[str, object] = {"allow": [_allowed(text) for text in arguments.texts("allow")]}
    if context.project != "default":
        request["project"] = context.project
    if arguments.text("reason"):
        request["reason"] = arguments.text("reason")
    until = arguments.text("until")
    if until is not None:
        request["for_s"] = _until(until)

    def one(name: str) -> object:
        return context.client.post("/v1/quarantines", request | {"workload": name})

    return each(context, arguments.words, one, "quarantined", lambda answer: str(object_of(answer).get("workload")))


def _until(text: str) -> int:
    """Seconds from now: of a duration (``1h``) or of a time."""
    import time

    from casemate.cli.asked.quantities import moment, seconds
    from casemate.cli.show.human import parse_time

    if "-" in text or "T" in text:
        now = time.time()
        found = int((parse_time(moment("--until", text, now)) or 0.0) - now)
    else:
        found = int(seconds("--until", text))
    if not 1 <= found <= MAX_SECONDS:
        raise bad_value("--until", text, "a time to come, or a duration as 1h, of at most 365 days")
    return found


def _allowed(text: str) -> dict[str, object]:
    """``[to:|from:]END[@PORT[,PORT...]]``: ``from:admin@tcp/22``, ``to:10.0.0.0/8``, ``any@udp/53``."""
    direction, rest = "both", text
    for word in ("to", "from"):
        if text.startswith(f"{word}:"):
            direction, rest = word, text[len(word) + 1 :]
    end, _, ports = rest.partition("@")
    if not end:
        raise bad_value("--allow", text, "[to:|from:]END[@PORT,...], for example from:admin@tcp/22")
    made: dict[str, object] = {"end": end, "direction": direction}
    if ports:
        made["ports"] = ports.split(",")
    return made


def held(arguments: Arguments, context: Context) -> int:
    everything = arguments.on("all")
    answer = object_of(context.client.get("/v1/quarantines", [("all", "true")] if everything else []))
    found = _rows(answer, "quarantines")
    if context.json:
        context.answer(found)
        return 0
    rows: list[dict[str, object]] = [
        {"Workload": row.get("workload"), "Since": row.get("since"), "Until": row.get("until") or "released",
         "By": row.get("by"), "Cause": row.get("cause"), "Reason": row.get("reason", ""),
         "Released": row.get("released_at", ""), "ReleaseReason": row.get("release_reason", ""),
         "Number": row.get("number")}
        for row in found
    ]  # fmt: skip
    columns = _ENDS if everything else _HELD
    show(context, columns, rows, arguments.text("format"), "Workload" if arguments.on("quiet") else "")
    if arguments.on("before"):
        for row in found:
            before = row.get("before")
            for text in before if isinstance(before, list) else ():
                context.write(clean(f"{row.get('workload')} was connected {text}") + "\n")
    return 0


def release(arguments: Arguments, context: Context) -> int:
    reason = arguments.text("reason")
    if not reason:
        raise usage("--reason is missing", "Say why it may talk again: --reason 'rebuilt from the verified image'.")
    request: dict[str, object] = {"reason": reason}
    if context.project != "default":
        request["project"] = context.project

    def one(name: str) -> object:
        return context.client.post("/v1/quarantines/release", request | {"workload": name})

    return each(context, arguments.words, one, "released")


_FOR = value("for", "DURATION", "The same answer for these two and this port, so long (1h)")
_REMEMBER = switch("remember", "The same answer from now on, until it is forgotten")
_REASON = value("reason", "TEXT", "Why; kept with it")

LS = Command(
    "[OPTIONS]", ls,
    (switch("all", "Decided and remembered ones too", "a"), value("last", "N", "The N decided last", "n"), FORMAT,
     switch("quiet", "Only numbers", "q")),
)  # fmt: skip
ALLOW = Command("[OPTIONS] NUMBER [NUMBER...]", allow, (_FOR, _REMEMBER, _REASON), 1, None, (), "",
                ("casemate referral allow 17 --for 1h",))  # fmt: skip
DENY = Command("[OPTIONS] NUMBER [NUMBER...]", deny, (_FOR, _REMEMBER, _REASON), 1, None, (), "",
               ("casemate referral deny 17 --remember --reason 'no business there'",))  # fmt: skip
FORGET = Command("NUMBER [NUMBER...]", forget, (), 1, None)
WATCH = Command("[OPTIONS]", watch, (switch("all", "What rules decide too", "a"),))
QUARANTINE = Command(
    "[OPTIONS] WORKLOAD [WORKLOAD...]", quarantine,
    (values("allow", "[to:|from:]END[@PORT,...]", "What it may still do: from:admin@tcp/22, any@udp/53"),
     _REASON, value("until", "TIME", "Ends by itself then, or after so long (1h)")),
    0, None, ("container",), "END: a workload, KEY=VALUE (pods with this label), a network, a name, any.\n"
    "`quarantine ls` lists, `quarantine release WORKLOAD --reason TEXT` ends one.",
    ("casemate quarantine web --reason 'scans its neighbours' --allow from:admin@tcp/22",),
)  # fmt: skip
HELD = Command("[OPTIONS]", held, (switch("all", "Those that ended too", "a"),
                                   switch("before", "Whom each was connected to before"), FORMAT,
                                   switch("quiet", "Only workloads", "q")))  # fmt: skip
RELEASE = Command("WORKLOAD [WORKLOAD...] --reason TEXT", release, (_REASON,), 1, None, ("container",))
