"""``ps top diff port``."""

from __future__ import annotations

import time

from casemate.cli.fail import bad_value, usage
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show import rows as shape
from casemate.cli.show.table import aligned, show
from casemate.cli.wire.client import object_of, rows_of
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context
    from casemate.cli.wire.client import Pairs

#: Pages asked for without ``--last``: the bound on containers in the store is a million, a page holds what it holds.
_MAX_PAGES = 100_000


def filters(arguments: Arguments) -> Pairs:
    """``--filter key=value``, each as a query parameter."""
    found: Pairs = []
    for text in arguments.texts("filter"):
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise bad_value("--filter", text, "KEY=VALUE, for example status=exited or label=tier=web")
        found.append(("filter", text))
    return found


def ps(arguments: Arguments, context: Context) -> int:
    pairs = filters(arguments)
    everything = arguments.on("all") or any(text[:7] in ("status=", "exited=") for _, text in pairs)
    last = arguments.text("last")
    if arguments.on("latest"):
        last = "1"
    if last is not None and last != "-1":
        from casemate.cli.asked.quantities import whole as number

        pairs.append(("last", str(number("--last", last, 1, 100_000))))
        everything = True
    if everything:
        pairs.append(("all", "true"))
    found = _pages(context, pairs, "last" in dict(pairs))
    if context.json:
        context.answer(found)
        return 0
    whole = arguments.on("no-trunc")
    now = time.time()
    rows = [shape.container(row, now, whole) for row in found]
    template = arguments.text("format")
    columns = shape.PS_COLUMNS if template in (None, "table") else shape.PS_TITLES
    show(context, columns, rows, template, "ID" if arguments.on("quiet") else "")
    return 0


def _pages(context: Context, pairs: Pairs, one: bool) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    after: Pairs = []
    for _ in range(_MAX_PAGES):
        answer = object_of(context.client.get("/v1/containers", [*pairs, *after]))
        found += rows_of(answer | {"containers": answer.get("containers", [])}, "containers")
        following = answer.get("next_after")
        if one or not following:
            break
        after = [("after", str(following))]
    return found


def top(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get(f"/v1/containers/{segment(arguments.words[0])}/top"))
    if context.json:
        context.answer(answer)
        return 0
    lines: list[list[str]] = []
    titles, processes = answer.get("titles"), answer.get("processes")
    for line in [titles, *(processes if isinstance(processes, list) else ())]:
        if isinstance(line, list):
            lines.append([str(cell) for cell in line])
    context.write(aligned(lines))
    return 0


def diff(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get(f"/v1/containers/{segment(arguments.words[0])}/changes"))
    changes = rows_of(answer | {"changes": answer.get("changes", [])}, "changes")
    if context.json:
        context.answer(changes)
        return 0
    from casemate.cli.show.plain import clean

    context.write("".join(f"{row.get('kind')} {clean(str(row.get('path')))}\n" for row in changes))
    return 0


def port(arguments: Arguments, context: Context) -> int:
    reference, *wanted = arguments.words
    detail = object_of(context.client.get(f"/v1/containers/{segment(reference)}"))
    found = object_of(detail.get("summary")).get("ports")
    published = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    if wanted:
        number, _, protocol = wanted[0].partition("/")
        published = [
            row for row in published
            if str(row.get("container_port")) == number and row.get("protocol", "tcp") == (protocol or "tcp")
        ]  # fmt: skip
        if not published:
            raise usage(
                f"container {reference!r} publishes no port {wanted[0]!r}",
                f"`casemate port {reference}` lists what it publishes.",
            )
    if context.json:
        context.answer(published)
        return 0
    for row in published:
        outside = f"{row.get('host_address', '0.0.0.0')}:{row.get('host_port')}"  # noqa: S104 - shown
        inside = f"{row.get('container_port')}/{row.get('protocol', 'tcp')}"
        context.write(f"{outside}\n" if wanted else f"{inside} -> {outside}\n")
    return 0


FORMAT = value("format", "TEMPLATE", "Go template: `{{.Names}}`, `table {{.ID}}\\t{{.Names}}`, json")
FILTER = values("filter", "KEY=VALUE", "Only those that fit", "f")
NO_TRUNC = switch("no-trunc", "Cut nothing")

PS = Command(
    "[OPTIONS]",
    ps,
    (
        switch("all", "Those that do not run too", "a"),
        FILTER,
        FORMAT,
        switch("quiet", "Only ids", "q"),
        NO_TRUNC,
        value("last", "N", "The N created last, running or not", "n"),
        switch("latest", "The one created last", "l"),
    ),
    0,
    0,
    (),
    "Filters: id, name, status, label, ancestor, pod, exited.\n"
    "Fields: .ID .Names .Image .Command .CreatedAt .RunningFor .Status .State .Ports .Labels .Pod .PodName .Level\n"
    ".Project .Address .Identity .Restarts .ExitCode .ImageDigest",
    (
        "casemate ps -a",
        "casemate ps --filter status=exited -q",
        "casemate ps --format 'table {{.Names}}\\t{{.Status}}'",
    ),
)
TOP = Command("CONTAINER", top, (), 1, 1, ("running",))
DIFF = Command("CONTAINER", diff, (), 1, 1, ("container",), "A: added, C: changed, D: deleted.")
PORT = Command("CONTAINER [PORT[/PROTOCOL]]", port, (), 1, 2, ("container",))
