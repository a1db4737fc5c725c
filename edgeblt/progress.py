"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr, so that stdout stays data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int], None]


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Advance]:
    """Yields a function to call with the number of units done since the last call."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
        )
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

    def advance(self, count: int) -> None:
        self._done += count
        tenths = 10 * self._done // max(self._total, 1)
        if tenths > self._tenths:
            self._tenths = tenths
            line = f"{self._description}: {self._done}/{self._total} {self._unit}"
            self._console.print(line, highlight=False, markup=False)
