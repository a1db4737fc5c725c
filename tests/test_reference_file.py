"""Reference logits on disk: safetensors' own reader and literal bytes as oracles, and every damage one sentence."""

import errno
import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edgeblt.errors import EdgebltError
from edgeblt.ids import VOCAB_SIZE
from edgeblt.measure.reference import ComputedRows, ReferenceRow, Text, TextRow
from edgeblt.measure.reference_file import RecordedText, Recording, ReferenceFile, encoded_header, recording_to

TEXTS = [Text("prose, é", b"abcdefgh"), Text("other", b"\x00\xff")]
ROW_BYTES = 3
Change = Callable[[dict[str, Any], dict[str, Any]], object]


class Random:
    """A reference of random results; the same for the same ids."""

    def row(self, ids: NDArray[np.int64]) -> ReferenceRow:
        rng = np.random.default_rng(ids)
        logits = rng.normal(size=(len(ids), VOCAB_SIZE)).astype(np.float32)
        return ReferenceRow(logits, rng.random(len(ids)) < 0.5)


def recording(rows: ComputedRows) -> Recording:
    texts = tuple(RecordedText(name, size) for name, size in rows.sizes.items())
    return Recording(1, "model", "ab" * 32, VOCAB_SIZE, rows.row_bytes, rows.prompts, texts)


def write(path: Path, rows: ComputedRows) -> Path:
    with recording_to(path, recording(rows)) as record:
        for row in rows.rows():
            record(row)
    return path


@pytest.fixture
def rows() -> ComputedRows:
    return ComputedRows(Random(), TEXTS, row_bytes=ROW_BYTES, prompts=2)


@pytest.fixture
def file(rows: ComputedRows, tmp_path: Path) -> Path:
    return write(tmp_path / "logits", rows)


def refused(path: Path) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(EdgebltError) as caught:
        list(ReferenceFile(path).rows())
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 400 + len(str(path)), sentence
    return sentence


# What is written and read.


def assert_same(actual: TextRow, expected: TextRow) -> None:
    assert (actual.text, actual.data, actual.continuation) == (expected.text, expected.data, expected.continuation)
    np.testing.assert_array_equal(actual.reference.logits, expected.reference.logits, strict=True)
    np.testing.assert_array_equal(actual.reference.patch_starts, expected.reference.patch_starts, strict=True)


def test_what_is_read_is_what_was_written(file: Path, rows: ComputedRows) -> None:
    recorded = ReferenceFile(file)
    assert recorded.sizes == rows.sizes == {"prose, é": 8, "other": 2}
    assert recorded.recording == recording(rows)
    for _ in range(2):  # it can be read again
        for actual, expected in zip(recorded.rows(), rows.rows(), strict=True):
            assert_same(actual, expected)


def test_safetensors_reads_it(file: Path, rows: ComputedRows) -> None:
    tensors, made = load_file(file), list(rows.rows())
    assert len(tensors) == 8
    for index, text in enumerate(TEXTS):
        own = [row for row in made if row.text == text.name]
        assert tensors[f"texts.{index}.bytes"].tobytes() == text.data
        continuations = b"".join(row.continuation for row in own)
        assert tensors[f"texts.{index}.continuations"].tobytes() == continuations
        assert tensors[f"texts.{index}.continuations"].shape == (min(len(own), 2), 16)
        for kind in ("logits", "patch_starts"):
            expected = np.concatenate([getattr(row.reference, kind) for row in own])
            np.testing.assert_array_equal(tensors[f"texts.{index}.{kind}"], expected, strict=True)


def test_literal_bytes(tmp_path: Path) -> None:
    """One text of one byte."""
    path = write(tmp_path / "logits", ComputedRows(Random(), [Text("a", b"x")]))
    row = next(ReferenceFile(path).rows())
    header = (
        b'{"__metadata__":{"sha256":"0000000000000000000000000000000000000000000000000000000000000000",'
        b'"format":"edgeblt reference logits","recording":"{\\"format_version\\":1,\\"checkpoint\\":\\"model\\",'
        b'\\"checkpoint_sha256\\":\\"' + b"ab" * 32 + b'\\",\\"vocab_size\\":260,\\"row_bytes\\":2048,'
        b'\\"prompts\\":1,\\"texts\\":[{\\"name\\":\\"a\\",\\"bytes\\":1}]}"},'
        b'"texts.0.logits":{"dtype":"F32","shape":[1,260],"data_offsets":[0,1040]},'
        b'"texts.0.bytes":{"dtype":"U8","shape":[1],"data_offsets":[1040,1041]},'
        b'"texts.0.patch_starts":{"dtype":"BOOL","shape":[1],"data_offsets":[1041,1042]},'
        b'"texts.0.continuations":{"dtype":"U8","shape":[1,16],"data_offsets":[1042,1058]}}'
    )
    header += b" " * (-len(header) % 8)
    content = len(header).to_bytes(8, "little") + header + row.reference.logits.astype("<f4").tobytes() + b"x"
    content += bytes(row.reference.patch_starts.tolist()) + row.continuation
    digest = hashlib.sha256(content).hexdigest().encode()
    assert path.read_bytes() == content.replace(b"0" * 64, digest)


# Writing.


def test_what_exists_is_kept(file: Path, rows: ComputedRows) -> None:
    before = file.read_bytes()
    with pytest.raises(EdgebltError, match="exists already; remove it or choose another name"):
        write(file, rows)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), EdgebltError("y")])
def test_an_exception_leaves_nothing(error: BaseException, rows: ComputedRows, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, recording_to(tmp_path / "logits", recording(rows)) as record:
        record(next(rows.rows()))
        assert len(list(tmp_path.iterdir())) == 1 and not (tmp_path / "logits").exists()
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(rows: ComputedRows, tmp_path: Path) -> None:
    path = tmp_path / "new" / "logits"
    with pytest.raises(EdgebltError) as caught, recording_to(path, recording(rows)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = f"{path} cannot be written (No space left on device); free some space or choose another place"
    assert str(caught.value) == said and list(path.parent.iterdir()) == []


def test_a_recording_cut_short_is_our_own_mistake(rows: ComputedRows, tmp_path: Path) -> None:
    with pytest.raises(AssertionError), recording_to(tmp_path / "logits", recording(rows)) as record:
        record(next(rows.rows()))
    assert list(tmp_path.iterdir()) == []


def test_too_many_texts(tmp_path: Path) -> None:
    rows = ComputedRows(Random(), [Text(str(number), b"x") for number in range(5000)])
    with pytest.raises(EdgebltError, match="5000 texts are too many for one file of reference logits; give fewer"):
        write(tmp_path / "logits", rows)
    assert list(tmp_path.iterdir()) == []


# Damage.


def test_truncated_anywhere(file: Path) -> None:
    content = file.read_bytes()
    for length in range(0, len(content), 31):
        file.write_bytes(content[:length])
        assert "; copy it again" in refused(file) or "; give one that" in refused(file)
    file.write_bytes(content + b"\0")
    assert f"has {len(content) + 1} bytes instead of {len(content)}; copy it again" in refused(file)


def test_a_flipped_bit_anywhere(file: Path) -> None:
    content, rng = file.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for place in [*range(header), *rng.sample(range(header, len(content)), 300)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        refused(file)


def forged(path: Path, change: Change) -> Path:
    """A file by safetensors' rules and with a right sha256, written by this function alone, after a change.

    `change` is given the header as JSON, and the recording in it, both to be changed in place.
    """
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    document = json.loads(content[8:end])
    described = json.loads(document["__metadata__"]["recording"])
    change(document, described)
    if "recording" in document.get("__metadata__", {}):
        document["__metadata__"]["recording"] = json.dumps(described, separators=(",", ":"))
    if "sha256" in document.get("__metadata__", {}):
        document["__metadata__"]["sha256"] = "0" * 64
    header = json.dumps(document, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    whole = len(header).to_bytes(8, "little") + header + content[end:]
    path.write_bytes(whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1))
    return path


def test_a_forgery_without_changes_is_read(file: Path, rows: ComputedRows) -> None:
    before = file.read_bytes()
    assert forged(file, lambda *_: None).read_bytes() == before


def entry(name: str, **changes: Any) -> Change:
    """A change of one tensor's entry."""
    return lambda document, _: document[name].update(changes)


HOSTILE: list[tuple[str, Change]] = [
    ("damaged header", entry("texts.0.logits", shape=[8, 261])),
    ("damaged header", entry("texts.0.logits", shape=[260, 8])),
    ("damaged header", entry("texts.0.logits", shape=[1 << 62, 1 << 62])),
    ("damaged header", entry("texts.0.logits", shape=[-8, -260])),
    ("damaged header", entry("texts.0.logits", dtype="F16")),
    ("damaged header", entry("texts.1.bytes", data_offsets=[0, 2])),
    ("damaged header", entry("texts.1.bytes", data_offsets=[1 << 70, 1 << 71])),
    ("damaged header", lambda document, _: document.pop("texts.1.continuations")),
    ("damaged header", lambda document, _: document.update(more={})),
    ("damaged header", lambda document, _: document["__metadata__"].update(more="")),
    ("damaged header", lambda document, _: document["__metadata__"].pop("recording")),
    ("damaged header", lambda document, _: document["__metadata__"].update(format="other")),
    ("not a file of reference logits", lambda document, _: document["__metadata__"].pop("sha256")),
    ("not a file of reference logits", lambda document, _: document.pop("__metadata__")),
    ("format version 2; this edgeblt reads 1", lambda _, described: described.update(format_version=2)),
    ("format version None", lambda _, described: described.update(format_version=None)),
    ("damaged header", lambda _, described: described.pop("format_version")),
    ("must be of type int", lambda _, described: described.update(format_version=True)),
    ("lacks the field 'texts'", lambda _, described: described.pop("texts")),
    ("unknown field 'more'", lambda _, described: described.update(more=1)),
    ("it must have texts", lambda _, described: described.update(texts=[])),
    ("each under a name of its own", lambda _, described: described["texts"][1].update(name="prose, é")),
    ("must be between 1 and", lambda _, described: described["texts"][0].update(bytes=0)),
    ("must be between 1 and", lambda _, described: described["texts"][0].update(bytes=-8)),
    ("at most 64 bits", lambda _, described: described["texts"][0].update(bytes=10**4000)),
    ("damaged header", lambda _, described: described["texts"][0].update(bytes=1 << 39)),
    ("must be of type int", lambda _, described: described["texts"][0].update(bytes=8.0)),
    ("must be between 1 and", lambda _, described: described.update(row_bytes=0)),
    ("must be between 1 and", lambda _, described: described.update(prompts=0)),
    ("damaged header", lambda _, described: described.update(prompts=1)),
    ("must be at least 260", lambda _, described: described.update(vocab_size=259)),
    ("damaged header", lambda _, described: described.update(vocab_size=261)),
    ("that can be shown", lambda _, described: described.update(checkpoint="\x1b[31m")),
    ("that can be shown", lambda _, described: described["texts"][0].update(name="x" * 3000)),
]


@pytest.mark.parametrize(("says", "change"), HOSTILE)
def test_a_header_that_lies(says: str, change: Change, file: Path) -> None:
    assert says in refused(forged(file, change))


def test_a_whole_header_that_promises_too_much(file: Path) -> None:
    """Its tensors agree with each other, but the file is a trillion times too small."""
    header = encoded_header(Recording(1, "model", "", VOCAB_SIZE, 1 << 39, 1, (RecordedText("a", 1 << 39),)))
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1000))
    assert "bytes instead of 572" in refused(file)


@pytest.mark.parametrize("values", [b"\x02", b"\xff"])
def test_patch_starts_that_are_neither(values: bytes, file: Path) -> None:
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    start = header + json.loads(content[8:header])["texts.0.patch_starts"]["data_offsets"][0]
    file.write_bytes(content[:start] + values + content[start + 1 :])
    assert "holds impossible values for the text 'prose, \\xe9'; record it again" in refused(forged(file, keep))


def test_logits_that_are_no_numbers(file: Path) -> None:
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:header] + np.float32(np.nan).tobytes() + content[header + 4 :])
    assert "holds impossible values for the text 'prose, \\xe9'; record it again" in refused(forged(file, keep))


def keep(*_: object) -> None:
    pass


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"},"x":' + b"[" * 200_000, b"\xff\xfe{}"]
)
def test_a_header_that_is_no_json(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "logits"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "is not a file of reference logits; give" in refused(path) or "has a damaged header; copy" in refused(path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_foreign_files_are_refused_and_never_executed(tmp_path: Path) -> None:
    path, executed = tmp_path / "logits", tmp_path / "executed"
    bomb = np.array([Bomb(executed)], dtype=object)
    np.savez(tmp_path / "object.npz", logits=bomb)
    np.save(tmp_path / "object.npy", bomb)
    contents = {
        "npz": (tmp_path / "object.npz").read_bytes(),
        "npy": (tmp_path / "object.npy").read_bytes(),
        "pickle": pickle.dumps(Bomb(executed)),
        "pickle behind a length": (100).to_bytes(8, "little") + pickle.dumps(Bomb(executed)),
        "text": b"It was the best of times",
        "length": b"\xff" * 8 + b"{}",
        "short": b"abc",
        "empty": b"",
    }
    for content in contents.values():
        path.write_bytes(content)
        assert refused(path).endswith("is not a file of reference logits; give one that --save-reference-logits wrote")
    assert not executed.exists()


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        assert "is not a regular file; give one that" in refused(path)
    assert "cannot be read (No such file or directory); give a file" in refused(tmp_path / "none")
    assert "cannot be read (File name too long); give a file" in refused(tmp_path / ("x" * 5000))


def test_a_file_that_changes_once_it_is_open(file: Path) -> None:
    rows = ReferenceFile(file).rows()
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(EdgebltError, match="has changed since it was opened; run the command again"):
        list(rows)


def test_a_file_that_goes_away_once_it_is_open(file: Path) -> None:
    recorded = ReferenceFile(file)
    file.unlink()
    with pytest.raises(EdgebltError, match=r"cannot be read \(No such file or directory\); give a file"):
        next(recorded.rows())
