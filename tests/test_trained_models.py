"""The trained models of other architectures in tests/models, through every command and the server."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from typer.testing import CliRunner

import edgeblt
from edgeblt.cli import app
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import BOS, encode
from edgeblt.measure.texts import held_out_text
from serving_process import ServerProcess

MODELS = Path(__file__).parent / "models"
NAMES = ("mambabyte", "overencoded")
BITS = {"mambabyte": 1.8115, "overencoded": 1.7919}  # its card's, on other text of these kinds
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 7, "max_tokens": 40}


def edgeblt_command(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module", params=NAMES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 bundle, quantized apart and then exported."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "text").write_bytes(held_out_text("prose")[:4096])
    given = ["--recipe", "int8", "--calibration", folder / "text"]
    edgeblt_command("quantize", MODELS / request.param, folder / "quantized", *given, "-q")
    edgeblt_command("export", folder / "quantized", folder / request.param, "-q")
    return folder / str(request.param)


def test_it_learned_what_its_card_says(bundle: Path) -> None:
    with edgeblt.load(bundle) as model:
        bits = model.score(held_out_text("prose")[:3000]).bits_per_byte
    assert 1.6 < bits < BITS[bundle.name] + 0.3


def test_it_is_validated_timed_and_inspected(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(held_out_text("code")[:200])
    given = ["--reference", MODELS / bundle.name, "--text", tmp_path / "text", "--json", tmp_path / "accuracy.json"]
    edgeblt_command("validate", bundle, *given, "-q")
    (report,) = json.loads((tmp_path / "accuracy.json").read_text())["texts"].values()
    assert report["mean_kl"] < 0.01
    given = [
        "--prompt-bytes",
        64,
        "--new-bytes",
        16,
        "--repeats",
        1,
        "--no-bandwidth",
        "--json",
        tmp_path / "speed.json",
    ]
    edgeblt_command("bench", bundle, *given, "-q")
    assert json.loads((tmp_path / "speed.json").read_text())
    assert "int8" in edgeblt_command("inspect", bundle)
    assert edgeblt_command("generate", bundle, "The ", "--max-new-bytes", 20, "-q")


def test_openais_client_gets_what_it_generates(bundle: Path) -> None:
    with (
        ServerProcess(bundle) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        answer = client.completions.create(model=bundle.name, prompt="It was the best of", n=2, **SAMPLED)
    with edgeblt.load(bundle) as model:
        wanted = [model.generate("It was the best of", 40, temperature=0.9, seed=7 + index) for index in range(2)]
    assert [choice.text for choice in answer.choices] == [text.decode(errors="replace") for text in wanted]


def test_heads_guess_bytes_after_the_next(tmp_path: Path) -> None:
    """The bundled heads, in float32: right more often than the likeliest byte alone would be."""
    text = held_out_text("prose")[:600]
    ids = np.concatenate([[BOS], encode(text)])
    with edgeblt.load(export_bundle(MODELS / "overencoded", tmp_path / "bundle").path) as model:
        session, right = model.session(), np.zeros(3)
        for position, id in enumerate(ids[:-4]):
            session.feed([id])
            right += session.further_logits().argmax(axis=1) == ids[position + 2 : position + 5]
    commonest = np.bincount(ids).max() / len(ids)
    assert right[0] / len(ids) > 1.3 * commonest and right[0] > right[1] > right[2]
