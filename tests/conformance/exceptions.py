"""What a level cannot meet, and why. Each is run all the same, and must fail: a level that learns it leaves the list.

docs/reference/levels.md has the same list; a test holds the two together.
"""

from __future__ import annotations

#: (level, case): reason.
EXCEPTIONS: dict[tuple[str, str], str] = {}
