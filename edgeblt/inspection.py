"""What is in a bundle."""

from dataclasses import dataclass

from edgeblt import native
from edgeblt.bundle import Bundle
from edgeblt.contract import STAGES


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
class Inspection:
    """Field by field the JSON of `edgeblt inspect`."""

    kind: str  # bundle or checkpoint
    path: str
    description: dict[str, str]
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def inspect_bundle(bundle: Bundle) -> Inspection:
    manifest = bundle.manifest
    parts = []
    for stage in STAGES:
        entry = manifest.stages[stage]
        for name in (entry.graph, *entry.weights):
            record = manifest.files[name]
            parts.append(Part(stage, name, entry.weight_format, None, record.size, record.sha256))
    used = {part.content for part in parts}
    for name, record in manifest.files.items():
        if name not in used:
            parts.append(Part("", name, "", None, record.size, record.sha256))
    description = {
        "target": manifest.target,
        "recipe": manifest.recipe,
        "patching": manifest.config.patching.describe(),
        "format version": str(manifest.format_version),
        "made by": ", ".join(f"{name} {version}" for name, version in manifest.made_by.items()),
    }
    description["native kernels here"] = native.describe()
    return Inspection("bundle", str(bundle.path), description, tuple(parts))
