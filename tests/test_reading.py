"""What reading a long prompt will cost, told beforehand."""

import re
from pathlib import Path

import pytest

from edgeblt.commands.reading import PromptCost, cost_sentence, shown_reading
from edgeblt.model import load


def read(cost: PromptCost, upto: int, bytes_per_patch: float, linear: float, square: float, byte: float) -> float:
    """Feeds `cost` a model's times up to that byte: seconds are known functions; gives those of the whole prompt."""

    def taken(read: int) -> tuple[int, float, float]:
        patches = round(read / bytes_per_patch)
        attention = linear * patches + square * patches**2
        return patches, byte * read + attention, attention

    for position in range(256, upto + 1, 256):
        patches, seconds, attention = taken(position)
        cost.add(position, patches, seconds, attention)
    return taken(cost.size)[1]


@pytest.mark.parametrize("bytes_per_patch", [1.0, 4.0])
@pytest.mark.parametrize(("linear", "square"), [(1e-3, 1e-6), (0.0, 1e-6), (1e-3, 0.0)])
def test_the_whole_follows_from_the_beginning(bytes_per_patch: float, linear: float, square: float) -> None:
    cost = PromptCost(120_064)
    whole = read(cost, 4096, bytes_per_patch, linear, square, 1e-3)
    assert cost.seconds == pytest.approx(whole, rel=1e-3)


def test_a_slow_start_is_no_negative_cost() -> None:
    cost = PromptCost(10_000)
    for position, attention in ((256, 5.0), (512, 5.1), (768, 5.2)):  # what was warmed up at first
        cost.add(position, position, attention + 1.0, attention)
        assert cost.seconds > 0


def test_it_is_said_once(
    tiny_bundle: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("edgeblt.commands.reading.time.monotonic", lambda: now.__setitem__(0, now[0] + 10) or now[0])
    prompt = b"a" * 1500
    with shown_reading(len(prompt)) as reading:
        next(load(tiny_bundle[1]).stream(prompt, 1, reading=reading))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgeblt: ")]
    assert len(said) == 1
    assert said[0].startswith("edgeblt: reading this prompt of 1,500 bytes will take about ")


def test_memory_is_said_beforehand(
    tiny_bundle: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, after the first chunk, and only where the keys and values will not fit."""
    prompt, model = b"The quick brown fox. " * 100, load(tiny_bundle[1])
    for available, expected in ((1 << 40, 0), (None, 0), (1000, 1)):
        monkeypatch.setattr("edgeblt.commands.reading.available_memory", lambda available=available: available)
        with shown_reading(len(prompt)) as reading:
            next(model.stream(prompt, 1, ignore_eos=True, reading=reading))
        said = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("edgeblt: the keys and values")
        ]
        assert len(said) == expected
    assert said[0].endswith(" and 1.0 kB of memory are free; end other processes, or use a shorter prompt")


def test_speed_and_time_left(
    tiny_bundle: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("edgeblt.commands.reading.time.monotonic", lambda: now.__setitem__(0, now[0] + 1) or now[0])
    prompt = b"a" * 1500
    with shown_reading(len(prompt)) as reading:
        next(load(tiny_bundle[1]).stream(prompt, 1, ignore_eos=True, reading=reading))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reading the prompt: ")]
    assert lines and all(re.search(r" of 1\.5 kB, [\d.]+ \w+/s, \d+ s left$", line) for line in lines)
    assert len([line for line in lines if line.startswith("reading the prompt: 1.5 kB")]) == 1


def test_what_a_session_has_read_before_does_not_count(
    tiny_bundle: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(tiny_bundle[1], threads=1)
    now, prompt, session = [0.0], b"a" * 1500, model.session()
    session.feed([1, *([200] * 2000)])
    monkeypatch.setattr("edgeblt.commands.reading.time.monotonic", lambda: now.__setitem__(0, now[0] + 5) or now[0])
    with shown_reading(len(prompt), session) as reading:
        next(model.stream(prompt, 1, ignore_eos=True, reading=reading, session=session))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reading the prompt: ")]
    assert lines[0].startswith("reading the prompt: 256 bytes of 1.5 kB")


@pytest.mark.parametrize(("seconds", "shown"), [(61.0, "61 seconds"), (720.0, "12 minutes"), (9000.0, "2 hours")])
def test_the_sentence(seconds: float, shown: str) -> None:
    cost = PromptCost(1000)
    cost.add(1000, 500, seconds, 0.0)
    assert cost_sentence(cost) == (
        f"reading this prompt of 1,000 bytes will take about {shown}: it starts a patch every 2.0 bytes, and each patch"
        " looks back at all before it; Ctrl-C stops at once"
    )
