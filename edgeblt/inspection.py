"""Contents of a bundle, and the bytes of weights that decoding reads."""

from dataclasses import dataclass
from pathlib import Path

from edgeblt.bundle.examination.onnx_graph import Tensor, tensors
from edgeblt.bundle.examination.protobuf import MalformedError
from edgeblt.bundle.held_files import unreadable
from edgeblt.bundle.manifest import Bundle
from edgeblt.bundle.weight_plan import StoredTensor, WeightPlan, typical_bytes_per_patch, weight_plan
from edgeblt.errors import EdgebltError
from edgeblt.runtime import native
from edgeblt.runtime.packed_weights import find_prepared


@dataclass(frozen=True)
class Part:
    """One line of `edgeblt inspect`: a file of a bundle, or a stage of a checkpoint."""

    stage: str
    content: str
    weight_format: str
    parameters: int | None
    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class ProviderNodes:
    """Nodes of one stage that run on one provider, those in branches included."""

    stage: str
    provider: str  # ONNX Runtime's name
    nodes: int
    operators: dict[str, int]  # number of nodes by operator


@dataclass(frozen=True)
class Inspection:
    """Field by field the JSON of `edgeblt inspect`."""

    kind: str  # bundle or checkpoint
    path: str
    description: dict[str, str]
    parts: tuple[Part, ...]
    plans: tuple[WeightPlan, ...]  # one for each recipe of a checkpoint; the bundle's own
    placement: tuple[ProviderNodes, ...] = ()  # bundles only, on request
    notes: tuple[str, ...] = ()  # checkpoints only: sentences on how the configuration was read

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def inspect_bundle(bundle: Bundle, bytes_per_patch: float | None = None) -> Inspection:
    """Contents of a bundle, and its weight plan at `bytes_per_patch`; None: the usual number.

    Raises EdgebltError for a number below 1, and for a graph that is no ONNX file.
    """
    plan = bundle_plan(bundle, typical_bytes_per_patch(bundle.manifest.config.patching, bytes_per_patch))
    manifest = bundle.manifest
    parts = []
    for stage in manifest.stage_names:
        entry = manifest.stages[stage]
        if manifest.is_portable:  # one graph, whose files are listed once
            parts.append(Part(stage, f"in {entry.graph}", entry.weight_format, None, 0, None))
            continue
        for name in (entry.graph, *entry.weights):
            record = manifest.files[name]
            parts.append(Part(stage, name, entry.weight_format, None, record.size, record.sha256))
    used = set() if manifest.is_portable else {part.content for part in parts}
    for name, record in manifest.files.items():
        if name not in used:
            parts.append(Part("", name, "", None, record.size, record.sha256))
    description = {
        "target": manifest.target,
        "recipe": manifest.recipe,
        "keys and values": manifest.kv_cache,
        "patching": manifest.config.patching.describe(),
        "a text ends with": manifest.config.generation.describe_ends(),
        "sampling": manifest.config.generation.describe_sampling(),
        "format version": str(manifest.format_version),
        "made by": ", ".join(f"{name} {version}" for name, version in manifest.made_by.items()),
        "prepared": _prepared(bundle),
    }
    description["native kernels here"] = native.describe()
    return Inspection("bundle", str(bundle.path), description, tuple(parts), (plan,))


def _prepared(bundle: Bundle) -> str:
    try:
        return find_prepared(bundle, "cpu").describe()
    except EdgebltError as error:  # only the prepared weights are damaged
        return f"no: {error}"


def bundle_plan(bundle: Bundle, bytes_per_patch: float) -> WeightPlan:
    """Plan of the weights in a bundle's graphs. Raises EdgebltError for more bytes than the files hold."""
    manifest, tensors = bundle.manifest, {}
    for stage in manifest.stage_names:
        entry = manifest.stages[stage]
        tensors[stage] = initializers(bundle.path / entry.graph, f"{stage}.")
        named = sum(tensor.bytes for tensor in tensors[stage])
        held = sum(manifest.files[name].size for name in (entry.graph, *entry.weights))
        if named > held:
            raise EdgebltError(
                f"{bundle.path / entry.graph} names {named} bytes of weights, but its files hold {held}; export again"
            )
    return weight_plan(manifest.recipe, manifest.config, tensors, bytes_per_patch)


def initializers(path: Path, prefix: str) -> list[StoredTensor]:
    """The initializers whose names start with `prefix`, in file order. Raises EdgebltError for other files."""
    try:
        return [_stored(tensor) for tensor in tensors(path.read_bytes()) if tensor.name.startswith(prefix)]
    except OSError as error:
        raise unreadable(path, error, "copy the bundle again") from None
    except MalformedError as error:
        raise EdgebltError(f"{path} is no ONNX graph ({error}); export the bundle again") from None


def _stored(tensor: Tensor) -> StoredTensor:
    if not tensor.dims or 0 in tensor.dims:
        raise MalformedError(f"{tensor.name!a:.80} has the shape {list(tensor.dims)!r:.80}")
    return StoredTensor(tensor.name, tensor.dims[0], tensor.size)
