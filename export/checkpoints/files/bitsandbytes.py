"""Weights as bitsandbytes saves them: 4-bit codes of a codebook (Linear4bit), or LLM.int8 (Linear8bitLt).

Source of both forms: bitsandbytes' `functional.QuantState.as_dict` and `nn.Linear8bitLt._save_to_state_dict`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.files.safetensors_files import SafetensorsTensor
from edgeblt.export.checkpoints.files.stored_weights import Shape, StoredWeight, finite
from edgeblt.export.graphs.weight_source import Encoded
from edgeblt.quant.formats.codebooks import LEVELS, CodebookQuantized
from edgeblt.quant.formats.weight_format import Codebook, Linear, Matrix, Quantized, WeightFormat

LLM_INT8 = Linear(8, None, symmetric=True, scale_bits=32)
_STATE_LIMIT = 1 << 12  # bytes of JSON
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

Find = Callable[[str], SafetensorsTensor | None]


@dataclass(frozen=True)
class BitsAndBytes4Weight:
    """A matrix as bitsandbytes' Linear4bit saves it: codes of the flattened matrix, largest magnitudes by block.

    With double quantization the latter are 8-bit codes of a codebook of their own, scaled by block, plus an offset.
    """

    format: Codebook
    shape: tuple[int, int]
    packed: SafetensorsTensor
    largest: SafetensorsTensor
    nested: "NestedScales | None"
    companions: tuple[SafetensorsTensor, ...] = ()  # tensors read already, which give the codes their meaning

    @property
    def dtype(self) -> str:
        return f"{self.format.describe()}{', scales in 8 bits' if self.nested else ''}"

    @property
    def parts(self) -> tuple[SafetensorsTensor, ...]:
        nested = (self.nested.levels, self.nested.largest) if self.nested else ()
        return (self.packed, self.largest, *nested, *self.companions)

    def rows(self, start: int, stop: int) -> Matrix:
        return self._read().dequantize()[start:stop]

    def encoded(self, start: int, stop: int) -> Encoded:
        assert (start, stop) == (0, self.shape[0]), "its blocks run over the ends of rows"
        return self._read()

    def _read(self) -> CodebookQuantized:
        largest = self.largest.raw()
        values = self.nested.dequantize(largest) if self.nested else largest
        return CodebookQuantized(self.format, self.shape, self.packed.raw().reshape(-1), finite(self.largest, values))


@dataclass(frozen=True)
class NestedScales:
    levels: SafetensorsTensor  # [256]
    largest: SafetensorsTensor  # [blocks of blocks]
    block_size: int
    offset: float

    def dequantize(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [blocks]: bitsandbytes' `dequantize_blockwise` plus the offset; infinite where too large."""
        scales = np.repeat(self.largest.raw(), self.block_size)[: len(codes)]
        with np.errstate(over="ignore", invalid="ignore"):
            values: NDArray[np.float32] = self.levels.raw()[codes] * scales + np.float32(self.offset)
        return values


@dataclass(frozen=True)
class BitsAndBytes8Weight:
    """A matrix as bitsandbytes' Linear8bitLt saves it: int8 codes -127..127, and the largest magnitude of each row."""

    tensor: SafetensorsTensor
    largest: SafetensorsTensor
    companions: tuple[SafetensorsTensor, ...]

    @property
    def shape(self) -> Shape:
        return self.tensor.shape

    @property
    def format(self) -> WeightFormat:
        return LLM_INT8

    @property
    def dtype(self) -> str:
        return "LLM.int8"

    @property
    def parts(self) -> tuple[SafetensorsTensor, ...]:
        return (self.tensor, self.largest, *self.companions)

    def rows(self, start: int, stop: int) -> Matrix:
        return self._read(start, stop).dequantize()

    def encoded(self, start: int, stop: int) -> Encoded:
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> Quantized:
        codes = (self.tensor.raw(start, stop).astype(np.int16) + LLM_INT8.middle).astype(np.uint8)
        largest: NDArray[np.float32] = finite(self.largest, self.largest.raw(start, stop)).reshape(-1, 1)
        scales: NDArray[np.float32] = np.divide(largest, np.float32(127))
        return Quantized(LLM_INT8, codes, scales, np.full(scales.shape, LLM_INT8.middle, np.uint8))


def bitsandbytes_weight(tensor: SafetensorsTensor, shape: Shape, find: Find) -> StoredWeight:
    """The weight of `shape` around bitsandbytes' tensor `X.weight`; `find` gives its companions by their names.

    Raises EdgebltError for one that is incomplete or of another form than bitsandbytes writes.
    """
    if len(shape) != 2:
        raise _unlike(tensor, "a vector")
    if tensor.format == "I8":
        return _weight_of_8_bits(tensor, (shape[0], shape[1]), find)
    return _weight_of_4_bits(tensor, (shape[0], shape[1]), find)


def is_bitsandbytes(tensor: SafetensorsTensor, find: Find) -> bool:
    """Whether a tensor of a checkpoint by bitsandbytes holds codes; some of its matrices stay floating-point."""
    return tensor.format in ("U8", "I8") or bool(_quant_states(tensor, find))


def _weight_of_8_bits(tensor: SafetensorsTensor, shape: tuple[int, int], find: Find) -> BitsAndBytes8Weight:
    base = tensor.name.removesuffix("weight")
    order = find(f"{base}weight_format")  # older versions also saved the order of their GPU kernels
    if order is not None and _shaped(order, "U8", ()).raw() != 0:
        raise _unlike(order, "which is not 0 for rows")
    largest = _companion(f"{base}SCB", tensor, "F32", (shape[0],), find)
    return BitsAndBytes8Weight(_shaped(tensor, "I8", shape), largest, () if order is None else (order,))


def _weight_of_4_bits(tensor: SafetensorsTensor, shape: tuple[int, int], find: Find) -> BitsAndBytes4Weight:
    states = _quant_states(tensor, find)
    if len(states) != 1:
        raise _unlike(tensor, "without one quant_state, for nf4 or fp4")
    if tensor.format != "U8":
        raise EdgebltError(
            f"{tensor.file}: the tensor {tensor.name!a} holds 4-bit codes as {tensor.format}; save the checkpoint with "
            "bnb_4bit_quant_storage uint8"
        )
    name, stored_state = states.popitem()
    state = _quant_state(stored_state)
    if state.get("shape") != list(shape) or state.get("quant_type") != name:
        raise _unlike(tensor, f"whose quant_state is not for {name} of shape {list(shape)}")
    block_size = _block_size(state, "blocksize", tensor)
    blocks = -(-math.prod(shape) // block_size)
    levels = _companion(f"{tensor.name}.quant_map", tensor, "F32", (16,), find)
    if not np.allclose(
        levels.raw(), LEVELS[name], rtol=0, atol=1e-6
    ):  # bitsandbytes' own tolerance; it computes with its own levels
        raise _unlike(tensor, f"whose quant_map is not {name}'s")
    nested = _nested(state, blocks, tensor, find) if "nested_blocksize" in state else None
    return BitsAndBytes4Weight(
        format=Codebook(name, block_size),
        shape=shape,
        packed=_shaped(tensor, "U8", (-(-math.prod(shape) // 2), 1)),
        largest=_companion(f"{tensor.name}.absmax", tensor, "U8" if nested else "F32", (blocks,), find),
        nested=nested,
        companions=(stored_state, levels),
    )


def _nested(state: dict[str, Any], blocks: int, tensor: SafetensorsTensor, find: Find) -> NestedScales:
    block_size, offset = _block_size(state, "nested_blocksize", tensor), state.get("nested_offset")
    if type(offset) is not float or not abs(offset) <= _LARGEST_FLOAT32:
        raise _unlike(tensor, f"whose nested_offset is {offset!r:.40}, not a finite number")
    return NestedScales(
        levels=_companion(f"{tensor.name}.nested_quant_map", tensor, "F32", (256,), find),
        largest=_companion(f"{tensor.name}.nested_absmax", tensor, "F32", (-(-blocks // block_size),), find),
        block_size=block_size,
        offset=offset,
    )


def _quant_states(tensor: SafetensorsTensor, find: Find) -> dict[str, SafetensorsTensor]:
    """Stored quant_states by codebook; bitsandbytes saves exactly one."""
    found = {name: find(f"{tensor.name}.quant_state.bitsandbytes__{name}") for name in LEVELS}
    return {name: state for name, state in found.items() if state is not None}


def _quant_state(tensor: SafetensorsTensor) -> dict[str, Any]:
    if tensor.format != "U8" or tensor.stored_bytes > _STATE_LIMIT:
        raise _unlike(tensor, "which is no short JSON text")
    try:
        state = json.loads(tensor.raw().tobytes())
    except (ValueError, RecursionError):
        raise _unlike(tensor, "which is not JSON") from None
    if not isinstance(state, dict):
        raise _unlike(tensor, "which is not a JSON object")
    return state


def _block_size(state: dict[str, Any], name: str, tensor: SafetensorsTensor) -> int:
    value = state.get(name)
    if type(value) is not int or not 32 <= value <= 4096 or value & (value - 1):
        raise _unlike(tensor, f"whose {name} is {value!r:.40}, not a power of two from 32 to 4096")
    return value


def _companion(name: str, tensor: SafetensorsTensor, dtype: str, shape: Shape, find: Find) -> SafetensorsTensor:
    found = find(name)
    if found is None:
        raise EdgebltError(f"{tensor.file} has no tensor {name!a}, which {tensor.name!a} needs; save it again")
    return _shaped(found, dtype, shape)


def _shaped(tensor: SafetensorsTensor, dtype: str, shape: Shape) -> SafetensorsTensor:
    if (tensor.format, tensor.shape) != (dtype, shape):
        raise EdgebltError(
            f"{tensor.file}: the tensor {tensor.name!a} is {tensor.format} {list(tensor.shape)} instead of {dtype} "
            f"{list(shape)}; save the checkpoint again"
        )
    return tensor


def _unlike(tensor: SafetensorsTensor, what: str) -> EdgebltError:
    return EdgebltError(
        f"{tensor.file}: the tensor {tensor.name!a}, {what}, is not as bitsandbytes saves it; save the checkpoint again"
    )
