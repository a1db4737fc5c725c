"""Progress of long work: a bar on a terminal, plain lines elsewhere; on stderr, so that stdout holds only data."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int], None]
BYTES = "bytes"
FIRST_LINE_AFTER, LINE_EVERY = 2.0, 5.0  # seconds; shorter work prints no line, longer work few
_LINE_EVERY_SHARE = 0.2  # share of the time so far: lines become rarer as work goes on

_shown = True


def show_progress(wanted: bool) -> None:
    """Sets whether work that begins from now on shows its progress."""
    global _shown
    _shown = wanted


def progress_is_shown() -> bool:
    return _shown


@contextmanager
def progress(
    description: str, total: int, unit: str, even: bool = True, note: Callable[[], str] | None = None
) -> Iterator[Advance]:
    """Yields a function to call with the number of units done since the last call; bytes are shown as kB, MB, GB.

    even: each unit takes about as long as any other, so that the time left may be told.
    note: gives a few words to show behind the counts.
    """
    if not _shown:
        yield lambda count: None
        return
    console = Console(stderr=True)
    if console.is_terminal:
        counts = (DownloadColumn(),) if unit == BYTES else (MofNCompleteColumn(), TextColumn(unit))
        left = (TimeRemainingColumn(),) if even else ()
        noted = (TextColumn("{task.fields[note]}"),) if note else ()
        columns = (TextColumn("{task.description}"), BarColumn(), *counts, *left, *noted)
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=total, note="")
            yield lambda count: bar.update(task, advance=count, note=note() if note else "")
        return
    lines = _Lines(console, description, total, unit, even, note)
    yield lines.advance


class _Lines:
    """Prints a line every few seconds and one at the end; none for short work."""

    def __init__(
        self, console: Console, description: str, total: int, unit: str, even: bool, note: Callable[[], str] | None
    ) -> None:
        self._even, self._note = even, note
        self._console, self._description, self._total, self._unit = console, description, total, unit
        self._done = 0
        self._started = time.monotonic()
        self._next = self._started + max(FIRST_LINE_AFTER, LINE_EVERY)

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        last = self._done >= self._total and now >= self._started + FIRST_LINE_AFTER
        if last or now >= self._next:
            self._next = now + max(LINE_EVERY, _LINE_EVERY_SHARE * (now - self._started))
            self._console.print(self._line(now), highlight=False, markup=False, soft_wrap=True)

    def _line(self, now: float) -> str:
        if self._unit != BYTES:
            return f"{self._description}: {self._done}/{self._total} {self._unit}"
        line = f"{self._description}: {decimal(self._done)} of {decimal(self._total)}"
        if self._note:
            return f"{line}, {self._note()}"
        left = (now - self._started) * (self._total - self._done) / self._done
        return f"{line}, {left:.0f} s left" if self._even else line
