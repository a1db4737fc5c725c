"""Every form in which people have a checkpoint's files: exported, each computes what transformers computes."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import tiny_models
from checkpoint_oracle import assert_one_sentence, small_config
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.ids import OFFSET
from edgeblt.model import load

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
HEAD, GATE = "lm_head.weight", "model.local_encoder.layers.0.mlp.gate_proj.weight"
IDS = tiny_models.random_ids(3, 60)

Weights = dict[str, torch.Tensor]


def tensors(directory: Path) -> Weights:
    """Of a directory with one safetensors file, which is removed."""
    weights: Weights = load_file(directory / SINGLE)
    (directory / SINGLE).unlink()
    return weights


def as_links(directory: Path) -> None:
    """As huggingface_hub's cache: snapshots/COMMIT/NAME -> ../../blobs/HASH."""
    snapshot, blobs = directory / "snapshots" / "0123", directory / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(file for file in directory.iterdir() if file.is_file())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))


def as_links_elsewhere(directory: Path) -> None:
    """Files that lie in another folder, each reached by a link to a link."""
    elsewhere, between = directory.with_name("elsewhere"), directory.with_name("between")
    elsewhere.mkdir()
    between.mkdir()
    for file in sorted(directory.iterdir()):
        (between / file.name).symlink_to(file.rename(elsewhere / file.name))
        file.symlink_to(between / file.name)


def as_shards(directory: Path) -> None:
    weights = tensors(directory)
    parts = [dict(list(weights.items())[start::3]) for start in range(3)]
    names = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, directory / name)
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def as_pickle(directory: Path) -> None:
    torch.save(tensors(directory), directory / PICKLE)


def as_state_dict(directory: Path) -> None:
    """As a Module gives it: in order, with the modules' versions, and parameters as such."""
    model = type(tiny_models.random_model(small_config(), 0)).from_pretrained(directory)
    tensors(directory)
    state = model.state_dict(keep_vars=True)
    assert state._metadata
    torch.save(state, directory / PICKLE)


def as_pickled_shards(directory: Path) -> None:
    weights = tensors(directory)
    parts = [dict(list(weights.items())[start::2]) for start in range(2)]
    for number, part in enumerate(parts, 1):
        torch.save(part, directory / f"pytorch_model-{number:05}-of-00002.bin")
    weight_map = {
        name: f"pytorch_model-{number:05}-of-00002.bin" for number, part in enumerate(parts, 1) for name in part
    }
    (directory / PICKLE_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        save_file({change(name): tensor for name, tensor in tensors(directory).items()}, directory / SINGLE)

    return apply


def as_compiled_pickle(directory: Path) -> None:
    """What `torch.save(DistributedDataParallel(torch.compile(model)).state_dict(), ...)` writes."""
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in tensors(directory).items()}, directory / PICKLE)


FORMS: dict[str, Callable[[Path], None]] = {
    "one file": lambda directory: None,
    "shards": as_shards,
    "links": as_links,
    "links elsewhere": as_links_elsewhere,
    "pickle": as_pickle,
    "state_dict": as_state_dict,
    "pickled shards": as_pickled_shards,
    "compiled": renamed(lambda name: f"_orig_mod.{name}"),
    "parallel": renamed(lambda name: f"module.{name}"),
    "compiled within": renamed(lambda name: name.replace("layers.", "layers._orig_mod.")),
    "compiled parallel pickle": as_compiled_pickle,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.float32]]:
    """A checkpoint as transformers writes it, and its logits for IDS."""
    model = tiny_models.random_model(tiny_models.random_config(10), 10)
    tiny_models.separate_threshold(model, IDS)
    path = tiny_models.save_model(model, tmp_path_factory.mktemp("original") / "model")
    return path, logits(model)


def logits(model: Any) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = model(torch.tensor([[*IDS, OFFSET]]), use_cache=False).logits[0].numpy()
    return found[:-1]  # see `TransformersReference.row`


def assert_computes(directory: Path, expected: NDArray[np.float32]) -> None:
    bundle = export_bundle(directory, directory.with_name("bundle")).path
    found = load(bundle).session().feed(IDS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_what_transformers_does(
    form: str, original: tuple[Path, NDArray[np.float32]], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(original[0], tmp_path / "model"))
    FORMS[form](directory)
    directory = directory / "snapshots" / "0123" if form == "links" else directory
    assert_computes(directory, original[1])
    checkpoint = open_checkpoint(directory)
    assert checkpoint.unused_names() == sorted(checkpoint.unused_names())
    weights = sorted(file.name for file in directory.iterdir() if file.suffix in (".safetensors", ".bin"))
    assert list(checkpoint.files()) == ["config.json", *weights]
    np.testing.assert_array_equal(logits(TransformersReference(directory).model), original[1])


def saved_without_head(tied: bool, path: Path) -> tuple[Path, NDArray[np.float32]]:
    """What `BltModel.save_pretrained` writes, and the logits of the model it is part of."""
    model = tiny_models.random_model(small_config(tie_word_embeddings=tied), 0)
    tiny_models.separate_threshold(model, IDS)
    model.model.config.patching_threshold = model.config.patching_threshold
    model.model.save_pretrained(path)
    stored = load_file(path / SINGLE)
    assert HEAD not in stored and not any(name.startswith("model.") for name in stored)
    return path, logits(model)


def test_a_model_without_its_head_that_is_tied(tmp_path: Path) -> None:
    """The embedding is the head."""
    path, expected = saved_without_head(True, tmp_path / "model")
    assert_computes(path, expected)
    np.testing.assert_array_equal(logits(TransformersReference(path).model), expected)


@pytest.mark.parametrize("form", ["one file", "pickle", "compiled"])
def test_a_model_without_its_head(form: str, tmp_path: Path) -> None:
    path, _ = saved_without_head(False, tmp_path / "model")
    FORMS[form](path)
    file = path / (PICKLE if form == "pickle" else SINGLE)
    assert refusal(path) == (
        f"{file} is of a BltModel, which has no lm_head.weight to generate with; save the BltForCausalLM that it is "
        "part of"
    )


def test_a_model_without_its_head_s_names_with_a_head(
    original: tuple[Path, NDArray[np.float32]], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(original[0], tmp_path / "model"))
    renamed(lambda name: name.removeprefix("model."))(directory)
    assert_computes(directory, original[1])


def refusal(path: Path) -> str:
    with pytest.raises(EdgebltError) as caught:
        open_checkpoint(path)
    assert_one_sentence(str(caught.value))
    return str(caught.value)


def test_two_names_of_one_weight(original: tuple[Path, NDArray[np.float32]], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(original[0], tmp_path / "model"))
    weights = tensors(directory)
    save_file({**weights, f"module.{GATE}": weights[GATE].clone()}, directory / SINGLE)
    assert refusal(directory) == (
        f"{directory / SINGLE}: the tensors '{GATE}' and 'module.{GATE}' are the same weight of a model; leave one out"
    )


def test_an_old_pickle_and_the_line_that_converts_it(
    original: tuple[Path, NDArray[np.float32]], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(original[0], tmp_path / "model"))
    torch.save(tensors(directory), directory / PICKLE, _use_new_zipfile_serialization=False)
    said = refusal(directory)
    assert said.startswith(
        f"{directory / PICKLE} is in the form that torch wrote before version 1.6; convert it, in its directory, with "
    )
    command = shlex.split(said[said.index(" with python ") + len(" with ") :])
    assert command[:2] == ["python", "-c"]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, *command[1:]], cwd=directory, env=environment, check=True)
    assert_computes(directory, original[1])


def test_a_pickle_of_another_name(original: tuple[Path, NDArray[np.float32]], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(original[0], tmp_path / "model"))
    torch.save(tensors(directory), directory / "model.pt")
    assert refusal(directory) == (
        f"{directory} holds neither {SINGLE} nor {PICKLE}, only 'model.pt'; if that is the model's state dictionary, "
        f"rename it to {PICKLE}"
    )
    (directory / "model.pt").rename(directory / PICKLE)
    assert open_checkpoint(directory).names()


def test_the_order_in_which_weights_are_looked_for(original: tuple[Path, NDArray[np.float32]], tmp_path: Path) -> None:
    """transformers' own."""
    directory = Path(shutil.copytree(original[0], tmp_path / "model"))
    weights = load_file(directory / SINGLE)
    torch.save({name: tensor * 2 for name, tensor in weights.items()}, directory / PICKLE)
    np.testing.assert_array_equal(open_checkpoint(directory).tensor("decoder.head"), weights[HEAD])
    (directory / SINGLE).unlink()
    np.testing.assert_array_equal(open_checkpoint(directory).tensor("decoder.head"), 2 * weights[HEAD])
