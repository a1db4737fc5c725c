"""A cache of quantized weights that many conversions of one checkpoint share, on disk.

A calibrated matrix depends on the recipe's parts for its own stage and for the stages before it, no others; any other
matrix depends on its own part alone. Pieces of the weights are stored under a digest of just that, so a search over
recipes quantizes each stage once for each choice that matters to it. Entries appear whole, by renaming: several
processes may share a directory. An entry is checked by its hash before it is used, and ignored if it is damaged.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np

from edgeblt.bundle.contract import StageName
from edgeblt.bundle.whole_files import cannot_write
from edgeblt.export.graphs.weight_file import Arrays, Note
from edgeblt.quant.recipes.recipe import TABLES, Recipe

_HASH_BYTES = 32


class PieceCache:
    """Pieces of quantized weights by what they depend on; `hits` and `stored` count those of this process."""

    def __init__(self, directory: Path) -> None:
        """Raises EdgebltError if the directory cannot be made."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(directory, error) from None
        self._directory = directory
        self.hits = self.stored = 0

    def find(self, key: str) -> tuple[Arrays, Note] | None:
        """Arrays and note of an entry; None where there is none, or a damaged one."""
        try:
            content = (self._directory / key).read_bytes()
        except OSError:
            return None
        digest, content = content[:_HASH_BYTES], content[_HASH_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            return None
        header, _, data = content.partition(b"\n")
        document, arrays, offset = json.loads(header), {}, 0
        for name, dtype, shape in document["arrays"]:
            kind = np.dtype(dtype)
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(data, kind, count, offset).reshape(shape)
            offset += count * kind.itemsize
        self.hits += 1
        return arrays, document["note"]

    def store(self, key: str, arrays: Arrays, note: Note) -> None:
        """Adds an entry. Raises EdgebltError if the disk refuses it."""
        listed = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
        content = json.dumps({"arrays": listed, "note": note}).encode() + b"\n"
        content += b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
        temporary = self._directory / f".{key}.{os.getpid()}"
        try:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(self._directory / key)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise cannot_write(temporary, error) from None
        self.stored += 1


def cache_settings(recipe: Recipe, name: str, shape: tuple[int, ...], stages: Sequence[str]) -> object:
    """The recipe's settings that the content of the tensor of this canonical name depends on.

    stages: the stages in the order of the computation.
    """
    own, part = (recipe.part(name), recipe.format(name, shape)), recipe.part(name)
    if name.endswith(TABLES):
        return (*own, recipe.table_hits)
    if not (part.needs_calibration or part.channels):
        return own
    stage = name.partition(".")[0]
    before = stages[: stages.index(stage) + 1]
    if stage != "patcher" and len(before) > 1:  # calibration cuts patches with the exact patcher
        before = [other for other in before if other != "patcher"]
    inputs = [recipe.stage(cast(StageName, other)) for other in before]
    return (*own, inputs, recipe.embeddings, recipe.tables, recipe.table_hits)
