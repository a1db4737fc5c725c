"""Quantizing with a text at hand: one pass through the model, each matrix replaced as its inputs become known."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeblt.config import PatchingRule
from edgeblt.contract import STATE_WIDTH
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoint import Checkpoint
from edgeblt.export.entropy_patch import DOMAIN, OP_TYPE, entropy_patch_function, setting_defaults
from edgeblt.export.graph import IR_VERSION, OPSET
from edgeblt.export.weights import Encoded
from edgeblt.ids import BOS, encode
from edgeblt.quant.formats import Floating, Linear, Matrix, Quantized, WeightFormat
from edgeblt.quant.forward import Forward
from edgeblt.quant.gptq import Products, gptq
from edgeblt.quant.recipe import Recipe
from edgeblt.quant.recipe_source import decoded, encode_weight
from edgeblt.samples import CALIBRATION_TEXT

ROW_BYTES = 1024
MOST_ROWS = 64
LOOKUP_ROWS = 1 << 15  # of an embedding in memory at a time

Keep = Callable[[str, Encoded], None]


def calibrate(checkpoint: Checkpoint, recipe: Recipe, text: bytes, keep: Keep) -> None:
    """Encode the recipe's matrices in the order of the computation, giving each to `keep` when it is done.

    The text runs through the encoded model and, beside it, through the exact one: every matrix is chosen to give, from
    inputs that the encoded ones before it made, what it would give from exact ones. One layer's weights are in memory
    at a time. Raises EdgebltError if the text is too short, and what reading the checkpoint raises.
    """
    calibration = _Calibration(checkpoint, recipe, keep)
    with torch.inference_mode():
        forward = Forward(checkpoint.config, calibration.multiply, calibration.vector, calibration.lookup)
        rows = calibration_rows(text)
        forward.run(torch.cat([rows, rows]), PatchStarts(checkpoint.config.patching).of_exact)


def read_calibration(path: str | Path | None) -> tuple[bytes, str]:
    """The text at `path`, or the one that comes with the package, and what to record of it. Raises EdgebltError."""
    file = Path(path) if path is not None else CALIBRATION_TEXT
    try:
        text = file.read_bytes()
    except OSError as error:
        raise EdgebltError(f"the calibration text {file} cannot be read ({error.strerror}); give a file") from None
    return text, f"{ascii(file.name)[1:-1]}, {len(text)} bytes, sha256 {hashlib.sha256(text).hexdigest()}"


def calibration_rows(text: bytes) -> Tensor:
    """int64 [rows, ROW_BYTES + 1]: BOS and a stretch of the text each, spread evenly over it."""
    count = len(text) // ROW_BYTES
    if count == 0:
        raise EdgebltError(f"the calibration text has {len(text)} bytes; give at least {ROW_BYTES}, better 50,000")
    starts = np.linspace(0, count - 1, min(count, MOST_ROWS)).astype(int) * ROW_BYTES
    rows = [np.concatenate([[BOS], encode(text[start : start + ROW_BYTES])]) for start in starts]
    return torch.from_numpy(np.stack(rows))


class _Calibration:
    """What multiplies in place of the model: it encodes each matrix, then computes with the encoded one.

    The first half of every batch is what the encoded model computes, the second half what the exact one does.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, keep: Keep) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._keep = keep

    def multiply(self, inputs: Tensor, names: list[str]) -> list[Tensor]:
        """`inputs` [.., columns] times each matrix [rows, columns], which is encoded first, if the recipe says so."""
        rounded, exact = inputs.chunk(2)
        products: Products | None = None
        outputs = []
        for name in names:
            weight, part = self._checkpoint.tensor(name), self._recipe.part(name)
            format = self._recipe.format(name, weight.shape)
            if part.needs_calibration and isinstance(format, Linear):
                products = products or _products(rounded.flatten(0, -2), exact.flatten(0, -2))
                encoded = self._encode(name, weight, products, format)
                self._keep(name, encoded)
                stored = encoded.dequantize()
            else:
                stored = _decoded(weight, format, part.method, name)
            outputs.append(torch.cat([rounded @ torch.from_numpy(stored).T, exact @ torch.from_numpy(weight).T]))
        return outputs

    def _encode(self, name: str, weight: Matrix, products: Products, format: Linear) -> Quantized:
        try:
            return gptq(weight, products, format)
        except EdgebltError as error:
            raise EdgebltError(f"{name}: {error}") from None

    def vector(self, name: str) -> Tensor:
        return torch.from_numpy(self._checkpoint.tensor(name))

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        """Rows of an embedding, as they will be stored and exactly; a part of it in memory at a time."""
        count, width = self._checkpoint.shape(name)
        format, method = self._recipe.format(name, (count, width)), self._recipe.part(name).method
        found = torch.empty(*ids.shape, width)
        half = len(ids) // 2
        for start in range(int(ids.min()), int(ids.max()) + 1, LOOKUP_ROWS):
            inside = (ids >= start) & (ids < start + LOOKUP_ROWS)
            if inside.any():
                rows = self._checkpoint.rows(name, start, min(start + LOOKUP_ROWS, count))
                found[inside] = torch.from_numpy(rows)[ids[inside] - start]
                inside[half:] = False
                found[inside] = torch.from_numpy(_decoded(rows, format, method, name))[ids[inside] - start]
        return found


def _decoded(weight: Matrix, format: WeightFormat, method: str, name: str) -> Matrix:
    return decoded(encode_weight(weight, format, method, name), format == Floating(16))


def _products(rounded: Tensor, exact: Tensor) -> Products:
    """Of inputs [rows, columns]."""
    columns = rounded.shape[1]
    gram, drift = (torch.zeros(columns, columns, dtype=torch.float64) for _ in range(2))
    for start in range(0, len(rounded), 4096):
        wide, wanted = rounded[start : start + 4096].double(), exact[start : start + 4096].double()
        gram += wide.T @ wide
        drift += (wanted - wide).T @ wide
    return Products(gram, drift)


class PatchStarts:
    """The operator edgeblt::EntropyPatch on whole rows, in ONNX Runtime as in a bundle."""

    def __init__(self, patching: PatchingRule) -> None:
        self._settings = setting_defaults(patching)
        inputs = [ir.val(name, dtype, shape) for name, (dtype, shape) in _OPERATOR_INPUTS.items()]
        outputs = [ir.val(name, dtype, shape) for name, (dtype, shape) in _OPERATOR_OUTPUTS.items()]
        node = ir.Node(DOMAIN, OP_TYPE, inputs, [ir.AttrInt64("rule", int(patching.rule))], outputs=outputs)
        graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports={"": OPSET, DOMAIN: 1}, name="patching")
        model = ir.Model(graph, ir_version=IR_VERSION, functions=(entropy_patch_function(OPSET),))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def of_exact(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Those of the second half of the rows, for both halves, so that patch by patch they compare."""
        half = len(ids) // 2
        return self(logits[half:], ids[half:]).repeat(2, 1)

    def __call__(self, logits: Tensor, ids: Tensor) -> Tensor:
        """bool [rows, T]: whether the position after each id starts a patch. `logits` [rows, T, V]."""
        beginning = {"position": np.zeros(1, np.int64), "state": np.zeros(STATE_WIDTH, np.float32)}
        rows: list[NDArray[np.bool_]] = []
        for row_logits, row_ids in zip(logits.numpy(), ids.numpy(), strict=True):
            feeds = {"logits": row_logits, "ids": row_ids, **beginning, **self._settings}
            rows.append(self._session.run(["patch_starts"], feeds)[0])
        return torch.from_numpy(np.stack(rows))


_FLOAT, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64
_OPERATOR_INPUTS: dict[str, tuple[ir.DataType, list[int | str]]] = {
    "logits": (_FLOAT, ["T", "V"]),
    "ids": (_INT64, ["T"]),
    "position": (_INT64, [1]),
    "state": (_FLOAT, [STATE_WIDTH]),
    "threshold": (_FLOAT, [1]),
    "threshold_add": (_FLOAT, [1]),
    "max_patch_length": (_INT64, [1]),
    "patch_size": (_INT64, [1]),
}
_OPERATOR_OUTPUTS: dict[str, tuple[ir.DataType, list[int | str]]] = {
    "entropies": (_FLOAT, ["T"]),
    "patch_starts": (ir.DataType.BOOL, ["T"]),
    "states": (_FLOAT, ["T", STATE_WIDTH]),
}
