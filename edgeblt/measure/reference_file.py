"""Reference logits in a file: recorded once beside transformers, read on a device with numpy alone.

Format version 1 is a safetensors file, so that other tools read it too; docs/validation.md describes it. Its header
follows from the `Recording` it describes, to the byte: a file whose header is any other is refused, and nothing in a
file is ever executed.
"""

import hashlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgeblt.bundle.dataclass_json import dataclass_document, parse_dataclass
from edgeblt.bundle.whole_files import whole_file
from edgeblt.errors import EdgebltError
from edgeblt.ids import VOCAB_SIZE
from edgeblt.measure.reference import CONTINUATION_BYTES, ReferenceRow, TextRow

FORMAT = "edgeblt reference logits"
FORMAT_VERSION = 1
_HEADER_LIMIT = 1 << 20
_LIMIT = 1 << 40  # every count in a recording is below this
_LONGEST_NAME = 2000
_ZEROS = b"0" * 64
_START = b'{"__metadata__":{"sha256":"'  # every header starts with it; the digest follows
_SMALL = ("bytes", "patch_starts", "continuations")  # the tensors of a text beside its logits
_ITEM_BYTES = {"F32": 4, "U8": 1, "BOOL": 1}
_REMEDY = "record it again with `edgeblt validate --save-reference-logits`"


@dataclass(frozen=True)
class RecordedText:
    name: str
    bytes: int


@dataclass(frozen=True)
class Recording:
    """Description of a file of reference logits. Raises EdgebltError for impossible values."""

    format_version: int
    checkpoint: str  # its name, for people
    checkpoint_sha256: str
    vocab_size: int
    row_bytes: int
    prompts: int  # number of leading rows of each text that have a continuation
    texts: tuple[RecordedText, ...]

    def __post_init__(self) -> None:
        counts = [("row_bytes", self.row_bytes), ("prompts", self.prompts)]
        for name, value in [*counts, *((f"the size of {text.name!a:.60}", text.bytes) for text in self.texts)]:
            if not 1 <= value < _LIMIT:
                raise EdgebltError(f"{name} is {value!s:.40}; it must be between 1 and {_LIMIT - 1}")
        if not VOCAB_SIZE <= self.vocab_size < _LIMIT:
            raise EdgebltError(f"vocab_size is {self.vocab_size!s:.40}; it must be at least {VOCAB_SIZE}")
        names = Counter(text.name for text in self.texts)
        if not names or max(names.values()) > 1:
            raise EdgebltError("it must have texts, each under a name of its own")
        for name in (*names, self.checkpoint, self.checkpoint_sha256):  # they are printed
            if not (name.isprintable() and len(name) <= _LONGEST_NAME):
                raise EdgebltError(
                    f"the name {name!a:.60} must be at most {_LONGEST_NAME} characters that can be shown"
                )

    def continuations(self, text: RecordedText) -> int:
        """Number of rows of `text` that have a continuation."""
        return min(self.prompts, -(-text.bytes // self.row_bytes))


@dataclass(frozen=True)
class _Tensor:
    dtype: str  # safetensors' own name
    shape: tuple[int, ...]
    start: int  # bytes from the end of the header

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape) * _ITEM_BYTES[self.dtype]


class ReferenceFile:
    """A recording on disk, whose rows `edgeblt.measure.validation.validate` reads as if the reference were there.

    Opening checks the header and the sha256 of everything. Raises EdgebltError that names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with _opened(path) as file:
                header = _read_header(file, path)
                self.recording = _parse(header, path)
                self._start = 8 + len(header)
                self._tensors = _tensors(self.recording)
                _check_content(file, path, header, self._start + _end(self._tensors))
        except OSError as error:
            raise _cannot_read(path, error) from None

    @property
    def sizes(self) -> dict[str, int]:
        return {text.name: text.bytes for text in self.recording.texts}

    def rows(self) -> Iterator[TextRow]:
        row_bytes = self.recording.row_bytes
        try:
            with _opened(self.path) as file:
                for index, text in enumerate(self.recording.texts):
                    for number, start in enumerate(range(0, text.bytes, row_bytes)):
                        yield self._row(file, index, number, start, min(start + row_bytes, text.bytes))
        except OSError as error:
            raise _cannot_read(self.path, error) from None

    def _row(self, file: BinaryIO, index: int, number: int, start: int, stop: int) -> TextRow:
        text = self.recording.texts[index]
        data = self._slice(file, _name(index, "bytes"), start, stop)
        starts = np.frombuffer(self._slice(file, _name(index, "patch_starts"), start, stop), np.uint8)
        stored = np.frombuffer(self._slice(file, _name(index, "logits"), start, stop), "<f4")
        logits = stored.astype(np.float32, copy=False)  # the machine's own byte order
        if starts.max() > 1 or not np.isfinite(logits).all():
            raise EdgebltError(f"{self.path} holds impossible values for the text {text.name!a:.60}; {_REMEDY}")
        continuation = b""
        if number < self.recording.continuations(text):
            continuation = self._slice(file, _name(index, "continuations"), number, number + 1)
        reference = ReferenceRow(logits.reshape(-1, self.recording.vocab_size), starts.astype(np.bool_))
        return TextRow(text.name, data, reference, continuation)

    def _slice(self, file: BinaryIO, name: str, start: int, stop: int) -> bytes:
        """Entries `start` to `stop` of a tensor, along its first axis."""
        tensor = self._tensors[name]
        width = (tensor.stop - tensor.start) // tensor.shape[0]
        file.seek(self._start + tensor.start + start * width)
        content = file.read((stop - start) * width)
        if len(content) != (stop - start) * width:
            raise EdgebltError(f"{self.path} has changed since it was opened; run the command again")
        return content


@contextmanager
def recording_to(path: Path, recording: Recording) -> Iterator[Callable[[TextRow], None]]:
    """Yields a function that takes the rows of all texts in order; the file appears when the block ends.

    Raises EdgebltError if `path` exists or cannot be written, or there are too many texts.
    """
    header = encoded_header(recording)
    if len(header) > _HEADER_LIMIT:
        raise EdgebltError(f"{len(recording.texts)} texts are too many for one file of reference logits; give fewer")
    with whole_file(path) as file:
        digest = hashlib.sha256()

        def write(content: bytes) -> None:
            digest.update(content)
            file.write(content)

        write(len(header).to_bytes(8, "little") + header)
        small = {_name(index, kind): bytearray() for index in range(len(recording.texts)) for kind in _SMALL}
        places = {text.name: index for index, text in enumerate(recording.texts)}

        def record(row: TextRow) -> None:
            index = places[row.text]
            write(np.ascontiguousarray(row.reference.logits, "<f4").tobytes())
            small[_name(index, "bytes")] += row.data
            small[_name(index, "patch_starts")] += row.reference.patch_starts.tobytes()
            small[_name(index, "continuations")] += row.continuation

        yield record
        for content in small.values():
            write(bytes(content))
        assert file.tell() == 8 + len(header) + _end(_tensors(recording)), "not all rows were recorded"
        file.seek(8 + len(_START))
        file.write(digest.hexdigest().encode())


def _name(index: int, kind: str) -> str:
    return f"texts.{index}.{kind}"


def _tensors(recording: Recording) -> dict[str, _Tensor]:
    """Tensors in file order: all logits first, so that they are aligned and can be streamed, then the small tensors."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for index, text in enumerate(recording.texts):
        shapes[_name(index, "logits")] = "F32", (text.bytes, recording.vocab_size)
    for index, text in enumerate(recording.texts):
        shapes[_name(index, "bytes")] = "U8", (text.bytes,)
        shapes[_name(index, "patch_starts")] = "BOOL", (text.bytes,)
        shapes[_name(index, "continuations")] = "U8", (recording.continuations(text), CONTINUATION_BYTES)
    tensors: dict[str, _Tensor] = {}
    for name, (dtype, shape) in shapes.items():
        tensors[name] = _Tensor(dtype, shape, _end(tensors))
    return tensors


def _end(tensors: dict[str, _Tensor]) -> int:
    return next(reversed(tensors.values())).stop if tensors else 0


def encoded_header(recording: Recording) -> bytes:
    """The header of a file, its digest still zeros."""
    description = json.dumps(dataclass_document(recording), separators=(",", ":"))
    document: dict[str, Any] = {"__metadata__": {"sha256": _ZEROS.decode(), "format": FORMAT, "recording": description}}
    for name, tensor in _tensors(recording).items():
        document[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (tensor.start, tensor.stop)}
    header = json.dumps(document, separators=(",", ":")).encode()
    assert header.startswith(_START)
    return header + b" " * (-len(header) % 8)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe could block
        raise EdgebltError(f"{path} is not a regular file; give one that --save-reference-logits wrote")
    with path.open("rb") as file:
        yield file


def _cannot_read(path: Path, error: OSError) -> EdgebltError:
    return EdgebltError(f"{path} cannot be read ({error.strerror}); give a file that --save-reference-logits wrote")


def _read_header(file: BinaryIO, path: Path) -> bytes:
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length) if length <= _HEADER_LIMIT else b""
    if not header.startswith(_START):
        raise EdgebltError(f"{path} is not a file of reference logits; give one that --save-reference-logits wrote")
    if len(header) < length:
        raise EdgebltError(f"{path} ends within its header; copy it again")
    return header


def _parse(header: bytes, path: Path) -> Recording:
    try:
        metadata = json.loads(header)["__metadata__"]
        document = json.loads(metadata["recording"])
        version = document["format_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise EdgebltError(f"{path} has a damaged header; copy it again, or {_REMEDY}") from None
    if version != FORMAT_VERSION:
        raise EdgebltError(f"{path} has format version {version!a:.40}; this edgeblt reads {FORMAT_VERSION}: {_REMEDY}")
    recording = parse_dataclass(Recording, document, str(path))
    if encoded_header(recording) != _without_digest(header):
        raise EdgebltError(f"{path} has a damaged header; copy it again, or {_REMEDY}")
    return recording


def _without_digest(header: bytes) -> bytes:
    return _START + _ZEROS + header[len(_START) + len(_ZEROS) :]


def _check_content(file: BinaryIO, path: Path, header: bytes, size: int) -> None:
    actual = os.fstat(file.fileno()).st_size
    if actual != size:
        raise EdgebltError(f"{path} has {actual} bytes instead of {size}; copy it again")
    digest = hashlib.sha256(len(header).to_bytes(8, "little") + _without_digest(header))
    while content := file.read(1 << 20):
        digest.update(content)
    if digest.hexdigest().encode() != header[len(_START) :][: len(_ZEROS)]:
        raise EdgebltError(f"{path} does not match its sha256: it was changed or damaged; copy it again")
