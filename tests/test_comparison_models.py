"""Models that tools/train_demo.py makes to compare with the bundled one: tiny ones, trained for a few steps."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from edgeblt.measure.texts import DEMO_CHECKPOINT

ROOT = Path(__file__).parents[1]
TEXTS = DEMO_CHECKPOINT.parent / "texts"
NAMES = ("mambabyte", "overencoded", "plain", "tokens")


@pytest.fixture(scope="module")
def runs() -> Iterator[ModuleType]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        patch.setattr(torch, "compile", lambda function: function)  # compiling takes longer than all the rest
        from comparison import runs

        yield runs
    for name in set(sys.modules) - before:
        if name.startswith(("comparison", "demo_")):
            del sys.modules[name]


def sizes(runs: ModuleType) -> Any:
    """Tiny ones."""
    return runs.Sizes(16, 2, 64, 2, neighbors=3, table_rows=50, future=2, token_vocabulary=300)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as the corpus has them, from one of the shipped texts, and what is scored."""
    folder = tmp_path_factory.mktemp("work")
    ids = torch.frombuffer(bytearray((TEXTS / "prose.txt").read_bytes()), dtype=torch.uint8).to(torch.int16) + 4
    ids[[100, 3000]] = 2

    def rows(count: int, length: int) -> Tensor:
        cut = ids[: count * length].view(count, length)
        return torch.cat([torch.ones(count, 1, dtype=torch.int16), cut], dim=1)

    torch.save({"train": rows(3, 2048), "held_out": rows(2, 512), "held_out_long": rows(1, 1024)}, folder / "rows.pt")
    (folder / "texts").mkdir()
    (folder / "texts/short.txt").write_text("A text of a few words, and an ü.")
    return folder


@pytest.fixture(scope="module")
def trained(runs: ModuleType, work: Path) -> dict[str, Any]:
    """All models, trained for three steps, with their cards."""
    students = {}
    for name in NAMES:
        students[name] = runs.train_model(work, name, 0.0124, sizes(runs))
        runs.make_card(work, name, 0.0124, work / "texts", sizes(runs))
    return students


@pytest.mark.parametrize("name", NAMES)
def test_a_run_leaves_log_figures_and_card(name: str, trained: dict[str, Any], work: Path) -> None:
    log = json.loads((work / name / f"{name}-log.json").read_text())
    figures = json.loads((work / name / "figures.json").read_text())
    assert 0 < log[-1]["train"] < 9 and 0 < log[-1]["held_out"] < 9
    assert figures["steps"] >= 3 and 0.008 < figures["megabytes"] < 0.0125
    assert figures["bits_per_byte"].keys() == {"held_out", "held_out_long", "held_out_long_recut", "short"}
    assert all(0 < bits < 10 for bits in figures["bits_per_byte"].values())
    assert (figures["table_parameters"] > 0) == (name == "overencoded")
    card = (work / name / "model/README.md").read_text()
    assert f"--architecture {name}" in card and f"{figures['bits_per_byte']['held_out']:.4f}" in card
    assert max(map(len, card.splitlines())) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_is_not_run_again(
    name: str, trained: dict[str, Any], runs: ModuleType, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> float:
        raise AssertionError("it takes a further step")

    monkeypatch.setattr(sys.modules["demo_training"], "_one_step", step)
    before = (work / name / f"{name}.pt").read_bytes()
    again = runs.train_model(work, name, 0.0124, sizes(runs))
    state = torch.load(work / name / f"{name}.pt", weights_only=True)["parameters"]
    assert all(torch.equal(value, state[key]) for key, value in again.model.named_parameters())
    assert (work / name / f"{name}.pt").read_bytes() == before


def llama(folder: Path, tensors: dict[str, Tensor], heads: int, interleaved: bool) -> Any:
    """A transformers Llama with the weights of a checkpoint; RoPE on adjacent pairs becomes RoPE on halves."""
    config = json.loads((folder / "config.json").read_text())
    if interleaved:
        for key, value in tensors.items():
            if "q_proj" in key or "k_proj" in key:
                rows, columns = value.shape
                tensors[key] = value.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
    model = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in config.items() if key != "torch_dtype"}))
    missing = model.load_state_dict({k: v.float() for k, v in tensors.items() if "future" not in k}, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys
    return model.eval()


@pytest.mark.parametrize("name", ["plain", "tokens"])
@torch.no_grad()
def test_without_tables_it_is_a_llama(name: str, trained: dict[str, Any], runs: ModuleType, work: Path) -> None:
    """Logits of the training forward and those of transformers on the stored checkpoint, at random weights."""
    student, folder = trained[name], work / name / "model"
    generator = torch.Generator().manual_seed(1)
    for parameter in student.model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
        parameter.copy_((parameter.ndim == 1) + scale * torch.randn(parameter.shape, generator=generator))
        parameter.copy_(parameter.to(torch.bfloat16) if parameter.ndim == 2 else parameter)
    runs.save(student, folder)
    reference = llama(folder, load_file(folder / "model.safetensors"), student.model.heads, name == "plain")
    ids = torch.randint(4, 260, (2, 90), generator=generator)
    expected = reference(ids, use_cache=False).logits
    torch.testing.assert_close(student.model(ids)[0], expected, rtol=1e-4, atol=1e-4)


def test_rows_of_tables(runs: ModuleType) -> None:
    """n-gram ids against whole numbers: (x[t] + sum of x[t - s] V ** s) mod M, no further back than an EOS."""
    from comparison.overencoded import ngram_ids

    random = np.random.default_rng(3)
    ids = random.integers(4, 260, (2, 60))
    ids[random.random(ids.shape) < 0.1] = 2
    sizes = [7001, 7003, 7005, 7007]
    found = ngram_ids(torch.from_numpy(ids), sizes, 260)
    for order, (rows, size) in enumerate(zip(found, sizes, strict=True), 2):
        for row, text in enumerate(ids.tolist()):
            for t in range(len(text)):
                total = text[t]
                for distance in range(1, order):
                    if t - distance < 0 or text[t - distance] == 2:
                        break
                    total += text[t - distance] * 260**distance
                assert rows[row, t] == total % size


def test_bytes_of_tokens(trained: dict[str, Any]) -> None:
    """A character that the row's end cuts is not counted; the end of a document counts as a byte."""
    from comparison.tokens import byte_count, texts

    data = "naïve".encode()
    row = torch.tensor([1, *(byte + 4 for byte in data), 2, *(byte + 4 for byte in "é".encode()[:1])])
    assert texts(row) == ["naïve", ""] and byte_count(row) == len(data) + 1
