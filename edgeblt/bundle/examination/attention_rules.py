"""Shape rules for attention and for whole layers.

Kernels write into caches that the runtime allocated, so attention must use the stage's own caches, heads and rows.
"""

from collections.abc import Mapping, Sequence

from edgeblt.bundle.contract import (
    EDGEBLT,
    MICROSOFT,
    PATCHING_INPUTS,
    PLACE_INPUTS,
    PORTABLE,
    SEQUENCE_INPUTS,
    STATE_WIDTH,
    CacheSpec,
)
from edgeblt.bundle.examination import portable_rules
from edgeblt.bundle.examination.graph_step import ShapeRule, Step
from edgeblt.bundle.examination.product_rules import FLOATS, dense_weights
from edgeblt.bundle.examination.sizes import ONE, Shape, Size, fixed, written


def check_cache(step: Step, places: Sequence[int], with_spare_row: bool = False) -> CacheSpec:
    """The stage's cache. `places`: the inputs with past keys, past values, length, cosines and sines.

    `with_spare_row`: the chunk has one row more than the stage's, which takes the cache slot behind theirs.
    """
    cache = step.known.contract.cache
    if cache is None:
        raise step.wrong("attends in a stage without a cache")
    key, value = step.node.inputs[places[0]], step.node.inputs[places[1]]
    if key not in {f"past_key_{layer}" for layer in range(cache.layer_count)} or value != f"past_value_{key[9:]}":
        raise step.wrong("attends to something else than a layer's cache")
    if step.node.outputs[1:] != (f"present_{key[5:]}", f"present_{value[5:]}"):
        raise step.wrong("gives something else than that layer's cache")
    if not with_spare_row:
        step.expect_named(places[2], "total_length")
    elif step.node.inputs[places[2]] not in step.known.spare_lengths:
        raise step.wrong("reads something else than total_length + 1")
    for place, name in zip(places[3:], ("cosines", "sines"), strict=True):
        step.expect_named(place, name)
    if step.node.domain == EDGEBLT:
        for place, spec in enumerate(PLACE_INPUTS, start=len(step.node.inputs) - len(PLACE_INPUTS)):
            step.expect_named(place, spec.name)
    window = step.node.value("window" if step.node.domain == EDGEBLT else "local_window_size")
    if step.number("kv_num_heads") != cache.kv_head_count or window != (-1 if cache.window is None else cache.window):
        raise step.wrong("has other heads, or another window, than the configuration")
    return cache


def _attention(step: Step, places: Sequence[int], slot: int, batch: Shape, with_spare_row: bool = False) -> list[Shape]:
    cache = check_cache(step, places, with_spare_row)
    kv_heads, head_dim, past = cache.kv_head_count, cache.head_dim, step.shape(places[0])
    last_slots = {"total_length"} if with_spare_row else step.known.last_slots
    if step.node.inputs[slot] not in last_slots:
        raise step.wrong("reads something else than the last slot")
    heads = step.number("num_heads")
    rows = step.rows(0, (heads + 2 * kv_heads) * head_dim)
    if rows != (*batch, _chunk(step) + Size(int(with_spare_row))) or heads % kv_heads:
        raise step.wrong(f"attends for {written(rows)}")
    return [(*rows, Size(heads * head_dim)), past, past]


def _chunk(step: Step) -> Size:
    """The number of rows that the cache is extended by, which is that of the stage's first input."""
    return Size.named(str(step.known.contract.inputs[0].shape[0]))


def _window_attention(step: Step) -> list[Shape]:
    return _attention(step, (1, 2, 4, 5, 6), 3, ())


def _group_query_attention(step: Step) -> list[Shape]:
    if step.has(1) or step.has(2):
        raise step.wrong("has keys and values of their own")
    if step.known.contract.target == PORTABLE:
        return portable_rules.attention(step)
    if len(step.node.inputs) != 9:
        raise step.wrong("has a mask")
    with_spare_row = step.known.contract.target == "cpu"
    cache = step.known.contract.cache
    if cache is not None and cache.dtype != cache.angle_dtype:
        raise step.wrong("attends to keys and values of another type")
    return _attention(step, (3, 4, 6, 7, 8), 5, (ONE,), with_spare_row)


def _layer(step: Step) -> list[Shape]:
    cache = check_cache(step, (1, 2, 3, 4, 5))
    kv_heads, head_dim, past = cache.kv_head_count, cache.head_dim, step.shape(1)
    heads, width, attended = step.number("num_heads"), step.number("width"), step.number("attended")
    if attended != heads * head_dim or step.number("projected") != attended + 2 * kv_heads * head_dim:
        raise step.wrong("has heads of another size than its cache")
    rows = step.rows(0, width)
    if rows != (_chunk(step),) or heads % kv_heads:
        raise step.wrong(f"attends for {written(rows)}")
    for index in (6, 7):
        step.expect(index, fixed((width,)), FLOATS)
    between = step.number("intermediate")
    matrices = {"query": (step.number("projected"), width), "output": (width, attended), "gate": (between, width),
                "up": (between, width), "down": (width, between)}  # fmt: skip
    _side_by_side(step, 8, matrices)
    return [step.shape(0), past, past]


def _side_by_side(step: Step, first: int, matrices: Mapping[str, tuple[int, int]]) -> None:
    for index, (name, (rows, columns)) in enumerate(matrices.items()):
        places = [first + index + part * len(matrices) for part in range(3)]
        dense_weights(step, places, rows, columns, f"{name}_")


def _carried_width(step: Step, layer: int) -> Shape:
    """The width of carried rows, input 1, in which the layer's part of so many elements lies."""
    width = step.shape(1)[-1:]
    if not width or not width[0].is_constant or width[0].constant < step.number("offset") + layer:
        raise step.wrong("reads beyond a latent's row")
    step.expect(1, (*step.shape(1)[:1], *width))
    return width


def _latent_attention(step: Step) -> list[Shape]:
    heads, kv_heads, head_dim, vectors = _vector_heads(step)
    width = _carried_width(step, 2 * kv_heads * head_dim * vectors)
    step.expect(2, (*step.shape(2)[:1], *width))
    step.expect(3, step.rows(0, heads * head_dim))
    return [step.shape(0)]


def _cross_attention(step: Step) -> list[Shape]:
    heads, kv_heads, head_dim, vectors = _vector_heads(step)
    width, attended, projected = (step.number(name) for name in ("width", "attended", "projected"))
    if (attended, projected) != (heads * head_dim, 2 * kv_heads * head_dim):
        raise step.wrong("has heads of other sizes")
    layer = projected * vectors
    _carried_width(step, layer)
    latents = step.rows(2, vectors * width)
    step.expect(3, step.rows(0, width))
    for index in (4, 5):
        step.expect(index, fixed((width,)), FLOATS)
    _side_by_side(step, 6, {"query": (attended, width), "key": (projected, width), "output": (width, attended)})
    return [step.shape(0), (*latents, Size(layer))]


def _patch_attention(step: Step) -> list[Shape]:
    heads, kv_heads, head_dim, vectors = _vector_heads(step)
    rows, bytes = step.rows(0, heads * head_dim), step.rows(1, 2 * kv_heads * head_dim)
    step.expect(2, bytes)
    if len(step.shape(3)) != 1 or rows != (step.shape(3)[0].times(vectors),):
        raise step.wrong(f"attends for {written(rows)}")
    return [step.shape(0)]


def _vector_heads(step: Step) -> tuple[int, int, int, int]:
    """Heads, heads of keys, elements of a head, and vectors of a patch or latent."""
    heads, kv_heads = step.number("num_heads"), step.number("kv_num_heads")
    if heads % kv_heads:
        raise step.wrong(f"has {heads} heads for {kv_heads} of keys")
    return heads, kv_heads, step.number("head_dim"), step.number("vectors")


def _pooling(step: Step) -> list[Shape]:
    heads, kv_heads, head_dim, vectors = _vector_heads(step)
    width, pooled, attended, projected = (step.number(name) for name in ("width", "pooled", "attended", "projected"))
    if (pooled, attended, projected) != (vectors * width, heads * head_dim, 2 * kv_heads * head_dim):
        raise step.wrong("has heads or vectors of other sizes")
    step.expect(2, step.rows(0, width))
    step.expect(3, step.rows(1, width))
    step.expect_named(4, "patches")
    for index in (5, 6):
        step.expect(index, fixed((width,)), FLOATS)
    products = {"projection": (pooled, width), "query": (attended, width), "key": (projected, width),
                "output": (width, attended)}  # fmt: skip
    _side_by_side(step, 7, products)
    return [(Size.named("P"), Size(pooled))]


def _entropy_patch(step: Step) -> list[Shape]:
    logits = step.shape(0)
    rows = logits[:1]
    step.expect(0, (*rows, *logits[1:2]))
    step.expect(1, rows)
    if step.known.contract.target == PORTABLE:
        portable_rules.check_patching(step)
        return [rows, rows, (*rows, Size(STATE_WIDTH))]
    more = SEQUENCE_INPUTS if step.known.contract.target == "cpu" else ()
    for index, spec in enumerate((*PATCHING_INPUTS, *more)[2:], start=2):
        step.expect_named(index, spec.name)
    return [rows, rows, (*rows, Size(STATE_WIDTH))]


RULES: Mapping[tuple[str, str], ShapeRule] = {
    (EDGEBLT, "DenseCrossAttention"): _cross_attention,
    (EDGEBLT, "DenseLayer"): _layer,
    (EDGEBLT, "DensePooling"): _pooling,
    (EDGEBLT, "EntropyPatch"): _entropy_patch,
    (EDGEBLT, "LatentAttention"): _latent_attention,
    (EDGEBLT, "PatchAttention"): _patch_attention,
    (EDGEBLT, "WindowAttention"): _window_attention,
    (MICROSOFT, "GroupQueryAttention"): _group_query_attention,
}
