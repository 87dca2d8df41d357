"""Progress bars, by rich: imported only where long work is shown on a terminal."""

from __future__ import annotations

import io
import os

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from casemate.cli.show.human import short_item
from casemate.cli.show.plain import clean

#: More layers than this are not drawn each on a line of their own: they share the last.
MAX_BARS = 40


class Bars:
    """One bar for each item (a layer), its phase before it; an item whose size is not known pulses."""

    __slots__ = ("_file", "_progress", "_tasks")

    def __init__(self, fd: int) -> None:
        self._file = io.TextIOWrapper(os.fdopen(os.dup(fd), "wb"), "utf-8", errors="replace", line_buffering=True)
        self._progress = Progress(
            TextColumn("{task.fields[item]:<12}"),
            TextColumn("{task.fields[phase]:<12}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(file=self._file, force_terminal=True, highlight=False),
            refresh_per_second=8,
        )
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def progress(self, row: dict[str, object]) -> None:
        item = escape(clean(short_item(str(row.get("item", "")))))
        phase = escape(clean(str(row.get("phase", ""))))
        done, total = row.get("done"), row.get("total")
        if item not in self._tasks:
            if len(self._tasks) >= MAX_BARS:
                item = next(reversed(self._tasks))
            else:
                self._hide_without_figures()
                self._tasks[item] = self._progress.add_task("", total=None, item=item, phase=phase)
        self._progress.update(
            self._tasks[item],
            completed=done if isinstance(done, int) else 0,
            total=total if isinstance(total, int) and total > 0 else None,
            phase=phase,
            visible=True,
        )

    def _hide_without_figures(self) -> None:
        """A step that had nothing to count (resolving a name) makes room for what comes after it."""
        for task in self._progress.tasks:
            if task.total is None and not task.completed:
                self._progress.update(task.id, visible=False)

    def close(self) -> None:
        self._progress.stop()
        if not self._file.closed:
            self._file.close()
