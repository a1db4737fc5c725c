"""Architectures that the workbench reads and exports, by name: one folder each (docs/architectures.md).

`edgeblt.export.NAME.architecture.ARCHITECTURE` is imported when a checkpoint or a configuration asks for it.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.architectures import ARCHITECTURES, ByteModelConfig
from edgeblt.bundle.contract import StageContract, StageName
from edgeblt.export.graphs.graph import BuiltStage
from edgeblt.export.graphs.weight_source import WeightSource

if TYPE_CHECKING:
    from torch import Tensor

    from edgeblt.export.checkpoints.checkpoint import Checkpoint
    from edgeblt.export.checkpoints.files.stored_weights import StoredPart, StoredWeight
    from edgeblt.measure.reference import ReferenceRow

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CheckpointForm:
    """A directory in an architecture's own form: its configuration, and its weights by canonical name, unread.

    unused: stored names of tensors without effect.
    files: files that were read, by name.
    notes: sentences for the user on how the configuration was read.
    """

    config: ByteModelConfig
    weights: "dict[str, StoredWeight]"
    unused: list[str]
    files: dict[str, Path]
    notes: tuple[str, ...] = ()

    @classmethod
    def reading(
        cls,
        config: ByteModelConfig,
        weights: "dict[str, StoredWeight]",
        stored: "Mapping[str, StoredPart]",
        config_file: Path,
        notes: tuple[str, ...],
    ) -> "CheckpointForm":
        """The content of a directory with a configuration file and these stored tensors, of which weights are made."""
        used = {part for weight in weights.values() for part in weight.parts}
        unused = sorted(part.name for part in stored.values() if part not in used)
        files = sorted({part.file for part in stored.values()})
        return cls(config, weights, unused, {file.name: file for file in (config_file, *files)}, notes)


class CheckpointReference(Protocol):
    """A stateless reference on a checkpoint; `files` are the checkpoint's, `vocab_size` the width of its logits."""

    files: dict[str, Path]
    name: str
    vocab_size: int

    def row(self, ids: NDArray[np.int64]) -> "ReferenceRow":
        """Results on `ids` [T] int64, which begin with BOS."""
        ...


@dataclass(frozen=True)
class WorkbenchArchitecture:
    """The part of an architecture that the workbench needs.

    graphs: for each stage the function that builds it.
    shapes: canonical name to shape of all weights of a configuration, in stage order.
    open_form: a directory, and whether unknown fields are refused, to its content; None where it is of another form.
    describe: what `edgeblt inspect` says of a configuration beside what it says of all.
    card: part of a bundle's model card: a heading, and a table or sentences.
    calibrate: the functions of calibration and texts of ids to a run of these through the model; see
        `quant.calibration.forward.Forward`. None: `quant` runs it itself.
    reference: an opened checkpoint and torch's device to its reference.
    """

    name: str
    graphs: Mapping[StageName, Callable[[WeightSource, StageContract], BuiltStage]]
    shapes: Callable[[Any], dict[str, Shape]]
    open_form: Callable[[Path, bool], CheckpointForm | None]
    describe: Callable[[Any], dict[str, str]]
    card: Callable[[Any], tuple[str, str]]
    reference: "Callable[[Checkpoint, str], CheckpointReference]"
    calibrate: "Callable[[Any, Any, Any, Any, Sequence[Tensor]], None] | None" = field(default=None)


def workbench_architecture(name: str) -> WorkbenchArchitecture:
    """The architecture of this name, one of `ARCHITECTURES`."""
    module = importlib.import_module(f"edgeblt.export.{name}.architecture")
    return cast(WorkbenchArchitecture, module.ARCHITECTURE)


def open_other_form(path: Path, strict: bool) -> CheckpointForm | None:
    """A checkpoint in the form of an architecture other than BLT; None where it is in none. Raises EdgebltError."""
    for name in ARCHITECTURES:
        form = workbench_architecture(name).open_form(path, strict)
        if form:
            return form
    return None
