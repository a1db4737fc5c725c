"""From a checkpoint to a bundle: build the four graphs, write them with their weights, describe what was written."""

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
from edgeblt.export.checkpoint import open_checkpoint
from edgeblt.export.decoder import decoder_graph
from edgeblt.export.encoder import encoder_graph
from edgeblt.export.global_transformer import global_graph
from edgeblt.export.model_card import checkpoint_name, model_card
from edgeblt.export.patcher import patcher_graph
from edgeblt.files import whole_directory
from edgeblt.printing import printable
from edgeblt.progress import Advance, progress

GRAPHS = {"patcher": patcher_graph, "encoder": encoder_graph, "global": global_graph, "decoder": decoder_graph}
RECIPES = ("fp32",)
TARGETS = ("cpu",)
EXTERNAL_FROM_BYTES = 4096  # smaller tensors stay in the graph file
WEIGHTS_ALIGNMENT = 4096  # a page: large tensors can be mapped on their own
_MADE_BY = ("edgeblt", "onnx_ir", "torch", "safetensors", "numpy")


def export_bundle(
    checkpoint: str | Path, bundle: str | Path, recipe: str = "fp32", target: str = "cpu", replace: bool = False
) -> Bundle:
    """Write `checkpoint` as a bundle directory; it appears when it is complete.

    Raises EdgebltError for a checkpoint that cannot be exported, an unknown recipe or target, or if `bundle` exists
    and `replace` is false; what is no bundle is never replaced.
    """
    if recipe not in RECIPES:
        raise EdgebltError(f"recipe {recipe!r} is unknown; this version has {', '.join(RECIPES)}")
    if target not in TARGETS:
        raise EdgebltError(f"target {target!r} is unknown; this version has {', '.join(TARGETS)}")
    source, path = open_checkpoint(checkpoint), Path(bundle)
    with whole_directory(path, replace and os.path.lexists(path / MANIFEST)) as partial:
        models = {stage: GRAPHS[stage](source) for stage in STAGES}
        total = sum(_is_external(value) for model in models.values() for value in model.graph.initializers.values())
        stages: dict[str, StageRecord] = {}
        with progress(f"exporting {checkpoint_name(source)}", total, "tensors") as advance:
            for stage, model in models.items():
                stages[stage] = _write_stage(model, stage, partial, advance)
        (partial / "README.md").write_text(model_card(source, recipe, target), encoding="utf-8")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=printable(path.name),
            target=target,
            recipe=recipe,
            config=source.config,
            stages=stages,
            files={file.name: file_record(file) for file in sorted(partial.iterdir())},
            made_by={name: _version(name) for name in _MADE_BY},
        )
        write_manifest(partial, manifest)
    return open_bundle(path)


def _is_external(initializer: ir.Value) -> bool:
    return initializer.const_value is not None and initializer.const_value.nbytes >= EXTERNAL_FROM_BYTES


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # edgeblt itself, used from its sources
        return "unknown"


def _write_stage(model: ir.Model, stage: StageName, directory: Path, advance: Advance) -> StageRecord:
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
        return StageRecord(graph, (), "fp32")
    return StageRecord(graph, (weights,), "fp32")


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
