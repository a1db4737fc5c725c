"""Tokens of byte-level BPE, from the rows of ids that the byte models are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from demo_model import BOS, BYTE_OFFSET, EOS

SPECIAL = ("<pad>", "<s>", "</s>")  # ids 0, 1 and 2, so that BOS and EOS are those of the byte models


def texts(row: Tensor) -> list[str]:
    """The documents, or parts of them, in a row of ids; what a cut left of a character is dropped."""
    found, piece = [], bytearray()
    for number in [*(row[1:] if row[0] == BOS else row).tolist(), EOS]:
        if number == EOS:
            found.append(piece.decode("utf-8", errors="ignore"))
            piece = bytearray()
        else:
            piece.append(number - BYTE_OFFSET)
    return found


def train_tokenizer(rows: Tensor, vocabulary: int, folder: Path) -> Tokenizer:
    """Byte-level BPE on rows of ids; writes it into `folder` in transformers' form."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in rows for text in texts(row)), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    document = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(document, indent=2) + "\n")
    return tokenizer


def stream(tokenizer: Tokenizer, pieces: Iterable[Tensor]) -> Tensor:
    """Token ids of pieces of rows, one after the other; EOS where a document ends within a piece."""
    ids: list[int] = []
    for piece in pieces:
        for number, text in enumerate(texts(piece)):
            ids += [EOS] * (number > 0) + tokenizer.encode(text, add_special_tokens=False).ids
    return torch.tensor(ids)


def byte_count(row: Tensor) -> int:
    """Bytes of a row that `stream` encodes, the end of a document counted as one."""
    found = texts(row)
    return sum(len(text.encode()) for text in found) + len(found) - 1
