"""What ends a text and how bytes are drawn: from the checkpoint's files, through every form, to what is generated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BltForCausalLM

import tiny_models
from checkpoint_oracle import assert_one_sentence, small_config
from conftest import tiny_oracle
from edgeblt import cli
from edgeblt.bundle.config import Generation
from edgeblt.bundle.manifest import MANIFEST, open_bundle, write_manifest
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.hub.repository import needed_files
from edgeblt.ids import BOS, EOS, OFFSET, encode
from edgeblt.inspection import inspect_bundle
from edgeblt.model import Model, load
from edgeblt.names import Name
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.runtime import native
from tiny_models import BLT_DRAFTS

END = 3  # the id that a fine-tune ends its texts with
PROMPT = b"The quick brown fox"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_model(
        tiny_models.random_model(small_config(), 0), tmp_path_factory.mktemp("small") / "checkpoint"
    )


def stated(small: Path, out: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> Path:
    """The checkpoint with these fields of its own, and this `generation_config.json`."""
    shutil.copytree(small, out)
    document = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**document, **config}))
    (out / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (out / "generation_config.json").write_text(json.dumps(generation))
    return out


SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9}
CASES: list[tuple[dict[str, Any], dict[str, Any] | None, Generation]] = [
    ({}, None, Generation()),
    ({"eos_token_id": None}, None, Generation()),
    ({"eos_token_id": 3}, None, Generation((3,))),
    ({"eos_token_id": [5, 2, 5]}, None, Generation((2, 5))),
    ({"eos_token_id": 3}, {"eos_token_id": [2, 259]}, Generation((2, 259))),
    ({"eos_token_id": 3}, {"eos_token_id": None}, Generation((3,))),
    ({"eos_token_id": 3}, {"eos_token_id": []}, Generation(())),
    ({}, SAMPLED, Generation((EOS,), 0.7, 40, 0.9)),
    ({}, {**SAMPLED, "do_sample": False}, Generation()),
    ({}, {**SAMPLED, "do_sample": None}, Generation()),
    ({}, {"temperature": 0.7, "max_new_tokens": 9, "repetition_penalty": 1.0}, Generation()),
    ({}, {"do_sample": True}, Generation((EOS,), 1.0)),
    ({}, {"do_sample": True, "temperature": 1, "top_k": 0, "top_p": 1.0}, Generation((EOS,), 1.0)),
    ({}, {"do_sample": True, "temperature": None, "top_k": None, "top_p": None}, Generation((EOS,), 1.0)),
    (SAMPLED, None, Generation((EOS,), 0.7, 40, 0.9)),  # as transformers 4 wrote them
    (SAMPLED, {}, Generation()),
    (SAMPLED, {"do_sample": True, "top_k": 7}, Generation((EOS,), 1.0, 7)),
]


@pytest.mark.parametrize(("config", "generation", "expected"), CASES)
def test_what_the_files_state(
    small: Path, tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: Generation
) -> None:
    checkpoint = stated(small, tmp_path / "checkpoint", config, generation)
    assert open_checkpoint(checkpoint).config.generation == expected


@pytest.mark.parametrize(
    ("config", "generation"),
    [case[:2] for case in CASES if "eos_token_id" in {**case[0], **(case[1] or {})} or "do_sample" in (case[1] or {})],
)
def test_transformers_reads_them_so(
    small: Path, tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None
) -> None:
    """Its generation_config, where it says anything; what it leaves out we take from `config.json`, or from id 2."""
    checkpoint = stated(small, tmp_path / "checkpoint", config, generation)
    found = open_checkpoint(checkpoint).config.generation
    theirs = BltForCausalLM.from_pretrained(checkpoint).generation_config
    if theirs.eos_token_id is not None:
        ends = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
        assert set(found.ends) == set(ends)
    if theirs.do_sample:
        assert found.temperature == (1.0 if theirs.temperature is None else theirs.temperature)
        assert (found.top_k or 0, found.top_p or 1.0) == (theirs.top_k or 0, theirs.top_p or 1.0)
    else:
        assert (found.temperature, found.top_k, found.top_p) == (0.0, None, None)


@pytest.mark.parametrize(
    ("config", "generation", "said"),
    [
        ({"eos_token_id": "2"}, None, "eos_token_id is '2'; it must be an id between 0 and 259, a list of such"),
        ({"eos_token_id": True}, None, "eos_token_id is True; it must"),
        ({"eos_token_id": [2, 260]}, None, "eos_token_id is [2, 260]; it must"),
        ({"eos_token_id": -1}, None, "eos_token_id is -1; it must"),
        ({}, {"eos_token_id": {"a": 1}}, "eos_token_id is {'a': 1}; it must"),
        ({}, {"do_sample": 1}, "do_sample is 1; it must be true or false"),
        ({}, {"do_sample": True, "temperature": -1}, "temperature is -1.0; it must be 0 (greedy) or a positive number"),
        ({}, {"do_sample": True, "temperature": "hot"}, "temperature is 'hot'; it must be a finite number"),
        ({}, {"do_sample": True, "top_k": 2.5}, "top_k is 2.5; it must be an integer"),
        ({}, {"do_sample": True, "top_k": -1}, "top_k is -1; it must be an integer"),
        ({}, {"do_sample": True, "top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1, or null"),
        ({}, [1], "[1]; it must be a JSON object"),
    ],
)
def test_values_that_cannot_be(small: Path, tmp_path: Path, config: Any, generation: Any, said: str) -> None:
    checkpoint = stated(small, tmp_path / "checkpoint", config, generation)
    with pytest.raises(EdgebltError) as refused:
        open_checkpoint(checkpoint)
    assert_one_sentence(str(refused.value))
    file = checkpoint / ("config.json" if generation is None else "generation_config.json")
    assert str(refused.value).startswith(str(file)) and said in str(refused.value)


def test_damaged_settings(small: Path, tmp_path: Path) -> None:
    checkpoint = stated(small, tmp_path / "checkpoint", {}, None)
    (checkpoint / "generation_config.json").write_text("{")
    with pytest.raises(EdgebltError, match=r"generation_config\.json is not valid JSON"):
        open_checkpoint(checkpoint)


def test_the_hub_gives_it() -> None:
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert needed_files(names) == ["config.json", "generation_config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that likes to end its texts with id 3, and says so."""
    oracle = tiny_oracle(2)
    with torch.no_grad():
        oracle.lm_head.weight[END] = 2 * oracle.lm_head.weight[EOS]
        oracle.lm_head.weight[EOS] *= 0
    oracle.config.eos_token_id = oracle.generation_config.eos_token_id = END
    return tiny_models.save_model(oracle, tmp_path_factory.mktemp("fine_tune") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(fine_tune: Path) -> Path:
    return export_bundle(fine_tune, fine_tune.parent / "bundle").path


def greedy(logits_of: Any, ends: set[int], count: int) -> bytes:
    """The plain loop over transformers' full forward: the likeliest id that is a byte or an end."""
    ids = [BOS, *encode(PROMPT).tolist()]
    while len(ids) <= len(PROMPT) + count:
        logits = logits_of(ids)
        chosen = max(sorted(ends | set(range(OFFSET, 260))), key=lambda id: logits[id])
        if chosen in ends:
            break
        ids.append(chosen)
    return bytes(id - OFFSET for id in ids[1 + len(PROMPT) :])


def test_a_fine_tune_ends_with_its_own_id(fine_tune: Path, bundle: Path) -> None:
    oracle = BltForCausalLM.from_pretrained(fine_tune).eval()

    def logits_of(ids: list[int]) -> list[float]:
        with torch.inference_mode():  # one id more, as its last position can be wrong under a maximum patch length
            return oracle(torch.tensor([[*ids, OFFSET]]), use_cache=False).logits[0, -2].tolist()  # type: ignore[no-any-return]

    model = load(bundle)
    expected = greedy(logits_of, {END}, 40)
    assert model.generate(PROMPT, 40) == b"".join(model.stream(PROMPT, 40)) == expected
    assert len(expected) < 40, "the text did not end: make the end likelier"
    assert greedy(logits_of, {EOS}, 40) != expected


def with_generation(model: Model, path: Path, **fields: Any) -> Model:
    """The same bundle, whose checkpoint had stated this."""
    shutil.copytree(model.bundle.path, path)
    manifest = open_bundle(path).manifest
    config = vars(manifest.config) | {"generation": Generation(**fields)}
    write_manifest(path, type(manifest)(**(vars(manifest) | {"config": type(manifest.config)(**config)})))
    return load(path)


def test_a_byte_can_be_the_end(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    """It is no part of the text, whichever way drafts guess it, and no special id is drawn but ends."""
    endless = with_generation(load(tiny_bundle[1]), tmp_path / "endless", ends=())
    text = endless.generate(PROMPT, 60, 0.9, seed=5, draft="none")
    assert len(text) == 60
    end = text[30]
    model = with_generation(load(tiny_bundle[1]), tmp_path / "ends", ends=(end + OFFSET,))
    for draft in BLT_DRAFTS:
        assert model.generate(PROMPT, 60, 0.9, seed=5, draft=Name(draft)) == text[: text.index(end)]


def test_compressed_checkpoints_and_bundles_keep_it(fine_tune: Path, tmp_path: Path) -> None:
    checkpoint = stated(fine_tune, tmp_path / "original", {}, {"eos_token_id": [2, 3], **SAMPLED})
    expected = Generation((2, 3), 0.7, 40, 0.9)
    compressed = quantize_checkpoint(checkpoint, tmp_path / "compressed", "int8")
    assert open_checkpoint(compressed).config.generation == expected
    exported = export_bundle(compressed, tmp_path / "bundle")
    assert open_bundle(exported.path).manifest.config.generation == expected
    shown = inspect_bundle(exported).description
    assert (shown["a text ends with"], shown["sampling"]) == ("id 2, 3", "temperature 0.7, top_k 40, top_p 0.9")
    model = load(exported.path)
    drawn = model.generate(PROMPT, 20, seed=3)
    assert drawn == model.generate(PROMPT, 20, 0.7, 40, 0.9, 3) != model.generate(PROMPT, 20, 0.0)
    assert model.generate(PROMPT, 20, 0.7, seed=3) == drawn  # what is not given is the checkpoint's
    assert model.generate(PROMPT, 20, 0.7, 260, 1.0, 8) == model.generate(PROMPT, 20, 0.7, top_k=260, top_p=1, seed=8)


def test_bundles_of_before_open(small: Path, tmp_path: Path) -> None:
    """Where nothing is stated, the manifest is what it was: also its id, which prepared weights know it by."""
    exported = export_bundle(small, tmp_path / "bundle")
    document = json.loads((exported.path / MANIFEST).read_text())
    assert "generation" not in document["config"]
    assert open_bundle(exported.path).manifest.config.generation == Generation()
    assert inspect_bundle(exported).description["sampling"] == "greedy"


def test_a_manifest_cannot_end_beyond_the_vocabulary(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(EdgebltError, match="the id 260 is to end texts, but the vocabulary has only 260 ids"):
        with_generation(load(tiny_bundle[1]), tmp_path / "bundle", ends=(260,))


def test_commands(fine_tune: Path, bundle: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["edgeblt", *map(str, arguments)])
            if native.library_path() is None:
                patch.setenv(native.VARIABLE, "0")
            with pytest.raises(SystemExit) as exit:
                cli.main()
        assert exit.value.code == 0
        return " ".join(capfd.readouterr().out.split())

    sampled = with_generation(load(bundle), tmp_path / "sampled", ends=(END,), temperature=0.7, top_k=9)
    for path, expected in (
        (bundle, "greedy"),
        (sampled.bundle.path, "temperature 0.7, top_k 9"),
        (fine_tune, "greedy"),
    ):
        said = run("inspect", path)
        assert "a text ends with: id 3" in said and f"sampling: {expected}" in said
    out = run("generate", bundle, PROMPT.decode(), "--max-new-bytes", 40)
    assert out == " ".join((load(bundle).generate(PROMPT, 40).decode(errors="replace")).split())
    drawn = run("generate", sampled.bundle.path, PROMPT.decode(), "--seed", 4, "--max-new-bytes", 20)
    assert drawn == " ".join(load(bundle).generate(PROMPT, 20, 0.7, 9, seed=4).decode(errors="replace").split())
