"""What commands print, on terminals of 40, 80 and 200 columns, without colour, and where there is no terminal."""

import dataclasses
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from conftest import Exported
from edgeblt import cli
from edgeblt.bundle.manifest import open_bundle
from edgeblt.doctor import diagnose
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.demo import Demo
from edgeblt.export.inspection import inspect_checkpoint
from edgeblt.inspection import ProviderNodes, inspect_bundle
from edgeblt.measure.distribution import Percentiles
from edgeblt.measure.products.product_speed import ProductSpeed, ProductTime
from edgeblt.measure.reference_file import RecordedText, Recording
from edgeblt.prepare import Preparation, StageOutcome
from edgeblt.report import narrow_tables, terminal
from edgeblt.report.suite_table import show_suites
from test_report import benchmark, tuning, validation
from test_suite_page import SUITES

WIDTHS = (40, 80, 200)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")
FRAME = "┏━┳┓┃┡╇┩│┌┬┐└┴┘├┼┤─"
FULL = benchmark(
    draft="auto", bytes_per_pass=1.75, draft_acceptance=0.625, bandwidth_bytes_per_s=5.6e9, bandwidth_share=0.31,
    energy_j_per_byte=0.0123, cost_per_million_bytes=0.4567, anonymous_bytes=60_400_000, mapped_bytes=19_700_000,
    arrival_gap_ms=Percentiles(1.125, 17.81, 27.85), device="An Example Processor 9000X",
    unprepared_because="there is no bundle.prepared; make it with `edgeblt prepare bundle`",
)  # fmt: skip
SEVERAL = (FULL, dataclasses.replace(FULL, threads=None, threshold=1.5, decode="text", prompt_bytes=4096),
           dataclasses.replace(FULL, temperature=0.7, decode_bytes_per_s=12345.6))  # fmt: skip
REPORT = validation()
TEXTS = {"prose": REPORT.texts["prose"], "a file of mine, dropped bytes": REPORT.texts["prose"]}
SPEED = ProductSpeed("An Example Processor 9000X", "avx512", {"1": 12.3e9, "2": 23.4e9}, (
    ProductTime("MatMulNBits", None, 8, 128, 384, 64, 1234.5, 49_152),
    ProductTime("DenseMatMul", "avx2", 8, 128, 384, 64, 98.7, 49_152),
    ProductTime("DenseMatMul", "avx512", 8, 128, 384, 64, 76.5, 49_152),
    ProductTime("MatMulNBits", None, 4, 128, 384, 64, 111.2, 24_576),
    ProductTime("MatMul", None, 32, 128, 384, 64, 2468.1, 196_608),
), "Level avx512 is used, and this sentence has no other figures.")  # fmt: skip
RECORDING = Recording(1, "a checkpoint", "0123456789abcdef" * 4, 260, 2048, 1, (RecordedText("prose", 1000),))


@pytest.fixture(scope="module")
def shown(exported: Callable[[int], Exported]) -> dict[str, Callable[[], None]]:
    """By name: each way in which commands print results."""
    tiny = exported(10)
    bundle, checkpoint = open_bundle(tiny.bundle), inspect_checkpoint(open_checkpoint(tiny.checkpoint))
    nodes = (ProviderNodes("global", "CUDAExecutionProvider", 1234, {}),
             ProviderNodes("global", "CPUExecutionProvider", 12, {"Reshape": 9, "Gather": 3}))  # fmt: skip
    inspected = dataclasses.replace(inspect_bundle(bundle), placement=nodes)
    stages = (
        StageOutcome("patcher", 123_456, None),
        StageOutcome("encoder", 0, "its hash tables, which are mapped already, would be copied"),
    )
    prepared = Preparation("bundle.prepared", 123_456, stages)
    demo = Demo(bundle, dataclasses.replace(REPORT, texts=TEXTS), FULL, 123.4, 5.67, (b"To be", b", or not"))
    several = dataclasses.replace(REPORT, texts=TEXTS)
    on_cuda = dataclasses.replace(several, provider="cuda")
    return {
        "validate": lambda: terminal.show_validation([REPORT], RECORDING),
        "validate, several": lambda: terminal.show_validation([several, on_cuda]),
        "validate --suite": lambda: show_suites(SUITES),
        "bench": lambda: terminal.show_benchmark(FULL),
        "bench, on a GPU": lambda: terminal.show_benchmark(dataclasses.replace(FULL, gpu_memory_bytes=1 << 30)),
        "bench, several": lambda: terminal.show_benchmarks(SEVERAL),
        "tune": lambda: terminal.show_tuning(tuning(), Path("bundle")),
        "prepare": lambda: terminal.show_preparation(prepared),
        "inspect BUNDLE": lambda: terminal.show_inspection(inspected),
        "inspect CHECKPOINT": lambda: terminal.show_inspection(checkpoint),
        "doctor": lambda: terminal.show_diagnosis(diagnose()),
        "doctor --speed": lambda: terminal.show_diagnosis(dataclasses.replace(diagnose(), speed=SPEED)),
        "demo": lambda: terminal.show_demo(demo),
    }


NAMES = ("validate", "validate, several", "validate --suite", "bench", "bench, on a GPU", "bench, several", "tune",
         "prepare", "inspect BUNDLE", "inspect CHECKPOINT", "doctor", "doctor --speed", "demo")  # fmt: skip


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """What a function prints to a terminal of so many columns, escapes and all."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    leader, follower = pty.openpty()
    raw = termios.tcgetattr(follower)
    raw[1] &= ~termios.OPOST  # lines end as they are written
    termios.tcsetattr(follower, termios.TCSANOW, raw)

    def printed(function: Callable[[], None], columns: int, **environment: str) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        written = bytearray()
        with monkeypatch.context() as patch, os.fdopen(os.dup(follower), "w", encoding="utf-8") as stdout:
            patch.setattr(sys, "stdout", Piecewise(stdout, leader, written))
            function()
        return written.decode()

    yield printed
    os.close(leader)
    os.close(follower)


class Piecewise:
    """A terminal's end to write to, read from the other end as it fills; it holds some kilobytes only."""

    def __init__(self, stdout: Any, leader: int, written: bytearray) -> None:
        self._stdout, self._leader, self._written = stdout, leader, written
        self.encoding = "utf-8"

    def write(self, text: str) -> None:
        for start in range(0, len(text), 500):
            piece = text[start : start + 500]
            self._stdout.write(piece)
            self._stdout.flush()
            wanted = len(self._written) + len(piece.encode())
            while len(self._written) < wanted:
                self._written += os.read(self._leader, 4096)

    def flush(self) -> None:
        self._stdout.flush()

    def isatty(self) -> bool:
        return bool(self._stdout.isatty())

    def fileno(self) -> int:
        return int(self._stdout.fileno())


def figures(text: str) -> set[str]:
    """Words in which there are digits, whatever frames and colours are around them."""
    plain = ESCAPE.sub("", text).translate(dict.fromkeys(map(ord, FRAME), " "))
    return {word.rstrip(":") for word in plain.split() if any(character.isdigit() for character in word)}


def test_all_ways_to_print_are_here(shown: dict[str, Callable[[], None]]) -> None:
    assert tuple(shown) == NAMES
    ways = {name for name in vars(terminal) if name.startswith("show_")}
    assert ways == {f"show_{what}" for what in ("validation", "benchmark", "benchmarks", "tuning", "preparation",
                                                "inspection", "diagnosis", "product_speed", "demo")}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_figure_is_lost_at_any_width(
    name: str,
    shown: dict[str, Callable[[], None]],
    on_terminal: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown[name]()
    whole = capsys.readouterr().out
    assert not ESCAPE.search(whole) and "…" not in whole  # no terminal
    assert figures(whole)
    for columns in WIDTHS:
        text = on_terminal(shown[name], columns)
        assert "…" not in text
        lost = figures(whole) - figures(text) - {"sha256"}  # the name of a column, which may be empty
        assert not lost
        plain = ESCAPE.sub("", text)
        framed = [line for line in plain.splitlines() if set(line) & set(FRAME)]
        assert all(len(line) <= columns for line in framed), (columns, plain)
        assert not COLOUR.search(on_terminal(shown[name], columns, NO_COLOR="1"))


def test_wide_tables_become_blocks(on_terminal: Callable[..., str]) -> None:
    def table() -> None:
        made = narrow_tables.new_table("title", "name", "a long heading", "b")
        made.add_row("one", "1,234.5 (1,000.0 .. 2,000.0)", "abcdefghijklmnop")
        made.add_row("two", "", "2")
        narrow_tables.show(made)

    assert ESCAPE.sub("", on_terminal(table, 36)) == (
        "title\n"
        "name: one\n  a long heading: 1,234.5 (1,000.0 .. 2,000.0)\n  b: abcdefghijklmnop\n"
        "name: two\n  b: 2\n"
    )  # fmt: skip
    narrow = ESCAPE.sub("", on_terminal(table, 42)).splitlines()
    assert [line for line in narrow if "one" in line] == ["│ one  │      1,234.5 │ abcdefghijklmnop │"]
    assert {len(line) for line in narrow} == {42}


def test_names_and_values_become_lines(on_terminal: Callable[..., str]) -> None:
    def table() -> None:
        made: Table = narrow_tables.new_table("", "", "", "")
        made.add_row("a name", "x" * 20, "y" * 20)
        narrow_tables.show(made)

    assert on_terminal(table, 40) == f"a name: {'x' * 20}, {'y' * 20}\n"


def test_without_a_terminal_rows_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    made = narrow_tables.new_table("", "name", *(f"column {number}" for number in range(30)))
    made.add_row("row", *(f"{number:,}" for number in range(1000, 1030)))
    narrow_tables.show(made)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "row" in line]
    assert all(f"{number:,}" in row for number in range(1000, 1030))


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", [None, *sorted(info.name or info.callback.__name__  # type: ignore[union-attr]
                                                   for info in cli.app.registered_commands)])  # fmt: skip
def test_help_at_any_width(
    command: str | None, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", ["edgeblt", *([command] if command else []), "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    assert text.startswith("Usage: edgeblt ") and not ESCAPE.search(text) and "…" not in text
    if command is None:
        assert all(re.search(rf"^  {info.name or info.callback.__name__} ", text, re.MULTILINE)  # type: ignore[union-attr]
                   for info in cli.app.registered_commands)  # fmt: skip


@pytest.mark.parametrize("columns", [40, 200])
def test_a_command_in_a_terminal_of_its_own(columns: int, exported: Callable[[int], Exported]) -> None:
    """The whole way: the width comes from the terminal itself."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    code = "import sys; from edgeblt.cli import main; main()"
    command = [sys.executable, "-c", code, "inspect", str(exported(10).bundle)]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        written = bytearray()
        try:
            while piece := os.read(leader, 4096):
                written += piece
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(leader)
    text = written.decode()
    assert process.returncode == 0 and "…" not in text and "patcher.weights" in text
    framed = [line for line in ESCAPE.sub("", text).splitlines() if set(line) & set(FRAME)]
    assert all(len(line) <= columns for line in framed) and bool(framed) == (columns > 40)
