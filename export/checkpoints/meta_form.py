"""Meta's form of a checkpoint: a directory as Meta published it.

config.json, model.safetensors   the main model, its arguments under `args`
train_args.json                  the training arguments, among them the patching rule
entropy_model/                   see `meta_entropy`; or a directory elsewhere, given as `--patcher`
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeblt.bundle.config import HashConfig, ModelConfig, PatchingRule
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.config_section import Findings, Section
from edgeblt.export.checkpoints.files.checkpoint_files import (
    CONFIG,
    checkpoint_file,
    exists,
    read_json,
    read_weights,
    refuse_no_directory,
)
from edgeblt.export.checkpoints.files.stored_weights import FloatingWeight, FusedWeight, Shape, StoredPart, StoredWeight
from edgeblt.export.checkpoints.meta_config import is_meta, mlp_width, parse_model, sort_model
from edgeblt.export.checkpoints.meta_entropy import EntropyModel, entropy_fields, open_entropy_model
from edgeblt.export.checkpoints.meta_patching import parse_patching, refuse_contradictions, sort_training
from edgeblt.export.checkpoints.stored_names import META_STAGES, meta_name
from edgeblt.quant.recipes.recipe import HASH_TABLES

TRAINING = "train_args.json"
ENTROPY_MODEL = "entropy_model"


@dataclass(frozen=True)
class MetaForm:
    """An opened directory: the model's configuration and every tensor stored, by Meta's names."""

    config: ModelConfig
    listing: Path  # the file that says which tensors of the main model there are
    stored: Mapping[str, StoredPart]
    entropy_model: EntropyModel | None  # None where the patching rule needs none
    files: dict[str, Path]  # all that was read, by their names in a complete checkpoint
    notes: tuple[str, ...] = ()  # see `Findings`

    def weight(self, name: str, shape: Shape) -> StoredWeight:
        """The weight of a canonical name. Raises EdgebltError where there is none, or none of this shape."""
        if name == HASH_TABLES:  # each table on its own
            hashes = self.config.hashes
            assert isinstance(hashes, HashConfig)  # the only family that Meta's form knows
            tables = (f"encoder_hash_tok_embedding.{index}.weight" for index in range(hashes.table_count))
            return FusedWeight(tuple(_find(self, table, (hashes.vocab_size, *shape[1:])) for table in tables))
        source = self.entropy_model if self.entropy_model and name.startswith("patcher.") else self
        return FloatingWeight(_find(source, meta_name(name), shape))

    def unused(self, weights: Iterable[StoredWeight]) -> list[str]:
        """Names of tensors without effect; those of the entropy model begin with its folder."""
        used = {part for weight in weights for part in weight.parts}
        entropy = self.entropy_model.stored if self.entropy_model else {}
        stored = {**self.stored, **{f"{ENTROPY_MODEL}/{name}": part for name, part in entropy.items()}}
        return sorted(name for name, part in stored.items() if part not in used)


def is_meta_form(directory: Path) -> bool:
    """Whether `config.json` is in Meta's form; False for an unreadable one, which others refuse."""
    try:
        return exists(directory, CONFIG) and is_meta(read_json(checkpoint_file(directory, CONFIG)))
    except EdgebltError:
        return False


def open_meta_form(directory: Path, patcher: Path | None, strict: bool = False) -> MetaForm:
    """Read the configurations and the headers of the weight files; no tensor data. Raises EdgebltError.

    `patcher` is the directory of an entropy model, taken instead of the one in `entropy_model/`; `strict` refuses
    fields that are not known.
    """
    args = Section(_object(directory, CONFIG).get("args"), str(directory / CONFIG), ("args",))
    if "sliding_window" in args.document and "dim_global" not in args.document:
        raise EdgebltError(f"{directory} is an entropy model on its own; give the main model, and this with --patcher")
    if not exists(directory, TRAINING):
        raise EdgebltError(f"{directory} holds no {TRAINING}, which says where patches start; download it")
    training, findings = Section(_object(directory, TRAINING), str(directory / TRAINING)), Findings()
    sort_model(args, findings)
    sort_training(training, findings)
    patching = parse_patching(training)
    folder = _entropy_folder(directory, patcher, patching)
    fields = entropy_fields(folder, findings) if folder else None
    notes = findings.settle(strict)
    entropy = open_entropy_model(folder, fields) if folder and fields else None
    listing, stored = read_weights(directory)
    config = parse_model(
        args, patching, entropy.stack if entropy else None, lambda stage: mlp_width(stored, listing, META_STAGES[stage])
    )
    refuse_contradictions(args, training, patching)
    files = [directory / CONFIG, directory / TRAINING, listing, *dict.fromkeys(part.file for part in stored.values())]
    named = {file.name: file for file in files}
    if entropy:
        _refuse_other_vocabulary(entropy, config)
        named |= {f"{ENTROPY_MODEL}/{name}": file for name, file in entropy.files.items()}
    return MetaForm(config, listing, stored, entropy, named, notes)


def _entropy_folder(directory: Path, patcher: Path | None, patching: PatchingRule) -> Path | None:
    if not patching.rule.needs_entropies:
        if patcher is not None:
            raise EdgebltError(f"{directory} uses no entropy model for its patches; leave out {patcher}")
        return None
    if patcher is not None:
        refuse_no_directory(patcher)
        return patcher
    folder = directory / ENTROPY_MODEL
    if not folder.is_dir():
        raise EdgebltError(
            f"{directory} has no entropy model in {ENTROPY_MODEL}/; give the directory of one with --patcher"
        )
    return folder


def _refuse_other_vocabulary(entropy: EntropyModel, config: ModelConfig) -> None:
    if entropy.fields.integer("vocab_size", -1, minimum=1) != config.vocab_size:
        raise entropy.fields.error("vocab_size", f"it must be the main model's, {config.vocab_size}")


def _object(directory: Path, name: str) -> dict[str, Any]:
    return Section(read_json(checkpoint_file(directory, name)), str(directory / name)).document


def _find(source: MetaForm | EntropyModel, name: str, shape: Shape) -> StoredPart:
    part = source.stored.get(name)
    if part is None:
        raise EdgebltError(
            f"{source.listing} has no tensor {name!a}, which the configuration asks for; give the complete checkpoint"
        )
    if part.shape != shape:
        raise EdgebltError(
            f"{part.file}: the tensor {name!a} has shape {list(part.shape)}, but the configuration asks for "
            f"{list(shape)}; give the files of one checkpoint"
        )
    _ = part.dtype  # refuses integers and 8-bit floats
    return part
