"""``image scan``: what is in an image and what to do about it."""

from __future__ import annotations

from casemate.cli.commands.archives import write_chunks
from casemate.cli.fail import bad_value, usage
from casemate.cli.flags import Arguments, Command, switch, value
from casemate.cli.show.plain import clean, coloured, shortened
from casemate.cli.show.table import aligned
from casemate.cli.wire.client import object_of, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

#: From the least to the worst; what nobody has judged stands beside ``low``: neither harmless nor urgent.
SEVERITIES = ("none", "unknown", "low", "medium", "high", "critical")
FOUND, NOT_WHOLE = 1, 2
_COLOURS = {"critical": "31;1", "high": "31", "medium": "33"}
MAX_SHOWN = 20


def scan(arguments: Arguments, context: Context) -> int:
    image = arguments.words[0]
    least = arguments.text("fail-on")
    if least is not None and least not in SEVERITIES:
        raise bad_value("--fail-on", least, f"one of {', '.join(SEVERITIES)}")
    bill = arguments.text("sbom")
    if bill is not None and bill not in ("cyclonedx", "spdx"):
        raise bad_value("--sbom", bill, "cyclonedx or spdx")
    asked = [name for name in ("html", "sarif", "sbom") if arguments.given(name)]
    if len(asked) > 1 or (asked and context.json):
        raise usage("only one of --json, --html, --sarif and --sbom can be answered at a time", "", "image scan")
    if asked:
        form = bill or asked[0]
        answer = context.client.send("GET", "/v1/images/scan", [("ref", image), ("format", form)])
        path = arguments.text("html") if form == "html" else arguments.text("output")
        _write(context, path, answer.read(), f"the {form} document")
        if form != "sarif" and least is None:
            return 0
    found = object_of(context.client.get("/v1/images/scan", [("ref", image)]))
    if context.json:
        context.answer(found)
    elif not asked:
        context.write(told(found, arguments.on("all")))
    return _code(found, least, arguments.on("ignore-unfixed"))


def _write(context: Context, path: str | None, data: bytes, what: str) -> None:
    if path is None or path == "-":
        context.write(data.decode("utf-8", "surrogateescape"))
    else:
        write_chunks(iter([data]), path, what)


def _code(found: dict[str, object], least: str | None, only_fixable: bool) -> int:
    """The exit code: see the page of the command."""
    if least is not None:
        bound = SEVERITIES.index(least)
        for row in rows_of(found | {"findings": found.get("findings", [])}, "findings"):
            severity = str(row.get("severity", "unknown"))
            if row.get("ignored") or (only_fixable and not row.get("fixed")) or severity not in SEVERITIES:
                continue
            if SEVERITIES.index(severity) >= bound:
                return FOUND
    return 0 if found.get("whole") is True else NOT_WHOLE


def told(found: dict[str, object], everything: bool) -> str:
    """The scan as a person reads it: the summary, what to upgrade, what else was found, what could not be judged."""
    counts = object_of(found.get("counts"))
    words = [
        coloured(f"{counts[word]} {word}", _COLOURS.get(word, "0"), 1)
        for word in reversed(SEVERITIES) if counts.get(word)
    ]  # fmt: skip
    system = str(found.get("distribution") or "no known distribution")
    text = f"{clean(str(found.get('image', '')))}  {clean(str(found.get('digest', '')))}\n"
    text += f"{clean(system)}, {found.get('packages', 0)} packages; findings: {', '.join(words) or 'none'}\n"
    if found.get("past_end_of_life"):
        text += coloured(f"No repairs since {clean(str(found.get('end_of_life')))}: end of life\n", "31;1", 1)
    elif found.get("end_of_life"):
        text += f"Repaired by its maker until {clean(str(found['end_of_life']))}\n"
    text += _upgrades(found, everything) + _layers(found) + _rest(found)
    for line in _texts(found, "settled")[:MAX_SHOWN]:
        text += f"Settled: {clean(line)}\n"
    for gap in _texts(found, "gaps"):
        text += coloured(f"Not judged: {clean(gap)}\n", "31", 1)
    for warning in _texts(found, "warnings"):
        text += f"Warning: {clean(warning)}\n"
    return text


def _upgrades(found: dict[str, object], everything: bool) -> str:
    rows = rows_of(found | {"upgrades": found.get("upgrades", [])}, "upgrades")
    if not rows:
        return ""
    lines = [["WORST", "PACKAGE", "INSTALLED", "UPGRADE TO", "REPAIRS", "OPEN", "LAYER", "ADVISORIES"]]
    shown = rows if everything else rows[:MAX_SHOWN]
    for row in shown:
        names = _texts(row, "advisories")
        listed = ", ".join(names if everything else names[:3])
        if len(names) > 3 and not everything:
            listed += f" and {len(names) - 3} more"
        worst = str(row.get("worst", "")) + ("!" if row.get("exploited") else "")
        version, to = str(row.get("version", "")), str(row.get("to") or "-")
        lines.append([
            worst, shortened(f"{row.get('package', '')} ({row.get('type', '')})", 44), shortened(version, 30),
            shortened(to, 30), str(row.get("repaired", 0)), str(row.get("open", 0)), str(row.get("layer", "")), listed,
        ])  # fmt: skip
    text = "\n" + aligned(lines)
    if len(rows) > len(shown):
        text += f"... and {len(rows) - len(shown)} packages more: --all, or --json\n"
    return text


def _layers(found: dict[str, object]) -> str:
    """The layers that findings or secrets are in: which step, which base."""
    rows = rows_of(found | {"layers": found.get("layers", [])}, "layers")
    used: set[int] = set()
    for key in ("upgrades", "secrets"):
        for row in rows_of(found | {key: found.get(key, [])}, key):
            number = row.get("layer")
            if isinstance(number, int):
                used.add(number)
    lines = [["LAYER", "CAME WITH", "MADE BY"]]
    for number, row in enumerate(rows):
        if number in used:
            step = shortened(" ".join(str(row.get("created_by", "")).split()), 70)
            lines.append([str(number), str(row.get("base") or "this image"), step])
    return "\n" + aligned(lines) if len(lines) > 1 else ""


def _rest(found: dict[str, object]) -> str:
    text = ""
    secrets = rows_of(found | {"secrets": found.get("secrets", [])}, "secrets")
    if secrets:
        lines = [["SECRET", "FILE", "LINE", "LAYER", ""]]
        for row in secrets[:MAX_SHOWN]:
            hidden = "removed above, and still in the image" if row.get("hidden") else ""
            lines.append([str(row.get("rule", "")), str(row.get("path", "")), str(row.get("line") or ""),
                          str(row.get("layer", "")), hidden])  # fmt: skip
        text += "\n" + aligned(lines)
    setuid = rows_of(found | {"setuid": found.get("setuid", [])}, "setuid")
    if setuid:
        names = ", ".join(clean(str(row.get("path", ""))) for row in setuid[:8])
        more = f" and {len(setuid) - 8} more" if len(setuid) > 8 else ""
        text += f"\n{len(setuid)} files run as their owner or group: {names}{more}\n"
    return text


def _texts(row: dict[str, object], name: str) -> list[str]:
    found = row.get(name)
    return [str(text) for text in found] if isinstance(found, list) else []


SCAN = Command(
    "[OPTIONS] IMAGE", scan,
    (
        value("fail-on", "SEVERITY", "End with 1 when a finding is this bad or worse", completes=",".join(SEVERITIES)),
        switch("ignore-unfixed", "--fail-on counts only what a newer version repairs"),
        switch("all", "Show every package and every advisory", "a"),
        value("html", "FILE", "Write a self-contained page (- for standard output)", completes="file"),
        switch("sarif", "Answer SARIF 2.1.0, as code hosts and CI take it"),
        value("sbom", "FORMAT", "A bill of materials: cyclonedx (1.6) or spdx (2.3)", completes="cyclonedx,spdx"),
        value("output", "FILE", "Write SARIF or the bill of materials there", "o", completes="file"),
    ),
    1, 1, ("image",),
    "Exit codes: 0 judged, 1 a finding that --fail-on names, 2 not everything could be judged (no feed for what is in\n"
    "the image, a feed too old, a package list that cannot be read), 125 no scan at all. ! marks what is known to be\n"
    "exploited.",
    ("casemate image scan debian:12", "casemate image scan --fail-on high --ignore-unfixed app:1",
     "casemate image scan --sarif -o scan.sarif app:1", "casemate image scan --sbom spdx app:1"),
)  # fmt: skip
