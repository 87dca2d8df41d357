"""The service map as a picture: well-formed, escaped, without overlaps, whatever the graph."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree

import pytest

from casemate.cli.show.flowlayout import BOX_HEIGHT, BOX_WIDTH, place
from casemate.cli.show.flowmap import html, svg

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "</title><script>alert(1)</script>\"' \x00\x1b[31m"


def node(name: str, kind: str = "pod") -> dict[str, object]:
    return {"id": f"{kind}:{name}", "kind": kind, "name": name, "project": "shop", "labels": ""}


def edge(source: str, destination: str, verdict: str = "allow", count: int = 1) -> dict[str, object]:
    return {"source": source, "destination": destination, "protocol": "tcp", "port": 80, "verdict": verdict,
            "rule": "", "count": count, "bytes_out": 1, "bytes_in": 2, "last": ""}  # fmt: skip


def picture(found: dict[str, object]) -> ElementTree.Element:
    return ElementTree.fromstring(svg(found))


def test_names_of_strangers_stay_text() -> None:
    found = {"nodes": [node(EVIL), node(EVIL, "world")], "since": EVIL, "until": EVIL, "folded": 0,
             "edges": [{**edge(f"pod:{EVIL}", f"world:{EVIL}", EVIL), "rule": EVIL, "protocol": EVIL}]}  # fmt: skip
    for text in (svg(found), html(found)):
        assert "<script>alert" not in text
        assert "\x00" not in text
        assert "\x1b" not in text
    picture(found)


def test_nothing_was_seen() -> None:
    assert "No connection was recorded" in svg({"nodes": [], "edges": []})
    picture({"nodes": [], "edges": []})
    # What lacks its ends, or is no row at all, is passed over.
    picture({"nodes": [node("a")], "edges": [edge("pod:a", "pod:gone"), 5], "since": 7})


def test_callers_stand_left_and_outside_ends_at_the_borders() -> None:
    nodes = [node("web"), node("db"), node("x", "world")]
    edges = [edge("world:x", "pod:web"), edge("pod:web", "pod:db"), edge("pod:db", "world:x", "deny")]
    root = picture({"nodes": nodes, "edges": edges})
    boxes = {
        group.get("data-id"): float(group.find("{*}rect").get("x"))  # type: ignore[union-attr,arg-type]
        for group in root.iter("{http://www.w3.org/2000/svg}g")
        if "box" in (group.get("class") or "").split()
    }
    assert boxes["world:x source"] < boxes["pod:web"] < boxes["pod:db"] < boxes["world:x destination"]


def test_arrows_end_before_the_box_that_they_point_to() -> None:
    """On each of its sides: forward, back, within a column, to itself; thin and thick."""
    edges = [edge("pod:a", "pod:b", count=9000), edge("pod:b", "pod:a", "deny"), edge("pod:c", "pod:b", "deny"),
             edge("pod:a", "pod:c"), edge("pod:b", "pod:c", "audit", 70),
             edge("pod:b", "pod:b", "referred")]  # fmt: skip
    root = picture({"nodes": [node("a"), node("b"), node("c")], "edges": edges})
    corners = {
        group.get("data-id"): (float(rect.get("x") or 0), float(rect.get("y") or 0))
        for group in root.iter(f"{SVG}g")
        if (rect := group.find(f"{SVG}rect")) is not None
    }
    heads = [(one.get("data-to"), head) for one in root.iter(f"{SVG}g") for head in one.findall(f"{SVG}polygon")]
    pointed = [(corners[to], head.get("points") or "") for to, head in heads if to is not None]
    assert len(pointed) == len(edges)
    for (left, top), points in pointed:
        for text in points.split():
            x, y = map(float, text.split(","))
            assert not (left < x < left + BOX_WIDTH and top < y < top + BOX_HEIGHT)
        x, y = map(float, points.split()[0].split(","))
        assert left - 2.1 <= x <= left + BOX_WIDTH + 2.1
        assert top - 2.1 <= y <= top + BOX_HEIGHT + 2.1


@pytest.mark.parametrize("seed", range(20))
def test_no_two_boxes_overlap_whatever_the_graph(seed: int) -> None:
    chance = random.Random(seed)
    nodes = [str(number) for number in range(chance.randrange(1, 40))]
    pairs = {(chance.choice(nodes), chance.choice(nodes)) for _ in range(chance.randrange(80))}
    layout = place(nodes, pairs, pairs)
    corners = sorted(layout.boxes.values())
    assert len(corners) == len(nodes)
    for one, (x, y) in enumerate(corners):
        assert 0 <= x <= layout.width - BOX_WIDTH
        assert 0 <= y <= layout.height - BOX_HEIGHT
        for other_x, other_y in corners[one + 1 :]:
            assert other_x - x >= BOX_WIDTH or abs(other_y - y) >= BOX_HEIGHT
