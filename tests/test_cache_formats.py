"""Models whose keys and values are in half precision or int8: the same bits however a text is fed, near the model in
fp32, with and without the native library; and what bundles, recipes and options say of the format."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from conftest import Exported
from edgeblt.bundle.contract import STAGES
from edgeblt.bundle.manifest import open_bundle, read_manifest, write_manifest
from edgeblt.bundle.placement import describe_placement, parse_cache_formats
from edgeblt.decoding.speculation import NONE
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.inspection import inspect_bundle
from edgeblt.model import Model, load
from edgeblt.names import Name
from edgeblt.prepare import prepare
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.recipes.recipe import Recipe
from sampled import mostly_slow
from test_native import needs_library
from test_portable import ONE_OPERATOR, endless, random_sizes, results
from tiny_models import BLT_DRAFTS

FORMATS = ("fp16", "int8")
SEEDS = (10, ONE_OPERATOR)  # windows and grouped queries; layers that are one operator each
LENGTH = 300  # ids: windowed caches move their content twice
RECIPE = "".join(f'[{stage}]\nformat = "int8"\nblock_size = 32\n' for stage in STAGES)
MIXED = "patcher=fp16,encoder=int8,global=int8,decoder=fp16"
# Share of the largest logit. A rounded key or value is off by 2 ** -11, or a 214th of the largest of its head.
NEAR = {"fp16": 0.01, "int8": 0.2}


def written(exported: Exported, format: str, root: Path, recipe: str = RECIPE) -> Path:
    (root / "recipe.toml").write_text(recipe)
    path = root / f"bundle-{format}"
    return export_bundle(exported.checkpoint, path, root / "recipe.toml", kv_cache=format).path


@pytest.fixture(params=["native", "portable"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "portable":
        without_library(monkeypatch)


def without_library(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgeblt.runtime.native.register", lambda options: "the portable bodies are wanted")


@pytest.mark.parametrize(
    ("kernels", "seed", "format"),
    mostly_slow(
        itertools.product(("native", "portable"), SEEDS, FORMATS),
        keep=[("native", 10, "fp16"), ("native", ONE_OPERATOR, "int8"), ("portable", 10, "int8"),
              ("portable", ONE_OPERATOR, "fp16")],
    ),
    indirect=["kernels"],
)  # fmt: skip
def test_chunks_and_going_back_change_no_bit(
    seed: int, format: str, kernels: None, exported: Callable[[int], Exported], tmp_path: Path
) -> None:
    """Read ahead, in chunks of any size and after rollbacks, against the text read at once."""
    model, ids = load(written(exported(seed), format, tmp_path)), tiny_models.random_ids(seed, LENGTH)
    expected = results(model.session(), ids, endless(LENGTH))
    for sizes in (endless(1), random_sizes(seed, 17), random_sizes(seed, 170)):
        for found, whole in zip(results(model.session(), ids, sizes), expected, strict=True):
            assert found.tobytes() == whole.tobytes()
    assert model.is_exact


@pytest.fixture(scope="module")
def compact(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(written(exported(2), MIXED, tmp_path_factory.mktemp("compact")))


OPERATIONS = st.tuples(st.sampled_from(["feed", "feed", "rollback", "fork"]), st.integers(1, 12) | st.integers(1, 200))


@settings(max_examples=40)
@given(operations=st.lists(st.tuples(OPERATIONS, st.integers(0, 3)), min_size=2, max_size=12))
def test_any_operations_give_the_bits_of_the_whole(
    compact: Model, operations: list[tuple[tuple[str, int], int]]
) -> None:
    """Sessions, their forks and rollbacks, each on one text or on another that differs from id 100 on."""
    first, other = tiny_models.random_ids(1, LENGTH), tiny_models.random_ids(2, LENGTH)
    texts = [first, [*first[:100], *other[100:]]]
    expected = [compact.session().feed(text) for text in texts]
    tracks = [(compact.session(), 0)]
    for (kind, number), which in operations:
        session, text = tracks[which % len(tracks)]
        if kind == "feed":
            text = number % 2 if session.position <= 100 else text
            tracks[which % len(tracks)] = (session, text)
            rows = slice(session.position, min(session.position + number, LENGTH))
            if rows.start < rows.stop:
                np.testing.assert_array_equal(session.feed(texts[text][rows]), expected[text][rows])
        elif kind == "rollback":
            session.rollback(max(session.position - number, 0))
        else:
            tracks.append((session.fork(), text))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", SEEDS)
def test_near_the_model_in_fp32_with_and_without_the_library(
    seed: int, format: str, exported: Callable[[int], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 weights, so that nothing but keys and values is rounded; patches start alike, or more would differ."""
    ids = exported(seed).text(tiny_models.random_ids(seed, 60)).ids
    path = written(exported(seed), format, tmp_path, recipe="")
    exact = exported(seed).model.session().feed(ids)
    found = [load(path).session().feed(ids)]
    without_library(monkeypatch)
    found.append(load(path).session().feed(ids))
    for logits in found:
        difference = np.abs(logits - exact).max() / np.abs(exact).max()
        assert 0 < difference < NEAR[format]
    assert np.abs(found[0] - found[1]).max() < NEAR[format] * np.abs(exact).max()


@pytest.mark.parametrize("format", FORMATS)
def test_drafts_change_no_text(format: str, kernels: None, exported: Callable[[int], Exported], tmp_path: Path) -> None:
    model = load(written(exported(10), format, tmp_path))
    for seed in range(2):
        prompt = bytes(id - 4 for id in tiny_models.random_ids(seed, 100)[1:])
        expected = model.generate(prompt, 40, float(seed), seed=seed, draft=NONE)
        assert {model.generate(prompt, 40, float(seed), seed=seed, draft=Name(draft)) for draft in BLT_DRAFTS} == {
            expected
        }


def test_bytes_of_the_caches(exported: Callable[[int], Exported], tmp_path: Path) -> None:
    """Half of float32's, and a byte an element with one more a head and position."""
    paths = {format: written(exported(2), format, tmp_path) for format in ("fp32", *FORMATS)}
    sizes = {format: load(path).session().cache_bytes for format, path in paths.items()}
    for stage, contract in open_bundle(exported(2).bundle).manifest.contracts.items():
        assert contract.cache is not None
        width = contract.cache.head_dim
        assert sizes["fp16"][stage] * 2 == sizes["fp32"][stage]
        assert sizes["int8"][stage] * 4 * width == sizes["fp32"][stage] * (width + 1)


# What bundles, recipes and options say.


@pytest.mark.parametrize(
    ("written_format", "claimed"),
    mostly_slow(
        [("fp32", "fp16"), ("fp32", "global=int8"), ("fp16", "int8"), ("int8", "fp32")],
        keep=[("fp32", "global=int8"), ("int8", "fp32")],
    ),
)
def test_a_manifest_that_claims_another_format_is_refused(
    written_format: str, claimed: str, exported: Callable[[int], Exported], tmp_path: Path
) -> None:
    """Buffers are made as the manifest says, and kernels read them as the graph does."""
    path = written(exported(10), written_format, tmp_path)
    document = json.loads((path / "bundle.json").read_text())
    manifest = read_manifest(path / "bundle.json")
    assert document["kv_cache"] == written_format
    write_manifest(path, replace(manifest, kv_cache=claimed))
    with pytest.raises(EdgebltError, match="is no tensor that its configuration gives this stage"):
        open_bundle(path)
    write_manifest(path, replace(manifest, kv_cache="int3"))
    with pytest.raises(EdgebltError, match=r"kv_cache 'int3' is unknown; this version has fp32, fp16, int8; export"):
        open_bundle(path)


def test_the_option_overrides_the_recipe(exported: Callable[[int], Exported], tmp_path: Path) -> None:
    checkpoint = exported(10).checkpoint
    (tmp_path / "own.toml").write_text('kv_cache = "global=int8"\n')
    named = "patcher=fp32,encoder=fp32,global=int8,decoder=fp32"

    def format_of(name: str, source: Path, **options: str | Path) -> str:
        return export_bundle(source, tmp_path / name, **options).manifest.kv_cache  # type: ignore[arg-type]

    assert format_of("plain", checkpoint) == "fp32"
    assert format_of("recipe", checkpoint, recipe=tmp_path / "own.toml") == named
    assert format_of("option", checkpoint, recipe=tmp_path / "own.toml", kv_cache="fp16") == "fp16"
    quantized = quantize_checkpoint(checkpoint, tmp_path / "quantized", tmp_path / "own.toml")
    assert format_of("of-quantized", quantized) == named
    assert format_of("option-of-quantized", quantized, kv_cache="int8") == "int8"
    quantized = quantize_checkpoint(checkpoint, tmp_path / "chosen", tmp_path / "own.toml", kv_cache="fp16")
    assert format_of("of-chosen", quantized) == "fp16"
    assert format_of("cuda", checkpoint, target="global=cuda") == "patcher=fp32,encoder=fp32,global=fp16,decoder=fp32"
    assert inspect_bundle(open_bundle(tmp_path / "recipe")).description["keys and values"] == named


@pytest.mark.parametrize("text", ["int4", "", "fp16 ", "encoder=int4", "tail=int8", "global=int8,global=fp16"])
def test_unknown_formats_are_refused(text: str, exported: Callable[[int], Exported], tmp_path: Path) -> None:
    for refused in (
        lambda: Recipe("own", kv_cache=text),
        lambda: export_bundle(exported(10).checkpoint, tmp_path / "bundle", kv_cache=text),
        lambda: quantize_checkpoint(exported(10).checkpoint, tmp_path / "quantized", "fp16", kv_cache=text),
    ):
        with pytest.raises(EdgebltError, match="kv_cache "):
            refused()
    assert not (tmp_path / "bundle").exists() and not (tmp_path / "quantized").exists()


def test_formats_are_read_as_they_are_described() -> None:
    for text in ("fp32", "int8", "patcher=fp32,encoder=fp16,global=int8,decoder=fp16"):
        assert describe_placement(parse_cache_formats(text, STAGES)) == text


@needs_library
@pytest.mark.parametrize("format", FORMATS)
def test_packed_weights_beside_compact_caches(
    format: str, exported: Callable[[int], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prepare` compares results bit by bit; without the library it leaves stages with compact caches as they are."""
    path = written(exported(10), format, tmp_path, recipe="")
    assert any(outcome.bytes for outcome in prepare(path).stages)
    assert load(path).session().feed([1, 2, 3]).shape == (3, 260)
    without_library(monkeypatch)
    outcomes = prepare(path)
    assert outcomes.path is None and not any(outcome.bytes for outcome in outcomes.stages)
