"""Legal inputs of every operator of domain `edgeblt`, at random, and what `fuzz_operators` changes in them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Chance = np.random.Generator
Attributes = dict[str, Any]
EDGES = (0, 1, 2**20, 2**31, 2**32, 2**40, 2**53, 2**60, 2**61, 2**62, 2**63 - 1)
BLOCKS = (16, 32, 64, 128, 256)
TYPES = (np.float32, np.float16, np.float64, np.int32, np.int64, np.uint8, np.int8, np.bool_)
CACHE_TYPES = (np.float32, np.float16, np.int8)


@dataclass(frozen=True)
class Case:
    """A node: its inputs in order, None for one that is absent; `shared`: a cache's past and present are one buffer."""

    operator: str
    attributes: Attributes
    inputs: dict[str, Array | None]
    initializers: frozenset[str]
    outputs: tuple[str, ...]
    shared: bool = False
    changes: tuple[str, ...] = ()


def floats(chance: Chance, *shape: int) -> Array:
    return chance.normal(size=shape).astype(np.float32)


def octets(chance: Chance, *shape: int) -> Array:
    return chance.integers(0, 256, shape, dtype=np.uint8)


def up(value: int, unit: int) -> int:
    """How many units hold `value`."""
    return -(-value // unit)


@dataclass(frozen=True)
class Rounding:
    """Sizes of a product's weights [rows, columns]."""

    rows: int
    columns: int
    bits: int
    block: int
    times: int

    @classmethod
    def random(cls, chance: Chance, rows: int, columns: int) -> "Rounding":
        return cls(rows, columns, *(int(chance.choice(some)) for some in ((4, 8), BLOCKS, (1, 1, 2, 1000))))

    @property
    def attributes(self) -> dict[str, int]:
        return {"bits": self.bits, "block_size": self.block, "blocks_per_scale": self.times}

    @property
    def blocks(self) -> int:
        return up(self.columns, self.block)

    def scales(self, chance: Chance) -> Array:
        return (chance.normal(size=(self.rows, up(self.blocks, self.times))) * 0.02).astype(self.scale_type(chance))

    def scale_type(self, chance: Chance) -> type:
        return np.float16 if chance.random() < 0.5 else np.float32

    def dense(self, chance: Chance) -> dict[str, Array | None]:
        groups = up(self.rows, 16)
        codes = octets(chance, groups, self.blocks, 2 * self.block * self.bits)
        scales: Array = (chance.normal(size=(groups, up(self.blocks, self.times), 16)) * 0.02).astype(
            self.scale_type(chance)
        )
        same = np.array([{8: 0x80, 4: 0x88}[self.bits]], np.uint8)
        points = octets(chance, groups, self.blocks, 2 * self.bits) if chance.random() < 0.5 else same
        return {"codes": codes, "scales": scales, "zero_points": points}


def product(chance: Chance, operator: str, extra: Attributes, weights: Callable[[Rounding], Any]) -> Case:
    sizes = Rounding.random(chance, int(chance.integers(1, 40)), int(chance.integers(1, 300)))
    arrays: dict[str, Array | None] = weights(sizes)
    attributes = {"K": sizes.columns, "N": sizes.rows, **sizes.attributes, **extra}
    leading = [(int(chance.integers(0, 6)),), (2, 3), ()][int(chance.choice(3, p=[0.8, 0.1, 0.1]))]
    fixed = frozenset(arrays) if chance.random() < 0.8 else frozenset()
    return Case(operator, attributes, {"x": floats(chance, *leading, sizes.columns), **arrays}, fixed, ("y",))


def dense_matmul(chance: Chance) -> Case:
    return product(chance, "DenseMatMul", {}, lambda sizes: sizes.dense(chance))


def dense_projection(chance: Chance) -> Case:
    return product(chance, "DenseProjection", {}, lambda sizes: sizes.dense(chance))


def sparse_matmul(chance: Chance) -> Case:
    group = int(chance.choice([4, 8]))

    def weights(sizes: Rounding) -> dict[str, Array]:
        pairs, bytes = up(sizes.rows, 2), (48 if group == 8 else 32) + 16 * sizes.bits
        paired = np.stack([sizes.scales(chance)[:pairs]] * 2, axis=2)
        return {"tiles": octets(chance, pairs, up(sizes.columns, 128), bytes), "scales": paired}

    return product(chance, "SparseMatMul", {"group": group}, weights)


def masked_matmul(chance: Chance) -> Case:
    def weights(sizes: Rounding) -> dict[str, Array]:
        bits = np.zeros((sizes.rows, up(sizes.columns, 32) * 32), np.bool_)
        bits[:, : sizes.columns] = chance.random((sizes.rows, sizes.columns)) < chance.choice([0, 0.3, 1])
        ends = np.cumsum(-(-bits.sum(axis=1) * sizes.bits // 8))
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        mask = np.packbits(bits, axis=1, bitorder="little")
        return {"mask": mask, "values": octets(chance, int(ends[-1]) + 64), "offsets": offsets,
                "scales": sizes.scales(chance)}  # fmt: skip

    return product(chance, "MaskedMatMul", {}, weights)


def heads_of(chance: Chance) -> tuple[int, int, int]:
    """Heads, heads of keys, and elements of a head."""
    kv_heads = int(chance.integers(1, 4))
    return kv_heads * int(chance.integers(1, 4)), kv_heads, 8 * int(chance.integers(1, 6))


def cache_of(chance: Chance, kv_heads: int, width: int, rows: int) -> dict[str, Array | None]:
    total = rows + int(chance.integers(0, 40))
    capacity = total + int(chance.integers(0, 5))
    angles = floats(chance, capacity + int(chance.integers(0, 3)), width // 2)
    kind = CACHE_TYPES[int(chance.integers(len(CACHE_TYPES)))]
    shape = (1, kv_heads, capacity, width + (kind is np.int8))
    past = {name: (20 * floats(chance, *shape)).astype(kind) for name in ("past_key", "past_value")}
    return {**past, "total_length": np.array([total], np.int32), "cosines": np.cos(angles), "sines": np.sin(angles)}


def in_pages(
    chance: Chance, cache: dict[str, Array | None], rows: int
) -> tuple[dict[str, Array | None], dict[str, Array | None]]:
    """Half the time the cache as one of several sequences, in pages, with `places` and `pages` of the rows."""
    keys, cosines = cache["past_key"], cache["cosines"]
    if chance.random() < 0.5 or keys is None or cosines is None or not rows or not keys.size:
        return cache, {}
    count, columns = int(chance.integers(1, 6)), int(chance.integers(1, 4))
    slots = 64 * int(chance.integers(1, 3)) if columns > 1 else int(chance.integers(1, 150))
    sequences, angles = int(chance.integers(1, 4)), int(chance.integers(1, 9))
    own: dict[str, Array | None] = {
        name: np.resize(keys, (count, keys.shape[1], slots, keys.shape[3])) for name in ("past_key", "past_value")
    }
    own |= {name: floats(chance, angles, cosines.shape[1]) for name in ("cosines", "sines")}
    limits = [sequences, slots * columns, angles]
    places = np.stack([chance.integers(0, limit, rows) for limit in limits], axis=1).astype(np.int32)
    if chance.random() < 0.5:  # a run of rows
        places[:, 0], places[:, 1] = 0, np.arange(rows) % limits[1]
    pages = chance.integers(0, count, (sequences, columns)).astype(np.int32)
    return cache | own, {"places": places, "pages": pages}


def attention_attributes(chance: Chance, heads: int, kv_heads: int) -> Attributes:
    window = int(chance.choice([-1, 1, 7, 1000]))
    return {"num_heads": heads, "kv_num_heads": kv_heads, "window": window, "scale": 0.2}


def window_attention(chance: Chance) -> Case:
    heads, kv_heads, width = heads_of(chance)
    rows = int(chance.integers(0, 9))
    cache, batch = in_pages(chance, cache_of(chance, kv_heads, width, rows), rows)
    total = cache.pop("total_length")
    leading = (1, rows) if chance.random() < 0.2 else (rows,)
    inputs: dict[str, Array | None] = {
        "projected": floats(chance, *leading, (heads + 2 * kv_heads) * width),
        "past_key": cache["past_key"], "past_value": cache["past_value"],
        "last_slot": None if total is None else total - np.int32(1), "total_length": total,
        "cosines": cache["cosines"], "sines": cache["sines"], **batch,
    }  # fmt: skip
    outputs = ("attended", "present_key", "present_value")
    attributes = attention_attributes(chance, heads, kv_heads)
    return Case("WindowAttention", attributes, inputs, frozenset(), outputs, bool(chance.random() < 0.5))


def latent_inputs(chance: Chance, count: int) -> tuple[Attributes, dict[str, Array | None]]:
    heads, kv_heads, width = heads_of(chance)
    vectors, offset, new = int(chance.integers(1, 9)), int(chance.integers(0, 40)), int(chance.integers(0, 4))
    row = offset + 2 * kv_heads * width * vectors + int(chance.integers(0, 5))
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "head_dim": width, "vectors": vectors,
                  "offset": offset, "scale": 0.2}  # fmt: skip
    carried = int(chance.integers(1, 4))
    index = chance.integers(0, new + carried, count, dtype=np.int64)
    return attributes, {
        "carried_row": floats(chance, carried, row), "new_rows": floats(chance, new, row), "latent_index": index,
    }  # fmt: skip


def latent_attention(chance: Chance) -> Case:
    count = int(chance.integers(0, 9))
    attributes, rows = latent_inputs(chance, count)
    query = floats(chance, count, attributes["num_heads"] * attributes["head_dim"])
    return Case("LatentAttention", attributes, {"query": query, **rows}, frozenset(), ("attended",))


def weights_of(chance: Chance, sizes: dict[str, tuple[int, int]]) -> tuple[Attributes, dict[str, Array | None]]:
    """Attributes and weights of an operator of several products."""
    products = {name: Rounding.random(chance, *size) for name, size in sizes.items()}
    arrays = {name: product.dense(chance) for name, product in products.items()}
    attributes = {f"{name}_{key}": value for name, some in products.items() for key, value in some.attributes.items()}
    parts = ("codes", "scales", "zero_points")
    return attributes, {f"{name}_{part}": arrays[name][part] for part in parts for name in products}


def dense_layer(chance: Chance) -> Case:
    heads, kv_heads, head_width = heads_of(chance)
    width, inner, rows = int(chance.integers(1, 70)), int(chance.integers(1, 70)), int(chance.integers(0, 6))
    projected, attended = (heads + 2 * kv_heads) * head_width, heads * head_width
    rounding, weights = weights_of(chance, {
        "query": (projected, width), "output": (width, attended), "gate": (inner, width), "up": (inner, width),
        "down": (width, inner),
    })  # fmt: skip
    sizes = {"width": width, "projected": projected, "attended": attended, "intermediate": inner, "epsilon": 1e-5}
    norms = {name: floats(chance, width) for name in ("attention_norm", "mlp_norm")}
    cache, batch = in_pages(chance, cache_of(chance, kv_heads, head_width, rows), rows)
    inputs = {"x": floats(chance, rows, width), **cache, **norms, **weights, **batch}
    attributes = attention_attributes(chance, heads, kv_heads) | sizes | rounding
    outputs = ("y", "present_key", "present_value")
    return Case("DenseLayer", attributes, inputs, frozenset([*norms, *weights]), outputs, bool(chance.random() < 0.5))


def dense_cross_attention(chance: Chance) -> Case:
    count, width = int(chance.integers(0, 6)), int(chance.integers(1, 70))
    attributes, rows = latent_inputs(chance, count)
    attended = attributes["num_heads"] * attributes["head_dim"]
    projected = 2 * attributes["kv_num_heads"] * attributes["head_dim"]
    rounding, weights = weights_of(chance, {
        "query": (attended, width), "key": (projected, width), "output": (width, attended),
    })  # fmt: skip
    sizes = {"width": width, "attended": attended, "projected": projected, "epsilon": 1e-5}
    new = rows.pop("new_rows")
    assert new is not None
    norms = {name: floats(chance, width) for name in ("query_norm", "key_norm")}
    inputs: dict[str, Array | None] = {
        "x": floats(chance, count, width), "carried_row": rows["carried_row"],
        "latents": floats(chance, len(new), attributes["vectors"] * width), "latent_index": rows["latent_index"],
        **norms, **weights,
    }  # fmt: skip
    fixed = frozenset([*norms, *weights])
    return Case("DenseCrossAttention", attributes | sizes | rounding, inputs, fixed, ("y", "layer_rows"))


def table_of(chance: Chance, name: str, rows: int, width: int) -> tuple[Attributes, dict[str, Array | None]]:
    """Attributes and inputs of a table that HashEmbedding looks up in."""
    bits, block = int(chance.choice([4, 8, 16, 32])), int(chance.choice(BLOCKS))
    blocks = up(width, block)
    values, scales, points = octets(chance, rows, up(width * bits, 8)), floats(chance, rows, blocks), None
    if chance.random() < 0.5:
        points = octets(chance, rows, up(blocks * bits, 8))
    if bits > 8:
        values = floats(chance, rows, width).astype(np.float16 if bits == 16 else np.float32)
    parts = {"values": values, "scales": None if bits > 8 else scales, "zero_points": None if bits > 8 else points}
    return {f"{name}_bits": bits, f"{name}_block_size": block}, {f"{name}_{part}": parts[part] for part in parts}


def hash_embedding(chance: Chance) -> Case:
    width, tables, vocab = int(chance.integers(1, 300)), int(chance.integers(1, 5)), int(chance.integers(1, 20))
    count, context = int(chance.integers(0, 6)), int(chance.integers(1, 9))
    some, bytes = table_of(chance, "byte", 260, width)
    others, hashes = table_of(chance, "hash", tables * vocab + int(chance.integers(0, 3)), width)
    inputs: dict[str, Array | None] = {
        "windows": chance.integers(0, 260, (count, context), dtype=np.int64),
        "coefficients": chance.integers(-(2**62), 2**62, (context, tables), dtype=np.int64), **bytes, **hashes,
    }  # fmt: skip
    attributes = {"width": width, "vocab_size": vocab, **some, **others}
    return Case("HashEmbedding", attributes, inputs, frozenset(["coefficients", *bytes, *hashes]), ("vectors",))


def patch_attributes(chance: Chance) -> Attributes:
    heads, kv_heads, width = heads_of(chance)
    vectors = int(chance.integers(1, 4))
    return {"num_heads": heads, "kv_num_heads": kv_heads, "head_dim": width, "vectors": vectors, "scale": 0.2}


def patch_indices(chance: Chance, completed: int, *counts: int) -> list[Array]:
    """Patches of so many bytes; each completed one, of which there are at most as many, has a byte."""
    index = chance.integers(0, completed + 1, sum(counts), dtype=np.int64)
    index[:completed] = np.arange(completed)
    return np.split(chance.permutation(index), np.cumsum(counts)[:-1])


def patch_attention(chance: Chance) -> Case:
    attributes, bytes = patch_attributes(chance), int(chance.integers(0, 12))
    completed = min(int(chance.integers(0, 4)), bytes)
    attended = attributes["num_heads"] * attributes["head_dim"]
    (index,) = patch_indices(chance, completed, bytes)
    inputs: dict[str, Array | None] = {
        "query": floats(chance, (completed + 1) * attributes["vectors"], attended),
        "projected": floats(chance, bytes, 2 * attributes["kv_num_heads"] * attributes["head_dim"]),
        "patch_index": index, "patches": np.arange(completed + 1, dtype=np.int64),
    }  # fmt: skip
    return Case("PatchAttention", attributes, inputs, frozenset(), ("attended",))


def dense_pooling(chance: Chance) -> Case:
    attributes, width = patch_attributes(chance), int(chance.integers(1, 70))
    attended, pooled = attributes["num_heads"] * attributes["head_dim"], attributes["vectors"] * width
    projected, bytes, opened = 2 * attributes["kv_num_heads"] * attributes["head_dim"], *chance.integers(0, 9, 2)
    completed = min(int(chance.integers(0, 4)), int(bytes + opened))
    rounding, weights = weights_of(chance, {
        "projection": (pooled, width), "query": (attended, width), "key": (projected, width),
        "output": (width, attended),
    })  # fmt: skip
    index, open_index = patch_indices(chance, completed, int(bytes), int(opened))
    norms = {name: floats(chance, width) for name in ("query_norm", "key_norm")}
    inputs: dict[str, Array | None] = {
        "byte_vectors": floats(chance, int(bytes), width), "open_vectors": floats(chance, int(opened), width),
        "patch_index": index, "open_index": open_index, "patches": np.arange(completed + 1, dtype=np.int64),
        **norms, **weights,
    }  # fmt: skip
    sizes = {"width": width, "pooled": pooled, "attended": attended, "projected": projected, "epsilon": 1e-5}
    fixed = frozenset([*norms, *weights])
    return Case("DensePooling", attributes | sizes | rounding, inputs, fixed, ("patch_vectors",))


def entropy_patch(chance: Chance) -> Case:
    length, width = int(chance.integers(0, 40)), int(chance.integers(1, 270))
    numbers = {"max_patch_length": int(chance.choice([0, 1, 7])), "patch_size": int(chance.integers(1, 9))}
    inputs = {
        "logits": floats(chance, length, width), "ids": chance.integers(0, 260, length, dtype=np.int64),
        "position": chance.integers(0, 100, 1, dtype=np.int64), "state": floats(chance, 3),
        "threshold": floats(chance, 1), "threshold_add": floats(chance, 1),
        **{name: np.array([value], np.int64) for name, value in numbers.items()},
    }  # fmt: skip
    if chance.random() < 0.5 and length:
        firsts = np.unique([0, *chance.integers(0, length, int(chance.integers(0, 4)))])
        inputs["sequences"] = np.stack([firsts, chance.integers(0, 100, len(firsts))], axis=1)
        inputs["sequence_states"] = floats(chance, len(firsts), 3)
    outputs = ("entropies", "patch_starts", "states")
    return Case("EntropyPatch", {"rule": int(chance.integers(0, 6))}, dict(inputs), frozenset(), outputs)


def in_slots(chance: Chance, rows: int, past: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """States of one sequence, in a slot or not, or of several, and where the parts of the rows begin and end."""
    kind = chance.integers(3)
    if kind == 0:
        return {"past": past}
    if kind == 1 or not rows:
        return {"past": past[None], "sequences": np.zeros((0, 3), np.int64)}
    ends = np.unique([*chance.integers(1, rows + 1, 3), rows])
    slots = len(ends) + int(chance.integers(0, 3))
    places = chance.integers(0, slots, (len(ends), 2))
    return {"past": floats(chance, slots, *past.shape), "sequences": np.column_stack([ends, places])}


def causal_convolution(chance: Chance) -> Case:
    rows, channels = int(chance.integers(0, 40)), int(chance.integers(1, 70))
    states = in_slots(chance, rows, floats(chance, 3, channels))
    inputs = {
        "split": floats(chance, rows, 2 * channels), "past": states.pop("past"),
        "kernel": floats(chance, 4, channels), "bias": floats(chance, channels), **states,
    }  # fmt: skip
    fixed = frozenset({"kernel", "bias"})
    return Case("CausalConvolution", {"channels": channels}, dict(inputs), fixed, ("x", "present"))


def selective_scan(chance: Chance) -> Case:
    rows, channels = int(chance.integers(0, 40)), int(chance.integers(1, 70))
    states, rank = int(chance.integers(1, 20)), int(chance.integers(1, 9))
    slots = in_slots(chance, rows, floats(chance, states, channels))
    inputs = {
        "x": floats(chance, rows, channels), "split": floats(chance, rows, 2 * channels),
        "step": floats(chance, rows, channels), "selected": floats(chance, rows, rank + 2 * states),
        "step_bias": floats(chance, channels), "decay": -np.exp(floats(chance, states, channels)),
        "skip": floats(chance, channels), **slots,
    }  # fmt: skip
    attributes = {"channels": channels, "states": states, "rank": rank}
    fixed = frozenset({"step_bias", "decay", "skip"})
    return Case("SelectiveScan", dict(attributes), dict(inputs), fixed, ("y", "present"))


OPERATORS: dict[str, Callable[[Chance], Case]] = {
    "EntropyPatch": entropy_patch, "DenseMatMul": dense_matmul, "SparseMatMul": sparse_matmul,
    "MaskedMatMul": masked_matmul, "WindowAttention": window_attention, "DenseLayer": dense_layer,
    "LatentAttention": latent_attention, "DenseCrossAttention": dense_cross_attention,
    "HashEmbedding": hash_embedding, "PatchAttention": patch_attention, "DensePooling": dense_pooling,
    "DenseProjection": dense_projection, "CausalConvolution": causal_convolution, "SelectiveScan": selective_scan,
}  # fmt: skip


# Changes: each gives the case with one thing changed, and says what.


def edge(chance: Chance, value: int) -> int:
    """An integer at the edges: of int64, of other types, of `value`, and of what wraps to it when multiplied."""
    powers = (chance.integers(20, 56), chance.integers(56, 63))
    far, wrapping = int(chance.choice(EDGES)), 1 << int(chance.choice(powers))
    some = [far, -far, far - 1, far + value, far - value, 2**63 - value, -value, value + 1, value - 1, 2 * value,
            -(2**63), -(2**63) + value, *[value + wrapping] * 8]  # fmt: skip
    return max(-(2**63), min(2**63 - 1, some[int(chance.integers(len(some)))]))


def change_attribute(case: Case, chance: Chance) -> Case:
    if not case.attributes:
        return case
    name = str(chance.choice(list(case.attributes)))
    value = case.attributes[name]
    attributes = dict(case.attributes)
    kind = chance.random()
    if kind < 0.04:
        del attributes[name]
    elif kind < 0.08:
        attributes[name] = [1.5, "text", [1, 2]][int(chance.integers(3))]
    elif isinstance(value, float):
        attributes[name] = float(chance.choice([np.nan, np.inf, -np.inf, 0, -1, 1e38, 1e-45]))
    else:
        attributes[name] = edge(chance, value if isinstance(value, int) else 1)
    said = attributes.get(name, "missing")
    return replace(case, attributes=attributes, changes=(*case.changes, f"{name} {said}"))


def change_input(case: Case, chance: Chance) -> Case:
    present = [name for name, array in case.inputs.items() if array is not None]
    name = str(chance.choice(present))
    array = case.inputs[name]
    assert array is not None
    change = CHANGES[int(chance.integers(len(CHANGES)))]
    other, said = change(array, chance)
    inputs = case.inputs | {name: None if other is None else np.ascontiguousarray(other).reshape(other.shape)}
    return replace(case, inputs=inputs, changes=(*case.changes, f"{name} {said}"))


def resize(array: Array, chance: Chance) -> tuple[Array, str]:
    if not array.ndim:
        return array, "as it was"
    axis = int(chance.integers(array.ndim))
    size = array.shape[axis]
    new = int(chance.choice([0, size - 1, size + 1, 2 * size, 1, size + 8, 16 * size + 3]))
    if array.size == 0 and chance.random() < 0.3:
        new = 2**40
    shape = [max(new, 0) if i == axis else other for i, other in enumerate(array.shape)]
    if int(np.prod([float(each) for each in shape])) > 1 << 22:
        shape[axis] = size
    return np.resize(array, shape) if array.size else np.zeros(shape, array.dtype), f"of shape {shape}"


def reshape(array: Array, chance: Chance) -> tuple[Array, str]:
    shapes = [array.shape[1:] if array.ndim else (1,), (1, *array.shape), (*array.shape, 1), (-1,), array.shape[::-1],
              (1,) * (9 - min(array.ndim, 8)) + array.shape]  # fmt: skip
    shape = shapes[int(chance.integers(len(shapes)))]
    if array.ndim and shape == array.shape[1:]:
        array = array[0] if len(array) else np.zeros(shape, array.dtype)
    other = array.reshape(shape)
    return other, f"of shape {list(other.shape)}"


def retype(array: Array, chance: Chance) -> tuple[Array, str]:
    kind = TYPES[int(chance.integers(len(TYPES)))]
    with np.errstate(all="ignore"):
        return array.astype(kind), f"of type {np.dtype(kind)}"


def remove(array: Array, chance: Chance) -> tuple[None, str]:
    return None, "absent"


def revalue(array: Array, chance: Chance) -> tuple[Array, str]:
    """Some elements at the edges of their type."""
    other = np.array(array)
    if not other.size:
        return other, "as it was"
    some: list[Any]
    if other.dtype.kind == "f":
        some = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0]
    else:
        limits = np.iinfo(other.dtype if other.dtype.kind in "iu" else np.uint8)
        near = [0, 1, -1, int(other.flat[0]) + 1, 2**31 - 1, -(2**31), limits.max, limits.min, limits.max - 1]
        some = [value for value in near if limits.min <= value <= limits.max]
    value = some[int(chance.integers(len(some)))]
    places = slice(None) if chance.random() < 0.3 else chance.integers(0, other.size, int(chance.integers(1, 4)))
    with np.errstate(all="ignore"):
        other.reshape(-1)[places] = np.array(value).astype(other.dtype)
    return other, f"with {value}"


CHANGES: tuple[Callable[[Array, Chance], tuple[Array | None, str]], ...] = (
    resize, resize, reshape, retype, remove, revalue, revalue, revalue,
)  # fmt: skip


def change_place(case: Case, chance: Chance) -> Case:
    """An initializer as an input, or an input as an initializer."""
    name = str(chance.choice([name for name, array in case.inputs.items() if array is not None]))
    return replace(case, initializers=case.initializers ^ {name}, changes=(*case.changes, f"{name} placed elsewhere"))


def change_outputs(case: Case, chance: Chance) -> Case:
    place = int(chance.integers(len(case.outputs)))
    if len(case.outputs) == 1:
        return case
    outputs = tuple("" if i == place else name for i, name in enumerate(case.outputs))
    return replace(case, outputs=outputs, changes=(*case.changes, f"without {case.outputs[place]}"))


def changed(case: Case, chance: Chance) -> Case:
    """The case with one to three changes, attributes first of all."""
    for _ in range(int(chance.integers(1, 4))):
        change = chance.choice(4, p=[0.5, 0.4, 0.06, 0.04])
        case = (change_attribute, change_input, change_place, change_outputs)[int(change)](case, chance)
    return case
