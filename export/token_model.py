"""A causal transformers checkpoint with a tokenizer, measured on bytes beside bundles."""

import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from edgeblt.errors import EdgebltError
from edgeblt.evaluation.comparison import DecodedText, TextCost
from edgeblt.quant.torch_threads import keep_to_usable_cores

WINDOW = 2048  # tokens at a time where nothing states a limit
_LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_UNSTATED = 10**9  # tokenizers without a limit state a larger one
_WEIGHTS = ("*.safetensors",)


class TokenModel:
    """A model that `save_pretrained` wrote with its tokenizer, computed in the checkpoint's own type of numbers.

    path: its directory; nothing is downloaded, no code in it is run, and weights are read from safetensors only.
    threads: threads that torch computes with, for the whole process; None is its own choice, within the container's.

    Raises EdgebltError where transformers finds no causal model or no tokenizer in it.
    """

    kind = "tokens"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        # Memory that torch takes with its first product is none of a model's.
        torch.ones(64, 64) @ torch.ones(64, 64)
        if threads is None:
            keep_to_usable_cores()
        else:
            torch.set_num_threads(threads)
        logging.disable_progress_bar()
        self._tokenizer, self._model = _opened(path)
        self.name = path.resolve().name
        self.weight_format = str(self._model.dtype).removeprefix("torch.")
        self.stored_bytes = sum(file.stat().st_size for pattern in _WEIGHTS for file in path.glob(pattern))
        self.window = _window(self._model.config, self._tokenizer)
        self._first = _first_id(self._tokenizer)
        self._read_per_token = weight_bytes_per_token(self._model)

    def cost(self, data: bytes) -> TextCost:
        """Nats of the tokens of `data`, which are those that the tokenizer chooses.

        The first follows the BOS or, without one, the EOS; where there is neither it costs as any of the vocabulary.
        Longer texts than the window are read in windows that overlap by half, BOS in the first only; each token is
        scored once, in the first window it is in. Bytes that are not UTF-8 are read as U+FFFD.
        """
        text = data.decode(errors="replace")
        ids = self._encode(text)
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        is_exact = decoded.encode(errors="replace") == data
        if not ids:
            return TextCost(0.0, is_exact)
        nats = 0.0 if self._first else math.log(self._model.config.vocab_size)
        sequence = self._first + ids
        for start, first, end in windows(len(sequence), self.window):
            logits = self._logits(sequence[start : end - 1])[first - start - 1 :]
            targets = torch.tensor(sequence[first:end])
            nats += float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum"))
        return TextCost(nats, is_exact)

    def decode(self, prompt: bytes, following: bytes) -> DecodedText:
        """Reads the prompt, then chooses a token greedily and feeds the text's own, token by token, from a cache."""
        size = len(following)
        started = time.perf_counter()
        ids = [*self._first, *self._encode(prompt.decode(errors="replace"))]
        tokens = self._encode(following.decode(errors="replace"))
        if len(ids) + len(tokens) > self.window or not ids:
            raise EdgebltError(
                f"{self.name} takes from 1 to {self.window:,} tokens, but prompt and text have "
                f"{len(ids) + len(tokens):,}; ask for other numbers of bytes"
            )
        with torch.inference_mode():
            given = self._model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            int(given.logits[0, -1].argmax())
            read = time.perf_counter()
            for token in tokens:
                given = self._model(torch.tensor([[token]]), past_key_values=given.past_key_values, use_cache=True)
                int(given.logits[0, -1].argmax())
        seconds = time.perf_counter() - read
        per_token = size / len(tokens)
        return DecodedText(len(prompt) / (read - started), size / seconds, self._read_per_token / per_token, per_token)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        size = self._model.get_input_embeddings().weight.shape[0]
        if ids and max(ids) >= size:
            raise EdgebltError(
                f"the tokenizer of {self.name} has ids up to {max(ids)}, its model {size:,}; give the two that belong "
                "together"
            )
        return ids

    def _logits(self, ids: list[int]) -> torch.Tensor:
        """Logits [T, vocab] after each id."""
        with torch.inference_mode():
            logits: torch.Tensor = self._model(torch.tensor([ids]), use_cache=False).logits[0]
        return logits


def windows(count: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Cut a sequence of `count` ids: (start, first, end) of windows of at most `window` ids, read from start to end.

    Ids from `first` to `end` are scored; each but the first of all is in exactly one window's, behind half a window.
    """
    start, first = 0, 1
    while first < count:
        end = min(start + window, count)
        yield start, first, end
        start, first = end - window // 2, end


def weight_bytes_per_token(model: Any) -> int:
    """Bytes of weights that computing one token reads: all of them, but only one row of tables that are looked up."""
    whole, rows = dict[int, int](), dict[int, int]()
    for module in model.modules():
        for weight in itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False)):
            if isinstance(module, torch.nn.Embedding):
                rows[id(weight)] = weight[0].nbytes
            else:
                whole[id(weight)] = weight.nbytes  # also a head that is tied to a table
    return sum(whole.values()) + sum(size for key, size in rows.items() if key not in whole)


def _opened(path: Path) -> tuple[Any, Any]:
    """Tokenizer and model of a directory."""
    if not os.path.isdir(path):
        raise EdgebltError(f"{path} is no directory; give one that holds a causal model and its tokenizer")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(path, **local)
        if config.model_type == "blt":
            raise EdgebltError(f"{path} is a model of bytes, without tokens; export it and give the bundle")
        tokenizer = AutoTokenizer.from_pretrained(path, **local)
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", use_safetensors=True, **local).eval()
    except EdgebltError:
        raise
    except Exception as error:  # transformers raises whatever its files lead to
        reason = " ".join(str(error).split())[:200]
        raise EdgebltError(
            f"transformers opens no causal model with a tokenizer in {path} ({type(error).__name__}: {reason}); give a"
            " directory that save_pretrained wrote for both"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    return tokenizer, model


def _window(config: Any, tokenizer: Any) -> int:
    """Most tokens at a time that configuration and tokenizer allow."""
    stated = [getattr(config, name, None) for name in _LIMITS] + [tokenizer.model_max_length]
    limits = [int(limit) for limit in stated if isinstance(limit, int) and 2 <= limit < _UNSTATED]
    return min(limits, default=WINDOW)


def _first_id(tokenizer: Any) -> list[int]:
    """The id that a text begins with, if there is one."""
    given = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [next(id for id in given if id is not None)] if any(id is not None for id in given) else []
