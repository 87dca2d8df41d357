"""Did you mean: the nearest known word by edit distance."""

from __future__ import annotations

#: Longer words are not compared: the distance costs length x length.
_MAX_LENGTH = 40


def nearest(word: str, known: list[str]) -> str:
    """The one of *known* nearest to *word*, or the empty text when none is near (a third of its letters, at most 3)."""
    if not word or len(word) > _MAX_LENGTH:
        return ""
    best, best_distance = "", 1 + min(3, max(1, len(word) // 3))
    for candidate in known:
        distance = 1 if len(word) > 2 and candidate.startswith(word) else _distance(word, candidate)
        if distance < best_distance:
            best, best_distance = candidate, distance
    return best


def _distance(left: str, right: str) -> int:
    """Edits that turn *left* into *right*: insert, delete, replace, or swap of neighbours (Damerau, restricted)."""
    before: list[int] = []
    above = list(range(len(right) + 1))
    for row, letter in enumerate(left, 1):
        current = [row]
        for column, other in enumerate(right, 1):
            cost = min(above[column] + 1, current[column - 1] + 1, above[column - 1] + (letter != other))
            if row > 1 and column > 1 and letter == right[column - 2] and left[row - 2] == other:
                cost = min(cost, before[column - 2] + 1)
            current.append(cost)
        before, above = above, current
    return above[-1]
