"""The service map as a picture: SVG, alone or in a page that needs nothing else. All text from outside is escaped."""

from __future__ import annotations

from itertools import pairwise

from casemate.cli.show.flowlayout import BOX_HEIGHT, BOX_WIDTH, Layout, place
from casemate.cli.show.human import size

VERDICTS = ("allow", "audit", "referred", "deny")
_WORDS = {"allow": "allowed", "audit": "audited: would be refused", "referred": "referred, then allowed",
          "deny": "refused"}  # fmt: skip
_MAX_CHARS = 22
_HEAD_HEIGHT, _LEGEND_HEIGHT = 76.0, 58.0
_MIN_WIDTH = 860.0
#: Between an arrow's tip and the box that it points to.
_GAP = 2.0

_STYLE = """
.casemate{--paper:#fbfaf7;--ink:#1c2430;--soft:#6b7482;--line:#dcd9d1;--box:#fff;--out:#f1efe9;
--allow:#2f6f6a;--audit:#b7791f;--referred:#5a57b8;--deny:#c2333a;font:13px/1.4 system-ui,-apple-system,"Segoe UI",
Roboto,"DejaVu Sans",sans-serif}
@media (prefers-color-scheme:dark){.casemate{--paper:#12161c;--ink:#e8e6e1;--soft:#98a1af;--line:#303846;--box:#1c222b;
--out:#171c24;--allow:#5fb8ae;--audit:#e0a84a;--referred:#9d9af0;--deny:#f2666b}}
.casemate .paper{fill:var(--paper)}
.casemate text{fill:var(--ink)}
.casemate .title{font-size:19px;font-weight:650;letter-spacing:-.01em}
.casemate .soft{fill:var(--soft);font-size:11.5px}
.casemate .box rect{fill:var(--box);stroke:var(--line);stroke-width:1.2}
.casemate .box.outside rect{fill:var(--out);stroke-dasharray:4 3}
.casemate .name{font-weight:600}
.casemate .edge path{fill:none;opacity:.78}
.casemate .edge.allow path{stroke:var(--allow)}.casemate .edge.audit path{stroke:var(--audit)}
.casemate .edge.referred path{stroke:var(--referred)}
.casemate .edge.deny path{stroke:var(--deny);stroke-dasharray:7 5}
.casemate .edge .port{font-size:11px;paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.casemate .edge.allow .port{fill:var(--allow)}.casemate .edge.audit .port{fill:var(--audit)}
.casemate .edge.referred .port{fill:var(--referred)}.casemate .edge.deny .port{fill:var(--deny)}
.casemate .tip-allow{fill:var(--allow)}.casemate .tip-audit{fill:var(--audit)}
.casemate .tip-referred{fill:var(--referred)}.casemate .tip-deny{fill:var(--deny)}
.casemate.dim .edge,.casemate.dim .box{opacity:.13}
.casemate.dim .edge.lit,.casemate.dim .box.lit{opacity:1}
.casemate .edge,.casemate .box{transition:opacity .12s}
"""

_PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0;background:#fbfaf7;color:#1c2430;font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",
sans-serif}
main{max-width:1720px;margin:0 auto;padding:20px}
svg{display:block;margin:0 auto;max-width:100%;min-width:860px;height:auto}
.frame{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin-top:18px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;font-size:12px;color:#6b7482;border-bottom:1px solid #dcd9d1;padding:6px 12px 6px 0}
td{padding:5px 12px 5px 0;border-bottom:1px solid #dcd9d180}
td.n,th.n{text-align:right}
.deny{color:#c2333a}.audit{color:#b7791f}.referred{color:#5a57b8}.allow{color:#2f6f6a}
tr[hidden]{display:none}
nav{display:flex;gap:8px;margin:12px 0 0}
nav label{border:1px solid #dcd9d1;border-radius:999px;padding:3px 12px;cursor:pointer;user-select:none}
nav input{accent-color:currentColor;margin:0 6px 0 0}
@media (prefers-color-scheme:dark){body{background:#12161c;color:#e8e6e1}th{color:#98a1af;border-color:#303846}
td{border-color:#30384680}nav label{border-color:#303846}
.deny{color:#f2666b}.audit{color:#e0a84a}.referred{color:#9d9af0}.allow{color:#5fb8ae}}
"""

_SCRIPT = """
const map=document.querySelector('svg.casemate'),edges=[...map.querySelectorAll('.edge')],
boxes=[...map.querySelectorAll('.box')];
function light(ids,lit){map.classList.add('dim');
boxes.forEach(b=>b.classList.toggle('lit',ids.has(b.dataset.id)));edges.forEach(e=>e.classList.toggle('lit',lit(e)))}
function dark(){map.classList.remove('dim')}
boxes.forEach(b=>{b.addEventListener('mouseenter',()=>{const id=b.dataset.id,ids=new Set([id]);
edges.forEach(e=>{if(e.dataset.from===id)ids.add(e.dataset.to);if(e.dataset.to===id)ids.add(e.dataset.from)});
light(ids,e=>e.dataset.from===id||e.dataset.to===id)});b.addEventListener('mouseleave',dark)});
edges.forEach(e=>{e.addEventListener('mouseenter',()=>light(new Set([e.dataset.from,e.dataset.to]),o=>o===e));
e.addEventListener('mouseleave',dark)});
document.querySelectorAll('nav input').forEach(i=>i.addEventListener('change',()=>{
edges.filter(e=>e.classList.contains(i.name)).forEach(e=>e.style.display=i.checked?'':'none');
document.querySelectorAll('tbody tr').forEach(r=>{if(r.dataset.verdict===i.name)r.hidden=!i.checked})}));
"""


class _Line:
    """What is drawn as one: all edges of a verdict between two nodes."""

    __slots__ = ("bytes", "count", "destination", "ports", "source", "verdict")

    def __init__(self, source: str, destination: str, verdict: str) -> None:
        self.source = source
        self.destination = destination
        self.verdict = verdict
        self.count = 0
        self.bytes = 0
        self.ports: dict[str, int] = {}


def escaped(text: object) -> str:
    """*text* for markup: names come from images and strangers."""
    shown = "".join(char if char.isprintable() else "�" for char in str(text))
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;")):
        shown = shown.replace(char, entity)
    return shown


def _short(text: str, most: int = _MAX_CHARS) -> str:
    return text if len(text) <= most else f"{text[: most - 9]}…{text[-8:]}"


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _rows(found: dict[str, object], key: str) -> list[dict[str, object]]:
    rows = found.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _lines(edges: list[dict[str, object]]) -> list[_Line]:
    lines: dict[tuple[str, str, str], _Line] = {}
    for edge in edges:
        key = (str(edge.get("source")), str(edge.get("destination")), str(edge.get("verdict")))
        line = lines.setdefault(key, _Line(*key))
        count = _number(edge.get("count"))
        line.count += count
        line.bytes += _number(edge.get("bytes_out")) + _number(edge.get("bytes_in"))
        port = f"{edge.get('protocol')}/{edge.get('port')}" if edge.get("port") else str(edge.get("protocol"))
        line.ports[port] = line.ports.get(port, 0) + count
    # What was refused is drawn last, above the rest.
    return sorted(lines.values(), key=lambda line: VERDICTS.index(line.verdict) if line.verdict in VERDICTS else 9)


def _split(nodes: dict[str, dict[str, object]], lines: list[_Line]) -> dict[str, dict[str, object]]:
    """An outside end that calls and is called is drawn twice, left and right: it is the picture's edge, no middle."""
    split: dict[str, dict[str, object]] = {}
    for line in lines:
        for side in ("source", "destination"):
            id_ = getattr(line, side)
            node = nodes[id_]
            if node.get("kind") != "pod":
                id_ = f"{id_} {side}"
                setattr(line, side, id_)
            split[id_] = node
    return split


def svg(found: dict[str, object]) -> str:
    """The map as an SVG picture of its own."""
    known = {str(node.get("id")): node for node in _rows(found, "nodes")}
    lines = [line for line in _lines(_rows(found, "edges")) if line.source in known and line.destination in known]
    nodes = _split(known, lines)
    pairs = {(line.source, line.destination) for line in lines}
    # What was refused says nothing of how the services are built, unless nothing else does.
    leading = {(line.source, line.destination) for line in lines if line.verdict != "deny"}
    led = {node for pair in leading for node in pair}
    leading |= {pair for pair in pairs if not led.issuperset(pair)}
    layout = place(list(nodes), pairs, leading)
    width, total = max(layout.width, _MIN_WIDTH), _HEAD_HEIGHT + layout.height + _LEGEND_HEIGHT
    count = sum(line.count for line in lines)
    most = max((line.count for line in lines), default=1)
    labels: list[tuple[float, float]] = []
    drawn = [_edge(line, layout, most, nodes, labels) for line in lines]
    empty = '<text class="soft" x="36" y="60">No connection was recorded in this time.</text>'
    return "".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" class="casemate" role="img" aria-label="Service map" '
        f'width="{width:.0f}" height="{total:.0f}" viewBox="0 0 {width:.0f} {total:.0f}"><style>{_STYLE}</style>'
        f'<rect class="paper" width="{width:.0f}" height="{total:.0f}"/>',
        '<text class="title" x="36" y="38">Who talks to whom</text>',
        f'<text class="soft" x="36" y="58">{escaped(_span(found))} · {count:,} connections among {len(known)} '
        f'ends{_folded(found)}</text><g transform="translate({(width - layout.width) / 2:.0f} {_HEAD_HEIGHT:.0f})">',
        *(path for path, _ in drawn),
        *(_box(id_, layout.boxes[id_], node) for id_, node in nodes.items()),
        *(label for _, label in drawn),
        "" if nodes else empty,
        "</g>",
        _legend(width, total),
        "</svg>\n",
    ))  # fmt: skip


def _span(found: dict[str, object]) -> str:
    since, until = str(found.get("since", ""))[:16], str(found.get("until", ""))[:16]
    return f"{since or 'all that is kept'} to {until}".replace("T", " ") + (" UTC" if until else "")


def _folded(found: dict[str, object]) -> str:
    folded = _number(found.get("folded"))
    return f" · {folded} outside addresses drawn as one" if folded else ""


def _box(id_: str, corner: tuple[float, float], node: dict[str, object]) -> str:
    x, y = corner
    is_pod = node.get("kind") == "pod"
    name, project = str(node.get("name") or node.get("kind")), str(node.get("project", ""))
    below = project if is_pod else {"world": "outside", "node": "this host"}.get(str(node.get("kind")), "")
    labels = str(node.get("labels", ""))
    told = f"{name}\n{below}\n{labels}".strip()
    detail = _short(f"{below} · {labels}" if labels else below, 24)
    radius = 9 if is_pod else BOX_HEIGHT / 2
    middle = x + BOX_WIDTH / 2
    return (
        f'<g class="box{"" if is_pod else " outside"}" data-id="{escaped(id_)}"><title>{escaped(told)}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="{radius}"/>'
        f'<text class="name" x="{middle:.1f}" y="{y + 20:.1f}" text-anchor="middle">{escaped(_short(name))}</text>'
        f'<text class="soft" x="{middle:.1f}" y="{y + 36:.1f}" text-anchor="middle">{escaped(detail)}</text></g>'
    )


class _Head:
    """An arrow's head: its tip, which way it points (x, y: one of them 0), and its length."""

    __slots__ = ("length", "tip", "to", "width")

    def __init__(self, tip: tuple[float, float], to: tuple[int, int], stroke: float) -> None:
        self.tip = tip
        self.to = to
        self.length, self.width = 6.5 + 1.1 * stroke, 3.4 + 0.9 * stroke

    def base(self) -> tuple[float, float]:
        """Where the line ends that bears it: below it, so that none of the line shows at the tip."""
        inside = self.length - 1
        return self.tip[0] - inside * self.to[0], self.tip[1] - inside * self.to[1]

    def drawn(self, verdict: str) -> str:
        (x, y), (dx, dy) = self.tip, self.to
        ax, ay = x - self.length * dx, y - self.length * dy
        corners = ((ax + self.width * dy, ay + self.width * dx), (ax - self.width * dy, ay - self.width * dx))
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in ((x, y), *corners))
        return f'<polygon class="tip-{verdict}" points="{points}"/>'


def _way(line: _Line, layout: Layout, stroke: float) -> tuple[str, tuple[float, float], _Head]:
    """The path of a line *stroke* wide, where its label may stand, and its head."""
    (x1, y1), (x2, y2) = layout.boxes[line.source], layout.boxes[line.destination]
    # Verdicts between the same two ends lie beside each other.
    shift = (VERDICTS.index(line.verdict) if line.verdict in VERDICTS else 0) * 7 - 7
    if line.source == line.destination:
        left, right, top = x1 + BOX_WIDTH - 44, x1 + BOX_WIDTH - 16, y1 - 26
        head = _Head((right, y1 - _GAP), (0, 1), stroke)
        end = head.base()[1]
        path = f"M{left:.1f} {y1:.1f}C{left:.1f} {top:.1f} {right:.1f} {top:.1f} {right:.1f} {end:.1f}"
        return path, ((left + right) / 2, top + 4), head
    y1, y2 = y1 + BOX_HEIGHT / 2 + shift, y2 + BOX_HEIGHT / 2 + shift
    one, other = layout.columns[line.source], layout.columns[line.destination]
    if one == other:
        # Within a column: around the right side.
        begin, far = x1 + BOX_WIDTH, x1 + BOX_WIDTH + 60
        head = _Head((begin + _GAP, y2), (-1, 0), stroke)
        path = f"M{begin:.1f} {y1:.1f}C{far:.1f} {y1:.1f} {far:.1f} {y2:.1f} {head.base()[0]:.1f} {y2:.1f}"
        return path, (begin + 45, (y1 + y2) / 2), head
    lanes = layout.lanes.get((line.source, line.destination), [])
    if one < other:
        head = _Head((x2 - _GAP, y2), (1, 0), stroke)
        points = [(x1 + BOX_WIDTH, y1), *((x, y + shift) for x, y in lanes), head.base()]
    else:
        head = _Head((x2 + BOX_WIDTH + _GAP, y2), (-1, 0), stroke)
        points = [(x1, y1), *((x, y + shift) for x, y in reversed(lanes)), head.base()]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (ax, ay), (bx, by) in pairwise(points):
        bend = (bx - ax) * 0.45
        path += f"C{ax + bend:.1f} {ay:.1f} {bx - bend:.1f} {by:.1f} {bx:.1f} {by:.1f}"
    at = len(points) // 2 - 1 if len(points) > 2 else 0
    (ax, ay), (bx, by) = points[at], points[at + 1]
    return path, ((ax + bx) / 2, (ay + by) / 2), head


def _edge(
    line: _Line, layout: Layout, most: int, nodes: dict[str, dict[str, object]], labels: list[tuple[float, float]]
) -> tuple[str, str]:
    """The line, and its label (which stands above every line)."""
    width = 1.2 + 5.2 * (line.count.bit_length() / max(most.bit_length(), 1)) ** 2
    path, middle, head = _way(line, layout, width)
    ports = sorted(line.ports, key=lambda port: -line.ports[port])
    label = ", ".join(ports[:2]) + (f" +{len(ports) - 2}" if len(ports) > 2 else "")
    told = (
        f"{_called(nodes[line.source])} to {_called(nodes[line.destination])}: {_WORDS.get(line.verdict, line.verdict)}"
        f"\n{line.count:,} connections, {size(line.bytes)}\n{', '.join(ports[:20])}"
    )
    x, y = _free(middle, labels)
    verdict = line.verdict if line.verdict in VERDICTS else "allow"
    group = f'<g class="edge {verdict}" data-from="{escaped(line.source)}" data-to="{escaped(line.destination)}">'
    return (
        f'{group}<title>{escaped(told)}</title><path d="{path}" stroke-width="{width:.1f}"/>{head.drawn(verdict)}</g>',
        f'{group}<text class="port" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escaped(label)} · '
        f"{line.count:,}</text></g>",
    )


def _free(middle: tuple[float, float], labels: list[tuple[float, float]]) -> tuple[float, float]:
    """A place near *middle* that no label has taken."""
    x, y = middle[0], middle[1] - 5
    for step in (0, -15, 15, -30, 30, -45, 45, -60, 60):
        if all(abs(x - other_x) > 112 or abs(y + step - other_y) > 13 for other_x, other_y in labels):
            y += step
            break
    labels.append((x, y))
    return x, y


def _called(node: dict[str, object]) -> str:
    return str(node.get("name") or node.get("kind"))


def _legend(width: float, height: float) -> str:
    parts = [f'<g transform="translate(36 {height - 26:.0f})">']
    x = 0
    for verdict in VERDICTS:
        head = _Head((x + 36, -4), (1, 0), 3)
        parts.append(
            f'<g class="edge {verdict}"><path d="M{x} -4H{head.base()[0]:.1f}" stroke-width="3"/>'
            f"{head.drawn(verdict)}</g>"
            f'<text class="soft" x="{x + 44}" y="0">{_WORDS[verdict]}</text>'
        )
        x += 62 + 7 * len(_WORDS[verdict])
    return "".join(parts) + f'<text class="soft" x="{width - 72:.0f}" y="0" text-anchor="end">wider: more</text></g>'


def html(found: dict[str, object]) -> str:
    """A page with the picture and its figures, which loads nothing from anywhere."""
    names = {str(node.get("id")): _called(node) for node in _rows(found, "nodes")}
    rows = "".join(
        f'<tr data-verdict="{escaped(edge.get("verdict"))}"><td>{escaped(names.get(str(edge.get("source")), ""))}</td>'
        f"<td>{escaped(names.get(str(edge.get('destination')), ''))}</td>"
        f"<td>{escaped(edge.get('protocol'))}/{escaped(edge.get('port'))}</td>"
        f'<td class="{escaped(edge.get("verdict"))}">{escaped(_WORDS.get(str(edge.get("verdict")), ""))}</td>'
        f'<td class="n">{_number(edge.get("count")):,}</td><td class="n">{size(_number(edge.get("bytes_out")))}</td>'
        f'<td class="n">{size(_number(edge.get("bytes_in")))}</td><td>{escaped(edge.get("rule", ""))}</td></tr>'
        for edge in _rows(found, "edges")
    )
    choices = "".join(
        f'<label class="{verdict}"><input type="checkbox" name="{verdict}" checked>'
        f"{_WORDS[verdict].split(':')[0]}</label>"
        for verdict in VERDICTS
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Service map</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{_PAGE_STYLE}</style></head><body><main><div class="frame">{svg(found)}</div><nav>{choices}</nav>'
        '<table><thead><tr><th>From</th><th>To</th><th>Port</th><th>Verdict</th><th class="n">Connections</th>'
        f'<th class="n">Sent</th><th class="n">Answered</th><th>Rule</th></tr></thead><tbody>{rows}</tbody></table>'
        f"</main><script>{_SCRIPT}</script></body></html>\n"
    )
