"""A scan as one HTML page that needs nothing else: no script, no style sheet, no font, no request. Pure.

Every text comes from outside (an image's author, a feed) and is escaped; the page forbids itself to load anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from casemate.spec.api.scan import ScanAnswer, ScanFinding, ScanUpgrade

#: A browser shows so many rows without pain; the JSON has all.
MAX_ROWS = 5_000
MAX_NAMES = 8
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1c2024}"
    "h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;"
    "vertical-align:top;overflow-wrap:anywhere}th{white-space:nowrap;font-weight:600;background:#f4f5f6}"
    ".critical{color:#8a0917;font-weight:700}.high{color:#b3380a;font-weight:600}.medium{color:#7a5b00}.low{color:#4d5560}"
    ".gap{background:#fdecea;border-left:4px solid #b3261e;padding:.5rem .8rem;margin:.3rem 0}"
    ".note{background:#fff7e0;border-left:4px solid #c48a00;padding:.5rem .8rem;margin:.3rem 0}"
    "code,.mono{font-family:ui-monospace,monospace;font-size:.9em}.dim{color:#5f6670}"
    "@media print{body{margin:0;max-width:none}}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(scan: ScanAnswer) -> str:
    """The page."""
    title = f"Scan of {scan.image}"
    return "".join((
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>\n",
        f"<h1>{_text(scan.image)}</h1><p class='dim mono'>{_text(scan.digest)}</p>\n",
        _summary(scan),
        *(f"<p class='gap'>Not judged: {_text(gap)}</p>\n" for gap in scan.gaps),
        *(f"<p class='note'>{_text(warning)}</p>\n" for warning in scan.warnings),
        *(f"<p class='dim'>Settled: {_text(line)}</p>\n" for line in scan.settled[:MAX_ROWS]),
        _upgrades(scan),
        _findings(scan),
        _section("Secrets left in layers", ("rule", "file", "line", "layer", "removed above"), (
            (row.rule, row.path, str(row.line or ""), _layer(scan, row.layer), "yes" if row.hidden else "")
            for row in scan.secrets
        ), len(scan.secrets)),
        _section("Files that run as their owner or group", ("mode", "file", "owner"), (
            (row.mode, row.path, f"{row.uid}:{row.gid}") for row in scan.setuid
        ), len(scan.setuid)),
        _section("Layers", ("number", "made by", "came with"), (
            (str(number), row.created_by, row.base) for number, row in enumerate(scan.layers)
        ), len(scan.layers)),
        _section("Feeds", ("name", "kind", "of", "age in days", "rows"), (
            (row.name, row.kind, row.date, str(row.age_days), str(row.rows)) for row in scan.feeds
        ), len(scan.feeds)),
        "</body></html>\n",
    ))  # fmt: skip


def _summary(scan: ScanAnswer) -> str:
    counted = ", ".join(
        f"<span class='{word}'>{scan.counts.get(word, 0)} {word}</span>"
        for word in ("critical", "high", "medium", "low", "none", "unknown")
        if scan.counts.get(word, 0)
    )
    end = ""
    if scan.end_of_life:
        verb = "ended" if scan.past_end_of_life else "end"
        end = f" Its maker's repairs {verb} on {_text(scan.end_of_life)}."
    state = "Everything in it could be judged." if scan.whole else "<strong>The answer is not whole.</strong>"
    return (
        f"<p>{_text(scan.distribution or 'No known distribution')}, {scan.packages} packages.{end} "
        f"Findings: {counted or 'none'}. {state} Matched on {_text(scan.scanned_on)}.</p>\n"
    )


def _upgrades(scan: ScanAnswer) -> str:
    """What to do, the worst first: to which version, what that repairs, and with which base the package came."""
    heads = ("worst", "package", "installed", "upgrade to", "repairs", "stay open", "layer", "advisories")
    rows = (
        (row.worst + (", exploited" if row.exploited else ""), _package(row), row.version,
         row.to or "nothing repairs it yet", str(row.repaired), str(row.open), _layer(scan, row.layer),
         _shortened(row.advisories))
        for row in scan.upgrades
    )  # fmt: skip
    return _section("What to upgrade", heads, rows, len(scan.upgrades), marks=[row.worst for row in scan.upgrades])


def _package(row: ScanUpgrade) -> str:
    installed = f": {', '.join(row.installed)}" if row.installed else ""
    return f"{row.package} ({row.type}{installed})"


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _findings(scan: ScanAnswer) -> str:
    rows = (
        (row.severity, row.package, row.version, row.fixed or "nothing repairs it yet", _advisory(row),
         _layer(scan, row.layer), row.path, row.ignored)
        for row in scan.findings
    )  # fmt: skip
    heads = ("severity", "package", "installed", "repaired in", "advisory", "layer", "file", "ignored")
    return _section("Findings", heads, rows, len(scan.findings), marks=[row.severity for row in scan.findings])


def _advisory(row: ScanFinding) -> str:
    names = " ".join((row.id, *row.aliases[:4]))
    facts = [f"score {row.score:.1f}"] if row.score >= 0 else []
    facts += ["known to be exploited"] if row.exploited else []
    facts += [f"EPSS {row.epss:.2f}"] if row.epss >= 0 else []
    told = f"{names} ({', '.join(facts)})" if facts else names
    return f"{told}: {row.summary}" if row.summary else told


def _layer(scan: ScanAnswer, number: int) -> str:
    if 0 <= number < len(scan.layers) and scan.layers[number].base:
        return f"{number}, of {scan.layers[number].base}"
    return str(number)


def _section(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], count: int, marks: Sequence[str] = ()
) -> str:
    if not count:
        return ""
    out = [f"<h2>{_text(title)} ({count})</h2>\n<table><thead><tr>"]
    out += [f"<th>{_text(head)}</th>" for head in heads]
    out.append("</tr></thead><tbody>\n")
    for number, row in enumerate(rows):
        if number == MAX_ROWS:
            out.append(f"<tr><td colspan='{len(heads)}'>{count - MAX_ROWS} more: see the JSON.</td></tr>\n")
            break
        mark = f" class='{marks[number]}'" if marks else ""
        cells = [f"<td{mark if place == 0 else ''}>{_text(cell)}</td>" for place, cell in enumerate(row)]
        out.append(f"<tr>{''.join(cells)}</tr>\n")
    out.append("</tbody></table>\n")
    return "".join(out)


def _text(text: str) -> str:
    """*text* for HTML; what would steer the reading direction or is no character becomes U+FFFD."""
    return escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))
