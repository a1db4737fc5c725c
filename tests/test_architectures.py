"""Architectures as folders: the one that was first is as it was, and docs/architectures.md adds another."""

import json
import re
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

import edgeblt
import tiny_models
from checkpoint_oracle import assert_one_sentence
from edgeblt.bundle import architectures
from edgeblt.bundle.contract import STAGES, stage_contracts
from edgeblt.bundle.manifest import checksum, open_bundle
from edgeblt.errors import EdgebltError
from edgeblt.export import architectures as workbench
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.checkpoints.recipe_source import RecipeSource
from edgeblt.export.export_bundle import build_graphs, export_bundle
from edgeblt.export.graphs import layers, sparse_weights
from edgeblt.export.graphs.decoder import decoder_graph
from edgeblt.export.graphs.encoder import encoder_graph
from edgeblt.export.graphs.global_transformer import global_graph
from edgeblt.export.graphs.patcher import patcher_graph
from edgeblt.export.inspection import inspect_checkpoint
from edgeblt.export.reference import validate_against
from edgeblt.ids import BOS, OFFSET, encode
from edgeblt.measure.reference import Text
from edgeblt.quant.recipes.recipe import load_recipe
from edgeblt.runtime.session import Session

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_the_seam_changes_nothing_of_a_blt(tmp_path: Path, recipe: str) -> None:
    """Graphs are those of the stages' own functions, and a bundle names no architecture."""
    model = tiny_models.random_model(tiny_models.random_config(5), 5)
    checkpoint = open_checkpoint(tiny_models.save_model(model, tmp_path / "checkpoint"))
    source, makers = RecipeSource(checkpoint, load_recipe(recipe)), (patcher_graph, encoder_graph, global_graph)
    contracts = stage_contracts(checkpoint.config)
    built = build_graphs(source)
    assert list(built) == list(STAGES)
    for stage, make in zip(STAGES, (*makers, decoder_graph), strict=True):
        alone, found = make(source, contracts[stage]), built[stage]
        assert ir.to_proto(alone.model).SerializeToString() == ir.to_proto(found.model).SerializeToString()
        assert alone.slots == found.slots
    bundle = export_bundle(checkpoint.path, tmp_path / "bundle", edgeblt.Name(recipe))
    assert list(json.loads((bundle.path / "bundle.json").read_text())) == [
        "format_version", "name", "target", "recipe", "kv_cache", "config", "stages", "files", "made_by", "checksum"
    ]  # fmt: skip
    assert isinstance(edgeblt.load(bundle.path).session(), Session)
    with edgeblt.load(bundle.path) as opened:
        assert type(opened.session()) is Session


@pytest.fixture
def lookback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the page as if its folders were there."""
    device, export = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, code in (("edgeblt.lookback", device), ("edgeblt.export.lookback", export)):
        module = types.ModuleType(f"{name}.architecture")
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, module.__name__, "exec"), module.__dict__)
    names = (*architectures.ARCHITECTURES, "lookback")
    monkeypatch.setattr(architectures, "ARCHITECTURES", names)
    monkeypatch.setattr(workbench, "ARCHITECTURES", names)


@pytest.mark.usefixtures("lookback")
def test_the_example_is_an_architecture(tmp_path: Path) -> None:
    checkpoint, generator = tmp_path / "checkpoint", torch.Generator().manual_seed(0)
    checkpoint.mkdir()
    tables = {f"lookback.{name}.embedding": torch.randn(256, 256, generator=generator) for name in ("now", "before")}
    save_file(tables, checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text('{"kind": "lookback"}')
    bundle = export_bundle(checkpoint, tmp_path / "bundle")
    assert open_bundle(bundle.path, verify=True).manifest.architecture == "lookback"
    data = b"a model of two bytes, and no more"
    with edgeblt.load(bundle.path) as model:
        (report,) = validate_against(checkpoint, [model], [Text("text", data)])
        assert report.max_abs_logit_difference == 0 and report.top1_agreement == 1
        session, ids = model.session(), np.concatenate([[BOS], encode(data)])
        whole = session.feed(ids)
        now, before = (tables[f"lookback.{name}.embedding"].numpy() for name in ("now", "before"))
        assert (whole[5, OFFSET:] == now[data[4]] + before[data[3]]).all()
        session.rollback(4)
        assert session.feed(ids[4:]).tobytes() == whole[4:].tobytes()
        assert len(model.generate("ab", max_new_bytes=8)) == 8
    export_bundle(checkpoint, tmp_path / "int8", edgeblt.Name("int8"))
    assert inspect_checkpoint(open_checkpoint(checkpoint)).description["width"] == "256"


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    model = tiny_models.random_model(tiny_models.random_config(5), 5)
    bundle = export_bundle(tiny_models.save_model(model, tmp_path / "checkpoint"), tmp_path / "bundle").path
    document = json.loads((bundle / "bundle.json").read_text())
    for name in ("rnn", "mambabyte", 7, "../blt"):
        changed = {key: value for key, value in document.items() if key != "checksum"} | {"architecture": name}
        (bundle / "bundle.json").write_text(json.dumps(changed | {"checksum": checksum(changed)}))
        with pytest.raises(EdgebltError) as caught:
            open_bundle(bundle)
        assert_one_sentence(str(caught.value))


@pytest.mark.parametrize("recipe", ["fp32", "sparse-int8"])
def test_a_portable_body_is_made_once_for_a_graph(recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Making that of sparse products for each of them took nearly all the time of building a graph."""
    made: Counter[str] = Counter()
    for module, name in ((sparse_weights, "sparse_matmul_function"), (layers, "window_attention_function")):
        monkeypatch.setattr(module, name, _counted(getattr(module, name), made))
    model = tiny_models.random_model(tiny_models.random_config(0), 0)
    checkpoint = open_checkpoint(tiny_models.save_model(model, tmp_path / "checkpoint"))
    graphs = build_graphs(RecipeSource(checkpoint, load_recipe(recipe))).values()
    expected = Counter(function.name for graph in graphs for function in graph.model.functions.values())
    assert made == {name: expected[name] for name in ("SparseMatMul", "WindowAttention") if expected[name]} != {}


def _counted(make: Callable[..., ir.Function], made: Counter[str]) -> Callable[..., ir.Function]:
    def counted(*arguments: Any, **named: Any) -> ir.Function:
        function = make(*arguments, **named)
        made[function.name] += 1
        return function

    return counted
