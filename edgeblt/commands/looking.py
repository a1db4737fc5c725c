"""Commands that show what is there: inspect, doctor."""

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeblt.commands.options import JsonFile, Patcher, Strict, Verify
from edgeblt.commands.results import check_results, deliver
from edgeblt.errors import EdgebltError
from edgeblt.installing import require_workbench
from edgeblt.report import terminal

if TYPE_CHECKING:  # the runtime, slow to import
    from edgeblt.inspection import Inspection


BundleOrCheckpoint = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE|CHECKPOINT",
        help="A bundle or checkpoint directory, or a model on the Hugging Face hub: OWNER/NAME.",
    ),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|FILE", help="A recipe to plan a checkpoint with, besides the packaged ones; may be repeated."
    ),
]
BytesPerPatch = Annotated[
    float | None, typer.Option(help="Mean bytes of a patch, to compute what decoding reads; by default 4.5.")
]
NodesOnProvider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Also open the bundle on this execution provider (cpu, cuda) and show which nodes it runs.",
    ),
]


def inspect(
    path: BundleOrCheckpoint,
    recipe: Recipes = None,
    bytes_per_patch: BytesPerPatch = None,
    verify: Verify = False,
    provider: NodesOnProvider = None,
    json_file: JsonFile = None,
    patcher: Patcher = None,
    strict: Strict = False,
) -> None:
    """Show the contents of a bundle or checkpoint.

    For each stage: files or tensors, weight formats, sizes and hashes. For a checkpoint also, for each recipe: the size
    of its weights on disk, and the bytes of weights that decoding one byte would read; for a bundle, those it reads.
    """
    from edgeblt.bundle.manifest import MANIFEST
    from edgeblt.export.hub.repository import is_hub_id

    check_results(json_file)
    if not os.path.isdir(path) and not (is_hub_id(path) and importlib.util.find_spec("huggingface_hub")):
        raise EdgebltError(f"{path} is not a directory; give a bundle or a checkpoint")
    if os.path.lexists(path / MANIFEST):
        if patcher:
            raise EdgebltError(f"{path} is a bundle, which has its patcher; leave out --patcher")
        if strict:
            raise EdgebltError(f"{path} is a bundle, which has no unknown fields; leave out --strict")
        if recipe:
            raise EdgebltError(f"{path} is a bundle, its weights have their formats; leave out --recipe")
        result = _inspect_bundle(path, verify, bytes_per_patch, provider)
    else:
        if provider:
            raise EdgebltError(f"{path} is a checkpoint, which runs nowhere; leave out --provider, or export it first")
        require_workbench()
        from edgeblt.export.checkpoints.checkpoint import open_checkpoint
        from edgeblt.export.inspection import inspect_checkpoint

        result = inspect_checkpoint(open_checkpoint(path, patcher, strict), recipe or (), bytes_per_patch)
    deliver(result, lambda: terminal.show_inspection(result), json_file)


def _inspect_bundle(path: Path, verify: bool, bytes_per_patch: float | None, provider: str | None) -> "Inspection":
    """Contents of the bundle at `path`; if `provider` is given, also which of its nodes run where."""
    from edgeblt.bundle.manifest import open_bundle
    from edgeblt.inspection import inspect_bundle

    bundle = open_bundle(path, verify)
    inspection = inspect_bundle(bundle, bytes_per_patch)
    if provider is None:
        return inspection
    from edgeblt.model import open_model
    from edgeblt.node_providers import node_providers

    return dataclasses.replace(inspection, placement=node_providers(open_model(bundle.path, provider)))


def doctor(
    speed: Annotated[
        bool,
        typer.Option(
            "--speed", help="Also time matrix products for ten seconds: ours at every level of instructions, beside "
            "ONNX Runtime's.",
        ),
    ] = False,
    json_file: JsonFile = None,
) -> None:  # fmt: skip
    """Show what is at work on this machine.

    Versions, execution providers, and the native libraries: which instructions the CPU's kernels use, whether there are
    kernels for CUDA, or why one is not used. The environment variable EDGEBLT_NATIVE turns both off (0), or the CPU's
    down to a level (scalar, avx2, avxvnni, avx512, amx, neon, i8mm).
    """
    from edgeblt.doctor import diagnose

    check_results(json_file)
    result = diagnose()
    if speed:
        from edgeblt.measure.products.product_speed import measure_products

        result = dataclasses.replace(result, speed=measure_products())
    deliver(result, lambda: terminal.show_diagnosis(result), json_file)
