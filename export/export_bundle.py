"""From a checkpoint to a bundle: build the four graphs, write them with their weights, describe what was written."""

import math
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx_ir as ir

from edgeblt.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    Bundle,
    Manifest,
    StageRecord,
    file_record,
    open_bundle,
    write_manifest,
)
from edgeblt.contract import STAGES, StageName
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.decoder import decoder_graph
from edgeblt.export.encoder import encoder_graph
from edgeblt.export.global_transformer import global_graph
from edgeblt.export.model_card import checkpoint_name, model_card
from edgeblt.export.patcher import patcher_graph
from edgeblt.export.weights import WeightSource
from edgeblt.files import whole_directory
from edgeblt.printing import printable
from edgeblt.progress import Advance, progress
from edgeblt.quant.recipe import HASH_TABLES, load_recipe
from edgeblt.quant.recipe_source import RecipeSource

GRAPHS = {"patcher": patcher_graph, "encoder": encoder_graph, "global": global_graph, "decoder": decoder_graph}
TARGETS = ("cpu",)
EXTERNAL_FROM_BYTES = 4096  # smaller tensors stay in the graph file
WEIGHTS_ALIGNMENT = 4096  # a page: large tensors can be mapped on their own
_MADE_BY = ("edgeblt", "onnx_ir", "torch", "safetensors", "numpy")


def export_bundle(
    checkpoint: str | Path,
    bundle: str | Path,
    recipe: str | Path | None = None,
    target: str = "cpu",
    replace: bool = False,
    patcher: str | Path | None = None,
) -> Bundle:
    """Write `checkpoint` as a bundle directory; it appears when it is complete.

    `recipe`: a recipe's name or file; None is fp32, or for a quantized checkpoint its own formats. `patcher`: see
    `open_checkpoint`. Raises EdgebltError for a checkpoint that cannot be exported, an unknown recipe or target, a
    recipe that needs calibration or would quantize again, or if `bundle` exists and `replace` is false; what is no
    bundle is never replaced.
    """
    if target not in TARGETS:
        raise EdgebltError(f"target {target!r} is unknown; this version has {', '.join(TARGETS)}")
    opened, path = open_checkpoint(checkpoint, patcher), Path(bundle)
    with whole_directory(path, replace and os.path.lexists(path / MANIFEST)) as partial:
        source, recipe_name = _in_recipe(opened, recipe)
        models = {stage: GRAPHS[stage](source) for stage in STAGES}
        total = sum(_is_external(value) for model in models.values() for value in model.graph.initializers.values())
        stages: dict[str, StageRecord] = {}
        with progress(f"exporting {checkpoint_name(opened)}", total, "tensors") as advance:
            for stage, model in models.items():
                weights = _write_stage(model, stage, partial, advance)
                stages[stage] = StageRecord(f"{stage}.onnx", weights, _formats(opened, source, stage))
        (partial / "README.md").write_text(model_card(opened, recipe_name, target), encoding="utf-8")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=printable(path.name),
            target=target,
            recipe=recipe_name,
            config=source.config,
            stages=stages,
            files={file.name: file_record(file) for file in sorted(partial.iterdir())},
            made_by={name: _version(name) for name in _MADE_BY},
        )
        write_manifest(partial, manifest)
    return open_bundle(path)


def _in_recipe(checkpoint: Checkpoint, recipe: str | Path | None) -> tuple[WeightSource, str]:
    """The weights as they shall be stored, and a name for it."""
    if checkpoint.is_quantized or checkpoint.record:
        if recipe is not None:
            raise EdgebltError(f"{checkpoint.path} is quantized already; leave out the recipe, or give the original")
        return checkpoint, checkpoint.record.recipe.name if checkpoint.record else "bitsandbytes"
    chosen = load_recipe(recipe or "fp32")
    if chosen.needs_calibration:
        raise EdgebltError(
            f"the recipe {printable(str(recipe))} needs a calibration text; first run `edgeblt quantize CHECKPOINT OUT "
            f"--recipe {printable(str(recipe))}`, then export OUT"
        )
    return RecipeSource(checkpoint, chosen), chosen.name


def _formats(checkpoint: Checkpoint, source: WeightSource, stage: StageName) -> str:
    """The formats of a stage's matrices, most weights first; the hash tables' apart."""
    weights: dict[str, int] = {}
    tables = ""
    for name in checkpoint.names():
        shape = source.shape(name)
        if name.startswith(f"{stage}.") and len(shape) == 2:
            format = source.format(name).describe()
            if name == HASH_TABLES:
                tables = format
            else:
                weights[format] = weights.get(format, 0) + math.prod(shape)
    described = "; ".join(sorted(weights, key=lambda format: -weights[format]))
    return f"{described}; tables {tables}" if tables else described or "none"


def _is_external(initializer: ir.Value) -> bool:
    return initializer.const_value is not None and initializer.const_value.nbytes >= EXTERNAL_FROM_BYTES


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # edgeblt itself, used from its sources
        return "unknown"


def _write_stage(model: ir.Model, stage: StageName, directory: Path, advance: Advance) -> tuple[str, ...]:
    graph, weights = f"{stage}.onnx", f"{stage}.weights"
    try:
        ir.save(
            model,
            directory / graph,
            external_data=weights,
            size_threshold_bytes=EXTERNAL_FROM_BYTES,
            alignment=WEIGHTS_ALIGNMENT,
            align_threshold=WEIGHTS_ALIGNMENT,
            callback=lambda tensor, info: advance(1),
        )
    except ir.serde.SerdeError as error:  # onnx_ir wraps what reading a small tensor raises
        raise _innermost(error) from None
    if not (directory / weights).stat().st_size:  # every tensor is small
        (directory / weights).unlink()
        return ()
    return (weights,)


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
