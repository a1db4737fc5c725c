"""Whatever happens to a checkpoint directory, opening it gives a checkpoint or one sentence, soon, in little memory."""

import json
import os
import random
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from checkpoint_oracle import assert_one_sentence, small_config
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint

INDEX = "model.safetensors.index.json"
SECTIONS = ["decoder_config", "encoder_config", "global_config", "patcher_config"]
HOSTILE: list[object] = [
    10**12,
    2**31 - 1,
    10**9,
    -1,
    0,
    True,
    None,
    "x",
    "../x",
    [],
    {},
    0.5,
    1e308,
    float("nan"),
    [[[]]],
    10**400,
]


def json_leaves(document: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a JSON document."""
    for key, value in list(document.items()) if isinstance(document, dict) else enumerate(document):
        yield document, key
        if isinstance(value, dict | list):
            yield from json_leaves(value)


def edit_json(file: Path, edit: Callable[[Any], object]) -> None:
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def truncate(directory: Path, rng: random.Random) -> bool:
    file = rng.choice(sorted(directory.glob("*.safetensors")))
    os.truncate(file, rng.randrange(file.stat().st_size))
    return True


def flip_header_bit(directory: Path, rng: random.Random) -> bool:
    file = rng.choice(sorted(directory.glob("*.safetensors")))
    content = bytearray(file.read_bytes())
    content[rng.randrange(8 + struct.unpack("<Q", content[:8])[0])] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return False


def flip_json_bit(directory: Path, rng: random.Random) -> bool:
    file = rng.choice([file for file in (directory / "config.json", directory / INDEX) if file.exists()])
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return False


def replace_json_value(directory: Path, rng: random.Random) -> bool:
    file = rng.choice([file for file in (directory / "config.json", directory / INDEX) if file.exists()])

    def edit(document: Any) -> None:
        container, key = rng.choice(list(json_leaves(document)))
        container[key] = rng.choice(HOSTILE)

    edit_json(file, edit)
    return False


def enlarge_config(directory: Path, rng: random.Random) -> bool:
    section = rng.choice(SECTIONS)
    field = rng.choice(["hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"])
    size = rng.choice([10**12, 2**31 - 1, 10**9, 2**20])
    edit_json(directory / "config.json", lambda document: document[section].update({field: size}))
    return True


def drop_or_reshape(directory: Path, rng: random.Random) -> bool:
    file = rng.choice(sorted(directory.glob("*.safetensors")))
    weights = load_file(file)
    name = rng.choice([name for name in sorted(weights) if "cross_attn_layers" not in name])
    tensor = weights.pop(name)
    if rng.random() < 0.7:
        weights[name] = rng.choice([tensor[:-1].clone(), tensor[None], torch.tensor(1.0), tensor.char()])
    save_file(weights, file)
    return True


def remove_file(directory: Path, rng: random.Random) -> bool:
    rng.choice([file for file in sorted(directory.iterdir()) if file.name != "generation_config.json"]).unlink()
    return True


def claim_in_header(directory: Path, rng: random.Random) -> bool:
    """One entry of the header says something else about its tensor."""
    file = rng.choice(sorted(directory.glob("*.safetensors")))
    content = file.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    entry = header[rng.choice(sorted(header.keys() - {"__metadata__"}))]
    entry[rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(
        ["F32", "F99", [2**62, 2**62], [-1], [0, 2**40], [0, 0], [5], None, {"a": "b\n"}, [2**64, 1]]
    )
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[end:])
    return False


MUTATIONS = [
    truncate,
    flip_header_bit,
    flip_json_bit,
    replace_json_value,
    enlarge_config,
    drop_or_reshape,
    remove_file,
    claim_in_header,
]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One model in a single file, and in shards."""
    model, parent = tiny_models.random_model(small_config(), 0), tmp_path_factory.mktemp("intact")
    return [
        tiny_models.save_model(model, parent / "single"),
        tiny_models.save_model(model, parent / "sharded", max_shard_size=9000),
    ]


@pytest.fixture
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError("still running after 20 s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_mutations(
    mutate: Callable[[Path, random.Random], bool], intact: list[Path], tmp_path: Path, no_hang: None
) -> None:
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(16):
        directory = Path(shutil.copytree(intact[seed % 2], tmp_path / str(seed)))
        must_fail = mutate(directory, random.Random(seed))
        try:
            checkpoint = open_checkpoint(directory)
            for name in checkpoint.names():
                checkpoint.tensor(name)
        except EdgebltError as error:
            assert_one_sentence(str(error))
            refused += 1
        else:
            assert not must_fail, f"seed {seed} opened"
    assert refused >= 4  # even the mutations that can be harmless mostly are not
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
