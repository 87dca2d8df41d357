"""``system info doctor df prune``."""

from __future__ import annotations

from casemate.cli.commands.listing import FORMAT
from casemate.cli.flags import Arguments, Command, switch
from casemate.cli.show.human import size
from casemate.cli.show.plain import clean, coloured
from casemate.cli.show.table import show
from casemate.cli.wire.client import object_of, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context


def info(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/info"))
    template = arguments.text("format")
    if context.json:
        context.answer(answer)
    elif template is not None:
        from casemate.cli.show.template import Template

        context.write(Template("{{json .}}" if template == "json" else template).render(answer) + "\n")
    else:
        lines = [f"Version: {answer.get('version')}", f"Containers: {answer.get('containers')}",
                 f" Running: {answer.get('running')}", f"Images: {answer.get('images')}"]  # fmt: skip
        lines += _rights(answer.get("caller"))
        for title, name in (("Isolation levels", "levels"), ("Host", "host"), ("Settings", "settings")):
            found = answer.get(name)
            if isinstance(found, dict) and found:
                lines.append(f"{title}:")
                lines += [f" {key}: {_plain(held)}" for key, held in sorted(found.items())]
        context.write("".join(f"{clean(line)}\n" for line in lines))
        for warning in _list(answer.get("warnings")):
            context.note(f"{coloured('warning:', '33', 2)} {clean(str(warning))}\n")
    return 0


def _rights(caller: object) -> list[str]:
    """Who asks, and what is open to them."""
    if not isinstance(caller, dict):
        return []
    projects, grants = (", ".join(map(str, _list(caller.get(name)))) for name in ("projects", "grants"))
    may = "every project" if caller.get("administrator") else projects or "no project"
    return [f"You: {caller.get('who')}", f" Projects: {may}", f" Grants: {grants or 'none'}"]


def _plain(held: object) -> str:
    return ", ".join(map(str, held)) if isinstance(held, list) else str(held)


def _list(found: object) -> list[object]:
    return found if isinstance(found, list) else []


_COLOURS = {"error": "31;1", "warning": "33", "fault": "31;1", "ok": "32"}


def doctor(_: Arguments, context: Context) -> int:
    """1 where something is wrong: for scripts and for the target that starts the daemons."""
    answer = object_of(context.client.get("/v1/doctor"))
    healthy = bool(answer.get("healthy"))
    if context.json:
        context.answer(answer)
        return 0 if healthy else 1
    for row in rows_of(answer | {"findings": answer.get("findings", [])}, "findings"):
        severity = clean(str(row.get("severity", "")))
        left = " (left behind)" if row.get("left_over") else ""
        head = coloured(f"{severity:<8}", _COLOURS.get(severity, "1"), 1)
        context.write(f"{head} {clean(str(row.get('check')))}{left}: {clean(str(row.get('detail')))}\n")
        if row.get("remedy"):
            context.write(f"{'':<8}   remedy: {clean(str(row['remedy']))}\n")
    context.write("The host is fit.\n" if healthy else "Something needs attention: see above.\n")
    return 0 if healthy else 1


_DF = (
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
)


def df(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/df"))
    if context.json:
        context.answer(answer)
        return 0
    rows: list[dict[str, object]] = []
    for row in rows_of(answer | {"rows": answer.get("rows", [])}, "rows"):
        total, free = (row.get(name) for name in ("size_bytes", "reclaimable_bytes"))
        total, free = (held if isinstance(held, int) else 0 for held in (total, free))
        share = f" ({100 * free // total}%)" if total > 0 else ""
        rows.append(
            {
                "Type": str(row.get("kind", "")).capitalize(),
                "TotalCount": row.get("count", 0),
                "Active": row.get("active", 0),
                "Size": size(total) if total >= 0 else "--",
                "Reclaimable": f"{size(free)}{share}" if free >= 0 else "--",
            }
        )
    show(context, _DF, rows, arguments.text("format"))
    return 0


def prune(arguments: Arguments, context: Context) -> int:
    from casemate.cli.commands.images import show_removed

    request = {
        name: True
        for flag, name in (("all", "all_images"), ("volumes", "volumes"), ("left-overs", "left_overs_only"),
                           ("dry-run", "dry_run"))
        if arguments.on(flag)
    }  # fmt: skip
    answer = context.client.post("/v1/prune", request)
    if arguments.on("dry-run") and not context.json:
        context.write("Nothing was removed; this would go:\n")
    return show_removed(context, answer, "Objects")


INFO = Command("[OPTIONS]", info, (FORMAT,))
DOCTOR = Command("", doctor, (), 0, 0, (), "The exit code is 1 where something needs attention.")
DF = Command("[OPTIONS]", df, (FORMAT,))
PRUNE = Command(
    "[OPTIONS]", prune,
    (switch("all", "All images that no container uses, not only untagged ones", "a"),
     switch("volumes", "Volumes that nothing uses, too"),
     switch("left-overs", "Only what a crash left behind, nothing that somebody made"),
     switch("dry-run", "Say what would go, remove nothing", "n"),
     switch("force", "Accepted, as Docker has it: nothing is asked", "f")),
    0, 0, (), "Removes stopped containers, unused pods, untagged images, and what a crash left behind.",
    ("casemate system prune --dry-run",),
)  # fmt: skip
