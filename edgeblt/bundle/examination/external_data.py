"""Offsets of a graph's weights and packed weights in its weights file, and their alignment.

A tensor in a file of its own says where in its external data: pairs of strings, `offset` and `length`, and for each
packed form `prepacked_0`, ...: a key, then one buffer after another, as `key|offset;length;checksum|...` (written by
ONNX Runtime's `ExternalDataInfo::WritePrepackedToFileAndAddToProto`). The rest of a graph is copied as it is;
only the part of onnx.proto that leads to these pairs is known here.
"""

import io
from collections.abc import Iterator
from pathlib import Path

from edgeblt.bundle.examination.protobuf import field, raw_fields

ALIGNMENT = 64  # bytes; where ONNX Runtime's allocators start the buffers that its kernels pack weights into
# The fields on the way to a tensor's external data by message, with the message each holds.
_WAYS = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
    "tensor": {},
}
_EXTERNAL_DATA = 13  # field of a tensor
_KEY, _VALUE = 1, 2  # fields of a pair of strings
_PACKED = "prepacked_"


def align_external_data(graph: Path, weights: Path) -> int:
    """Aligns every tensor and packed buffer in `weights` to ALIGNMENT bytes; returns the number of packed buffers.

    ONNX Runtime 1.31 aligns only those above 1 MiB, but kernels lay a packed buffer out by its address: mapped
    elsewhere, MatMulNBits reads it shifted, and results are wrong. Unaligned data are written again at the end
    of the file.
    """
    with weights.open("r+b") as file:
        aligner = _Aligner(file)
        graph.write_bytes(aligner.rewritten(memoryview(graph.read_bytes()), "model"))
    return aligner.packed_count


class _Aligner:
    def __init__(self, file: io.BufferedRandom) -> None:
        self.packed_count = 0
        self._file = file

    def rewritten(self, message: memoryview, kind: str) -> bytes:
        """The message, with the new offsets of moved data."""
        parts: list[bytes | memoryview] = []
        external = dict(_external_data(message)) if kind == "tensor" else {}
        for number, _, content, start, end in raw_fields(message):
            if number in _WAYS[kind] and isinstance(content, memoryview):
                parts.append(field(number, self.rewritten(content, _WAYS[kind][number])))
            elif not (kind == "tensor" and number == _EXTERNAL_DATA):
                parts.append(message[start:end])
        for key, value in self._aligned(external).items():
            parts.append(field(_EXTERNAL_DATA, field(_KEY, key.encode()) + field(_VALUE, value.encode())))
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


def _external_data(tensor: memoryview) -> Iterator[tuple[str, str]]:
    for found in raw_fields(tensor):
        if found.number == _EXTERNAL_DATA and isinstance(found.value, memoryview):
            pair = {inner.number: inner.value for inner in raw_fields(found.value)}
            yield _text(pair[_KEY]), _text(pair[_VALUE])


def _text(value: int | memoryview) -> str:
    assert isinstance(value, memoryview)
    return str(value, "utf-8")
