"""``wall ls check report release``: conflict-of-interest walls, and the evidence for an auditor."""

from __future__ import annotations

from casemate.cli.commands.listing import FORMAT
from casemate.cli.fail import usage
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.plain import clean, coloured
from casemate.cli.show.table import aligned, show
from casemate.cli.wire.client import object_of, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

_START = "0" * 64
_FIELDS = ("number", "at", "kind", "wall", "workload", "member", "peer", "who", "reason")
_COLUMNS = (("Name", "WALL"), ("Members", "MEMBERS"), ("Bound", "BOUND"), ("Crossings", "PATHS ACROSS"),
            ("Document", "DOCUMENT"))  # fmt: skip


def ls(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/walls"))
    found = rows_of(answer, "walls")
    if context.json:
        context.answer(found)
        return 0
    rows: list[dict[str, object]] = [
        {"Name": row.get("name"), "Members": ", ".join(str(one.get("name")) for one in rows_of(row, "members")),
         "Bound": len(rows_of(row, "bound")), "Crossings": _count(row.get("crossings")),
         "Document": row.get("document")}
        for row in found
    ]  # fmt: skip
    show(context, _COLUMNS, rows, arguments.text("format"))
    return 0


def _count(listed: object) -> int:
    return len(listed) if isinstance(listed, list) else 0


def check(arguments: Arguments, context: Context) -> int:
    """Exit code 1 where a path leads across a wall."""
    from casemate.cli.commands.policy import YAML
    from casemate.cli.commands.policy_files import Files

    names = arguments.texts("file")
    files = Files(names) if names else None
    pairs = [("whole", "true")] if arguments.on("whole") else []

    def ask() -> object:
        data = files.data if files is not None else b""
        return context.client.upload("POST", "/v1/walls/check", pairs, iter([data]), YAML).json()

    answer = object_of(files.asked(ask, "policy") if files is not None else ask())
    found = [row for row in rows_of(answer, "walls") if not arguments.words or row.get("wall") in arguments.words]
    missing = set(arguments.words) - {str(row.get("wall")) for row in found}
    if missing:
        raise usage(f"no wall is called {sorted(missing)[0]!r}", "`casemate wall ls` lists those that are in force.")
    strict = arguments.on("outside")
    closed = all(row.get("whole", True) and not _open(row, strict=strict) for row in found)
    if context.json:
        context.answer({"walls": found, "closed": closed})
        return 0 if closed else 1
    for row in found:
        _proof(row, context, strict=strict)
    if not found:
        context.note("there are no walls\n")
    return 0 if closed else 1


def _open(row: dict[str, object], *, strict: bool) -> list[str]:
    listed = [*_texts(row.get("paths")), *(_texts(row.get("outside")) if strict else ())]
    return [str(text) for text in listed]


def _texts(listed: object) -> list[str]:
    return [str(text) for text in listed] if isinstance(listed, list) else []


def _proof(row: dict[str, object], context: Context, *, strict: bool) -> None:
    """One wall's proof, or its paths, in lines."""
    name = clean(str(row.get("wall")))
    members = ", ".join(f"{one.get('name')} ({one.get('identities')} identities)" for one in rows_of(row, "members"))
    looked = f"{row.get('rules', 0)} rules, {row.get('identities')} identities"
    hours = row.get("hours")
    looked += f", {hours} different hours" if isinstance(hours, int) and hours > 1 else ""
    paths = _open(row, strict=strict)
    if not row.get("whole", True):
        verdict = coloured("NOT PROVED: its rules have too many different hours", "31", 1)
    elif paths:
        verdict = coloured(f"OPEN: {len(paths)} paths", "31", 1)
    else:
        verdict = coloured("closed: the rules leave no path across", "32", 1)
    context.write(f"wall {name}: {verdict}\n  members: {clean(members)}\n  looked at: {looked}\n")
    for text in paths:
        context.write(f"  PATH: {clean(text)}\n")
    for text in () if strict else _texts(row.get("outside")):
        context.write(f"  through the outside: {clean(text)}\n")
    for text in _texts(row.get("guarded")):
        context.write(f"  held to one member by its history: {clean(text)}\n")


def report(arguments: Arguments, context: Context) -> int:
    """Exit code 1 where the chain does not hold."""
    pairs = [("wall", arguments.words[0])] if arguments.words else []
    answer = object_of(context.client.get("/v1/walls/report", pairs))
    entries = rows_of(answer, "entries")
    # Checked here too, when all rows are there: nobody has to take the daemon's word for it.
    intact = bool(answer.get("intact")) and (bool(arguments.words) or chain_holds(entries))
    if context.json:
        context.answer(answer | {"intact": intact})
        return 0 if intact else 1
    context.write(f"Walls at {answer.get('at')}\n\n")
    for row in rows_of(answer, "walls"):
        context.write(f"Wall {clean(str(row.get('name')))} (document {clean(str(row.get('document')))})\n")
        for member in rows_of(row, "members"):
            listed = member.get("workloads")
            picks = "; ".join(str(pick) for pick in listed) if isinstance(listed, list) else ""
            context.write(f"  member {clean(str(member.get('name')))}: {clean(picks)}\n")
        for bound in rows_of(row, "bound"):
            context.write(clean(f"  {bound.get('workload')} is bound to {bound.get('member')} since {bound.get('at')}, "
                                f"by its connection with {bound.get('peer')}") + "\n")  # fmt: skip
        paths = row.get("crossings")
        listed = paths if isinstance(paths, list) else []
        for text in listed:
            context.write(coloured(f"  PATH: {clean(str(text))}", "31", 1) + "\n")
        for text in _texts(row.get("outside")):
            context.write(f"  through the outside: {clean(text)}\n")
        if not listed:
            context.write("  the rules in force leave no path across, from workload to workload\n")
    lines = [["", "AT", "WHAT", "WALL", "WORKLOAD", "MEMBER", "WITH", "WHO", "WHY"]]
    lines += [[str(row.get("number")), *(str(row.get(name, "")) for name in _FIELDS[1:])] for row in entries]
    if entries:
        context.write("\n" + aligned(lines))
    state = "holds" if intact else coloured("DOES NOT HOLD", "31", 1)
    context.write(f"\nThe chain of all lines {state}; its end is {answer.get('chain')}\n")
    context.write(f"This report's digest: {answer.get('digest')}\n")
    return 0 if intact else 1


def chain_holds(entries: list[dict[str, object]]) -> bool:
    """SHA-256 over the hash before and the row as a JSON list without spaces, from 64 zeros on."""
    import hashlib
    import json

    before = _START
    for place, row in enumerate(entries, 1):
        text = json.dumps([row.get(name) for name in _FIELDS], separators=(",", ":"), ensure_ascii=False)
        before = hashlib.sha256(before.encode() + text.encode()).hexdigest()
        if before != row.get("chain") or row.get("number") != place:
            return False
    return True


def release(arguments: Arguments, context: Context) -> int:
    wall, workload = arguments.words
    reason = arguments.text("reason")
    if not reason:
        raise usage("--reason is missing", "Say why the workload may begin anew: --reason 'audit of 2026-11 closed'.")
    request: dict[str, object] = {"wall": wall, "workload": workload, "reason": reason}
    if context.project != "default":
        request["project"] = context.project
    context.client.post("/v1/walls/release", request)
    if context.json:
        context.answer({"wall": wall, "workload": workload, "result": "released"})
    else:
        context.write(f"{workload}\n")
    return 0


LS = Command("[OPTIONS]", ls, (FORMAT,))
CHECK = Command(
    "[OPTIONS] [WALL...]", check,
    (values("file", "FILE", "Look at these documents beside those in force, or - for standard input", "f",
            completes="file"),
     switch("whole", "The files are all there is"),
     switch("outside", "Count paths through addresses that are no pod's, too")),
    0, None, (), "Exit code 1 where a path leads across a wall.",
    ("casemate wall check", "casemate wall check -f new.yaml || exit 1"),
)  # fmt: skip
REPORT = Command(
    "[WALL]", report, (), 0, 1, (), "Exit code 1 where the chain of the evidence does not hold.",
    ("casemate wall report", "casemate wall report banks --json > evidence.json"),
)  # fmt: skip
RELEASE = Command(
    "WALL WORKLOAD --reason TEXT", release, (value("reason", "TEXT", "Why; kept in the evidence"),), 2, 2,
    ("", "container"), "", ("casemate wall release banks analyst --reason 'engagement ended'",),
)  # fmt: skip
