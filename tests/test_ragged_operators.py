"""Operators on rows of several sequences: each row has the bits that it has in a run on its own sequence."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeblt.bundle.contract import CACHE_DTYPES, CACHE_FORMATS, EDGEBLT, MICROSOFT, CacheFormat
from test_native import at_every_level, needs_library, open_model, using

Array = NDArray[Any]
Feeds = dict[str, Array]
HEADS, KV_HEADS, WIDTH = 4, 2, 32


def model(operator: str, feeds: Feeds, outputs: dict[str, tuple[type, int]], attributes: list[ir.Attr]) -> Any:
    """A graph of one node, for the kernel, whose inputs are these by rank and type."""
    inputs = [
        ir.val(name, ir.DataType.from_numpy(array.dtype), [f"{name}_{axis}" for axis in range(array.ndim)])
        for name, array in feeds.items()
    ]
    results = [
        ir.val(name, ir.DataType.from_numpy(np.dtype(kind)), [f"{name}_{axis}" for axis in range(rank)])
        for name, (kind, rank) in outputs.items()
    ]
    node = ir.Node(EDGEBLT, operator, inputs, attributes, outputs=results)
    opsets = {"": 23, MICROSOFT: 1, EDGEBLT: 1}
    graph = ir.Graph(inputs, results, nodes=[node], opset_imports=opsets, name="one")
    return open_model(ir.serde.serialize_model(ir.Model(graph, ir_version=11)).SerializeToString(), kernel=True)


class Cache:
    """Pages of random content; sequences have some of them in any order."""

    def __init__(self, seed: int, format: CacheFormat, window: int, lengths: list[int], page_slots: int) -> None:
        self.chance = np.random.default_rng(seed)
        self.format, self.window, self.page_slots = format, window, page_slots
        counts = [-(-length // page_slots) for length in lengths]
        order = self.chance.permutation(sum(counts) + 2).astype(np.int32)
        self.pages = np.zeros((len(lengths), max(counts)), np.int32)
        for row, count in zip(self.pages, counts, strict=True):
            row[:count], order = order[:count], order[count:]
        shape = (sum(counts) + 2, KV_HEADS, page_slots, WIDTH + (format == "int8"))
        self.keys, self.values = (self._content(shape) for _ in range(2))
        self.angles = self.chance.uniform(-7, 7, (max(lengths), WIDTH // 2)).astype(np.float32)

    def _content(self, shape: tuple[int, ...]) -> Array:
        if self.format == "int8":
            content = self.chance.integers(-127, 128, shape).astype(np.int8)
            content[..., -1] = self.chance.integers(-28, -20, shape[:-1])
            return content
        return self.chance.normal(size=shape).astype(CACHE_DTYPES[self.format])

    def run(self, rows: list[tuple[int, int, Array]]) -> list[Array]:
        """What the rows (sequence, slot, projected) attend to, run together; writes the cache."""
        places = np.array([(sequence, slot, place) for place, (sequence, slot, _) in enumerate(rows)], np.int32)
        angles = self.angles[places[:, 1]]
        return self._fed(np.array([row for _, _, row in rows]), self.keys, self.values, angles, 1, places, self.pages)

    def run_alone(self, sequence: int, first: int, projected: Array) -> list[Array]:
        """The same for consecutive rows of one sequence, as a session runs them, without writing the cache."""
        own = self.pages[sequence]
        keys, values = (
            np.concatenate([some[page] for page in own], axis=1)[None].copy() for some in (self.keys, self.values)
        )
        length = first + len(projected)
        none, table = np.zeros((0, 3), np.int32), np.zeros((0, 0), np.int32)
        angles = np.resize(self.angles, (keys.shape[2], WIDTH // 2)) if length > len(self.angles) else self.angles
        return self._fed(projected, keys, values, angles[: keys.shape[2]], length, none, table)

    def _fed(
        self, projected: Array, keys: Array, values: Array, angles: Array, length: int, places: Array, pages: Array
    ) -> list[Array]:
        feeds: Feeds = {
            "projected": projected, "past_key": keys, "past_value": values,
            "last_slot": np.array([length - 1], np.int32), "total_length": np.array([length], np.int32),
            "cosines": np.cos(angles), "sines": np.sin(angles), "places": places, "pages": pages,
        }  # fmt: skip
        attributes: list[ir.Attr] = [
            ir.AttrInt64("num_heads", HEADS), ir.AttrInt64("kv_num_heads", KV_HEADS),
            ir.AttrInt64("window", self.window), ir.AttrFloat32("scale", 0.2),
        ]  # fmt: skip
        kind = keys.dtype.type
        outputs = {"attended": (np.float32, 2), "present_key": (kind, 4), "present_value": (kind, 4)}
        found: list[Array] = model("WindowAttention", feeds, outputs, attributes).run(None, feeds)
        return found


@at_every_level
@pytest.mark.parametrize("format", CACHE_FORMATS)
@pytest.mark.parametrize(("window", "page_slots", "lengths"), [
    (-1, 64, [200, 64, 1, 130]), (100, 128, [256, 100, 7]), (50, 200, [180, 31, 200]), (-1, 192, [192, 500]),
])  # fmt: skip
def test_rows_have_the_bits_of_a_run_on_their_own_sequence(
    level: str, format: CacheFormat, window: int, page_slots: int, lengths: list[int]
) -> None:
    cache = Cache(len(lengths) + page_slots, format, window, lengths, page_slots)
    chance, width = cache.chance, (HEADS + 2 * KV_HEADS) * WIDTH
    rows: list[tuple[int, int, Array]] = []
    own: list[tuple[int, int, Array, list[int]]] = []
    for sequence in chance.permutation(len(lengths)).tolist():
        count = min(int(chance.integers(1, 20)), lengths[sequence])
        first, projected = lengths[sequence] - count, chance.normal(size=(count, width)).astype(np.float32)
        own.append((sequence, first, projected, list(range(len(rows), len(rows) + count))))
        rows += [(sequence, first + place, row) for place, row in enumerate(projected)]
    with using(level):
        attended, keys, values = cache.run(rows)
        for sequence, first, projected, places in own:
            alone, own_keys, own_values = cache.run_alone(sequence, first, projected)
            np.testing.assert_array_equal(attended[places], alone)
            pages = cache.pages[sequence][: -(-lengths[sequence] // page_slots)]
            for whole, single in ((keys, own_keys), (values, own_values)):
                flat = np.concatenate([whole[page] for page in pages], axis=1)
                slots = slice(first, first + len(projected))
                np.testing.assert_array_equal(flat[:, slots], single[0][:, slots])
        # As single rows, in any order, too: those of a sequence are stored before any attends.
        shuffled = chance.permutation(len(rows))
        again, _, _ = cache.run([rows[place] for place in shuffled])
        np.testing.assert_array_equal(again, attended[shuffled])


@needs_library
@pytest.mark.parametrize(("name", "place", "value"), [
    ("places", (0, 0), 2), ("places", (0, 0), -1), ("places", (1, 1), 128), ("places", (1, 1), -1),
    ("places", (1, 1), 2**31 - 1), ("places", (2, 2), 3), ("places", (2, 2), -(2**31)), ("pages", (0, 0), 5),
    ("pages", (0, 0), -1), ("pages", (1, 1), 2**31 - 1),
])  # fmt: skip
def test_places_that_do_not_exist_are_refused(name: str, place: tuple[int, int], value: int) -> None:
    feeds: Feeds = {
        "projected": np.zeros((3, (HEADS + 2 * KV_HEADS) * WIDTH), np.float32),
        "past_key": np.zeros((5, KV_HEADS, 64, WIDTH), np.float32),
        "past_value": np.zeros((5, KV_HEADS, 64, WIDTH), np.float32),
        "last_slot": np.zeros(1, np.int32), "total_length": np.zeros(1, np.int32),
        "cosines": np.zeros((3, WIDTH // 2), np.float32), "sines": np.zeros((3, WIDTH // 2), np.float32),
        "places": np.array([(0, 3, 0), (0, 70, 1), (1, 127, 2)], np.int32),
        "pages": np.array([(1, 3), (0, 4)], np.int32),
    }  # fmt: skip
    attributes: list[ir.Attr] = [
        ir.AttrInt64("num_heads", HEADS), ir.AttrInt64("kv_num_heads", KV_HEADS), ir.AttrInt64("window", -1),
        ir.AttrFloat32("scale", 0.2),
    ]  # fmt: skip
    outputs: dict[str, tuple[type, int]] = {name: (np.float32, rank) for name, rank in
                                            (("attended", 2), ("present_key", 4), ("present_value", 4))}  # fmt: skip
    session = model("WindowAttention", feeds, outputs, attributes)
    session.run(None, feeds)
    feeds[name] = feeds[name].copy()
    feeds[name][place] = value
    with pytest.raises(Exception, match="does not fit a cache of"):
        session.run(None, feeds)


def patching(feeds: Feeds) -> list[Array]:
    outputs: dict[str, tuple[type, int]] = {"entropies": (np.float32, 1), "patch_starts": (np.bool_, 1),
                                            "states": (np.float32, 2)}  # fmt: skip
    found: list[Array] = model("EntropyPatch", feeds, outputs, [ir.AttrInt64("rule", RULE)]).run(None, feeds)
    return found


RULE = 1  # monotonic: each entropy is compared with the one before


def patching_feeds(chance: np.random.Generator, length: int, position: int, state: Array) -> Feeds:
    return {
        "logits": chance.normal(size=(length, 260)).astype(np.float32) * 3,
        "ids": chance.integers(0, 260, length), "position": np.array([position]), "state": state,
        "threshold": np.array([0.05], np.float32), "threshold_add": np.array([0.1], np.float32),
        "max_patch_length": np.array([5]), "patch_size": np.array([1]),
        "sequences": np.zeros((0, 2), np.int64), "sequence_states": np.zeros((0, 3), np.float32),
    }  # fmt: skip


@needs_library
def test_patches_start_as_in_each_sequence_alone() -> None:
    chance = np.random.default_rng(3)
    own = []
    for length, position in ((1, 0), (7, 5), (1, 1000), (40, 0), (2, 126)):
        state = np.array([chance.normal(), 1, position % 4], np.float32)
        own.append((position, state, patching_feeds(chance, length, position, state)))
    firsts = np.cumsum([0, *(len(feeds["ids"]) for _, _, feeds in own)])[:-1]
    together = own[0][2] | {name: np.concatenate([feeds[name] for _, _, feeds in own]) for name in ("logits", "ids")}
    together["sequences"] = np.array([firsts, [position for position, _, _ in own]]).T.copy()
    together["sequence_states"] = np.array([state for _, state, _ in own])
    alone = [np.concatenate(parts) for parts in zip(*(patching(feeds) for _, _, feeds in own), strict=True)]
    for found, expected in zip(patching(together), alone, strict=True):
        np.testing.assert_array_equal(found, expected)


@needs_library
@pytest.mark.parametrize(
    "sequences", [[(1, 0)], [(0, 0), (0, 3)], [(0, 0), (9, 3)], [(0, -1)], [(0, 0), (4, 2**63 - 1)]]
)
def test_sequences_that_are_none_are_refused(sequences: list[tuple[int, int]]) -> None:
    feeds = patching_feeds(np.random.default_rng(0), 9, 0, np.zeros(3, np.float32))
    feeds["sequences"] = np.array(sequences)
    feeds["sequence_states"] = np.zeros((len(sequences), 3), np.float32)
    with pytest.raises(Exception, match="begins in row"):
        patching(feeds)
