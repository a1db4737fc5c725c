"""Changes at random of checkpoints, which must then be refused with a sentence or work."""

import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from checkpoint_oracle import assert_one_sentence
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle

Change = Callable[[random.Random, Path], None]  # changes the checkpoint in a directory


def change_bytes(chance: random.Random, directory: Path, reach: int) -> None:
    """Change up to four of the first `reach` bytes of a file, and perhaps cut it."""
    file = chance.choice(sorted(directory.iterdir()))
    content = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(min(len(content), reach))] = chance.randrange(256)
    file.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])


def changed_tensor(chance: random.Random, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Change the type, the shape or the numbers of a tensor, or leave it out; returns what it was."""
    name = chance.choice(sorted(weights))
    found = weights[name]
    weights[name] = chance.choice(
        [found.int(), found[:-1], found.reshape(-1), found * np.nan, found * np.inf, found.to(torch.float8_e5m2)]
    ).contiguous()
    if chance.random() < 0.3:
        del weights[name]
    return found


def change_header(chance: random.Random, file: Path) -> None:
    """Change what the header of a safetensors file says of a tensor."""
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    entry = header[chance.choice(sorted(set(header) - {"__metadata__"}))]
    entry[chance.choice(["shape", "data_offsets", "dtype"])] = chance.choice([[], [-1], [1 << 62] * 3, "F8", None, [0]])
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def change_start(chance: random.Random, directory: Path) -> None:
    """Change bytes of the configuration or of the header."""
    change_bytes(chance, directory, reach=4000)


def change_only_header(chance: random.Random, directory: Path) -> None:
    """Change the header of a checkpoint that is one file."""
    change_header(chance, directory / "model.safetensors")


def refusals(changes: Sequence[Change], count: int, folder: Path, write: Callable[[int, Path], object]) -> int:
    """The number of changed checkpoints that export refuses, each with a sentence; the others become bundles.

    write: writes the checkpoint of a number to a directory.
    """
    chance, refused = random.Random(count), 0
    for number in range(count):
        directory, bundle = folder / str(number), folder / f"{number}-bundle"
        write(number, directory)
        changes[number % len(changes)](chance, directory)
        try:
            export_bundle(directory, bundle)
        except EdgebltError as error:
            refused += 1
            assert_one_sentence(str(error))
            assert not bundle.exists()
    return refused
