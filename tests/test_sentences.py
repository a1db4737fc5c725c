"""How sentences stand in documents and comments: lines that fit a screen, comments that begin like a sentence."""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WIDTH = 120  # characters
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

# Words that leave out what a trailing comment is about: "# of a row" is "# codes of a row".
ELLIPTICAL = re.compile(r"# ?(of|as|whether|those|what|which)\b")
ROOMS = ("edgeblt", "export", "quant", "tools", "benchmarks")


def long_lines(text: str) -> list[int]:
    """Numbers of the lines over `WIDTH` characters, tables and fenced blocks left out."""
    fenced, found = False, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("|") and len(line) > WIDTH:
            found.append(number)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_wrapped(page: Path) -> None:
    assert long_lines(page.read_text(encoding="utf-8")) == []


def test_what_counts_as_a_long_line() -> None:
    long = "x" * (WIDTH + 1)
    assert long_lines(f"{long[1:]}\n{long}\n|{long}|\n```text\n{long}\n```\n    {long}\n") == [2, 7]


def trailing_comments(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every comment behind code."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
                yield token.start[0], token.string


def commented_files() -> Iterator[Path]:
    """Sources of every room, and the helpers of tests."""
    for room in ROOMS:
        yield from (path for path in sorted((ROOT / room).rglob("*.py")) if not path.is_symlink())
    yield ROOT / "cli.py"
    yield from (path for path in sorted((ROOT / "tests").glob("*.py")) if not path.name.startswith("test_"))


def test_trailing_comments_say_what_they_are_about() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {comment}"
        for path in commented_files()
        for line, comment in trailing_comments(path)
        if ELLIPTICAL.match(comment)
    ]
    assert found == []
