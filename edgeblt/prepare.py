"""Packs a bundle's weights for this machine, so that processes share them: `edgeblt prepare`."""

import itertools
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from edgeblt.bundle.contract import STAGES
from edgeblt.bundle.examination.branch_names import with_unique_branch_names
from edgeblt.bundle.examination.external_data import align_external_data
from edgeblt.bundle.held_files import is_too_many_open, too_many_open
from edgeblt.bundle.manifest import Bundle, HeldStage, file_record, hold_bundle, refuse_replacement, write_document
from edgeblt.bundle.whole_files import whole_directory
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.measure.texts import held_out_text
from edgeblt.model import Model
from edgeblt.progress import progress
from edgeblt.runtime import native
from edgeblt.runtime.machine.cores import usable_cores
from edgeblt.runtime.packed_weights import (
    RECORD,
    Prepared,
    PreparedStage,
    graph_name,
    open_prepared,
    prepared_path,
    record_for,
    weights_name,
)
from edgeblt.runtime.providers import open_graph, session_options
from edgeblt.runtime.run_errors import no_memory

# ONNX Runtime copies whatever lies in a weights file to the new one: here mostly hash tables, which need no packing.
LEFT = {"encoder": "its hash tables, which are mapped already, would be copied"}
NO_GAIN = "nothing in it is packed"
COMPACT = "without the native library, attention over fp16 or int8 caches is not prepared"
OTHER_ARCHITECTURE = "its weights are read where they are mapped"
_EXTERNAL_FROM_BYTES = 1024
_COMPARED_BYTES, _COMPARED_ONE_BY_ONE = 48, 4


@dataclass(frozen=True)
class StageOutcome:
    stage: str
    bytes: int  # written
    left_because: str | None  # reason why the bundle's own graph stays in use


@dataclass(frozen=True)
class Preparation:
    """Field by field the JSON of `edgeblt prepare`."""

    path: str | None  # None where nothing was written
    bytes: int  # written, of all stages
    stages: tuple[StageOutcome, ...]


def prepare(path: str | Path) -> Preparation:
    """Writes a bundle's graphs, with weights packed for this machine, to a directory beside the bundle.

    From then on `load` uses that directory on the cpu, with the same results: logits and entropies of a text are
    compared bit by bit before the directory appears. An existing one is replaced. Nothing is written where no stage has
    weights to pack. Raises EdgebltError for a damaged bundle, packed weights that cannot be written, and results that
    differ.
    """
    held = hold_bundle(path)
    bundle = held.bundle
    if bundle.manifest.is_portable:
        raise EdgebltError(f"{path} is portable; only the graphs of a bundle for the cpu are prepared for a machine")
    target = prepared_path(bundle)
    _refuse_to_replace_others(target)
    stages: dict[str, PreparedStage] = {}
    names = bundle.manifest.stage_names
    left = LEFT | _compact_stages(bundle) | dict.fromkeys(set(names) - set(STAGES), OTHER_ARCHITECTURE)
    with suppress(_NothingToPackError), whole_directory(target, replace=True) as partial:
        with progress(f"preparing {bundle.path.name}", len(names), "stages") as advance:
            for name in names:
                stage = None if name in left else _prepare_stage(held.stages[name], name, partial)
                if stage:
                    stages[name] = stage
                advance(1)
        if not stages:
            raise _NothingToPackError  # no directory appears
        record = record_for(bundle, "cpu", stages)
        write_document(partial / RECORD, record)
        compare_results(bundle, open_prepared(partial, bundle, "cpu"))
    outcomes = tuple(_outcome(stages.get(name), name, left.get(name, NO_GAIN)) for name in names)
    return Preparation(str(target) if stages else None, sum(outcome.bytes for outcome in outcomes), outcomes)


class _NothingToPackError(Exception):
    """ONNX Runtime packs no weights of any stage."""


def _compact_stages(bundle: Bundle) -> dict[str, str]:
    """Stages that have to be left because attention would be written as its portable body, each with the reason."""
    if native.register(onnxruntime.SessionOptions()) is None:
        return {}
    contracts = bundle.manifest.contracts.items()
    compact = {stage for stage, found in contracts if found.cache and found.cache.dtype != found.cache.angle_dtype}
    return dict.fromkeys(compact, COMPACT)


def _refuse_to_replace_others(target: Path) -> None:
    if os.path.isdir(target) and not os.path.lexists(target / RECORD):
        raise EdgebltError(f"{target} holds something other than prepared weights; remove it, or rename the bundle")


def _prepare_stage(source: HeldStage, name: str, directory: Path) -> PreparedStage | None:
    """Writes the stage's optimized graph; writes nothing and returns None where ONNX Runtime packs no weights."""
    graph, weights = directory / graph_name(name), directory / weights_name(name)
    options = session_options(usable_cores())
    options.optimized_model_filepath = str(graph)
    for key, value in {
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": weights.name,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_EXTERNAL_FROM_BYTES),
    }.items():
        options.add_session_config_entry(key, value)
    try:
        open_graph(source.content, source.directory.path, options, "cpu")
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        if is_too_many_open(error):
            raise too_many_open(source.graph) from None
        if sentence := no_memory(error, f"to prepare {source.graph}"):
            raise sentence from None
        reason = " ".join(str(error).split())[:300]
        raise EdgebltError(
            f"{source.graph} cannot be prepared by onnxruntime ({reason}); free some space, or use the bundle as it is"
        ) from None
    refuse_replacement([source])
    graph.write_bytes(with_unique_branch_names(graph.read_bytes()))
    if weights.exists() and align_external_data(graph, weights):
        return PreparedStage(file_record(graph), file_record(weights))
    graph.unlink(missing_ok=True)
    weights.unlink(missing_ok=True)
    return None


def compare_results(bundle: Bundle, prepared: Prepared) -> None:
    """Checks that results are the same bit by bit, as kernels read mapped packed weights at other addresses."""
    own = Prepared(prepared.path, (), "it is being compared")
    for expected, found in zip(_results(bundle, own), _results(bundle, prepared), strict=True):
        if expected.tobytes() != found.tobytes():
            raise EdgebltError(
                f"{bundle.path} gives other results with packed weights under onnxruntime {onnxruntime.__version__} on "
                "this machine; use the bundle as it is"
            )


def _results(bundle: Bundle, prepared: Prepared) -> list[np.ndarray]:
    """Logits and entropies of a text, whose last bytes are read one by one."""
    ids = np.concatenate([[BOS], encode(held_out_text("prose")[:_COMPARED_BYTES])])
    cuts = [0, *range(len(ids) - _COMPARED_ONE_BY_ONE, len(ids) + 1)]
    session = Model(bundle.path, "cpu", 1, prepared=prepared).session()
    results = []
    for start, stop in itertools.pairwise(cuts):
        for chunk in session.run(ids[start:stop]):
            results += [chunk.logits.copy(), chunk.entropies.copy()]
    return results


def _outcome(stage: PreparedStage | None, name: str, left_because: str) -> StageOutcome:
    if stage is None:
        return StageOutcome(name, 0, left_because)
    return StageOutcome(name, stage.graph.size + stage.weights.size, None)
