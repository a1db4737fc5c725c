"""Graphs for the target cuda, run on the CPU provider: their numbers, their operators, and what fits where.

The CPU provider has no float16 products: it widens and rounds around them, which is what float16 on a GPU does at
most. Bounds are float16's: its rounding error is 5e-4 of a value, and every layer adds some.
"""

import functools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import kernel_table
import tiny_models
from conftest import LONGEST, Exported
from edgeblt.bundle.contract import STAGES
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.model import Model, load, open_model
from edgeblt.runtime import providers
from edgeblt.runtime.session import ROLLBACK_BYTES, Session
from edgeblt.runtime.state.device_array import DeviceArray
from host_memory import HostMemory
from sampled import mostly_slow

SEEDS = [seed for seed, _ in tiny_models.seeded_configs()][::2]
IN_THE_SUITE = [seed for seed in tiny_models.VARIED_SEEDS if seed in SEEDS][::2]
LOGITS = 0.02  # of the largest reference logit; 0.01 was measured
ENTROPIES = 0.03  # nats; 0.014 was measured
CHUNKS = 5e-3  # of the largest logit, by how a text is cut; 1.5e-3 was measured

FORMATS = {
    "fp16": "",
    "int8 by row": 'format = "int8"',
    "int8 in 16": 'format = "int8"\nblock_size = 16\nsymmetric = true',
    "int8 in 256": 'format = "int8"\nblock_size = 256',
    "int4 in 32": 'format = "int4"',
    "int4 in 256": 'format = "int4"\nblock_size = 256\nsymmetric = true',
    "int4 half sparse": 'format = "int4"\nsymmetric = true\nsparsity = "50%"\npruning = "magnitude"',
    "int8 2:4": 'format = "int8"\nblock_size = 64\nsymmetric = true\nsparsity = "2:4"\npruning = "magnitude"',
    "nf4": 'format = "nf4"',
    "fp4": 'format = "fp4"',
}


@pytest.fixture(scope="module")
def for_cuda(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """By seed: that configuration exported for cuda."""
    return functools.cache(
        lambda seed: (
            export_bundle(
                exported(seed).checkpoint, tmp_path_factory.mktemp(f"cuda{seed}-") / "bundle", target="cuda"
            ).path
        )
    )


@pytest.fixture
def host_as_device(monkeypatch: pytest.MonkeyPatch) -> HostMemory:
    """Models opened meanwhile keep their state in memory that stands for a device's."""
    memory = HostMemory()
    monkeypatch.setattr("edgeblt.runtime.opening.memory_of", lambda provider: memory)
    monkeypatch.setattr("edgeblt.runtime.state.cache.DEVICE_SLACK", 40)  # so that caches move their content
    return memory


def read(session: Session, ids: list[int], sizes: Callable[[], int] = lambda: LONGEST) -> NDArray[np.float32]:
    """The logits of all ids, fed in chunks of these sizes."""
    logits, start = [], 0
    while start < len(ids):
        end = min(start + sizes(), len(ids))
        logits.append(session.feed(ids[start:end]))
        start = end
    return np.concatenate(logits)


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, IN_THE_SUITE))
def test_every_configuration_is_transformers_but_for_rounding(
    exported: Callable[[int], Exported], for_cuda: Callable[[int], Path], seed: int
) -> None:
    ids = tiny_models.random_ids(seed, LONGEST)
    text, model = exported(seed).text(ids), load(for_cuda(seed), "cpu")
    found = list(model.session().run(ids))
    largest = np.abs(text.logits).max()
    logits = np.concatenate([chunk.logits for chunk in found])
    np.testing.assert_allclose(logits, text.logits, rtol=0, atol=LOGITS * largest)
    np.testing.assert_array_equal(np.concatenate([chunk.patch_starts for chunk in found]), text.patch_starts)
    entropies = np.concatenate([chunk.entropies for chunk in found])
    np.testing.assert_allclose(entropies, text.entropies, rtol=0, atol=ENTROPIES)
    rng = random.Random(seed)
    pieces = read(model.session(), ids, lambda: rng.choice([1, 1, 2, 7, 30, 130]))
    np.testing.assert_allclose(pieces, logits, rtol=0, atol=CHUNKS * largest)


@pytest.mark.parametrize("seed", mostly_slow(SEEDS[::3], (0, 6, 12, 24)))
def test_state_on_a_device_changes_nothing(
    for_cuda: Callable[[int], Path], host_as_device: HostMemory, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same walk, forks and ways back included, with numpy's arrays and with a device's: the same results, but for
    rounding, as caches on a device move their content elsewhere in the text."""
    on_device = load(for_cuda(seed), "cpu")
    with monkeypatch.context() as patch:
        patch.setattr("edgeblt.runtime.opening.memory_of", lambda provider: None)
        on_host = load(for_cuda(seed), "cpu")
    ids, rng = tiny_models.random_ids(seed, LONGEST), random.Random(seed)
    sessions = [on_device.session(), on_host.session()]
    for session, kind in zip(sessions, (DeviceArray, np.ndarray), strict=True):
        assert all(isinstance(array, kind) for array in session.state.stage_arrays)
    for _ in range(25):
        start = sessions[0].position
        count = rng.choice([1, 1, 1, 2, 9, 60, 150, 300])
        first, second = (session.feed(ids[start : start + count]) for session in sessions)
        np.testing.assert_allclose(first, second, rtol=0, atol=CHUNKS * max(np.abs(first).max(initial=0), 1))
        step = rng.random()
        if step < 0.3 or sessions[0].position == LONGEST:
            back = rng.choice([1, 5, ROLLBACK_BYTES, rng.randrange(LONGEST)])
            for session in sessions:
                session.rollback(max(session.position - back, 0))
        elif step < 0.5:
            sessions = [session.fork() for session in sessions]
    assert host_as_device.copies > 25
    allocated = host_as_device.allocated
    del sessions, session  # their memory goes with them
    assert host_as_device.allocated < allocated


def test_state_is_bound_once(for_cuda: Callable[[int], Path], host_as_device: HostMemory) -> None:
    """Byte after byte nothing of the state is allocated or copied but the newest byte's vector and latent's row."""
    session = load(for_cuda(10), "cpu").session()
    ids = tiny_models.random_ids(10, 60)
    session.feed(ids[:40])
    for id in ids[40:44]:  # one whose patch ends and one whose does not have their buffers now
        session.feed([id])
    allocated, patches = host_as_device.allocated, session.patch_count
    for id in ids[44:]:
        before, known = host_as_device.copies, session.patch_count
        session.feed([id])
        assert host_as_device.copies - before <= 1 + 3 * (session.patch_count - known)
    assert session.patch_count > patches and host_as_device.allocated == allocated


@pytest.mark.parametrize(
    "name",
    mostly_slow(FORMATS, ("fp16", "int8 by row", "int4 half sparse", "nf4")),
)
def test_every_format_holds_the_weights_of_the_cpus(
    exported: Callable[[int], Exported],
    name: str,
    tmp_path: Path,
    products_in_float32: None,
) -> None:
    """Beside the bundle for the cpu, whose products round no inputs here: the same weights, but for float16."""
    recipe = tmp_path / "recipe.toml"
    parts = "".join(f"[{part}]\n{FORMATS[name]}\n" for part in ("patcher", "encoder", "global", "decoder"))
    tables = '[tables]\nformat = "int8"\nblock_size = 16\n' if "4" in name else ""
    recipe.write_text(parts + tables if FORMATS[name] else '[tables]\nformat = "fp16"')
    models = [
        load(export_bundle(exported(18).checkpoint, tmp_path / target, recipe, target).path, "cpu")
        for target in ("cpu", "cuda")
    ]
    ids = tiny_models.random_ids(18, 200)
    (expected, starts), (found, other_starts) = (
        (session.feed(ids), session.state.patch_starts) for session in (model.session() for model in models)
    )
    # Until an entropy is so near the threshold that rounding decides.
    differing = (min(pair) for pair in zip(starts, other_starts, strict=False) if len({*pair}) > 1)
    same = next(differing, len(ids)) - 1
    assert same > len(ids) / 4
    np.testing.assert_allclose(found[:same], expected[:same], rtol=0, atol=LOGITS * np.abs(expected).max())
    for stage in STAGES:
        assert kernel_table.unlisted(models[1].bundle.path / f"{stage}.onnx") == []


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, IN_THE_SUITE))
def test_cuda_has_a_kernel_for_every_node(for_cuda: Callable[[int], Path], seed: int) -> None:
    assert [kernel_table.unlisted(for_cuda(seed) / f"{stage}.onnx") for stage in STAGES] == [[]] * 4


def test_the_cpus_graphs_are_not_for_cuda(exported: Callable[[int], Exported]) -> None:
    """What the test before would find: hashes as int64 products, and attention in float32."""
    found = {line for stage in STAGES for line in kernel_table.unlisted(exported(10).bundle / f"{stage}.onnx")}
    assert any("MatMul" in line for line in found) and any("GroupQueryAttention" in line for line in found)


def test_what_computes_in_float32(for_cuda: Callable[[int], Path]) -> None:
    """Norms add up in float32 by their attribute; logits, entropies and all that decides about patches are float32."""
    patcher = onnx.load(for_cuda(10) / "patcher.onnx", load_external_data=False)
    types = {value.name: value.type.tensor_type.elem_type for value in [*patcher.graph.input, *patcher.graph.output]}
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    assert {types[name] for name in ("logits", "entropies", "state", "states", "threshold")} == {float32}
    assert {types[name] for name in ("past_key_0", "present_value_0", "cosines")} == {float16}
    norms = [node for node in patcher.graph.node if node.op_type == "SimplifiedLayerNormalization"]
    assert norms and all(attribute.i == 1 for n in norms for attribute in n.attribute if attribute.name == "stash_type")
    assert providers.CUDA_OPTIONS["enable_skip_layer_norm_strict_mode"] == "1"


@pytest.mark.parametrize("target", ["global=cuda", "patcher=cpu,encoder=cuda,global=cuda,decoder=cuda", "decoder=cuda"])
def test_targets_may_differ_by_stage(exported: Callable[[int], Exported], target: str, tmp_path: Path) -> None:
    tiny = exported(10)
    bundle = export_bundle(tiny.checkpoint, tmp_path / "bundle", target=target)
    assert {stage for stage, name in bundle.manifest.targets.items() if name == "cuda"} == {
        part.partition("=")[0] for part in target.split(",") if part.endswith("=cuda")
    }
    ids = tiny_models.random_ids(10, LONGEST)
    text = tiny.text(ids)
    logits = read(load(bundle.path, "cpu").session(), ids)
    np.testing.assert_allclose(logits, text.logits, rtol=0, atol=LOGITS * np.abs(text.logits).max())


def test_what_is_stored(exported: Callable[[int], Exported], tmp_path: Path) -> None:
    """Half the bytes without a recipe; one of fp32 is stored as fp16 too, and says so."""
    tiny = exported(10)
    bundle = export_bundle(tiny.checkpoint, tmp_path / "bundle", target="cuda")
    assert (bundle.manifest.target, bundle.manifest.recipe) == ("cuda", "fp16")
    weights = {path.name: path.stat().st_size for path in tiny.bundle.iterdir() if path.suffix == ".weights"}
    halves = {name: bundle.manifest.files[name].size for name in weights}
    assert 0.4 < sum(halves.values()) / sum(weights.values()) < 0.6
    full = export_bundle(tiny.checkpoint, tmp_path / "full", "fp32", "cuda")
    assert {entry.weight_format.replace("tables ", "") for entry in full.manifest.stages.values()} <= {
        "fp16",
        "fp16; fp16",
    }
    assert [full.manifest.files[name].sha256 for name in weights] == [
        bundle.manifest.files[name].sha256 for name in weights
    ]


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    oracle = tiny_models.random_model(tiny_models.random_config(10), 10)
    oracle.model.patcher.norm.weight.data[0] = 1e5
    checkpoint = tiny_models.save_model(oracle, tmp_path / "checkpoint")
    with pytest.raises(EdgebltError) as raised:
        export_bundle(checkpoint, tmp_path / "bundle", "fp32", "cuda")
    assert str(raised.value) == "patcher.norm holds values too large for float16; export it for the target cpu"
    assert not (tmp_path / "bundle").exists()


def test_a_stage_runs_where_it_was_exported_for(exported: Callable[[int], Exported]) -> None:
    bundle = exported(10).bundle
    for provider in ("cuda", "global=cuda"):
        stage = "patcher" if provider == "cuda" else "global"
        with pytest.raises(EdgebltError) as raised:
            open_model(bundle, provider)
        assert str(raised.value) == (
            f"the stage {stage} of {bundle} was exported for the cpu, not for cuda; export the checkpoint again with"
            " --target cuda"
        )


def test_where_it_runs_by_default(for_cuda: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was exported for; and without CUDA that is an error, not the CPU."""
    seen: list[str | None] = []

    def refused() -> None:
        seen.append("asked")
        raise EdgebltError("there is no CUDA here")

    monkeypatch.setattr("edgeblt.runtime.cuda.require_cuda", refused)
    with pytest.raises(EdgebltError, match="there is no CUDA here"):
        load(for_cuda(10))
    with pytest.raises(EdgebltError, match="there is no CUDA here"):
        open_model(for_cuda(10), "patcher=cpu")
    assert seen and load(for_cuda(10), "cpu").provider_name == "cpu"


def test_drafts_are_not_chosen_where_rounding_depends_on_them(
    for_cuda: Callable[[int], Path], host_as_device: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Model = load(for_cuda(10), "cpu")
    assert "ngram" in model.draft_statistics("auto").names
    other = load(for_cuda(10), "cpu")
    monkeypatch.setattr(Model, "is_on_host", False)
    assert not other.draft_statistics("auto").names and other.draft_statistics("ngram").names == ("ngram",)
    assert other.generate(b"ab", 20, draft="auto") == other.generate(b"ab", 20, draft="none")
