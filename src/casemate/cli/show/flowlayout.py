"""Where the boxes of a service map stand: callers left, what they call right. Pure.

Layers by the longest way from a caller (cycles are cut at the edge that closes them); an edge that passes a column gets
a place of its own there; then each column is ordered by where its neighbours stand, a few times over, so that few lines
cross (Sugiyama's method).
"""

from __future__ import annotations

from itertools import pairwise

BOX_WIDTH, BOX_HEIGHT = 172, 46
COLUMN_GAP, ROW_GAP = 138, 30
#: The height that a passing line takes of a column.
_LANE_HEIGHT = 12
MARGIN = 36
_SWEEPS = 12

Pairs = set[tuple[str, str]]
#: A node, or the place in *column* of the edge between two nodes.
Slot = tuple[str, str, int]


class Layout:
    """*boxes*: upper left corners by node; *lanes*: by edge, the middles of the columns that it passes."""

    __slots__ = ("boxes", "columns", "height", "lanes", "width")

    def __init__(self, columns: dict[str, int]) -> None:
        self.columns = columns
        self.boxes: dict[str, tuple[float, float]] = {}
        self.lanes: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self.width = self.height = 0.0


def place(nodes: list[str], pairs: Pairs, leading: Pairs) -> Layout:
    """A place for each of *nodes*; only *leading* of the *pairs* say what stands right of what."""
    order = sorted(set(nodes))
    layout = Layout(_columns(order, {pair for pair in leading or pairs if pair[0] != pair[1]}))
    columns = layout.columns
    stacks: dict[int, list[Slot]] = {}
    for node in order:
        stacks.setdefault(columns[node], []).append((node, "", columns[node]))
    neighbours: dict[Slot, list[Slot]] = {}
    for one, other in sorted(pairs):
        left, right = sorted((one, other), key=lambda node: columns[node])
        chain: list[Slot] = [(left, "", columns[left])]
        for column in range(columns[left] + 1, columns[right]):
            lane = (one, other, column)
            stacks[column].append(lane)
            chain.append(lane)
        chain.append((right, "", columns[right]))
        for before, after in pairwise(chain):
            neighbours.setdefault(before, []).append(after)
            neighbours.setdefault(after, []).append(before)
    _order(stacks, neighbours)
    _set_places(layout, stacks)
    return layout


def _order(stacks: dict[int, list[Slot]], neighbours: dict[Slot, list[Slot]]) -> None:
    at = {slot: row - (len(stack) - 1) / 2 for stack in stacks.values() for row, slot in enumerate(stack)}
    for sweep in range(_SWEEPS):
        for column in sorted(stacks, reverse=bool(sweep % 2)):
            weights: dict[Slot, float] = {}
            for slot in stacks[column]:
                near = [at[one] for one in neighbours.get(slot, ()) if one[2] != column]
                weights[slot] = sum(near) / len(near) if near else at[slot]
            stacks[column].sort(key=lambda slot: (weights[slot], slot))
            middle = (len(stacks[column]) - 1) / 2
            for row, slot in enumerate(stacks[column]):
                at[slot] = row - middle


def _set_places(layout: Layout, stacks: dict[int, list[Slot]]) -> None:
    def height(slot: Slot) -> float:
        return _LANE_HEIGHT if slot[1] else BOX_HEIGHT

    tall = {column: sum(height(slot) + ROW_GAP for slot in stack) - ROW_GAP for column, stack in stacks.items()}
    layout.height = 2 * MARGIN + max(tall.values(), default=0.0)
    count = len(stacks)
    layout.width = 2 * MARGIN + count * BOX_WIDTH + max(count - 1, 0) * COLUMN_GAP
    for column, stack in stacks.items():
        x = MARGIN + column * (BOX_WIDTH + COLUMN_GAP)
        y = (layout.height - tall[column]) / 2
        for slot in stack:
            if slot[1]:
                layout.lanes.setdefault((slot[0], slot[1]), []).append((x + BOX_WIDTH / 2, y + _LANE_HEIGHT / 2))
            else:
                layout.boxes[slot[0]] = (x, y)
            y += height(slot) + ROW_GAP
    for lanes in layout.lanes.values():
        lanes.sort()


def _columns(nodes: list[str], pairs: Pairs) -> dict[str, int]:
    after: dict[str, list[str]] = {node: [] for node in nodes}
    for one, other in sorted(pairs):
        after[one].append(other)
    forward = _without_cycles(nodes, after)
    columns = dict.fromkeys(nodes, 0)
    # At most as many rounds as there are columns; a path visits each node once.
    for _ in nodes:
        changed = False
        for one, other in forward:
            if columns[other] < columns[one] + 1:
                columns[other] = columns[one] + 1
                changed = True
        if not changed:
            break
    return columns


def _without_cycles(nodes: list[str], after: dict[str, list[str]]) -> list[tuple[str, str]]:
    """The edges that do not close a cycle, as a search from those that nobody calls meets them."""
    called = {other for others in after.values() for other in others}
    state: dict[str, int] = {}
    kept: list[tuple[str, str]] = []
    for root in [*(node for node in nodes if node not in called), *nodes]:
        if root in state:
            continue
        state[root] = 1
        stack = [(root, iter(after[root]))]
        while stack:
            node, rest = stack[-1]
            for other in rest:
                if state.get(other) == 1:
                    continue
                kept.append((node, other))
                if other not in state:
                    state[other] = 1
                    stack.append((other, iter(after[other])))
                    break
            else:
                state[node] = 2
                stack.pop()
    return kept
