"""Opening the graphs of a bundle: the provider of each stage, ONNX Runtime's sessions, and a check of their tensors."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgeblt.arguments import real_number
from edgeblt.bundle.contract import StageContract, StageName, TensorSpec
from edgeblt.bundle.held_files import is_too_many_open, too_many_open
from edgeblt.bundle.manifest import Bundle, HeldBundle, HeldStage, refuse_replacement
from edgeblt.bundle.placement import describe_placement, parse_placement
from edgeblt.errors import EdgebltError, shown
from edgeblt.runtime import native
from edgeblt.runtime.cuda import explained
from edgeblt.runtime.opened_graphs import OpenedGraph, OpenedGraphs
from edgeblt.runtime.packed_weights import Prepared
from edgeblt.runtime.providers import (
    LARGE_STAGE_BYTES,
    PROVIDERS,
    Provider,
    ThreadCounts,
    memory_of,
    open_graph,
    session_options,
)
from edgeblt.runtime.run_errors import no_memory

_MAPPED_FORMATS = ("int8", "int4")  # native kernels read weights in these where they lie; manifests name them so


def place_stages(bundle: Bundle, provider: str | None) -> dict[StageName, Provider]:
    """Provider of each stage, for the argument of `load`. Raises EdgebltError where a stage cannot run there."""
    if provider is not None and not isinstance(provider, str):
        raise EdgebltError(f"provider is {shown(provider)}; it must be a name such as {', '.join(PROVIDERS)}")
    targets = bundle.manifest.targets
    if bundle.manifest.is_portable:
        if provider not in (None, "cpu"):
            raise EdgebltError(f"{bundle.path} is portable and runs on the cpu here; leave provider {provider} out")
        return dict.fromkeys(targets, PROVIDERS[0])
    own: dict[StageName, Provider] = {stage: "cuda" if target == "cuda" else "cpu" for stage, target in targets.items()}
    placement = parse_placement(provider or bundle.manifest.target, "provider", PROVIDERS, own)
    for stage, place in placement.items():
        if place == "cuda" and targets[stage] != "cuda":
            raise EdgebltError(
                f"the stage {stage} of {bundle.path} was exported for the {targets[stage]}, not for cuda; export the"
                " checkpoint again with --target cuda"
            )
    return placement


def checked_threshold(bundle: Bundle, threshold: float | None) -> float | None:
    """Threshold in nats for the argument of `load`. Raises EdgebltError for no finite number, or a rule without one."""
    if threshold is None:
        return None
    rest = "give a number of nats, such as 1.5"
    number = real_number("threshold", threshold, rest)
    if not abs(number) <= float(np.finfo(np.float32).max):  # the graph compares in float32
        raise EdgebltError(f"threshold is {shown(threshold)}; {rest}")
    if not bundle.manifest.config.patching.rule.needs_entropies:
        raise EdgebltError(f"{bundle.path} starts patches without entropies; leave the threshold out")
    return number


def open_graphs(
    held: HeldBundle, prepared: Prepared, placement: Mapping[StageName, Provider], threads: int | None
) -> OpenedGraphs:
    """Open the graphs of all stages, from the prepared weights where there are some.

    threads: as `load` takes it.
    """
    manifest = held.bundle.manifest
    contracts = manifest.contracts
    graphs, used, is_large = dict[StageName, OpenedGraph](), list[HeldStage](), False
    for name in manifest.stage_names:
        own, packed = held.stages[name], prepared.stage(name)
        weight_bytes = sum(file.size for file in own.weights)
        is_large |= weight_bytes >= LARGE_STAGE_BYTES
        lie_as_read = manifest.stages[name].weight_format.startswith(_MAPPED_FORMATS)
        are_mapped = packed is not None or (lie_as_read and native.library_path() is not None)
        counts = ThreadCounts.of(threads, weight_bytes, are_mapped)
        used.append(packed or own)
        graphs[name] = open_stage(used[-1], packed is not None, contracts[name], counts, placement[name])
    refuse_replacement(used)  # ONNX Runtime opened the weights by their names
    weights = [file for stage in used for file in stage.weights]
    return OpenedGraphs(graphs, contracts, weights, held.bundle.id, describe_placement(placement), is_large)


def open_stage(
    stage: HeldStage, is_prepared: bool, contract: StageContract, counts: ThreadCounts, provider: Provider
) -> OpenedGraph:
    """Open a stage's graph once for each number of threads."""
    memory = memory_of(provider)

    @functools.cache
    def opened(threads: int) -> onnxruntime.InferenceSession:
        options = session_options(threads, provider)
        if is_prepared:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return _checked_graph(stage, contract, options, provider, "prepare" if is_prepared else "export")

    if memory:
        return OpenedGraph.on_device(opened(counts.few), memory)
    return OpenedGraph(opened(counts.few), opened(counts.many), opened(counts.share) if counts.share else None)


def _checked_graph(
    stage: HeldStage, contract: StageContract, options: onnxruntime.SessionOptions, provider: Provider, remedy: str
) -> onnxruntime.InferenceSession:
    path = stage.graph
    try:
        graph = open_graph(stage.content, stage.directory.path, options, provider)
    except EdgebltError:
        raise
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        refuse_replacement([stage])
        if is_too_many_open(error):
            raise too_many_open(path) from None
        if provider == "cuda" and (sentence := explained(error)):
            raise sentence from None
        if sentence := no_memory(error, f"to open {path}"):
            raise sentence from None
        reason = " ".join(str(error).split())[:300]
        raise EdgebltError(f"{path} cannot be opened by onnxruntime ({reason}); {remedy} the bundle again") from None
    _check_interface(path, contract.all_inputs, [*graph.get_inputs(), *graph.get_overridable_initializers()], remedy)
    _check_interface(path, contract.all_outputs, graph.get_outputs(), remedy)
    return graph


def _check_interface(path: Path, specs: tuple[TensorSpec, ...], values: list[Any], remedy: str) -> None:
    """Raises EdgebltError unless the graph has exactly the tensors of the contract, in type, rank and fixed sizes."""
    seen = {value.name: value for value in values}
    for spec in specs:
        value = seen.pop(spec.name, None)
        kind = {"float32": "tensor(float)"}.get(spec.dtype, f"tensor({spec.dtype})")
        if value is None or value.type != kind or len(value.shape) != len(spec.shape) or any(
            isinstance(wanted, int) and wanted != got for wanted, got in zip(spec.shape, value.shape, strict=True)
        ):  # fmt: skip
            found = f"{value.type} {value.shape}" if value else "nothing"
            raise EdgebltError(f"{path}: {spec.name} should be {kind} {list(spec.shape)}, not {found}; {remedy} again")
    if seen:
        raise EdgebltError(
            f"{path} has the unknown tensor {min(seen)!r:.60}; {remedy} the bundle again with this version"
        )
