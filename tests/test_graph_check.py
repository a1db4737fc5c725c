"""What is refused before ONNX Runtime opens it: the graphs that ended the process, hung it, or read files unseen."""

import dataclasses
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import tiny_models
from checkpoint_oracle import assert_one_sentence
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.bundle.contract import (
    CACHE_FORMATS,
    PORTABLE,
    STAGES,
    TARGETS,
    CacheFormat,
    GraphName,
    StageContract,
    StageName,
    Target,
    stage_contracts,
)
from edgeblt.bundle.examination import operators
from edgeblt.bundle.examination.function_digest import digest
from edgeblt.bundle.examination.graph_check import check_graph
from edgeblt.bundle.examination.onnx_graph import parse_model
from edgeblt.bundle.manifest import Bundle, open_bundle
from edgeblt.bundle.portable.contract import portable_contract
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.checkpoints.recipe_source import RecipeSource
from edgeblt.export.export_bundle import build_graphs
from edgeblt.export.graphs.portable.whole_graph import portable_graph
from edgeblt.mambabyte.config import MambaByteConfig
from edgeblt.mambabyte.contract import mambabyte_contracts
from edgeblt.overencoded.config import OverEncodedConfig
from edgeblt.overencoded.contract import overencoded_contracts
from edgeblt.quant.recipes.recipe import load_recipe
from graph_mutations import change_graph, seal
from mambabyte_models import random_weights, write_mambabyte
from overencoded_models import random_overencoded
from tiny_bundles import RECIPES, whole_layers

Change = Callable[[Any], object]
# By recipe, target and stage.
Graphs = dict[tuple[str, Target, CacheFormat, GraphName], tuple[bytes, StageContract]]
# The number of a configuration in `tiny_models`; None is `whole_layers`.
SEEDS = {
    "fp32": 2,
    "fp16": 7,
    "int8": 10,
    "int4": 5,
    "nf4": 15,
    "tiles": 20,
    "wide-tiles": 0,
    "mask": 3,
    "layers": None,
}


def check(bundle: Bundle, stage: StageName, content: bytes, packed: bool = False) -> None:
    entry = bundle.manifest.stages[stage]
    sizes = {name: bundle.manifest.files[name].size for name in entry.weights}
    contract = stage_contracts(bundle.manifest.config, bundle.manifest.targets)[stage]
    check_graph(content, bundle.path / entry.graph, sizes, "export again", packed, contract)


def refusal(bundle: Bundle, stage: StageName, content: bytes) -> str:
    with pytest.raises(EdgebltError) as caught:
        check(bundle, stage, content)
    assert_one_sentence(str(caught.value))
    said = str(caught.value)
    assert said.startswith(f"{bundle.path / stage}.onnx is no graph that edgeblt writes: ")
    assert said.endswith("; export again")
    return said


@pytest.fixture
def fp32(tiny_bundle: tuple[Path, Path]) -> Bundle:
    return open_bundle(tiny_bundle[1])


def model_of(bundle: Bundle, stage: str) -> Any:
    return onnx.load(bundle.path / f"{stage}.onnx", load_external_data=False)


# The table is what the exporter writes, no more and no less.


def written(root: Path) -> Graphs:
    """Graphs of models of every kind, as they would be written, with their contracts; no weight is read."""
    found: Graphs = {}
    rules = [PatchingRule(rule, 1.5, 0.3, 5 if rule % 2 else None, 3) for rule in Rule]
    for number, (name, seed) in enumerate(SEEDS.items()):
        recipe = root / f"{name}.toml"
        recipe.write_text(RECIPES["int8" if name == "layers" else name])
        config = whole_layers() if seed is None else tiny_models.random_config(seed)
        opened = open_checkpoint(
            tiny_models.save_model(tiny_models.random_model(config, number), root / f"checkpoint-{number}")
        )
        patching = rules[number % len(rules)]
        if opened.config.patcher or not patching.rule.needs_entropies:
            patcher = opened.config.patcher if patching.rule.needs_entropies else None
            opened.config = dataclasses.replace(opened.config, patching=patching, patcher=patcher)
        source = RecipeSource(opened, load_recipe(recipe))
        for target in TARGETS:
            targets: dict[StageName, Target] = dict.fromkeys(STAGES, target)
            for format in CACHE_FORMATS if target == "cpu" else CACHE_FORMATS[:1]:
                caches: dict[StageName, CacheFormat] = dict.fromkeys(STAGES, format)
                contracts = stage_contracts(opened.config, targets, caches)
                for stage, built in build_graphs(source, targets, caches).items():
                    found[name, target, format, stage] = ir.to_proto(built.model).SerializeToString(), contracts[stage]
        content = ir.to_proto(portable_graph(source).model).SerializeToString()
        found[name, PORTABLE, "fp32", "model"] = content, portable_contract(opened.config)
    for norm in ("layer", "rms"):
        config = MambaByteConfig(24, 2, 48, 16, 2, 4, norm, 1e-5, has_slots=True)
        found[norm, "cpu", "fp32", "mamba"] = mambabyte_graph_content(config, root / norm), mambabyte_contract(config)
    for number, name in enumerate(("fp32", "int8")):
        directory = random_overencoded(root / f"overencoded-{name}", number)
        opened = open_checkpoint(directory)
        assert isinstance(opened.config, OverEncodedConfig)
        (built,) = build_graphs(RecipeSource(opened, load_recipe(name))).values()
        content = ir.to_proto(built.model).SerializeToString()
        found[f"overencoded-{name}", "cpu", "fp32", "causal"] = content, overencoded_contracts(opened.config)["causal"]
    return found


def mambabyte_contract(config: MambaByteConfig) -> StageContract:
    return mambabyte_contracts(config)["mamba"]


def mambabyte_graph_content(config: MambaByteConfig, directory: Path) -> bytes:
    """A graph of a MambaByte in int8."""
    document: dict[str, Any] = {
        "d_model": config.hidden_size,
        "n_layer": config.layer_count,
        "rms_norm": config.norm == "rms",
    }
    document |= {"vocab_size": 256, "ssm_cfg": {}, "tie_embeddings": False}
    opened = open_checkpoint(write_mambabyte(directory, document, random_weights(config, 0)))
    (built,) = build_graphs(RecipeSource(opened, load_recipe("int8"))).values()
    return bytes(ir.to_proto(built.model).SerializeToString())


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return written(tmp_path_factory.mktemp("written"))


def test_all_that_the_exporter_writes_is_accepted(graphs: Graphs) -> None:
    assert len(graphs) == ((len(CACHE_FORMATS) + 1) * 4 + 1) * (len(RECIPES) + 1) + 4
    for (*_, stage), (content, contract) in graphs.items():
        check_graph(content, Path(f"{stage}.onnx"), {f"{stage}.weights": 1 << 40}, "", contract=contract)


def test_the_table_holds_nothing_else(graphs: Graphs) -> None:
    """A line for an operator, an attribute or a function that no export writes must go; for a new one, be added."""
    attributes: dict[tuple[str, str], set[str]] = {}
    functions: dict[tuple[str, str], set[str]] = {}
    for content, _ in graphs.values():
        model = parse_model(content)
        for graph in model.graph.all_graphs():
            for node in graph.nodes:
                names = {attribute.name for attribute in node.attributes}
                attributes[node.operator] = attributes.get(node.operator, set()) | names
        for function in model.functions:
            identity, made = digest(bytes(function))
            functions.setdefault(identity, set()).add(made)
    assert attributes == {key: set(operator.attributes) for key, operator in operators.OPERATORS.items()}
    assert functions.keys() == operators.FUNCTIONS.keys()
    for identity, digests in functions.items():
        assert digests <= set(operators.FUNCTIONS[identity]), f"add {digests} to operators.FUNCTIONS[{identity}]"


def test_digests_do_not_depend_on_names(fp32: Bundle) -> None:
    model = model_of(fp32, "patcher")
    (function,) = [function for function in model.functions if function.name == "EntropyPatch"]
    before = digest(function.SerializeToString())
    for node in function.node:
        node.name, node.doc_string = f"other {node.name}", "said"
    text = re.sub(rb"value_(?=\d)", b"named_", function.SerializeToString())
    assert b"named_1" in text and digest(text) == before
    function.node[3].attribute[0].t.raw_data += b"\0"
    assert digest(function.SerializeToString()) != before


# Graphs that hurt.


# Which graph, an operator in it, an attribute, and values.
ATTRIBUTES: tuple[tuple[tuple[str, Target, CacheFormat, GraphName], str, str, tuple[int, ...]], ...] = (
    (("int8", "cuda", "fp32", "global"), "MatMulNBits", "block_size", (-16, 0, 1 << 62, -(1 << 63), 17, 128)),
    (("int8", "cuda", "fp32", "global"), "MatMulNBits", "N", (0, -1, 1 << 20, (1 << 63) - 1)),
    (("int8", "cuda", "fp32", "global"), "GroupQueryAttention", "num_heads", (0, -1, (1 << 60) + 2, 1 << 32)),
    (("int8", "cpu", "fp32", "global"), "DenseMatMul", "K", (1, 1 << 40)),
    (("int8", "cpu", "fp32", "global"), "WindowAttention", "window", (0, 5, -2, 1 << 62)),
    (("int8", "cpu", "int8", "encoder"), "WindowAttention", "kv_num_heads", (0, 2, 1 << 40)),
    (("fp32", "cpu", "fp32", "decoder"), "LatentAttention", "offset", (-1, 1 << 20, (1 << 63) - 64)),
    (("tiles", "cpu", "fp32", "decoder"), "SparseMatMul", "group", (0, 8, 16)),
    (("mask", "cpu", "fp32", "decoder"), "MaskedMatMul", "blocks_per_scale", (0, 17, 1 << 30)),
    (("layers", "cpu", "fp32", "global"), "DenseLayer", "num_heads", (0, 3, (1 << 60) + 4)),
    (("layers", "cpu", "fp32", "global"), "DenseLayer", "gate_block_size", (-64, 0, 1 << 62)),
    (("fp32", "cpu", "fp32", "encoder"), "ScatterElements", "axis", (1, -1)),
    (("int8", PORTABLE, "fp32", "model"), "DequantizeLinear", "block_size", (-16, 0, 1 << 62, 17, 256)),
    (("int8", PORTABLE, "fp32", "model"), "GroupQueryAttention", "num_heads", (0, -1, (1 << 60) + 2, 1 << 32)),
    (("int8", PORTABLE, "fp32", "model"), "GroupQueryAttention", "kv_num_heads", (0, 3, 1 << 40)),
    (("int8", PORTABLE, "fp32", "model"), "IdWindows", "context", (-1, 64, 1 << 40)),
)


@pytest.mark.parametrize("case", ATTRIBUTES, ids=lambda case: "-".join(case[1:3]))
def test_attributes_at_the_edges(
    case: tuple[tuple[str, Target, CacheFormat, GraphName], str, str, tuple[int, ...]], graphs: Graphs
) -> None:
    place, op_type, name, values = case
    content, contract = graphs[place]
    for value in values:
        model = onnx.load_from_string(content)
        node = next(node for node in _nodes(model.graph) if node.op_type == op_type)
        attribute = next(attribute for attribute in node.attribute if attribute.name == name)
        assert attribute.i != value
        attribute.i = value
        with pytest.raises(EdgebltError, match=rf"edgeblt writes: its node {op_type} (has|attends|reads) "):
            check_graph(
                model.SerializeToString(), Path("x.onnx"), {f"{place[3]}.weights": 1 << 40}, "", contract=contract
            )


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _loop(model: Any) -> None:
    """Without a count and without a condition: for ever."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )  # fmt: skip
    model.graph.node.insert(0, helper.make_node("Loop", ["", ""], [], body=body))


def _function(name: str, *calls: str, domain: str = "edgeblt") -> Change:
    def change(model: Any) -> None:
        nodes = [helper.make_node(call, ["a"], [f"b{index}"], domain=domain) for index, call in enumerate(calls)]
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("edgeblt", 1)]
        model.functions.append(helper.make_function(domain, name, ["a"], [nodes[-1].output[0]], nodes, opsets))
        model.graph.node.insert(0, helper.make_node(name, [model.graph.input[0].name], ["called"], domain=domain))

    return change


def _twice(model: Any) -> None:
    model.functions.append(model.functions[0])


def _other_body(model: Any) -> None:
    model.functions[0].node[0].op_type = "Identity"


def _grow(model: Any) -> None:
    """Doubles a value thirty times."""
    name = model.graph.input[0].name
    for level in range(30):
        model.graph.node.insert(level, helper.make_node("Concat", [name, name], [f"grown_{level}"], axis=-1))
        name = f"grown_{level}"


def _shadow(model: Any) -> None:
    """A value called as the input that attention takes the length of its cache from."""
    model.graph.node.insert(0, helper.make_node("Identity", [model.graph.input[0].name], ["total_length"]))


def _longer(model: Any) -> None:
    """Attention for twice the rows that its cache was made for."""
    node = next(node for node in model.graph.node if node.op_type == "WindowAttention")
    index = list(model.graph.node).index(node)
    model.graph.node.insert(index, helper.make_node("Concat", [node.input[0]] * 2, ["longer"], axis=0))
    node = model.graph.node[index + 1]
    node.input[0] = "longer"


def _training(model: Any) -> None:
    model.training_info.add()


def _sparse(model: Any) -> None:
    model.graph.sparse_initializer.add().values.name = "x"


def _external(key: str, value: str) -> Change:
    def change(model: Any) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        for entry in [entry for entry in tensor.external_data if entry.key == key]:
            entry.value = value
        if key not in [entry.key for entry in tensor.external_data]:
            tensor.external_data.add(key=key, value=value)

    return change


def _remainder(divisor: str) -> Change:
    """What is left of a length after division by -1, or by what is computed: the least integer ends the process."""

    def change(model: Any) -> None:
        model.graph.initializer.add().CopyFrom(helper.make_tensor("minus_one", TensorProto.INT32, [1], [-1]))
        model.graph.node.insert(0, helper.make_node("Mod", ["total_length", divisor], ["rest"]))

    return change


def _inline(model: Any) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.raw_data).dims[:] = [1 << 20, 1 << 10]


def _overlap(model: Any) -> None:
    places = [tensor.external_data for tensor in model.graph.initializer if tensor.external_data]
    offsets = [next(entry for entry in place if entry.key == "offset") for place in places]
    offsets[0].value = offsets[1].value


HURTFUL: dict[str, tuple[StageName, Change, str]] = {
    "loop": ("global", _loop, "it has the operator 'Loop' of the domain ''"),
    "recursion": ("global", _function("Nest", "Nest", "Nest"), "its function 'Nest' is not the one of that name"),
    "levels": ("global", _function("Level", "Level1", "Level1"), "its function 'Level' is not the one of that name"),
    "standard-name": ("global", _function("MatMul", "Relu", domain=""), "its function 'MatMul' is not the one"),
    "function-twice": ("patcher", _twice, "is listed twice"),
    "other-body": ("patcher", _other_body, "is not the one of that name"),
    "growing": ("global", _grow, "more than its weights need"),
    "shadow": ("global", _shadow, "the value 'total_length' is made twice"),
    "longer": ("global", _longer, "attends for|gives something else|has inputs"),
    "training": ("global", _training, "a field has the number 20, which edgeblt writes nowhere"),
    "sparse": ("global", _sparse, "a field has the number 15, which edgeblt writes nowhere"),
    "checksum": ("global", _external("checksum", "0"), "external data with the key 'checksum'"),
    "packed": ("global", _external("prepacked_0", "x|0;64;0"), "refers to packed weights"),
    "length-octal": ("global", _external("length", "0100"), "has the length '0100'"),
    "length-more": ("global", _external("length", "64"), "does not lie within global.weights"),
    "offset-beyond": ("global", _external("offset", str(1 << 48)), "does not lie within global.weights"),
    "offset-shared": ("global", _overlap, "two of its tensors share bytes of global.weights"),
    "modulo-negative": ("global", _remainder("minus_one"), "divides by other than positive numbers"),
    "modulo-computed": ("global", _remainder("total_length"), "divides by other than positive numbers"),
    "inline-size": ("global", _inline, r"has \d+ bytes of 8589934592"),
}


@pytest.mark.parametrize("name", HURTFUL)
def test_hurtful_graphs(name: str, fp32: Bundle) -> None:
    stage, change, said = HURTFUL[name]
    model = model_of(fp32, stage)
    check(fp32, stage, model.SerializeToString())
    change(model)
    assert re.search(said, refusal(fp32, stage, model.SerializeToString()))


# What is read in two ways.


def test_the_form_of_onnxruntime(fp32: Bundle, tmp_path: Path) -> None:
    """Told by four bytes, which a producer's name can hold, or by a file's name."""
    content = (fp32.path / "global.onnx").read_bytes()
    assert content[4:].startswith(b"edgeblt")  # the producer, after the version
    assert "a .ort file" in refusal(fp32, "global", content[:4] + b"ORTM" + content[8:])
    with pytest.raises(EdgebltError, match=r"x\.ort is no graph that edgeblt writes: it has the form or the name of"):
        check_graph(content, tmp_path / "x.ort", {"global.weights": 1 << 30}, "export again")


def test_two_values_for_one_place(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    """Protobuf takes the second, an earlier check took the first: a file that no hash covers was read."""
    bundle = Path(shutil.copytree(tiny_bundle[1], tmp_path / "bundle"))
    shutil.copy(bundle / "global.weights", bundle / "other.weights")
    model = onnx.load(bundle / "global.onnx", load_external_data=False)
    graph, tensors = bytearray(), 0
    for tensor in model.graph.initializer:
        content = tensor.SerializeToString()
        if tensor.external_data:
            pair = tensor.external_data[0]
            both = _field(1, b"location") + _field(2, b"global.weights") + _field(2, b"other.weights")
            kept = onnx.TensorProto.FromString(content)
            del kept.external_data[0]
            assert pair.key == "location"
            content = kept.SerializeToString() + _field(13, both)
            tensors += 1
        graph += _field(5, content)
    del model.graph.initializer[:]
    whole = model.graph.SerializeToString() + bytes(graph)
    model.ClearField("graph")
    (bundle / "global.onnx").write_bytes(model.SerializeToString() + _field(7, whole))
    read = onnx.load(bundle / "global.onnx", load_external_data=False).graph.initializer
    assert tensors and {tensor.external_data[-1].value for tensor in read if tensor.external_data} == {"other.weights"}
    seal(bundle)
    with pytest.raises(EdgebltError, match=r"global\.onnx is no graph that edgeblt writes: its field value "):
        open_bundle(bundle)


def _field(number: int, content: bytes) -> bytes:
    size = len(content)
    return bytes([number << 3 | 2]) + _varint(size) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


@pytest.mark.parametrize("more", [b"\x08\x0b", b"\x3a\x00", b"\x12\x01x", b"\x42\x04\x0a\x00\x10\x17", b"\x0b\x0c"])
def test_what_follows_the_end(more: bytes, fp32: Bundle) -> None:
    """A version, a graph, a producer, an import said again, and a group: all of it is read by protobuf."""
    content = (fp32.path / "global.onnx").read_bytes()
    refusal(fp32, "global", content + more)


def test_any_end_is_refused_or_whole(fp32: Bundle) -> None:
    content = (fp32.path / "global.onnx").read_bytes()
    rng = random.Random(0)
    for end in rng.sample(range(1, len(content)), 40):
        refusal(fp32, "global", content[:end])


def test_changed_graphs_are_accepted_or_refused(graphs: Graphs) -> None:
    """Whatever is changed in them, the examination itself ends in its sentence or in nothing."""
    rng, accepted, places = random.Random(0), 0, sorted(graphs)
    for _ in range(150):
        place = rng.choice(places)
        content, contract = graphs[place]
        model = onnx.load_from_string(content)
        change_graph(model, rng)
        try:
            check_graph(
                model.SerializeToString(), Path("x.onnx"), {f"{place[3]}.weights": 1 << 40}, "r", False, contract
            )
            accepted += 1
        except EdgebltError as error:
            assert_one_sentence(str(error))
    assert 5 < accepted < 75


def test_configurations_that_weights_do_not_justify(fp32: Bundle) -> None:
    """Caches of 2**30 numbers a position, in the manifest and in the graph's own words."""
    config = fp32.manifest.config
    huge = dataclasses.replace(config.global_, hidden_size=1 << 30, head_count=1 << 4, kv_head_count=1 << 4)
    manifest = dataclasses.replace(fp32.manifest, config=dataclasses.replace(config, global_=huge))
    claimed = dataclasses.replace(fp32, manifest=manifest)
    model = model_of(fp32, "global")
    assert "is no tensor that its configuration gives" in refusal(claimed, "global", model.SerializeToString())
    contract = stage_contracts(manifest.config)["global"]
    del model.graph.input[:], model.graph.output[:]
    for specs, values in ((contract.all_inputs, model.graph.input), (contract.all_outputs, model.graph.output)):
        for spec in specs:
            kind = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}[spec.dtype]
            values.append(helper.make_tensor_value_info(spec.name, kind, spec.shape))
    assert "numbers a position, its weights are too few" in refusal(claimed, "global", model.SerializeToString())
