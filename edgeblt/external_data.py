"""Where a graph's weights and packed weights lie in its weights file, and moving them to where they may lie.

A tensor in a file of its own says where in its external data: pairs of strings, `offset` and `length`, and for each
packed form `prepacked_0`, ...: a key, then one buffer after another, as `key|offset;length;checksum|...` (written by
ONNX Runtime's `ExternalDataInfo::WritePrepackedToFileAndAddToProto`). The rest of a graph is copied as it is; of
protobuf's encoding and onnx.proto only as much is known here as leads to these pairs.
"""

import io
from collections.abc import Iterator
from pathlib import Path

ALIGNMENT = 64  # bytes; where ONNX Runtime's allocators start the buffers that its kernels pack weights into
# By message, the fields on the way to a tensor's external data, and the message each holds.
_WAYS = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
    "tensor": {},
}
_EXTERNAL_DATA = 13  # of a tensor
_KEY, _VALUE = 1, 2  # of a pair of strings
_PACKED = "prepacked_"


def align_external_data(graph: Path, weights: Path) -> int:
    """Make every tensor and packed buffer start at a multiple of ALIGNMENT bytes of `weights`; the number of buffers.

    ONNX Runtime 1.31 aligns only those above 1 MiB, but kernels lay a packed buffer out by its address: mapped
    elsewhere, MatMulNBits reads it shifted, and results are wrong. What lies askew is written again at the end of the
    file.
    """
    with weights.open("r+b") as file:
        aligner = _Aligner(file)
        graph.write_bytes(aligner.rewritten(graph.read_bytes(), "model"))
    return aligner.packed_count


class _Aligner:
    def __init__(self, file: io.BufferedRandom) -> None:
        self.packed_count = 0
        self._file = file

    def rewritten(self, message: bytes, kind: str) -> bytes:
        """The message with the offsets of what was moved."""
        parts = []
        external = dict(_external_data(message)) if kind == "tensor" else {}
        for number, start, content, end in _fields(message):
            if number in _WAYS[kind] and content:
                parts.append(_field(number, self.rewritten(message[content:end], _WAYS[kind][number])))
            elif not (kind == "tensor" and number == _EXTERNAL_DATA):
                parts.append(message[start:end])
        for key, value in self._aligned(external).items():
            pair = _field(_KEY, key.encode()) + _field(_VALUE, value.encode())
            parts.append(_field(_EXTERNAL_DATA, pair))
        return b"".join(parts)

    def _aligned(self, external: dict[str, str]) -> dict[str, str]:
        aligned = dict(external)
        if "offset" in external:
            aligned["offset"] = str(self._place(int(external["offset"]), int(external["length"])))
        for key, value in external.items():
            if key.startswith(_PACKED):
                name, *buffers = value.split("|")
                aligned[key] = "|".join([name, *map(self._aligned_buffer, buffers)])
                self.packed_count += len(buffers)
        return aligned

    def _aligned_buffer(self, text: str) -> str:
        offset, length, checksum = text.split(";")
        return f"{self._place(int(offset), int(length))};{length};{checksum}"

    def _place(self, offset: int, length: int) -> int:
        if offset % ALIGNMENT == 0:
            return offset
        self._file.seek(offset)
        content = self._file.read(length)
        end = self._file.seek(0, io.SEEK_END)
        self._file.write(bytes(-end % ALIGNMENT) + content)
        return end + -end % ALIGNMENT


def _external_data(tensor: bytes) -> Iterator[tuple[str, str]]:
    for number, _, content, end in _fields(tensor):
        if number == _EXTERNAL_DATA:
            pair = tensor[content:end]
            strings = {inner: pair[first:last].decode() for inner, _, first, last in _fields(pair)}
            yield strings[_KEY], strings[_VALUE]


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Of each field its number, its start, the start of its content (0 where it is a plain number), and its end."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _varint(message, place)
        content = 0
        if tag & 7 == 0:
            _, place = _varint(message, place)
        elif tag & 7 == 2:
            length, content = _varint(message, place)
            place = content + length
        else:
            place += {1: 8, 5: 4}[tag & 7]
        yield tag >> 3, start, content, place


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | 2) + _encoded(len(content)) + content


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the place after it."""
    value = shift = 0
    while message[place] >= 128:
        value |= (message[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return value | message[place] << shift, place + 1


def _encoded(value: int) -> bytes:
    groups = []
    while value >= 128:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
