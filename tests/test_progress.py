"""Progress: plain lines where there is no terminal, a bar that leaves nothing behind where there is one."""

import pytest
import rich.console

import edgeblt.progress
from edgeblt.progress import BYTES, progress


def test_lines_at_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 40, "rows") as advance:
        for _ in range(40):
            advance(1)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [f"reading: {done}/40 rows" for done in range(4, 41, 4)]


def test_bytes_with_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tenths after 6 seconds leave 14; a step over several tenths is one line."""
    clock = iter([100.0, 106.0, 120.0])
    monkeypatch.setattr("edgeblt.progress.time.monotonic", lambda: next(clock))
    with progress("writing [x]", 2_000_000, BYTES) as advance:
        advance(600_000)
        advance(1_400_000)
    assert capsys.readouterr().err.splitlines() == [
        "writing [x]: 600.0 kB of 2.0 MB, 14 s left",
        "writing [x]: 2.0 MB of 2.0 MB, 0 s left",
    ]


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
