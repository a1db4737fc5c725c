"""Builds transformers' `BltForCausalLM` from a checkpoint in any other form."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BltConfig, BltForCausalLM

from edgeblt.bundle.config import Generation, HashConfig, ModelConfig, PatchingRule, Rule, TransformerConfig
from edgeblt.bundle.over_encoding import OverEncoding, table_rows
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.checkpoints.stored_names import TRANSFORMERS_EMBEDDING, transformers_name
from edgeblt.export.checkpoints.transformers_config import parse_config
from edgeblt.quant.recipes.recipe import HASH_TABLES

Document = dict[str, Any]


NO_HASHES = HashConfig(1, (1,), 1)  # one table of one row


def transformers_model(checkpoint: Checkpoint) -> Any:  # a BltForCausalLM, whose own types are of no help
    """The model in float32, in memory, for evaluation. Raises EdgebltError for what transformers cannot compute.

    It has no n-gram tables of the over-encoding family: where the model has, they are part of the byte embedding, and
    transformers' own table adds zeros.
    """
    config: ModelConfig = checkpoint.config
    tables = config.hashes if isinstance(config.hashes, OverEncoding) else None
    document = config_document(dataclasses.replace(config, hashes=NO_HASHES) if tables else config)
    own = {"encoder.hash_tables", "encoder.table_projection"} if tables else set()
    named = {transformers_name(name, encoder_cross_layer=0): name for name in checkpoint.names() if name not in own}
    weights = {stored: torch.from_numpy(checkpoint.tensor(name)) for stored, name in named.items()}
    if tables:
        weights[transformers_name(HASH_TABLES, encoder_cross_layer=0)] = torch.zeros(1, config.encoder.hidden_size)
    model = BltForCausalLM.from_pretrained(None, config=BltConfig(**document), state_dict=weights, dtype=torch.float32)
    if tables:
        embedding = weights[TRANSFORMERS_EMBEDDING]
        others = (
            torch.from_numpy(checkpoint.tensor(name)) for name in ("encoder.hash_tables", "encoder.table_projection")
        )
        model.model.local_encoder.embed_tokens = OverEncodedEmbedding(tables, embedding, *others)
    return model.eval()


class OverEncodedEmbedding(nn.Module):
    """Embeddings of ids [B, T] with the projected rows of their n-grams: [B, T, width]."""

    embedding: Tensor
    rows: Tensor
    projection: Tensor
    excluded: Tensor

    def __init__(self, tables: OverEncoding, embedding: Tensor, rows: Tensor, projection: Tensor) -> None:
        """embedding [vocab, width], rows of all tables [rows, width / tables], projection [width, width]."""
        super().__init__()
        self._tables = tables
        excluded = torch.tensor(tables.excluded, dtype=torch.int64)
        parts = {"embedding": embedding, "rows": rows, "projection": projection, "excluded": excluded}
        for name, values in parts.items():
            self.register_buffer(name, values)

    def forward(self, ids: Tensor) -> Tensor:
        windows = functional.pad(ids, (self._tables.context, 0)).unfold(1, self._tables.neighbors, 1)
        places = torch.stack([torch.from_numpy(table_rows(self._tables, text)) for text in windows.cpu().numpy()])
        embedded = self.embedding[ids]
        total = embedded + self.rows[places.to(ids.device)].flatten(2) @ self.projection.T
        return torch.where(torch.isin(ids, self.excluded)[..., None], embedded, total / self._tables.divisor)


def config_document(config: ModelConfig) -> Document:
    """The equivalent `config.json` of transformers. Raises EdgebltError if there is none."""
    patching = config.patching
    if patching.rule is Rule.BYTE:  # the other parameters have no effect
        config = dataclasses.replace(config, patching=PatchingRule(Rule.BYTE), patcher=None)
    elif patching.rule is not Rule.THRESHOLD:
        raise EdgebltError(
            f"transformers cannot patch by {patching.describe()}, only at a threshold or at every byte; compare with "
            "another checkpoint"
        )
    document = _document(config)
    if parse_config(document, "the reference").model != dataclasses.replace(config, generation=Generation()):
        raise EdgebltError("transformers cannot compute a model of this configuration; compare with another checkpoint")
    return document


def _document(config: ModelConfig) -> Document:
    hashes = config.hashes
    assert isinstance(hashes, HashConfig)
    crosses = {"cross_attn_k": config.cross_attention_k, "hidden_size_global": config.global_.hidden_size}
    crosses |= {"vocab_size": config.vocab_size}
    decoder = crosses | {"cross_attn_all_layers": config.decoder_cross_all_layers}
    document = {
        "model_type": "blt",
        "vocab_size": config.vocab_size,
        "patch_in_forward": config.patching.rule is Rule.THRESHOLD,
        "patching_mode": "entropy",
        "patching_threshold": config.patching.threshold,
        "max_patch_length": config.patching.max_patch_length,
        "local_attention_window_len": config.encoder.window,
        "cross_attn_k": config.cross_attention_k,
        "encoder_hash_byte_group_size": list(hashes.group_sizes),
        "encoder_hash_byte_group_vocab": hashes.vocab_size,
        "encoder_hash_byte_group_nb_functions": hashes.function_count,
        "encoder_config": _stack(config.encoder) | crosses | {"cross_attn_all_layers": False},
        "global_config": _stack(config.global_),
        "decoder_config": _stack(config.decoder) | decoder,
        "use_cache": False,
    }
    if config.patcher:
        window = {"sliding_window": config.patcher.window, "vocab_size": config.vocab_size}
        document["patcher_config"] = _stack(config.patcher) | window
    return document


def _stack(config: TransformerConfig) -> Document:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layer_count,
        "num_attention_heads": config.head_count,
        "num_key_value_heads": config.kv_head_count,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": config.activation,
    }
