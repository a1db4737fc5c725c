"""Models of tokens beside bundles: nats, weights and windows of a tiny model, and the command that compares them."""

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from edgeblt.errors import EdgebltError
from edgeblt.evaluation.comparison import BundleModel, DecodedText, OpenModel, TextCost, compare
from edgeblt.evaluation.model_memory import memory_growth
from edgeblt.export.token_model import TokenModel, weight_bytes_per_token, windows
from edgeblt.measure.noise import NOISES
from edgeblt.measure.reference import Text
from edgeblt.measure.texts import held_out_text
from edgeblt.model import load
from test_commands import run_command, sentence

WINDOW, VOCAB = 64, 300
TEXT = "It was the best of times, größer, 最高. ".encode()


def token_model(path: Path, tied: bool = False, bos: bool = True, lower: bool = False) -> Path:
    """A random Llama with a byte-level BPE of the held-out prose; `lower` makes its tokenizer forget capitals."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    special = ["<s>"] if bos else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([held_out_text("prose").decode()], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>" if bos else None)
    fast.save_pretrained(path)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=WINDOW, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_model(tmp_path_factory.mktemp("token model"))


def plain_nats(path: Path, ids: list[int]) -> Any:
    """Nats of each id after the first, from one forward pass over all."""
    with torch.inference_mode():
        logits = LlamaForCausalLM.from_pretrained(path)(torch.tensor([ids]), use_cache=False).logits[0].double()
    return -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].numpy()


def encoded(path: Path, data: bytes) -> list[int]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    return [int(id) for id in tokenizer.encode(data.decode(), add_special_tokens=False)]


def test_a_text_costs_the_nats_of_its_tokens(tokens: Path) -> None:
    cost = TokenModel(tokens).cost(TEXT)
    assert cost.is_exact
    np.testing.assert_allclose(cost.nats, plain_nats(tokens, [0, *encoded(tokens, TEXT)]).sum(), rtol=1e-6)
    assert TokenModel(tokens).cost(b"") == TextCost(0.0)


def test_a_long_text_is_read_in_windows(tokens: Path) -> None:
    """Every token once, with half a window before it at least."""
    data = held_out_text("prose")[:400]
    ids, expected = [0, *encoded(tokens, data)], 0.0
    assert len(ids) > 2 * WINDOW
    first = 1
    while first < len(ids):
        start = 0 if first == 1 else first - WINDOW // 2
        end = min(start + WINDOW, len(ids))
        expected += plain_nats(tokens, ids[start:end])[first - start - 1 :].sum()
        first = end
    np.testing.assert_allclose(TokenModel(tokens).cost(data).nats, expected, rtol=1e-6)


@pytest.mark.parametrize(("count", "window"), [(1, 8), (2, 2), (7, 2), (9, 8), (100, 7), (16, 16)])
def test_windows_score_each_id_once(count: int, window: int) -> None:
    cut = list(windows(count, window))
    assert [id for _, first, end in cut for id in range(first, end)] == list(range(1, count))
    for number, (start, first, end) in enumerate(cut):
        assert end - start <= window and first - start >= (window // 2 if number else 1)


def test_a_first_token_without_bos_costs_as_any(tmp_path: Path) -> None:
    path = token_model(tmp_path, bos=False)
    ids = encoded(path, TEXT)
    expected = math.log(VOCAB) + plain_nats(path, ids).sum()
    np.testing.assert_allclose(TokenModel(path).cost(TEXT).nats, expected, rtol=1e-6)


def test_bytes_that_a_tokenizer_loses_are_told(tmp_path: Path, tokens: Path) -> None:
    lossy = TokenModel(token_model(tmp_path, lower=True))
    assert not lossy.cost(TEXT).is_exact and lossy.cost(TEXT.lower()).is_exact
    assert not TokenModel(tokens).cost(b"half a character \xc3").is_exact


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_a_token_reads(tied: bool, tmp_path: Path) -> None:
    """All but the table of embeddings, of which it reads a row, unless the head is the same matrix."""
    model = LlamaForCausalLM.from_pretrained(token_model(tmp_path, tied))
    weights, table = sum(weight.nbytes for weight in model.parameters()), VOCAB * 16 * 4
    buffers = sum(buffer.nbytes for buffer in model.buffers())  # RoPE's frequencies
    assert weight_bytes_per_token(model) == weights + buffers - (0 if tied else table - 16 * 4)


def test_a_token_model_decodes_a_text(tokens: Path) -> None:
    model, following = TokenModel(tokens), b"and there was light"
    decoded = model.decode(b"Let there be light, ", following)
    count = len(encoded(tokens, following))
    assert decoded.bytes_per_step == len(following) / count
    read = weight_bytes_per_token(LlamaForCausalLM.from_pretrained(tokens))
    assert decoded.weight_bytes_per_byte == pytest.approx(read * count / len(following))
    with pytest.raises(EdgebltError, match=r"takes from 1 to 64 tokens, but prompt and text have \d+; ask for other"):
        model.decode(b"x" * 200, following)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not measured: another process imports torch for some seconds."""
    monkeypatch.setattr("edgeblt.evaluation.comparison.memory_growth", lambda use: None)


def test_memory_is_a_models_own() -> None:
    """Nothing that this process took or freed before changes it."""
    freed = np.ones(100_000_000, np.uint8)
    del freed
    small, large = (memory_growth(partial(bytearray, size)) for size in (2 << 20, 60 << 20))
    assert small is not None and large is not None
    assert 2 << 20 <= small < 8 << 20 and 60 << 20 <= large < 66 << 20


def test_memory_of_a_process_that_ends_is_unknown() -> None:
    assert memory_growth(partial(os._exit, 3)) is None
    with pytest.raises(EdgebltError, match="nothing is there"):
        memory_growth(partial(BundleModel, "nothing is there", 1))


@pytest.mark.usefixtures("in_this_process")
def test_figures_are_the_models_own(tokens: Path, tiny_bundle: tuple[Path, Path]) -> None:
    texts = [Text("one", TEXT), Text("two", b"To be, or not to be")]
    openers: list[OpenModel] = [partial(BundleModel, tiny_bundle[1], 1), partial(TokenModel, tokens, 1)]
    result = compare(openers, texts, prompt_bytes=20, new_bytes=10, repeats=1)
    ours, theirs = result.models
    with load(tiny_bundle[1]) as model:
        assert ours.texts == pytest.approx({text.name: model.score(text.data).bits_per_byte for text in texts})
        for name, noise in NOISES.items():
            noised = [noise(text.data) for text in texts]
            nats = -sum(float(model.score(data).logprobs.sum()) for data in noised)
            assert ours.noises[name] == pytest.approx(nats / math.log(2) / sum(map(len, noised)), rel=1e-5)
    bits = TokenModel(tokens).cost(TEXT).nats / math.log(2)
    assert theirs.texts["one"] == pytest.approx(bits / len(TEXT)) and result.bytes == len(TEXT) + 19
    assert (ours.kind, theirs.kind, theirs.weight_format) == ("bundle", "tokens", "float32")
    assert theirs.stored_bytes == (tokens / "model.safetensors").stat().st_size
    assert ours.inexact == () and "one" not in theirs.inexact


class Slow:
    """A model whose every run is a little faster."""

    name, kind, weight_format, stored_bytes = "slow", "tokens", "float32", 1

    def __init__(self) -> None:
        self.runs = 0

    def cost(self, data: bytes) -> TextCost:
        return TextCost(len(data) * math.log(2), len(data) > 3)

    def decode(self, prompt: bytes, following: bytes) -> DecodedText:
        assert (len(prompt), len(following)) == (7, 4)
        self.runs += 1
        return DecodedText(10.0 * self.runs, self.runs, 2.0, 3.0)


@pytest.mark.usefixtures("in_this_process")
def test_speeds_are_medians_after_a_warm_up() -> None:
    result = compare([Slow], [Text("short", b"abc"), Text("long", b"abcd")], False, 7, 3, 3)
    (figures,) = result.models
    assert (figures.prefill_bytes_per_s, figures.decode_bytes_per_s) == (30.0, 3.0)  # of the runs 2, 3 and 4
    assert (figures.spread["decode_bytes_per_s"].low, figures.spread["decode_bytes_per_s"].high) == (2, 4)
    assert (figures.texts, figures.noises, figures.inexact) == ({"short": 1.0, "long": 1.0}, {}, ("short",))


@pytest.mark.usefixtures("in_this_process")
def test_the_command_compares(
    tokens: Path, tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text", tmp_path / "out.json"
    text.write_bytes(TEXT + b"\xff")
    arguments = ("--text", text, "--prompt-bytes", 20, "--new-bytes", 10, "--repeats", 1, "--quiet")
    result = run_command(capfd, "compare", tiny_bundle[1], "--tokens", tokens, *arguments, "--json", out)
    assert result.code == 0, result.stderr
    assert "bits per byte" in result.stdout and "* the tokenizer does not give these bytes back" in result.stdout
    found = json.loads(out.read_text())
    assert [one["kind"] for one in found["models"]] == ["bundle", "tokens"] and found["bytes"] == len(TEXT) + 1


def test_the_command_compares_bundles_alone(
    tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    arguments = ("--text", tmp_path / "text", "--prompt-bytes", 20, "--new-bytes", 10, "--repeats", 1, "--no-noise")
    two = run_command(capfd, "compare", tiny_bundle[1], tiny_bundle[1], *arguments, "--quiet", "--json", "-")
    first, second = json.loads(two.stdout)["models"]
    assert first["texts"] == second["texts"] and first["noises"] == {}
    assert first["memory_bytes"] > 0 and abs(first["memory_bytes"] - second["memory_bytes"]) < 4 << 20


@pytest.mark.usefixtures("in_this_process")
def test_what_cannot_be_compared_is_refused(
    tiny_bundle: tuple[Path, Path], tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = tiny_bundle
    assert "there is nothing to compare" in sentence(run_command(capfd, "compare", bundle))
    wrong = {
        tmp_path / "missing": "is no directory",
        tmp_path: "transformers opens no causal model with a tokenizer in",
        checkpoint: "is a model of bytes, without tokens; export it and give the bundle",
    }
    short = ("--prompt-bytes", 8, "--new-bytes", 4, "--quiet")
    for path, message in wrong.items():
        assert message in sentence(run_command(capfd, "compare", bundle, "--tokens", path, *short))
    refused = run_command(capfd, "compare", bundle, "--tokens", tokens, "--new-bytes", 0)
    assert sentence(refused) == "new_bytes is 0; it must be at least 1"
    empty = tmp_path / "empty"
    empty.touch()
    assert "empty is empty" in sentence(run_command(capfd, "compare", bundle, bundle, "--text", empty))
