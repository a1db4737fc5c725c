"""Progress: plain lines where there is no terminal, a bar that leaves nothing behind where there is one."""

import pytest
import rich.console

import edgeblt.progress
from edgeblt.progress import BYTES, progress, show_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "Clock":
    clock = Clock()
    monkeypatch.setattr("edgeblt.progress.time.monotonic", clock)
    return clock


class Clock:
    """Tells what the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_by_time(capsys: pytest.CaptureFixture[str], clock: "Clock") -> None:
    """Every five seconds, later by a fifth of what has passed, and the last."""
    with progress("reading", 100, "rows") as advance:
        for _ in range(100):
            clock.now += 1
            advance(1)
    printed = capsys.readouterr()
    assert printed.out == ""
    told = [5, 10, 15, 20, 25, 30, 36, 44, 53, 64, 77, 93, 100]
    assert printed.err.splitlines() == [f"reading: {done}/100 rows" for done in told]


def test_soon_done_is_no_line(capsys: pytest.CaptureFixture[str], clock: "Clock") -> None:
    for seconds, lines in ((1.9, 0), (2.1, 1)):
        with progress("reading", 4, "rows") as advance:
            advance(3)
            clock.now += seconds
            advance(1)
        assert capsys.readouterr().err.splitlines() == ["reading: 4/4 rows"] * lines


def test_bytes_with_the_time_left(capsys: pytest.CaptureFixture[str], clock: "Clock") -> None:
    """Three tenths after 6 seconds leave 14; of what takes ever longer, no time left is told."""
    for even, left in ((True, [", 14 s left", ", 0 s left"]), (False, ["", ""])):
        with progress("writing [x]", 2_000_000, BYTES, even) as advance:
            clock.now += 6
            advance(600_000)
            clock.now += 14
            advance(1_400_000)
        assert capsys.readouterr().err.splitlines() == [
            f"writing [x]: 600.0 kB of 2.0 MB{left[0]}",
            f"writing [x]: 2.0 MB of 2.0 MB{left[1]}",
        ]


def test_a_note_behind_the_counts(capsys: pytest.CaptureFixture[str], clock: "Clock") -> None:
    with progress("reading", 2_000_000, BYTES, even=False, note=lambda: "at full speed") as advance:
        clock.now += 6
        advance(2_000_000)
    assert capsys.readouterr().err.splitlines() == ["reading: 2.0 MB of 2.0 MB, at full speed"]


def test_quiet(capsys: pytest.CaptureFixture[str], clock: "Clock") -> None:
    show_progress(False)
    try:
        with progress("reading", 4, "rows") as advance:
            clock.now += 60
            advance(4)
    finally:
        show_progress(True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("unit", "shown"), [("rows", "3/4"), (BYTES, "3/4 bytes")])
def test_a_bar_on_a_terminal(
    unit: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminal(stderr: bool) -> rich.console.Console:
        return rich.console.Console(stderr=stderr, force_terminal=True, width=100)

    monkeypatch.setattr(edgeblt.progress, "Console", terminal)
    with progress("reading", 4, unit) as advance:
        advance(3)
    printed = capsys.readouterr()
    assert printed.out == "" and shown in printed.err


def test_nothing_to_do_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 0, "rows"):
        pass
    assert capsys.readouterr().err == ""
