"""Random Byte Latent Transformers whose n-gram tables are over-encoding's, computed by transformers and equations."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BltConfig

import tiny_models
from conftest import LONGEST, Exported
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import EOS
from float64_oracle import Float64Oracle

SPACE, LETTER = 36, 105  # ids of bytes that the texts of `tiny_models.random_ids` have often
HASHES = "model.encoder_hash_tok_embedding.weight"


class OverEncodedInput(nn.Module):
    """Input vectors [B, T, width] for ids [B, T], straight from the equations."""

    def __init__(self, own: nn.Embedding, document: dict[str, Any], generator: torch.Generator) -> None:
        """Random tables of a document; `own` is the embedding of bytes."""
        super().__init__()
        self.own, width = own, own.embedding_dim
        self.neighbors, self.splits, self.sizes = (
            document[name] for name in ("oe_neighbor_num", "oe_split_num", "oe_vocab_sizes")
        )
        ends = document["eos_token_id"]
        self.ends = [EOS] if ends is None else ends if isinstance(ends, list) else [ends]
        self.excluded = [*range(4), SPACE] if document["ngram_exclude_sp_token"] else []
        count = 1 + len(self.sizes)
        self.divisor = math.sqrt(count) if document["ngram_fix_normalize_factor"] else count
        part = width // len(self.sizes)
        self.embedders, self.post_projs = (nn.ParameterList() for _ in range(2))
        for size in self.sizes:
            self.embedders.append(torch.randn(size, part, generator=generator))
            self.post_projs.append(torch.randn(width, part, generator=generator) * 2 / part**0.5)

    def forward(self, ids: Tensor) -> Tensor:
        total = embedded = self.own(ids)
        for table, size in enumerate(self.sizes):
            places = self.places(ids, table // self.splits + 2, size)
            total = total + self.embedders[table][places] @ self.post_projs[table].T
        is_excluded = torch.isin(ids, torch.tensor(self.excluded, dtype=torch.int64))[..., None]
        return torch.where(is_excluded, embedded, total / self.divisor)

    def places(self, ids: Tensor, longest: int, size: int) -> Tensor:
        """Row of a table of `size` rows for the n-gram of `longest` ids that ends at each id: [B, T]."""
        total, is_cut = ids.clone(), torch.zeros_like(ids, dtype=torch.bool)
        for distance in range(1, longest):
            before = torch.zeros_like(ids)
            before[:, distance:] = ids[:, :-distance]
            is_cut |= torch.isin(before, torch.tensor([*self.ends, *self.excluded]))
            total += before.masked_fill(is_cut, 0) * pow(260, distance, size)
        return total % size

    def tensors(self) -> dict[str, Tensor]:
        """The tables and projections under the names they are stored under."""
        return {
            f"model.ngram_embeddings.{kind}.{index}.weight": part.detach().clone()
            for kind in ("embedders", "post_projs")
            for index, part in enumerate(getattr(self, kind))
        }


def over_encoding_document(seed: int, width: int) -> dict[str, Any]:
    """Random fields of `config.json` for an encoder of this width."""
    rng = random.Random(seed)
    counts = [(neighbors, splits) for neighbors in range(2, 6) for splits in range(1, 5)
              if width % (splits * (neighbors - 1)) == 0]  # fmt: skip
    neighbors, splits = rng.choice(counts)
    return {
        "oe_neighbor_num": neighbors,
        "oe_split_num": splits,
        "oe_vocab_sizes": [rng.randint(1, 400) for _ in range(splits * (neighbors - 1))],
        "ngram_fix_normalize_factor": rng.random() < 0.5,
        "ngram_exclude_sp_token": rng.random() < 0.5,
        "special_token_scope": f"0:4,{SPACE}:{SPACE + 1}",
        "eos_token_id": rng.choice([None, EOS, [EOS, LETTER], LETTER]),
    }


@dataclass(frozen=True)
class OverEncodedBlt(Exported):
    """Such a model as a checkpoint and a bundle; `oracle` is transformers' model with the input of the equations."""

    oracle: Any  # a BltForCausalLM, whose own types are of no help

    @property
    def exact(self) -> Float64Oracle:
        return Float64Oracle(self.oracle)


def over_encoded_config(seed: int) -> BltConfig:
    """A configuration of `tiny_models`, whose own n-gram table adds nothing."""
    config = tiny_models.random_config(seed)
    config.encoder_hash_byte_group_size, config.encoder_hash_byte_group_vocab = [1], 1
    config.encoder_hash_byte_group_nb_functions = 1
    return config


def over_encoded_blt(seed: int, root: Path, **fields: Any) -> OverEncodedBlt:
    """The model of configuration `seed`, exported; `fields` replace those of its tables."""
    oracle = tiny_models.random_model(over_encoded_config(seed), seed)
    tiny_models.separate_threshold(oracle, tiny_models.random_ids(seed, LONGEST))
    encoder = oracle.model.local_encoder
    document = over_encoding_document(seed, encoder.embed_tokens.embedding_dim) | fields
    with torch.no_grad():
        oracle.model.encoder_hash_tok_embedding.weight.zero_()
    checkpoint = tiny_models.save_model(oracle, root / "checkpoint")
    encoder.embed_tokens = OverEncodedInput(encoder.embed_tokens, document, torch.Generator().manual_seed(seed))
    weights = load_file(checkpoint / "model.safetensors")
    del weights[HASHES]
    save_file(weights | encoder.embed_tokens.tensors(), checkpoint / "model.safetensors")
    config = checkpoint / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | document))
    return OverEncodedBlt(checkpoint, export_bundle(checkpoint, root / "bundle").path, oracle)
