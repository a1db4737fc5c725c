"""The portable graph, as the client on docs/portable.md runs it, and as models of this package do."""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import tiny_models
from conftest import LONGEST, PROMISED, Exported
from edgeblt.bundle.manifest import MANIFEST
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.graphs.portable import files
from edgeblt.model import Model, load
from edgeblt.runtime.session import Session
from graph_mutations import seal, write_sealed
from sampled import mostly_slow
from tiny_bundles import RECIPES, whole_layers

SEEDS = range(40)
IN_THE_SUITE = 6  # the others are slow
CHUNKS = (1, 1, 1, 2, 3, 7, 20, 64, 150)
PAGE = Path(__file__).parents[1] / "docs" / "portable.md"
Results = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]


def client() -> Any:
    """The class of the client that the page prints."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(code, names)
    return names["Text"]


def portable(exported: Exported, root: Path, **options: Any) -> Path:
    return export_bundle(exported.checkpoint, root / "portable", target="portable", **options).path


def cuts(rng: random.Random, count: int) -> Iterator[slice]:
    start = 0
    while start < count:
        end = min(start + rng.choice(CHUNKS), count)
        yield slice(start, end)
        start = end


def fed(feed: Callable[[NDArray[np.int64]], Results], ids: NDArray[np.int64], rng: random.Random) -> Results:
    """Results of all ids, fed in pieces."""
    parts = [feed(ids[cut]) for cut in cuts(rng, len(ids))]
    logits, entropies, starts = (np.concatenate(part) for part in zip(*parts, strict=True))
    return logits, entropies, starts


def run(session: Session, ids: NDArray[np.int64]) -> Results:
    chunks = [(chunk.logits.copy(), chunk.entropies.copy(), chunk.patch_starts.copy()) for chunk in session.run(ids)]
    logits, entropies, starts = (np.concatenate(part) for part in zip(*chunks, strict=True))
    return logits, entropies, starts


def assert_same(found: Results, expected: Results, tolerance: float) -> None:
    np.testing.assert_array_equal(found[2], expected[2])
    for got, wanted in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max()) + 1e-7)


@pytest.mark.parametrize(
    "seed", [seed if seed < IN_THE_SUITE else pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS]
)
def test_it_equals_a_session_in_any_chunking(exported: Callable[[int], Exported], seed: int, tmp_path: Path) -> None:
    """As a client runs it, with no library of ours, and as a model of this package."""
    ids, rng = np.array(tiny_models.random_ids(seed, LONGEST)), random.Random(seed)
    expected = run(exported(seed).model.session(), ids)
    bundle = portable(exported(seed), tmp_path)
    text = client()(bundle / "model.onnx")
    assert_same(fed(text.run, ids, rng), expected, PROMISED)
    with load(bundle) as model:
        session = model.session()
        assert_same(fed(lambda piece: run(session, piece), ids, rng), expected, PROMISED)
        assert session.position == LONGEST and session.patch_count == np.count_nonzero(expected[2])


@pytest.mark.parametrize("recipe", mostly_slow([name for name in RECIPES if name != "fp32"], ("int8", "int4", "mask")))
@pytest.mark.usefixtures("products_in_float32")
def test_quantized_weights_are_the_same_numbers(recipe: str, tmp_path: Path) -> None:
    """Products whose inputs are not rounded, as in a browser, agree as closely as float32 weights do."""
    checkpoint = tiny_models.save_model(tiny_models.random_model(whole_layers(), 1), tmp_path / "checkpoint")
    (tmp_path / "recipe.toml").write_text(RECIPES[recipe])
    own = export_bundle(checkpoint, tmp_path / "own", tmp_path / "recipe.toml")
    bundle = export_bundle(checkpoint, tmp_path / "portable", tmp_path / "recipe.toml", "portable")
    ids = np.array(tiny_models.random_ids(3, 200))
    with load(own.path) as model:
        expected = run(model.session(), ids)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    text = client()(bundle.path / "model.onnx", options)
    assert_same(fed(text.run, ids, random.Random(1)), expected, PROMISED)


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_rounded_inputs_change_little(recipe: str, tmp_path: Path) -> None:
    checkpoint = tiny_models.save_model(tiny_models.random_model(whole_layers(), 1), tmp_path / "checkpoint")
    (tmp_path / "recipe.toml").write_text(RECIPES[recipe])
    own = export_bundle(checkpoint, tmp_path / "own", tmp_path / "recipe.toml")
    bundle = export_bundle(checkpoint, tmp_path / "portable", tmp_path / "recipe.toml", "portable")
    ids = np.array(tiny_models.random_ids(3, 200))
    with load(own.path) as model, load(bundle.path) as other:
        expected, found = run(model.session(), ids), run(other.session(), ids)
    assert np.mean(expected[2] == found[2]) > 0.98
    assert np.abs(expected[1] - found[1]).max() < 0.1


def test_only_standard_operators_are_computed(exported: Callable[[int], Exported], tmp_path: Path) -> None:
    model = onnx.load(portable(exported(10), tmp_path) / "model.onnx", load_external_data=False)
    own = {(function.domain, function.name) for function in model.functions}

    def nodes(graph: Any) -> Iterator[Any]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from nodes(attribute.g)

    used = list(nodes(model.graph)) + [node for function in model.functions for node in function.node]
    assert {node.domain for node in used if (node.domain, node.op_type) not in own} <= {"", "com.microsoft"}


def test_the_page_describes_the_state(exported: Callable[[int], Exported], tmp_path: Path) -> None:
    """Everything the metadata say is so; all of it is zeros of the shapes that the inputs declare."""
    bundle = portable(exported(10), tmp_path)
    graph = onnxruntime.InferenceSession(bundle / "model.onnx")
    document = json.loads(graph.get_modelmeta().custom_metadata_map["edgeblt"])
    assert document == json.loads((bundle / MANIFEST).read_text())["portable"]
    inputs = {value.name: value for value in graph.get_inputs()}
    assert inputs.pop("ids").shape == [1, "T"]
    assert inputs.keys() == document["state"].keys()
    for name, state in document["state"].items():
        assert [size if isinstance(size, int) else 1 for size in inputs[name].shape] == state["shape"]
        assert any(isinstance(size, str) for size in inputs[name].shape) == state["grows"]
        written = re.sub(r"\.\d+$", ".0", name)
        assert f"`{written}`" in PAGE.read_text(), name
    outputs = [value.name for value in graph.get_outputs()]
    assert outputs == ["logits", "entropies", "patch_starts", *(f"next.{name}" for name in inputs)]
    assert (document["bos"], document["byte_offset"], document["ends"]) == (1, 4, [2])


@pytest.fixture(scope="module")
def model(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(portable(exported(10), tmp_path_factory.mktemp("portable"), embed=True)) as opened:
        yield opened


def test_weights_may_lie_in_the_file(exported: Callable[[int], Exported], model: Model) -> None:
    assert sorted(path.name for path in model.bundle.path.iterdir()) == ["README.md", MANIFEST, "model.onnx"]
    ids = np.array(tiny_models.random_ids(5, 100))
    assert_same(run(model.session(), ids), run(exported(10).model.session(), ids), PROMISED)


def test_sessions_go_back_and_fork(model: Model) -> None:
    ids = np.array(tiny_models.random_ids(6, 120))
    expected = model.session().feed(ids)
    session = model.session()
    session.feed(ids[:60])
    session.feed(ids[60:70])
    other = session.fork()
    for position in (60, 33, 0):
        session.rollback(position)
        assert session.position == position
        np.testing.assert_allclose(session.feed(ids[position:70]), expected[position:70], atol=1e-4)
        np.testing.assert_array_equal(session.ids, ids[:70])
    np.testing.assert_allclose(other.feed(ids[70:]), expected[70:], atol=1e-4)


def test_texts_are_those_of_other_bundles(exported: Callable[[int], Exported], model: Model) -> None:
    own = exported(10).model
    assert model.generate(b"Once", 40, draft="none") == own.generate(b"Once", 40, draft="none")
    assert model.generate(b"Once", 40, temperature=0.8, seed=3) == own.generate(b"Once", 40, temperature=0.8, seed=3)
    assert model.generate_batch([b"Once", b"Twice"], max_new_bytes=20) == [
        model.generate(b"Once", 20), model.generate(b"Twice", 20)
    ]  # fmt: skip
    np.testing.assert_allclose(model.score(b"To be").logprobs, own.score(b"To be").logprobs, atol=1e-4)


def test_a_threshold_changes_patches(exported: Callable[[int], Exported], model: Model) -> None:
    if not model.config.patching.rule.needs_entropies:
        pytest.skip("this configuration has no threshold")
    ids = np.array(tiny_models.random_ids(7, 100))
    threshold = model.config.patching.threshold + 0.3
    found = run(model.with_threshold(threshold).session(), ids)
    np.testing.assert_array_equal(found[2], run(exported(10).model.with_threshold(threshold).session(), ids)[2])


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda model: model.generate(b"a", 2, draft="ngram"), "cannot draft"),
        (lambda model: model.session().save("state"), "cannot save a session"),
        (lambda model: model.session().read_ahead([5]), "cannot draft"),
        (lambda model: load(model.bundle.path, "cuda"), "runs on the cpu"),
        (lambda model: export_bundle("checkpoint", "bundle", embed=True), "embed"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(model: Model, use: Callable[[Model], object], sentence: str) -> None:
    with pytest.raises(EdgebltError, match=sentence):
        use(model)


def test_too_many_weights_are_not_embedded(
    exported: Callable[[int], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_FILE", 1000)
    with pytest.raises(EdgebltError, match="export without --embed"):
        portable(exported(10), tmp_path, embed=True)
    assert not list(tmp_path.iterdir())


def test_weights_beside_the_graph_may_be_large(exported: Callable[[int], Exported], tmp_path: Path) -> None:
    """Beyond 4 GB of a file, which is sparse here, they are read as well."""
    near = portable(exported(10), tmp_path)
    far, beyond = tmp_path / "far", 1 << 32
    far.mkdir()
    model = onnx.load(near / "model.onnx", load_external_data=False)
    for graph in (model.graph, *branches(model.graph)):
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "offset":
                    entry.value = str(int(entry.value) + beyond)
    onnx.save(model, far / "model.onnx")
    with (far / "model.weights").open("wb") as file:
        file.seek(beyond)
        file.write((near / "model.weights").read_bytes())
    ids = np.array(tiny_models.random_ids(10, 50))
    first, second = (client()(path / "model.onnx").run(ids) for path in (near, far))
    assert_same(first, second, 0)


def branches(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from branches(attribute.g)


def _constant(op_type: str, index: int, value: int) -> Callable[[Any, dict[str, Any]], None]:
    """Another number as this input of a node."""

    def change(model: Any, _: dict[str, Any]) -> None:
        node = next(node for node in model.graph.node if node.op_type == op_type)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), "other"))
        node.input[index] = "other"

    return change


def _other_input(op_type: str, index: int, name: str) -> Callable[[Any, dict[str, Any]], None]:
    def change(model: Any, _: dict[str, Any]) -> None:
        next(node for node in model.graph.node if node.op_type == op_type).input[index] = name

    return change


def _metadata(model: Any, _: dict[str, Any]) -> None:
    model.metadata_props[0].value += " "


def _more_metadata(model: Any, _: dict[str, Any]) -> None:
    model.metadata_props.add(key="other", value="1")


def _manifest(_: Any, document: dict[str, Any]) -> None:
    document["portable"]["state"]["position"]["shape"] = [1 << 30]


def _no_document(_: Any, document: dict[str, Any]) -> None:
    del document["portable"]


def _wide_window(_: Any, document: dict[str, Any]) -> None:
    document["config"]["encoder"]["window"] = 1 << 30


HOSTILE = (
    (_metadata, "metadata"),
    (_more_metadata, "metadata"),
    (_manifest, "another portable file"),
    (_no_document, "another portable file"),
    (_wide_window, "another portable file"),
    (_constant("EntropyPatch", 7, 0), "has patches"),
    (_constant("EntropyPatch", 6, -1), "has patches"),
    (_other_input("GroupQueryAttention", 3, "global.keys.0"), "GroupQueryAttention"),
    (_other_input("GroupQueryAttention", 6, "position"), "reads something else"),
    (_other_input("OpenVectors", 2, "recent_ids"), "OpenVectors"),
)


@pytest.mark.parametrize(("change", "sentence"), HOSTILE)
def test_hostile_files_are_refused(
    model: Model, change: Callable[[Any, dict[str, Any]], None], sentence: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(model.bundle.path, bundle)
    graph = onnx.load(bundle / "model.onnx")
    document = json.loads((bundle / MANIFEST).read_text())
    change(graph, document)
    onnx.save(graph, bundle / "model.onnx")
    write_sealed(bundle / MANIFEST, document)
    seal(bundle)
    with pytest.raises(EdgebltError, match=sentence):
        load(bundle)
