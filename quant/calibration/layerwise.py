"""Quantizing with a calibration text: one pass through the model, each matrix encoded once its inputs are known."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeblt.bundle.config import ModelConfig, PatchingRule
from edgeblt.bundle.contract import EDGEBLT, PATCHING_INPUTS, PATCHING_OUTPUTS, STATE_WIDTH
from edgeblt.bundle.text_files import read_text
from edgeblt.errors import EdgebltError
from edgeblt.export.architectures import workbench_architecture
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.checkpoints.recipe_source import decoded, encode_weight
from edgeblt.export.graphs.graph import IR_VERSION, OPSET, graph_value
from edgeblt.export.graphs.weight_source import Encoded
from edgeblt.export.operators.entropy_patch import OP_TYPE, entropy_patch_function, setting_defaults
from edgeblt.ids import BOS, encode
from edgeblt.measure.texts import CALIBRATION_TEXT
from edgeblt.quant.calibration.activations import Scratch, Values
from edgeblt.quant.calibration.forward import Forward
from edgeblt.quant.formats.weight_format import Floating, Linear, Matrix, Quantized, WeightFormat
from edgeblt.quant.methods.channel_choice import choose_channels
from edgeblt.quant.methods.channels import Channels, kept_count, select, spread
from edgeblt.quant.methods.gptq import Inputs, Products, gptq
from edgeblt.quant.methods.pruning import Sparsity, wanda_mask
from edgeblt.quant.recipes.recipe import GPTQ, TABLES, Recipe

TEXT_BYTES = 1024
MOST_TEXTS = 64
LOOKUP_ROWS = 1 << 12  # rows of an embedding in memory at a time
LOOKUP_BYTES = 128 << 20  # bytes of sums of such rows in memory at a time


@dataclass
class PrunedLayer:
    """A feed-forward layer and its remaining channels; complete once it has `down`, the last of its matrices."""

    channels: Channels
    weights: dict[str, Encoded] = field(default_factory=dict)  # encoded matrices by canonical name


class Keeper(Protocol):
    """Storage for calibrated matrices."""

    def kept(self, name: str) -> Quantized | None:
        """The matrix as an earlier run encoded it, if it is still there."""
        ...

    def keep(self, name: str, encoded: Quantized) -> None: ...

    def kept_layer(self, prefix: str) -> PrunedLayer | None:
        """All matrices of a pruned feed-forward layer as an earlier run encoded them, if they are still there."""
        ...

    def keep_layer(self, prefix: str, layer: PrunedLayer) -> None: ...


def calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    text: bytes,
    keeper: Keeper,
    scratch: Scratch,
    table_rows: NDArray[np.bool_] | None = None,
) -> None:
    """Encode the recipe's matrices in the order of the computation, and give each to `keeper`.

    The text runs through the encoded model and through the exact one: each encoded matrix is fitted so that its
    products with the encoded model's inputs approximate those of the exact matrix with exact inputs. One layer's
    weights are in memory at a time; activations are in `scratch`. `table_rows` says which rows of the hash tables are
    kept. Raises EdgebltError if the text is too short, and what reading the checkpoint raises.
    """
    calibration = _Calibration(checkpoint, recipe, keeper, scratch, table_rows)
    with torch.inference_mode():
        config, functions = checkpoint.config, (calibration.multiply, calibration.vector, calibration.lookup)
        run, texts = workbench_architecture(config.architecture).calibrate, calibration_texts(text)
        if run:
            run(config, *functions, texts)
        elif isinstance(config, ModelConfig):
            Forward(config, *functions).run(texts, PatchStarts(config.patching).of_exact)


def read_calibration(path: str | Path | None) -> tuple[bytes, str]:
    """The text at `path`, or the one that comes with the package, and its description. Raises EdgebltError."""
    file = Path(path) if path is not None else CALIBRATION_TEXT
    text = read_text(file, "the calibration text")
    return text, f"{ascii(file.name)[1:-1]}, {len(text)} bytes, sha256 {hashlib.sha256(text).hexdigest()}"


def calibration_texts(text: bytes) -> list[Tensor]:
    """Stretches spread evenly over the text, each after BOS: int64 [TEXT_BYTES + 1]."""
    count = len(text) // TEXT_BYTES
    if count == 0:
        raise EdgebltError(f"the calibration text has {len(text)} bytes; give at least {TEXT_BYTES}, better 50,000")
    starts = np.linspace(0, count - 1, min(count, MOST_TEXTS)).astype(int) * TEXT_BYTES
    return [torch.from_numpy(np.append(BOS, encode(text[start : start + TEXT_BYTES]))) for start in starts]


class _Calibration:
    """The matrix products of a model under calibration: encodes each matrix, then multiplies with the encoded one.

    Values have two copies: the encoded model's, and the exact model's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        keeper: Keeper,
        scratch: Scratch,
        table_rows: NDArray[np.bool_] | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._table_rows = table_rows
        self._recipe = recipe
        self._keeper = keeper
        self._scratch = scratch
        self._layer: PrunedLayer | None = None  # the one that loses channels now, if it is complete
        self._whole: dict[str, Encoded] = {}  # its gate and up with all channels

    def multiply(self, inputs: Values, names: list[str], then: Callable[..., Tensor], *others: Values) -> Values:
        """The products with matrices [rows, columns] that are encoded first, if the recipe says so."""
        known = _KnownInputs(inputs)
        if self._loses_channels(names[0]):
            stored = self._down(names[0], known) if names[0].endswith(".down") else self._gate_and_up(names, known)
        else:
            stored = [self._stored(name, known) for name in names]
        matrices = [(torch.from_numpy(each), self.vector(name)) for each, name in zip(stored, names, strict=True)]
        known.forget()

        def compute(index: int) -> Tensor:
            rounded, exact = inputs.get(index)
            products = [torch.stack([rounded @ stored.T, exact @ original.T]) for stored, original in matrices]
            return then(*products, *(other.get(index) for other in others))

        return self._scratch.keep(Values(inputs.count, compute))

    def _stored(self, name: str, known: "_KnownInputs") -> Matrix:
        """A matrix as it will be stored."""
        if not self._depends_on_inputs(name):
            return self._decoded(name, self._encode(name, known))
        encoded = self._keeper.kept(name)
        if encoded is None:
            encoded = cast(Quantized, self._encode(name, known))
            self._keeper.keep(name, encoded)
        return encoded.dequantize()

    def _depends_on_inputs(self, name: str) -> bool:
        format = self._recipe.format(name, self._checkpoint.shape(name))
        return self._recipe.part(name).needs_calibration and isinstance(format, Linear)

    def _encode(self, name: str, known: "_KnownInputs", kept: Channels | None = None) -> Encoded:
        """Encodes a matrix; with `kept`, only these columns, fitted to give the products of all."""
        weight, part = self._checkpoint.tensor(name), self._recipe.part(name)
        columns = weight.shape[1]
        format = self._recipe.format(name, weight.shape if kept is None else (len(weight), len(kept)))
        if not self._depends_on_inputs(name):
            fitted = weight if kept is None else known.inputs(columns, kept=kept).fitted(weight)
            return encode_weight(fitted, format, part.method, name)
        assert isinstance(format, Linear)
        sparsity = Sparsity.parse(format.sparsity) if format.sparsity else None
        if part.method != GPTQ and not sparsity and kept is None:  # heads beside pruned matrices
            return encode_weight(weight, format, part.method, name)
        inputs = known.inputs(columns, (sparsity and sparsity.group) or 1, kept)
        if part.method != GPTQ:  # the inputs only say what to prune
            fitted = weight if kept is None else inputs.fitted(weight)
            if sparsity:
                fitted = np.where(wanda_mask(fitted, inputs.sizes, sparsity), fitted, np.float32(0))
            return encode_weight(fitted, format, part.method, name)
        try:
            return gptq(weight, inputs, format, part.pruning)
        except EdgebltError as error:
            raise EdgebltError(f"{name}: {error}") from None

    def _decoded(self, name: str, encoded: Encoded) -> Matrix:
        return decoded(encoded, self._recipe.format(name, self._checkpoint.shape(name)) == Floating(16))

    def _loses_channels(self, name: str) -> bool:
        share = self._recipe.part(name).channels
        if share is None or not name.endswith((".gate", ".down")):
            return False
        down = f"{name.rpartition('.')[0]}.down"
        count = self._checkpoint.shape(down)[1]
        return kept_count(share, count) < count

    def _gate_and_up(self, names: list[str], known: "_KnownInputs") -> list[Matrix]:
        """Gate and up with all channels, as the choice needs their products; or as an earlier run encoded them."""
        self._layer = self._keeper.kept_layer(names[0].rpartition(".")[0])
        if self._layer:
            return [self._spread(name, self._layer) for name in names]
        self._whole = {name: self._encode(name, known) for name in names}
        return [self._decoded(name, encoded) for name, encoded in self._whole.items()]

    def _down(self, name: str, known: "_KnownInputs") -> list[Matrix]:
        """Encodes `down` and the remaining rows of `gate` and `up`."""
        if self._layer is None:
            channels = self._choose(name, known)
            encoded = self._encode(name, known, channels)
            known.forget()
            weights = {key: self._rows(key, whole, channels) for key, whole in self._whole.items()}
            self._whole.clear()
            self._layer = PrunedLayer(channels, weights | {name: encoded})
            self._keeper.keep_layer(name.rpartition(".")[0], self._layer)
        return [self._spread(name, self._layer)]

    def _choose(self, name: str, known: "_KnownInputs") -> Channels:
        weight, share = self._checkpoint.tensor(name), self._recipe.part(name).channels
        assert share
        columns = weight.shape[1]
        return choose_channels(weight, known.products(columns).gram, kept_count(share, columns))

    def _rows(self, name: str, whole: Encoded, channels: Channels) -> Encoded:
        """The remaining rows of `gate` or `up`; encoded anew if a codebook's blocks may run over the ends of rows."""
        if isinstance(whole, Quantized):
            return Quantized(whole.format, whole.codes[channels], whole.scales[channels], whole.zero_points[channels])
        weight = select(self._checkpoint.tensor(name), name, channels)
        return encode_weight(weight, self._recipe.format(name, weight.shape), self._recipe.part(name).method, name)

    def _spread(self, name: str, layer: PrunedLayer) -> Matrix:
        return spread(self._decoded(name, layer.weights[name]), name, layer.channels, self._checkpoint.shape(name))

    def vector(self, name: str) -> Tensor:
        return torch.from_numpy(self._checkpoint.tensor(name))

    def lookup(self, name: str, rows: list[Tensor]) -> Values:
        """Sums of an embedding's rows, encoded and exact, for as many texts at a time as fit in memory."""
        width = self._checkpoint.shape(name)[1]
        texts = max(LOOKUP_BYTES // (8 * width * len(rows[0])), 1)
        sums: list[Values] = []
        for start in range(0, len(rows), texts):
            made = self._sums(name, rows[start : start + texts])
            sums.append(self._scratch.keep(Values(len(made), made.__getitem__)))
        return Values(len(rows), lambda index: sums[index // texts].get(index % texts))

    def _sums(self, name: str, rows: list[Tensor]) -> list[Tensor]:
        """[2, T, width] for each text's rows [T, n]; a part of the embedding is in memory at a time."""
        count, width = self._checkpoint.shape(name)
        format, method = self._recipe.format(name, (count, width)), self._recipe.part(name).method
        sums = [torch.zeros(2, len(text), width) for text in rows]
        needed = np.unique(np.concatenate([text.numpy() for text in rows], axis=None))
        for first in np.unique(needed // LOOKUP_ROWS) * LOOKUP_ROWS:
            exact = self._checkpoint.rows(name, first, min(first + LOOKUP_ROWS, count))
            here = needed[(needed >= first) & (needed < first + len(exact))] - first
            used = exact[here]
            stored = _decoded(used, format, method, name)
            if name.endswith(TABLES) and self._table_rows is not None:
                stored[~self._table_rows[first + here]] = 0
            both = torch.stack([torch.from_numpy(stored), torch.from_numpy(used)])
            places = torch.zeros(len(exact), dtype=torch.int64)
            places[torch.from_numpy(here)] = torch.arange(len(here))
            for text, total in zip(rows, sums, strict=True):
                position, column = ((text >= first) & (text < first + len(exact))).nonzero(as_tuple=True)
                total.index_add_(1, position, both[:, places[text[position, column] - first]])
        return sums


class _KnownInputs:
    """Statistics of the inputs that some matrices share, computed when first needed."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._products: Products | None = None
        self._inputs: dict[int, Inputs] = {}

    def products(self, columns: int) -> Products:
        """Sums over the inputs, valid until `inputs` consumes them."""
        if self._products is None:
            self._products = Products.zeros(columns)
            for rounded, exact in self._values:
                self._products.add(rounded, exact)
        return self._products

    def inputs(self, columns: int, group: int = 1, kept: Channels | None = None) -> Inputs:
        """Statistics of the inputs; `group`, `kept`: see `Inputs`. Matrices share them unless their recipes differ."""
        if group not in self._inputs:
            self._inputs.clear()
            products, self._products = self.products(columns), None
            self._inputs[group] = Inputs(products, group, None if kept is None else torch.from_numpy(kept))
        return self._inputs[group]

    def forget(self) -> None:
        self._inputs.clear()


def _decoded(weight: Matrix, format: WeightFormat, method: str, name: str) -> Matrix:
    return decoded(encode_weight(weight, format, method, name), format == Floating(16))


class PatchStarts:
    """The operator edgeblt::EntropyPatch on whole rows, in ONNX Runtime as in a bundle."""

    def __init__(self, patching: PatchingRule) -> None:
        self._settings = setting_defaults(patching)
        inputs = [*map(graph_value, PATCHING_INPUTS)]
        outputs = [*map(graph_value, PATCHING_OUTPUTS)]
        node = ir.Node(EDGEBLT, OP_TYPE, inputs, [ir.AttrInt64("rule", int(patching.rule))], outputs=outputs)
        graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports={"": OPSET, EDGEBLT: 1}, name="patching")
        model = ir.Model(graph, ir_version=IR_VERSION, functions=(entropy_patch_function(OPSET),))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def of_exact(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Patch starts by the exact copy of [copies, T, V], used for all copies so that their patches correspond."""
        return self(logits[-1], ids)

    def __call__(self, logits: Tensor, ids: Tensor) -> Tensor:
        """bool [T]: whether the position after each of `ids` [T] starts a patch. `logits` [T, V]."""
        beginning = {"position": np.zeros(1, np.int64), "state": np.zeros(STATE_WIDTH, np.float32)}
        feeds = {"logits": logits.numpy(), "ids": ids.numpy(), **beginning, **self._settings}
        return torch.from_numpy(self._session.run(["patch_starts"], feeds)[0])
