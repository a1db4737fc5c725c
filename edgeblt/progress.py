"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr, so that stdout stays data."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int], None]
BYTES = "bytes"


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Advance]:
    """Yields a function to call with the number of units done since the last call; bytes are shown as kB, MB, GB."""
    console = Console(stderr=True)
    if console.is_terminal:
        counts = (DownloadColumn(),) if unit == BYTES else (MofNCompleteColumn(), TextColumn(unit))
        columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda count: bar.advance(task, count)
        return
    lines = _Lines(console, description, total, unit)
    yield lines.advance


class _Lines:
    """A line at every tenth of the way."""

    def __init__(self, console: Console, description: str, total: int, unit: str) -> None:
        self._console, self._description, self._total, self._unit = console, description, total, unit
        self._done = self._tenths = 0
        self._started = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        tenths = 10 * self._done // max(self._total, 1)
        if tenths > self._tenths:
            self._tenths = tenths
            self._console.print(self._line(), highlight=False, markup=False)

    def _line(self) -> str:
        if self._unit != BYTES:
            return f"{self._description}: {self._done}/{self._total} {self._unit}"
        left = (time.monotonic() - self._started) * (self._total - self._done) / self._done
        return f"{self._description}: {decimal(self._done)} of {decimal(self._total)}, {left:.0f} s left"
