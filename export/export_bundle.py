"""From a checkpoint to a bundle: build the graphs, write them with their weights, describe what was written."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from edgeblt.bundle.architectures import Architecture, architecture
from edgeblt.bundle.contract import (
    PORTABLE,
    TARGETS,
    CacheFormat,
    GraphName,
    StageName,
    Target,
)
from edgeblt.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Bundle,
    Manifest,
    StageRecord,
    file_record,
    open_bundle,
    write_manifest,
)
from edgeblt.bundle.placement import ALL_STAGES, describe_placement, parse_cache_formats, parse_placement
from edgeblt.bundle.portable.document import METADATA_KEY, portable_document
from edgeblt.bundle.whole_files import check_replaceable, scratch_directory, whole_directory
from edgeblt.errors import EdgebltError
from edgeblt.export.architectures import workbench_architecture
from edgeblt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.checkpoints.naming import origin
from edgeblt.export.checkpoints.recipe_source import RecipeSource
from edgeblt.export.graphs.graph import BuiltStage, weights_name
from edgeblt.export.graphs.portable.files import check_portable_size, save_embedded
from edgeblt.export.graphs.portable.whole_graph import portable_graph
from edgeblt.export.graphs.weight_file import Journal, WeightFile
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.export.model_card import model_card
from edgeblt.names import Name, RecipeName
from edgeblt.printable import printable
from edgeblt.progress import BYTES, Advance, progress
from edgeblt.quant.compress import Compression
from edgeblt.quant.made_by import package_versions
from edgeblt.quant.memory_limit import DEFAULT_LIMIT, check_export
from edgeblt.quant.recipes.recipe import TABLES, Recipe, load_recipe
from edgeblt.quant.torch_threads import keep_to_usable_cores

_MADE_BY = ("edgeblt", "onnx_ir", "torch", "safetensors", "numpy")


def export_bundle(
    checkpoint: str | Path,
    bundle: str | Path,
    recipe: RecipeName | Name | Path | None = None,
    target: str = "cpu",
    replace: bool = False,
    patcher: str | Path | None = None,
    memory_limit: int = DEFAULT_LIMIT,
    calibration: str | Path | None = None,
    table_hits: float | None = None,
    strict: bool = False,
    kv_cache: str | None = None,
    embed: bool = False,
) -> Bundle:
    """Write a checkpoint as a bundle directory; it appears when it is complete.

    checkpoint: a directory in one of the forms of docs/checkpoints.md, or a model on the hub, `OWNER/NAME[@REVISION]`.
    bundle: the directory to write.
    recipe: how to store the weights: the name of one that comes with the package, or the path of a TOML file. None,
        the default, is fp32, fp16 if all is for cuda, or for a quantized checkpoint its own formats. If it needs
        a calibration text, the checkpoint is compressed first, to a temporary directory beside the bundle.
    target: what the graphs run on: cpu, the default, cuda, or some stages' own such as `global=cuda`, the others cpu.
        Stages for cuda compute in float16, and store in float16 what the recipe leaves in floating point. `portable`
        is one graph for any ONNX Runtime (docs/portable.md).
    replace: True replaces an existing bundle; anything else is never replaced. Default False.
    patcher: the directory of Meta's entropy model, for a checkpoint in Meta's form; default None, its own.
    memory_limit: bytes to use at most, beyond what the interpreter and its libraries take; default 1.5 GB.
    calibration: as `quantize_checkpoint` takes it, which is then called first, whatever the recipe; default None.
    table_hits: likewise; default None.
    strict: True refuses fields of the configuration that are not known, which else are a warning. Default False.
    kv_cache: format of keys and values in stages for cpu: fp32, fp16 or int8, or some stages' own such as
        `global=int8`, the others fp32; None, the default, is what the recipe says. Stages for cuda keep float16, and
        the portable graph float32.
    embed: True puts the weights of a portable graph in its own file, which must stay below 2 GB. Default False.

    The work that a killed run of the same export completed is used. Raises EdgebltError for a checkpoint that cannot be
    exported, an unknown recipe or target, a recipe that would quantize again, a limit below what the largest matrix
    needs, what `quantize_checkpoint` raises, or if `bundle` exists and may not be replaced.
    """
    keep_to_usable_cores()
    if embed and target != PORTABLE:
        raise EdgebltError(f"embed puts weights in the one file of a portable graph, not of {target}; leave it out")
    opened, path = open_checkpoint(checkpoint, patcher, strict), Path(bundle)
    targets = _targets(target, architecture(opened.config.architecture))
    opened.warn()
    chosen = _chosen(opened, recipe, "fp16" if describe_placement(targets) == "cuda" else "fp32")
    caches = _cache_formats(_recipe_of(opened, chosen).kv_cache if kv_cache is None else kv_cache, targets)
    if calibration is None and table_hits is None and not (chosen and chosen.needs_text):
        replace = check_replaceable(path, replace, holds_bundle, "bundle")
        _write_bundle(opened, chosen, path, targets, caches, replace, memory_limit, embed)
        return open_bundle(path)
    if chosen is None:
        raise opened.quantized_already("leave out the calibration text and the table hits")
    compression = Compression(opened, chosen, calibration, memory_limit, table_hits)
    replace = check_replaceable(path, replace, holds_bundle, "bundle")
    with scratch_directory(path, "quantized") as scratch:
        compression.write(scratch)  # the journal stays: a killed export's successor checks and uses all of it
        compressed = open_checkpoint(scratch)
        _write_bundle(compressed, None, path, targets, caches, replace, memory_limit, embed, compression.fingerprint)
    return open_bundle(path)


def holds_bundle(directory: Path) -> bool:
    """Whether the directory holds a bundle, whole or damaged, and nothing else."""
    names = {entry.name for entry in directory.iterdir() if not (entry.is_dir() or entry.is_symlink())}
    own = {MANIFEST, "README.md"} | {name for name in names if name.endswith((".onnx", ".weights"))}
    return MANIFEST in names and {entry.name for entry in directory.iterdir()} <= own


def _write_bundle(
    opened: Checkpoint,
    recipe: Recipe | None,
    path: Path,
    targets: Mapping[StageName, Target],
    caches: Mapping[StageName, CacheFormat],
    replace: bool,
    memory_limit: int,
    embed: bool,
    fingerprint: Callable[..., str] | None = None,
) -> None:
    """Writes the bundle; `recipe` None keeps the checkpoint's formats, `fingerprint` replaces the checkpoint's own."""
    source: WeightSource = opened if recipe is None else RecipeSource(opened, recipe)
    recipe_name, target = recipe.name if recipe else opened.recipe_name, describe_placement(targets)
    check_export(source, opened.names(), memory_limit)
    made_by = package_versions(*_MADE_BY)
    document = None
    if target == PORTABLE:
        document = portable_document(source.config, recipe_name, made_by, printable(origin(opened)))
        built: dict[GraphName, BuiltStage] = {"model": portable_graph(source, {METADATA_KEY: document.text()})}
        check_portable_size(built["model"], embed)
    else:
        built = dict(build_graphs(source, targets, caches).items())
    key = (fingerprint or opened.fingerprint)(recipe, target, caches, made_by, _layout(built))
    with whole_directory(path, replace, resume=True) as partial:
        journal = Journal(partial, key)
        total = sum(slot.size for stage in built.values() for slot in stage.slots.values())
        stages: dict[str, StageRecord] = {}
        with progress(f"exporting {origin(opened)}", total, BYTES) as advance:
            for graph, stage in built.items():
                weights = _write_stage(stage, graph, partial, journal, advance, embed)
                for name in targets if graph == "model" else (graph,):
                    stages[name] = StageRecord(f"{graph}.onnx", weights, _formats(opened, source, name, targets[name]))
        (partial / "README.md").write_text(model_card(opened, recipe_name, target), encoding="utf-8")
        names = {"README.md", *(name for stage in stages.values() for name in (stage.graph, *stage.weights))}
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=printable(path.name),
            target=target,
            recipe=recipe_name,
            kv_cache=describe_placement(caches),
            config=source.config,
            stages=stages,
            files={name: file_record(partial / name) for name in sorted(names)},
            made_by=made_by,
            architecture=source.config.architecture,
            portable=document,
        )
        write_manifest(partial, manifest)
        journal.finish()


def build_graphs(
    source: WeightSource,
    targets: Mapping[StageName, Target] | None = None,
    caches: Mapping[StageName, CacheFormat] | None = None,
) -> dict[StageName, BuiltStage]:
    """Builds all stages, by default for cpu and with caches in fp32, without reading weights."""
    name = source.config.architecture
    graphs = workbench_architecture(name).graphs
    contracts = architecture(name).contracts(source.config, targets, caches)
    return {stage: graphs[stage](source, contract) for stage, contract in contracts.items()}


def _chosen(checkpoint: Checkpoint, recipe: str | Path | None, default: str) -> Recipe | None:
    """The recipe to use; None for a quantized checkpoint, which has its own formats."""
    if not checkpoint.has_own_formats:
        return load_recipe(recipe or default)
    if recipe is not None:
        raise checkpoint.quantized_already("leave out the recipe, or give the original")
    return None


def _recipe_of(checkpoint: Checkpoint, chosen: Recipe | None) -> Recipe:
    """The recipe chosen, or the one that made a quantized checkpoint."""
    return chosen or (checkpoint.record.recipe if checkpoint.record else Recipe("own"))


def _cache_formats(text: str, targets: Mapping[StageName, Target]) -> dict[StageName, CacheFormat]:
    """Formats of keys and values that the stages will have."""
    formats = parse_cache_formats(text, (*ALL_STAGES, *targets))
    fixed: dict[Target, CacheFormat] = {"cuda": "fp16", "portable": "fp32"}
    return {stage: fixed.get(target, formats[stage]) for stage, target in targets.items()}


def _targets(text: str, kind: Architecture) -> dict[StageName, Target]:
    """Target of each stage. Raises EdgebltError for one that the architecture does not have."""
    if text == PORTABLE:
        if PORTABLE not in kind.targets:
            raise EdgebltError(f"the target {PORTABLE} is not made for {kind.name}; export it for {TARGETS[0]}")
        return dict.fromkeys(kind.stages, PORTABLE)
    return parse_placement(text, "target", TARGETS, dict.fromkeys(kind.stages, TARGETS[0]))


def _formats(checkpoint: Checkpoint, source: WeightSource, stage: StageName, target: Target) -> str:
    """The formats of a stage's matrices, most weights first; the hash tables' apart."""
    weights: dict[str, int] = {}
    tables = ""
    for name in checkpoint.names():
        shape = source.shape(name)
        if name.startswith(f"{stage}.") and len(shape) == 2:
            format = source.format(name).describe()
            if target == "cuda" and format == "fp32":
                format = "fp16"
            if name.endswith(TABLES):
                tables = format
            else:
                weights[format] = weights.get(format, 0) + math.prod(shape)
    described = "; ".join(sorted(weights, key=lambda format: -weights[format]))
    return f"{described}; tables {tables}" if tables else described or "none"


def _layout(built: Mapping[GraphName, BuiltStage]) -> str:
    """Places of all tensors in the weight files, which together with the checkpoint determine their content."""
    return repr([(name, stage.slots) for name, stage in built.items()])


def _write_stage(
    stage: BuiltStage, name: GraphName, directory: Path, journal: Journal, advance: Advance, embed: bool
) -> tuple[str, ...]:
    """Writes a graph; returns the names of its weight files, none if they are embedded in it."""
    graph = directory / f"{name}.onnx"
    if not stage.slots:
        ir.save(stage.model, graph)
        return ()
    with WeightFile(directory / weights_name(name), stage.slots, journal) as file:
        for fill in stage.fills:
            for piece in fill():
                if file.keeps(piece.name) is None:
                    file.write(piece.name, piece.make(), piece.first_row)
                advance(file.written)
    if embed:
        save_embedded(stage, graph)
        return ()
    ir.save(stage.model, graph)
    return (weights_name(name),)
