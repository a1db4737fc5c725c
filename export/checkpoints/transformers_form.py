"""transformers' form of a checkpoint: a directory of `config.json` and safetensors files."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgeblt.bundle.config import HashConfig
from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.errors import EdgebltError, shown
from edgeblt.export.checkpoints.files.bitsandbytes import bitsandbytes_weight, is_bitsandbytes
from edgeblt.export.checkpoints.files.checkpoint_files import (
    CONFIG,
    checkpoint_file,
    exists,
    of_shape,
    read_json,
    read_weights,
    refuse_no_directory,
    stored_tensor,
)
from edgeblt.export.checkpoints.files.safetensors_files import SafetensorsTensor
from edgeblt.export.checkpoints.files.stored_weights import FloatingWeight, StoredPart, StoredWeight
from edgeblt.export.checkpoints.generation_config import read_generation
from edgeblt.export.checkpoints.ngram_tables.weights import table_names, table_weight
from edgeblt.export.checkpoints.stored_names import TRANSFORMERS_EMBEDDING, TRANSFORMERS_HEAD, transformers_name
from edgeblt.export.checkpoints.transformers_config import TransformersConfig, parse_config

_BLT_MODEL = "local_encoder."  # prefix of names in a BltModel


@dataclass(frozen=True)
class TransformersForm:
    """An opened directory: its configuration and every tensor stored in it, by transformers' names."""

    listing: Path  # the file that says which tensors there are
    config: TransformersConfig
    stored: Mapping[str, StoredPart]
    bitsandbytes: bool  # some of the matrices are in bitsandbytes' formats

    is_headless: bool = False  # saved by a BltModel, without the head

    @property
    def files(self) -> dict[str, Path]:
        """Files that were read, by name."""
        weights = sorted({part.file for part in self.stored.values()})
        return {file.name: file for file in (self.listing.parent / CONFIG, *weights)}

    @property
    def has_own_names(self) -> bool:
        """Whether transformers looks for tensors under these names, and knows all of them."""
        return isinstance(self.config.model.hashes, HashConfig) and all(
            part.name == name for name, part in self.stored.items()
        )

    def weight(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        """The weight of a canonical name. Raises EdgebltError where there is none, or none of this shape."""
        hashes = self.config.model.hashes
        if isinstance(hashes, OverEncoding) and table_names(name, hashes.table_count):
            width = self.config.model.encoder.hidden_size
            return table_weight(self.listing, self.stored, hashes, name, width)
        tensor = self._find(name)
        if self.bitsandbytes and isinstance(tensor, SafetensorsTensor) and is_bitsandbytes(tensor, self._companion):
            return bitsandbytes_weight(tensor, shape, self._companion)
        return FloatingWeight(of_shape(tensor, shape))

    def unused(self, weights: Iterable[StoredWeight]) -> list[str]:
        """Names of tensors without effect, as they are stored."""
        used = {part for weight in weights for part in weight.parts}
        return sorted(part.name for part in self.stored.values() if part not in used)

    def _companion(self, name: str) -> SafetensorsTensor | None:
        part = self._by_stored_name.get(name)
        return part if isinstance(part, SafetensorsTensor) else None

    @functools.cached_property
    def _by_stored_name(self) -> dict[str, StoredPart]:
        return {part.name: part for part in self.stored.values()}

    def _find(self, name: str) -> StoredPart:
        wanted = transformers_name(name, self.config.encoder_cross_layer)
        if wanted not in self.stored and self.config.tied and wanted in (TRANSFORMERS_HEAD, TRANSFORMERS_EMBEDDING):
            # transformers writes only one of two tied weights and fills the other from it, whichever that is.
            other = TRANSFORMERS_EMBEDDING if wanted == TRANSFORMERS_HEAD else TRANSFORMERS_HEAD
            wanted = other if other in self.stored else wanted
        if wanted == TRANSFORMERS_HEAD and self.is_headless:
            raise EdgebltError(
                f"{self.listing} is of a BltModel, which has no {TRANSFORMERS_HEAD} to generate with; save the "
                "BltForCausalLM that it is part of"
            )
        return stored_tensor(self.listing, self.stored, wanted)


def open_transformers_form(directory: Path, strict: bool = False) -> TransformersForm:
    """Read `config.json` and the headers of the weight files; no tensor data. Raises EdgebltError.

    `strict` refuses fields of `config.json` that are not known.
    """
    refuse_no_directory(directory)
    if not exists(directory, CONFIG):
        raise EdgebltError(f"{directory} holds no {CONFIG}; give the directory of a transformers checkpoint")
    document = read_json(checkpoint_file(directory, CONFIG))
    bitsandbytes = _take_quantization(document, directory / CONFIG)
    config = parse_config(document, str(directory / CONFIG), strict)
    generation = read_generation(directory, document, config.model.vocab_size)
    config = replace(config, model=replace(config.model, generation=generation))
    listing, stored = read_weights(directory)
    if bitsandbytes and not all(isinstance(part, SafetensorsTensor) for part in stored.values()):
        raise EdgebltError(
            f"{listing} holds bitsandbytes' weights in a pickle; save the checkpoint again, as model.safetensors"
        )
    if any(name.startswith(_BLT_MODEL) for name in stored):  # the `model` of a BltForCausalLM
        stored = {name if name == TRANSFORMERS_HEAD else f"model.{name}": part for name, part in stored.items()}
        return TransformersForm(listing, config, stored, bitsandbytes, is_headless=TRANSFORMERS_HEAD not in stored)
    return TransformersForm(listing, config, stored, bitsandbytes)


def _take_quantization(document: object, where: Path) -> bool:
    """Remove `quantization_config` from the configuration; True if it is bitsandbytes'. Raises EdgebltError for others.

    Its fields beside the method concern how transformers computes; the stored weights describe themselves.
    """
    if not isinstance(document, dict) or document.get("quantization_config") in (None, {}):
        return False
    record = document.pop("quantization_config")
    method = record.get("quant_method") if isinstance(record, dict) else record
    if method != "bitsandbytes":
        raise EdgebltError(
            f"{where}: the checkpoint is quantized by {shown(method)} (quantization_config); give one by bitsandbytes, "
            "by `edgeblt quantize`, or in bfloat16, float16 or float32"
        )
    return True
