"""Files of weights and their journal: whatever happened to what was left, what is kept is what was written."""

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeblt.export.graphs.weight_file import JOURNAL, Journal, Slot, WeightFile

HEADER = b"header"
NAME = "some.weights"
SLOTS = {
    "matrix": Slot(8, np.dtype(np.float32), (7, 3)),
    "vector": Slot(128, np.dtype(np.uint8), (5,)),
    "scales": Slot(160, np.dtype(np.float16), (7, 1)),
}
ROWS = [("vector", 0, 5), ("matrix", 0, 2), ("matrix", 2, 3), ("matrix", 3, 7)]  # pieces; a matrix with its scales


@dataclass(frozen=True)
class Content:
    """What shall be in the file."""

    tensors: dict[str, NDArray[Any]]

    @classmethod
    def random(cls) -> "Content":
        rng = np.random.default_rng(0)
        return cls({name: rng.integers(0, 200, slot.shape).astype(slot.dtype) for name, slot in SLOTS.items()})

    def piece(self, name: str, start: int, stop: int) -> dict[str, NDArray[Any]]:
        names = ("matrix", "scales") if name == "matrix" else (name,)
        return {each: self.tensors[each][start:stop] for each in names}

    def bytes(self) -> bytes:
        """Zeros between the tensors."""
        data = bytearray(max(slot.offset + slot.size for slot in SLOTS.values()))
        data[: len(HEADER)] = HEADER
        for name, slot in SLOTS.items():
            data[slot.offset : slot.offset + slot.size] = self.tensors[name].tobytes()
        return bytes(data)


CONTENT = Content.random()


class Stopped(Exception):  # noqa: N818
    """What ends the writing of a file before all of it is there."""


def write(directory: Path, count: int | None = None, key: str = "key") -> list[int]:
    """The first `count` pieces, or those that are missing of all: which were made."""
    made = []
    with suppress(Stopped), WeightFile(directory / NAME, SLOTS, Journal(directory, key), HEADER) as file:
        for index, (name, start, stop) in enumerate(ROWS[:count]):
            note = file.keeps(f"{name} {start}")
            assert note in (None, {"index": index})
            if note is None:
                made.append(index)
                file.write(f"{name} {start}", CONTENT.piece(name, start, stop), start, {"index": index})
            assert file.written == sum(array.nbytes for array in CONTENT.piece(name, start, stop).values())
        if count is not None:
            raise Stopped
        assert np.array_equal(file.read("matrix"), CONTENT.tensors["matrix"])
    if count is None:
        assert (directory / NAME).read_bytes() == CONTENT.bytes()
    return made


@given(data=st.data(), count=st.integers(0, len(ROWS)))
def test_whatever_was_left_the_result_is_the_same(data: st.DataObject, count: int) -> None:
    """Bits flipped, files cut short or made longer or garbage: every piece is kept whole, or made again."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        assert write(directory, count) == list(range(count))
        for file in (directory / NAME, directory / JOURNAL):
            content = bytearray(file.read_bytes())
            places = st.integers(0, max(len(content) - 1, 0))
            for place in data.draw(st.lists(places, max_size=2)):
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            cut = data.draw(st.none() | places)
            file.write_bytes(bytes(content[:cut]) + data.draw(st.just(b"") | st.binary(max_size=20)))
        write(directory)
        assert write(directory) == []


@given(garbage=st.binary(max_size=200) | st.sampled_from([b"[" * 100_000, b'{"key": "key"}\n{}\n5']))
def test_garbage_behind_the_journal_is_as_nothing(garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write(directory, 2)
        with (directory / JOURNAL).open("ab") as journal:
            journal.write(b"\n" + garbage)
        assert write(directory, 3) == [2]  # behind the garbage
        assert write(directory) == [3]


def test_another_key_starts_anew(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / "more").mkdir()
    assert write(tmp_path, key="another") == [0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [JOURNAL, NAME]


def test_a_line_cut_short_spoils_no_other(tmp_path: Path) -> None:
    write(tmp_path, 2)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-5])
    assert write(tmp_path, 3) == [1, 2]
    assert write(tmp_path) == [3]


def test_the_whole_size_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 0)
    status = (tmp_path / NAME).stat()
    assert status.st_size == len(CONTENT.bytes()) and status.st_blocks > 0

    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    number = 95  # not supported here
    (tmp_path / NAME).unlink()
    assert write(tmp_path) == [0, 1, 2, 3]
    number = 28  # no space left
    (tmp_path / NAME).unlink()
    with pytest.raises(OSError, match="refused"):
        write(tmp_path)


def test_finishing_forgets_the_journal(tmp_path: Path) -> None:
    write(tmp_path)
    Journal(tmp_path, "key").finish()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
