"""Learners of the architectures: a model, what it minimizes on rows of ids, and how many nats a row costs it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from comparison import tokens
from comparison.mambabyte import BYTE_VALUES, MambaByte
from comparison.overencoded import OverEncoded
from demo_corpus import batch_rows
from demo_model import BOS, BYTE_OFFSET, VOCABULARY

BATCH, ROW = 4, 1024  # the BLT's
SEED = 20261127
FUTURE_WEIGHT = 0.2  # weight in training of guessing the bytes after the next
TOKEN_ROW = 320  # tokens, about as many bytes as ROW


@dataclass(frozen=True)
class Sizes:
    """Sizes of all models. These make about 6.2 million parameters of each, less those of tables where it has none."""

    mamba_width: int = 384
    mamba_layers: int = 6
    width: int = 256
    layers: int = 5
    neighbors: int = 5
    table_rows: int = 7000
    future: int = 3
    token_vocabulary: int = 4096


SIZES = Sizes()


class Learner(Protocol):
    """A model in training.

    bytes_per_step: bytes of text that a step reads, on average; stored_as: model_type of its checkpoints.
    """

    model: nn.Module
    stored_as: str
    bytes_per_step: float

    def steps(self, megabytes: float) -> int:
        """Steps that read so much text."""

    def loss(self, step: int) -> tuple[Tensor, float]:
        """Value that a step minimizes, and mean bits of a byte."""

    def nats(self, row: Tensor) -> tuple[float, int]:
        """Nats that a row of ids (T + 1), which begins with BOS, costs in all, and its bytes."""


class ByteLearner:
    """A model that reads rows of bytes in the corpus' order; the end of a document counts as a byte."""

    bytes_per_step = float(BATCH * ROW)

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def steps(self, megabytes: float) -> int:
        return max(1, round(megabytes * 1e6 / self.bytes_per_step))

    def batch(self, step: int) -> Tensor:
        return batch_rows(self._rows, step, BATCH, ROW)


class MambaByteLearner(ByteLearner):
    """A MambaByte: it has no special ids, so that documents end with a zero byte, and the first byte costs 8 bits."""

    stored_as = "mambabyte"

    def __init__(self, rows: Tensor, sizes: Sizes) -> None:
        super().__init__(rows)
        self.model = MambaByte(sizes.mamba_width, sizes.mamba_layers, SEED)

    def _cross_entropy(self, ids: Tensor, reduction: str) -> Tensor:
        data = (ids[:, 1:].long() - BYTE_OFFSET).clamp_min(0)
        logits = self.model(data[:, :-1]).flatten(0, 1)
        return functional.cross_entropy(logits, data[:, 1:].flatten(), reduction=reduction)

    def loss(self, step: int) -> tuple[Tensor, float]:
        value = self._cross_entropy(self.batch(step), "mean")
        return value, value.item() / math.log(2)

    def nats(self, row: Tensor) -> tuple[float, int]:
        return float(self._cross_entropy(row[None], "sum")) + math.log(BYTE_VALUES), len(row) - 1


class TransformerLearner(ByteLearner):
    """A causal transformer, with tables of n-grams or without, that also learns to guess the bytes after the next."""

    stored_as = "overencoded"

    def __init__(self, rows: Tensor, sizes: Sizes, has_tables: bool) -> None:
        super().__init__(rows)
        neighbors = sizes.neighbors if has_tables else 0
        inner = 11 * sizes.width // 4
        self.model = OverEncoded(
            VOCABULARY, sizes.width, sizes.layers, inner, neighbors, sizes.table_rows, sizes.future, SEED
        )

    def loss(self, step: int) -> tuple[Tensor, float]:
        ids = self.batch(step)
        following, *further = self.model(ids[:, :-1])
        value = functional.cross_entropy(following.flatten(0, 1), ids[:, 1:].flatten())
        bits = value.item() / math.log(2)
        for distance, logits in enumerate(further, 1):
            guessed = functional.cross_entropy(logits[:, :-distance].flatten(0, 1), ids[:, 1 + distance :].flatten())
            value = value + FUTURE_WEIGHT / len(further) * guessed
        return value, bits

    def nats(self, row: Tensor) -> tuple[float, int]:
        ids = row.long()
        return float(functional.cross_entropy(self.model(ids[None, :-1])[0][0], ids[1:], reduction="sum")), len(row) - 1


class TokenLearner:
    """A Llama on tokens of byte-level BPE, which reads the same bytes as the others."""

    stored_as = "llama"

    def __init__(self, rows: Tensor, sizes: Sizes, folder: Path, megabytes: float) -> None:
        self._tokenizer = tokens.train_tokenizer(rows, sizes.token_vocabulary, folder)
        batches = range(max(1, round(megabytes * 1e6 / (BATCH * ROW))))
        pieces = [row for step in batches for row in batch_rows(rows, step, BATCH, ROW)]
        stream = tokens.stream(self._tokenizer, pieces)
        self._bytes = sum(tokens.byte_count(row) for row in pieces)
        size = min(TOKEN_ROW, len(stream) // BATCH)  # a toy corpus may have less than one row
        count = len(stream) // (BATCH * size)
        self._batches = stream[: count * BATCH * size].view(count, BATCH, size)
        self.bytes_per_step = self._bytes / count
        inner = 11 * sizes.width // 4
        self.model = OverEncoded(sizes.token_vocabulary, sizes.width, sizes.layers, inner, 0, 0, 0, SEED)

    def steps(self, megabytes: float) -> int:
        return len(self._batches)

    def _cross_entropy(self, ids: Tensor, reduction: str) -> Tensor:
        inputs = torch.cat([torch.full((len(ids), 1), BOS), ids[:, :-1]], dim=1)
        return functional.cross_entropy(self.model(inputs)[0].flatten(0, 1), ids.flatten(), reduction=reduction)

    def loss(self, step: int) -> tuple[Tensor, float]:
        value = self._cross_entropy(self._batches[step], "mean")
        return value, value.item() / math.log(2) * self._batches[step].numel() / self.bytes_per_step

    def nats(self, row: Tensor) -> tuple[float, int]:
        ids = tokens.stream(self._tokenizer, [row])
        return float(self._cross_entropy(ids[None], "sum")), tokens.byte_count(row)


def stored(name: str, value: Tensor) -> Tensor:
    """A parameter as checkpoints have it: matrices in bfloat16; vectors, the convolution and A_log in float32."""
    small = value.ndim < 2 or "A_log" in name or "conv1d" in name
    return value.detach().to(torch.float32 if small else torch.bfloat16)


def learner(name: str, rows: Tensor, folder: Path, megabytes: float, sizes: Sizes) -> Learner:
    """A fresh model by the name of its architecture; the tokenizer of a token model goes into `folder`."""
    made: dict[str, Any] = {
        "mambabyte": lambda: MambaByteLearner(rows, sizes),
        "overencoded": lambda: TransformerLearner(rows, sizes, has_tables=True),
        "plain": lambda: TransformerLearner(rows, sizes, has_tables=False),
        "tokens": lambda: TokenLearner(rows, sizes, folder, megabytes),
    }
    chosen: Learner = made[name]()
    return chosen


ARCHITECTURES = ("mambabyte", "overencoded", "plain", "tokens")
