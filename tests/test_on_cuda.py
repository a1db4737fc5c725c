"""Sessions on an NVIDIA GPU: as exact as float16 allows, however they are used. `make cuda` runs these.

How exact that is, the CPU says: it computes the same float16 graphs, and how far it comes from the reference is the
yardstick.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import tiny_models
from conftest import Exported, Text, export_oracle
from cuda_walk import SHAPES
from edgeblt.bundle.contract import STAGES
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import BOS
from edgeblt.model import Model, load, open_model
from edgeblt.node_providers import node_providers
from edgeblt.quant.recipes.recipe import PACKAGED, packaged_recipes
from edgeblt.runtime import cuda, native
from edgeblt.runtime.session import ROLLBACK_BYTES, Session
from edgeblt.runtime.state.device_array import DeviceArray

pytestmark = pytest.mark.cuda

# Windows and none, tied heads, a maximum patch length, a projection, k from 1 to 4, no patcher. No entropy of their
# texts is nearer to the threshold than MARGIN; float16 moved none by more than a third of its distance on the CPU.
SEEDS = (6, 8, 10, 16, 24, 29, 40, 47)
WINDOWS, NO_WINDOWS = 40, 16
MARGIN = 0.013  # nats
FORMAT_MARGIN = 0.009  # nats
LENGTH = 160  # ids: two pieces of a chunk, and more than any windowed cache keeps
TIMES = 4  # as far from the reference as the CPU at most: other orders of additions, other roundings
UNIT = 2.0**-10  # of float16: what one rounding of the largest logit may take


@dataclass(frozen=True)
class Tiny:
    """A tiny model exported for CUDA, and what transformers makes of `LENGTH` ids."""

    exported: Exported
    bundle: Path
    text: Text

    @functools.cached_property
    def model(self) -> Model:
        return load(self.bundle)  # where it was exported for

    @functools.cached_property
    def bound(self) -> float:
        return bound(self.text.logits, load(self.bundle, "cpu").session().feed(self.text.ids))

    def check(self, rows: slice, logits: NDArray[np.float32]) -> None:
        np.testing.assert_allclose(logits, self.text.logits[rows], rtol=0, atol=self.bound, err_msg=f"rows {rows}")

    def feed(self, session: Session, end: int) -> None:
        """The ids up to position `end`: logits and patch starts must be the reference's."""
        for chunk in session.run(self.text.ids[session.position : end]):
            rows = slice(chunk.position, chunk.position + len(chunk.logits))
            self.check(rows, chunk.logits)
            np.testing.assert_array_equal(chunk.patch_starts, self.text.patch_starts[rows], err_msg=f"rows {rows}")
        assert session.position == end


def bound(expected: NDArray[np.floating[Any]], on_host: NDArray[np.float32]) -> float:
    """How far logits may be from what is expected, given how far they are on the CPU."""
    return TIMES * max(largest(on_host - expected), UNIT * largest(expected))


def largest(values: NDArray[np.floating[Any]]) -> float:
    found = float(np.abs(values).max())
    assert np.isfinite(found)
    return found


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    try:
        cuda.require_cuda()
    except EdgebltError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tiny(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Tiny]:
    """By seed, made when it is first asked for."""

    @functools.cache
    def make(seed: int) -> Tiny:
        oracle, ids = (
            tiny_models.random_model(tiny_models.random_config(seed), seed),
            tiny_models.random_ids(seed, LENGTH),
        )
        assert tiny_models.separate_threshold(oracle, ids) > MARGIN
        root = tmp_path_factory.mktemp(f"cuda{seed}-")
        exported = export_oracle(oracle, root)
        return Tiny(exported, export_bundle(exported.checkpoint, root / "cuda", target="cuda").path, exported.text(ids))

    return make


@pytest.mark.parametrize("seed", SEEDS)
def test_a_whole_text_is_transformers(tiny: Callable[[int], Tiny], seed: int) -> None:
    tiny(seed).feed(tiny(seed).model.session(), LENGTH)


@pytest.mark.parametrize("size", [1, 2, 7, 33])
@pytest.mark.parametrize("seed", [WINDOWS, NO_WINDOWS])
def test_chunks_are_the_whole(tiny: Callable[[int], Tiny], seed: int, size: int) -> None:
    one, session = tiny(seed), tiny(seed).model.session()
    whole = one.model.session().feed(one.text.ids)
    for start in range(0, LENGTH, size):
        logits = session.feed(one.text.ids[start : start + size])
        np.testing.assert_allclose(logits, whole[start : start + size], rtol=0, atol=one.bound, err_msg=f"from {start}")


@pytest.mark.parametrize("seed", [WINDOWS, NO_WINDOWS])
def test_going_back(tiny: Callable[[int], Tiny], seed: int) -> None:
    """Within what the caches keep, and further, where the text is fed again."""
    for position, back in ((100, 1), (90, ROLLBACK_BYTES), (130, 100), (50, 50)):
        session = tiny(seed).model.session()
        tiny(seed).feed(session, position)
        session.rollback(position - back)
        tiny(seed).feed(session, position - back + 2)
        tiny(seed).feed(session, LENGTH)


def test_forks_are_independent(tiny: Callable[[int], Tiny]) -> None:
    one, session = tiny(WINDOWS), tiny(WINDOWS).model.session()
    one.feed(session, 70)
    fork = session.fork()
    fork.feed(tiny_models.random_ids(1000, 60)[1:])  # overwrites whatever the two should not share
    other = session.fork()
    one.feed(session, LENGTH)
    one.feed(other, LENGTH)


def test_state_stays_on_the_device(tiny: Callable[[int], Tiny]) -> None:
    one, session = tiny(WINDOWS), tiny(WINDOWS).model.session()
    one.feed(session, 100)
    session.rollback(95)
    for each in (session, session.fork()):
        assert each.state.caches.keys() == {*STAGES}
        assert all(isinstance(array, DeviceArray) for array in each.state.stage_arrays)


@pytest.mark.parametrize("seed", SEEDS)
def test_only_shapes_run_on_the_cpu(tiny: Callable[[int], Tiny], seed: int) -> None:
    parts = node_providers(tiny(seed).model)
    assert {part.stage for part in parts if part.provider == cuda.PROVIDER} == {*STAGES}
    elsewhere = [part.operators for part in parts if part.provider != cuda.PROVIDER]
    assert {operator for operators in elsewhere for operator in operators} <= SHAPES


@pytest.mark.parametrize(
    "placement", ["patcher=cpu", "global=cpu", "encoder=cpu", "decoder=cpu", "patcher=cpu,encoder=cpu,decoder=cpu"]
)
def test_stages_on_both(tiny: Callable[[int], Tiny], placement: str) -> None:
    one = tiny(WINDOWS)
    model = open_model(one.bundle, placement)
    assert {stage for stage, place in model.placement.items() if place == "cpu"} == {
        part.partition("=")[0] for part in placement.split(",")
    }
    session = model.session()
    for end in (1, 2, 40, LENGTH):
        one.feed(session, end)
    session.rollback(LENGTH - 20)
    one.feed(session, LENGTH)


@pytest.mark.parametrize("target", ["global=cuda", "patcher=cuda,decoder=cuda"])
def test_stages_exported_for_both(tiny: Callable[[int], Tiny], target: str, tmp_path: Path) -> None:
    one = tiny(WINDOWS)
    mixed = Tiny(one.exported, export_bundle(one.exported.checkpoint, tmp_path / "mixed", target=target).path, one.text)
    session = mixed.model.session()
    for end in (1, 2, 40, LENGTH):
        mixed.feed(session, end)


@pytest.mark.parametrize("recipe", packaged_recipes())
@pytest.mark.usefixtures("products_in_float32")
def test_formats(tiny: Callable[[int], Tiny], recipe: str, tmp_path: Path) -> None:
    """The expected: a bundle for the cpu of the same weights, its products in float32."""
    one, own = tiny(WINDOWS), tmp_path / f"{recipe}.toml"
    text = (PACKAGED / f"{recipe}.toml").read_text(encoding="utf-8")  # without what needs a calibration text
    text = text.replace('method = "gptq"', "").replace("sparsity =", 'pruning = "magnitude"\nsparsity =')
    own.write_text(text, encoding="utf-8")
    bundles = {
        target: export_bundle(one.exported.checkpoint, tmp_path / target, own, target).path
        for target in ("cpu", "cuda")
    }
    threshold = decided_threshold(load(bundles["cpu"]), one.text.ids)
    exact, on_host, on_gpu = (
        open_model(bundles[target], provider, threshold=threshold).session()
        for target, provider in (("cpu", "cpu"), ("cuda", "cpu"), ("cuda", "cuda"))
    )
    expected = exact.feed(one.text.ids)
    allowed = bound(expected, on_host.feed(one.text.ids))
    np.testing.assert_allclose(on_gpu.feed(one.text.ids[:100]), expected[:100], rtol=0, atol=allowed)
    for row in range(100, LENGTH):
        np.testing.assert_allclose(on_gpu.feed(one.text.ids[row : row + 1])[0], expected[row], rtol=0, atol=allowed)
    assert on_gpu.patch_count == exact.patch_count


def decided_threshold(model: Model, ids: Sequence[int] | NDArray[np.int64]) -> float:
    """In the middle of the widest gap between the entropies after `ids`, of those in the middle half."""
    entropies = np.sort(np.concatenate([chunk.entropies.copy() for chunk in model.session().run(ids)])[1:])
    middle = entropies[len(entropies) // 4 : 3 * len(entropies) // 4]
    widest = int(np.diff(middle).argmax())
    assert middle[widest + 1] - middle[widest] > 2 * FORMAT_MARGIN
    return float(middle[widest] + middle[widest + 1]) / 2


def test_native_patching_is_the_portable_one(tiny: Callable[[int], Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := native.register_cuda(onnxruntime.SessionOptions()):
        pytest.skip(reason)
    one, chunks = tiny(WINDOWS), {}
    for name in ("native", "portable"):
        if name == "portable":
            monkeypatch.setattr(
                "edgeblt.runtime.native.register_cuda", lambda options: "the portable bodies are wanted"
            )
        model = load(one.bundle, "cuda")
        operators = {
            operator for part in node_providers(model) if part.stage == "patcher" for operator in part.operators
        }
        assert ("EntropyPatch" in operators) == (name == "native")
        session = model.session()
        parts = [one.text.ids[:100], *np.split(one.text.ids[100:], LENGTH - 100)]
        chunks[name] = [chunk for part in parts for chunk in map(copied, session.run(part))]
    for (entropies, starts), (portable_entropies, portable_starts) in zip(*chunks.values(), strict=True):
        np.testing.assert_allclose(entropies, portable_entropies, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(starts, portable_starts)


def copied(chunk: object) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return chunk.entropies.copy(), chunk.patch_starts.copy()  # type: ignore[attr-defined]


def test_a_text_of_many_windows(tmp_path: Path) -> None:
    """Patches end by their maximum length alone, so that no rounding decides about one."""
    oracle, ids = tiny_models.random_model(tiny_models.random_config(WINDOWS), WINDOWS), tiny_models.random_ids(3, 1500)
    assert oracle.config.max_patch_length and oracle.config.local_attention_window_len < 30
    oracle.config.patching_threshold = 100.0
    exported = export_oracle(oracle, tmp_path)
    bundle = export_bundle(exported.checkpoint, tmp_path / "cuda", target="cuda").path
    expected = exported.reference.row(np.array(ids)).logits
    allowed = bound(expected, load(bundle, "cpu").session().feed(ids))
    session = load(bundle, "cuda").session()
    np.testing.assert_allclose(session.feed(ids[:1450]), expected[:1450], rtol=0, atol=allowed)
    for row in range(1450, len(ids)):
        np.testing.assert_allclose(session.feed(ids[row : row + 1])[0], expected[row], rtol=0, atol=allowed)
    session.rollback(1200)
    np.testing.assert_allclose(session.feed(ids[1200:]), expected[1200:], rtol=0, atol=allowed)


def test_two_sessions_at_once(tiny: Callable[[int], Tiny]) -> None:
    """Of one model, each in a thread of its own, in steps that meet each other."""
    one = tiny(WINDOWS)

    def feed(step: int) -> None:
        session = one.model.session()
        for end in (*range(1, LENGTH, step), LENGTH):
            one.feed(session, end)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(feed, (1, 3, 2)))


@pytest.mark.parametrize("ids", [[260], [-1], [5, 1 << 40]])
def test_ids_out_of_range_are_refused(tiny: Callable[[int], Tiny], ids: list[int]) -> None:
    one, session = tiny(WINDOWS), tiny(WINDOWS).model.session()
    one.feed(session, 30)
    with pytest.raises(EdgebltError, match=r"ids must lie in 0\.\.259"):
        session.feed(ids)
    one.feed(session, 60)


def test_generating_is_reproducible(tiny: Callable[[int], Tiny]) -> None:
    model = tiny(WINDOWS).model
    for settings in ({"temperature": 0.0}, {"temperature": 0.8, "seed": 5}):
        first, again = (model.generate(b"once", 40, **settings) for _ in range(2))  # type: ignore[arg-type]
        assert first == again


def test_memory_is_given_back(tiny: Callable[[int], Tiny]) -> None:
    """A hundred sessions take no more than the arena keeps for a few."""
    model, ids = tiny(WINDOWS).model, [BOS, *range(70, 110)]

    def feed(count: int) -> int:
        for _ in range(count):
            model.session().feed(ids)
        return cuda.gpu_memory().used

    before = feed(5)
    assert feed(100) - before < 8 << 20
