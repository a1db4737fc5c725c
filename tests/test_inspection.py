"""What `edgeblt inspect` plans: against real bundles, read with onnx, and against arithmetic by hand."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import released_models
from conftest import Exported
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.bundle.contract import STAGES
from edgeblt.bundle.manifest import open_bundle, write_manifest
from edgeblt.bundle.weight_plan import StageWeights, StoredTensor, WeightPlan, typical_bytes_per_patch, weight_plan
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.graphs.graph import LINE, PAGE
from edgeblt.export.inspection import inspect_checkpoint
from edgeblt.inspection import initializers, inspect_bundle
from edgeblt.measure.texts import DEMO_CHECKPOINT
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.recipes import recipe as recipes
from edgeblt.quant.recipes.recipe import packaged_recipes
from sampled import mostly_slow
from test_commands import HIDE_WORKBENCH, run_command, run_process, sentence

TINY = (7, 9)  # without a patcher; with projections, several hash functions, odd heads, one cross-attention
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def checkpoint_of(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Checkpoints by name: the bundled one, or a tiny one in float32."""

    def find(name: str) -> Path:
        return DEMO_CHECKPOINT if name == "demo" else exported(int(name)).checkpoint

    return find


def uncalibrated(recipe: str, path: Path) -> Path:
    """The recipe's formats by the quickest method, which needs no text: rounding changes no size."""
    text = (Path(recipes.__file__).parent / f"{recipe}.toml").read_text().replace('method = "gptq"\n', "")
    text = re.sub(r'format = "int\d"\n', r'\g<0>method = "nearest"\n', text)
    path.write_text(re.sub(r"sparsity = .*\n", r'\g<0>pruning = "magnitude"\n', text))
    return path


def plan_of(plans: tuple[WeightPlan, ...], recipe: str) -> WeightPlan:
    (found,) = (plan for plan in plans if plan.recipe == recipe)
    return found


# Inputs of operators that are read once a patch; of a cross-attention the key's norm and weights.
READ_ONCE_A_PATCH = {"DensePooling": range(19), "DenseProjection": range(4), "DenseCrossAttention": (5, 7, 10, 13)}


def read_with_onnx(bundle: Path, stage: str, tables: int) -> StageWeights:
    """A stage's weights as the onnx package sees them, and how often its nodes read them.

    What nodes within an `If`, the pooling and the keys and values of latents read is read once a patch, as all of the
    global stage; what lookups read, by rows.
    """
    graph = onnx.load(bundle / f"{stage}.onnx", load_external_data=False).graph
    branches = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    inner = {name for branch in branches for node in branch.node for name in node.input}
    for node in graph.node:
        inner |= {node.input[index] for index in READ_ONCE_A_PATCH.get(node.op_type, ())}
    lookups = [node for node in graph.node if node.op_type.startswith("Gather") or node.op_type == "HashEmbedding"]
    looked_up = {name for node in lookups for name in node.input}
    widened = {node.output[0]: node.input[0] for part in (graph, *branches) for node in part.node if len(node.input)}
    inner |= {widened[name] for name in inner if name in widened}  # a Cast before its use
    found = {"bytes": 0, "table_bytes": 0, "rows_per_byte": 0, "read_per_byte": 0, "read_per_patch": 0}
    for tensor in graph.initializer:
        if not tensor.name.startswith(f"{stage}."):
            continue
        external = {entry.key: entry.value for entry in tensor.external_data}
        size = int(external["length"]) if external else len(tensor.raw_data)
        found["bytes"] += size
        if tensor.name in looked_up and tensor.name not in inner:
            is_table = "hash_tables" in tensor.name
            found["rows_per_byte"] += (tables if is_table else 1) * size // tensor.dims[0]
            found["table_bytes"] += size if is_table else 0
        else:
            found["read_per_patch" if stage == "global" or tensor.name in inner else "read_per_byte"] += size
    return StageWeights(**found)


@pytest.mark.parametrize(
    ("name", "recipe"),
    mostly_slow(
        itertools.product(("demo", *map(str, TINY)), packaged_recipes()),
        keep=[("demo", "int4"), ("7", "fp32"), ("7", "sparse-int8"), ("9", "fp16"), ("9", "nf4")],
    ),
)  # fmt: skip
def test_the_plan_is_what_an_export_writes(checkpoint_of: Any, name: str, recipe: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoint_of(name))
    plan = plan_of(inspect_checkpoint(checkpoint, bytes_per_patch=3).plans, recipe)
    bundle = export_bundle(checkpoint.path, tmp_path / "bundle", uncalibrated(recipe, tmp_path / f"{recipe}.toml"))
    for stage in STAGES:
        assert plan.stages[stage] == read_with_onnx(bundle.path, stage, checkpoint.config.hashes.table_count)
        check_file_size(bundle.path, stage)
    assert plan.table_bytes + plan.matrix_bytes == plan.bytes == sum(s.bytes for s in plan.stages.values())
    assert inspect_bundle(bundle, 3).plans == (plan,)


def check_file_size(bundle: Path, stage: str) -> None:
    """The weights and nothing else, large ones from a new page on, small ones behind them on lines of 64 bytes."""
    initializers = onnx.load(bundle / f"{stage}.onnx", load_external_data=False).graph.initializer
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in initializers]
    sizes = [int(place["length"]) for place in places if place]
    end = 0
    for size in sorted(sizes, key=lambda size: size < PAGE):
        alignment = PAGE if size >= PAGE else LINE
        end = -(-end // alignment) * alignment + size
    file = bundle / f"{stage}.weights"
    assert (file.stat().st_size if file.exists() else 0) == end


def test_a_quantized_checkpoint_has_one_plan(checkpoint_of: Any, tmp_path: Path) -> None:
    original = checkpoint_of("10")
    planned = plan_of(inspect_checkpoint(open_checkpoint(original)).plans, "int4")
    text = tmp_path / "text"
    text.write_bytes(b"Whales are read of, and small models read them. " * 40)
    compressed = open_checkpoint(quantize_checkpoint(original, tmp_path / "small", "int4", text))
    assert inspect_checkpoint(compressed).plans == (planned,)
    with pytest.raises(EdgebltError, match="small is quantized already; leave out the recipe, or give the original"):
        inspect_checkpoint(compressed, ["int8"])


# The released models.

# Bits a weight of the recipes, where blocks divide the rows: codes, a float16 scale a block, 4-bit zero points.
BITS = {
    "fp32": dict.fromkeys(("patcher", "patcher.head", "encoder", "global", "decoder", "decoder.head", "tables"), 32.0),
    "int8": dict.fromkeys(("patcher", "patcher.head"), 8 + 16 / 32)
    | dict.fromkeys(("encoder", "global", "decoder", "decoder.head", "tables"), 8 + 16 / 128),
    "int4": {
        "patcher": 8 + 16 / 128,
        "encoder": 4 + 20 / 32,
        "global": 4 + 16 / 256,
        "decoder": 4 + 20 / 64,
        "tables": 4 + 16 / 128,
    }
    | dict.fromkeys(("patcher.head", "decoder.head"), 8 + 16 / 32),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many weights of a released model decoding reads how often, by hand: norms, and matrices by stage."""

    local: int
    local_ffn: int
    decoder_layers: int
    width: int
    ffn: int
    layers: int
    k: int

    def matrices(self, head_rows: int) -> dict[str, int]:
        """Read once a byte."""
        layer = 4 * self.local**2 + 3 * self.local * self.local_ffn
        return {
            "patcher": 14 * (4 * 768**2 + 3 * 768 * 2048),
            "patcher.head": head_rows * 768,
            "encoder": layer,
            "decoder": self.decoder_layers * (layer + 2 * self.local**2),
            "decoder.head": head_rows * self.local,
        }

    def matrices_of_a_patch(self) -> dict[str, int]:
        patch = self.k * self.local
        projection = patch * self.width if patch != self.width else 0
        return {
            "encoder": patch * self.local + 4 * self.local**2,
            "global": projection + self.layers * (4 * self.width**2 + 3 * self.width * self.ffn),
            "decoder": patch * self.width + self.decoder_layers * 2 * self.local**2,
        }

    def norms(self) -> int:
        """Read once a byte."""
        return 29 * 768 + 2 * self.local + self.decoder_layers * 3 * self.local + self.local

    def norms_of_a_patch(self) -> int:
        return 2 * self.local + self.layers * 2 * self.width + self.decoder_layers * self.local

    def tables(self) -> int:
        return 6 * 500_002 * self.local

    def embeddings(self) -> dict[str, int]:
        return {"patcher": 260 * 768, "encoder": 260 * self.local}


SIZES = {
    "1b": Sizes(local=1024, local_ffn=2816, decoder_layers=9, width=2048, ffn=5632, layers=25, k=2),
    "7b": Sizes(local=1280, local_ffn=3584, decoder_layers=6, width=4096, ffn=11008, layers=32, k=4),
}


@pytest.mark.parametrize("name", mostly_slow(SIZES, keep=["7b"]))
def test_planning_the_released_models(name: str, tmp_path: Path, capfd: Capture) -> None:
    config = released_models.CONFIGS[name]()
    count, sizes = released_models.write_sparse_checkpoint(tmp_path / name, config), SIZES[name]
    result = run_command(capfd, "inspect", tmp_path / name, "--json", "-", "--bytes-per-patch", 4)
    assert (result.code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert sum(part["parameters"] for part in document["parts"]) == count
    assert sum(part["bytes"] for part in document["parts"]) == 2 * count
    plans = {plan["recipe"]: plan for plan in document["plans"]}
    assert sorted(plans) == packaged_recipes()
    for recipe, bits in BITS.items():
        check_plan(plans[recipe], sizes, bits)
    assert plans["fp32"]["bytes"] == 4 * count
    by_size = [plan["bytes"] for plan in document["plans"]]
    assert by_size == sorted(by_size, reverse=True)


def check_plan(plan: dict[str, Any], sizes: Sizes, bits: dict[str, float]) -> None:
    def stored(matrices: dict[str, int]) -> float:
        return sum(weights * bits[part] / 8 for part, weights in matrices.items())

    head_rows = 260 if plan["recipe"] == "fp32" else 272  # quantized rows are stored in groups of sixteen
    byte = stored(sizes.matrices(head_rows)) + 4 * sizes.norms()
    patch = stored(sizes.matrices_of_a_patch()) + 4 * sizes.norms_of_a_patch()
    tables, embeddings = stored({"tables": sizes.tables()}), stored(sizes.embeddings())
    rows = 6 * tables / (6 * 500_002) + embeddings / 260
    assert (plan["table_bytes"], plan["matrix_bytes"]) == (tables, byte + patch + embeddings)
    assert plan["bytes"] == tables + plan["matrix_bytes"]
    stages = plan["stages"].values()
    assert sum(stage["read_per_byte"] for stage in stages) == byte
    assert sum(stage["read_per_patch"] for stage in stages) == patch
    assert sum(stage["rows_per_byte"] for stage in stages) == rows
    assert plan["weight_bytes_per_byte"] == pytest.approx(byte + rows + patch / 4, rel=1e-12)


# What is read how often.


def test_weights_by_how_often_they_are_read() -> None:
    config = open_checkpoint(DEMO_CHECKPOINT).config  # 6 tables
    tensors = {
        "patcher": [StoredTensor("patcher.embedding", 260, 2600), StoredTensor("patcher.layers.0.up.codes", 7, 100)],
        "encoder": [
            StoredTensor("encoder.hash_tables.codes", 50, 5000),
            StoredTensor("encoder.hash_tables.scales", 50, 100),
            StoredTensor("encoder.embedding.codes", 260, 520),
            StoredTensor("encoder.layers.0.query_key_value.scales", 3, 30),
            StoredTensor("encoder.patch_projection", 4, 8),
            StoredTensor("encoder.cross.output.zero_points", 4, 400),
        ],
        "global": [StoredTensor("global.layers.3.attention_norm", 4, 16)],
        "decoder": [
            StoredTensor("decoder.patch_projection.codes", 4, 3),
            StoredTensor("decoder.cross.10.query_norm", 4, 1000),
            StoredTensor("decoder.cross.10.query", 4, 2000),
            StoredTensor("decoder.cross.10.key_norm", 4, 20),
            StoredTensor("decoder.cross.10.key_value.codes", 4, 500),
            StoredTensor("decoder.layers.1.key", 4, 1),  # not of a patch: every byte's own key
            StoredTensor("decoder.head", 260, 70),
        ],
    }
    plan = weight_plan("mine", config, tensors, 2.0)  # type: ignore[arg-type]
    assert plan.stages == {
        "patcher": StageWeights(2700, 0, 10, 100, 0),
        "encoder": StageWeights(6058, 5100, 6 * 102 + 2, 30, 408),
        "global": StageWeights(16, 0, 0, 0, 16),
        "decoder": StageWeights(3594, 0, 0, 3071, 523),
    }
    assert (plan.recipe, plan.bytes, plan.table_bytes, plan.matrix_bytes) == ("mine", 12368, 5100, 7268)
    assert plan.weight_bytes_per_byte == 10 + 614 + 100 + 30 + 3071 + (408 + 16 + 523) / 2


def test_the_usual_length_of_a_patch() -> None:
    assert typical_bytes_per_patch(PatchingRule(Rule.THRESHOLD)) == 4.5
    assert typical_bytes_per_patch(PatchingRule(Rule.MONOTONIC, max_patch_length=3)) == 3
    assert typical_bytes_per_patch(PatchingRule(Rule.SPACE, max_patch_length=30)) == 4.5
    assert typical_bytes_per_patch(PatchingRule(Rule.BYTE)) == 1
    assert typical_bytes_per_patch(PatchingRule(Rule.STATIC, patch_size=6)) == 6
    assert typical_bytes_per_patch(PatchingRule(Rule.BYTE), 8.25) == 8.25


# The command.


def test_recipes_of_ones_own(tmp_path: Path, capfd: Capture) -> None:
    mine = tmp_path / "halves.toml"
    mine.write_text('[global]\nformat = "fp16"\n')
    result = run_command(capfd, "inspect", DEMO_CHECKPOINT, "--recipe", mine, "--recipe", "int8", "--json", "-")
    plans = {plan["recipe"]: plan for plan in json.loads(result.stdout)["plans"]}
    assert sorted(plans) == sorted([*packaged_recipes(), "halves"])
    whole, halves = plans["fp32"]["stages"], plans["halves"]["stages"]
    vectors = 2 * 4 * 4 * 256  # two norms a layer stay fp32
    assert halves["global"]["bytes"] - vectors == (whole["global"]["bytes"] - vectors) / 2
    assert {name: halves[name] for name in ("patcher", "encoder", "decoder")} == {
        name: whole[name] for name in ("patcher", "encoder", "decoder")
    }
    shown = run_command(capfd, "inspect", DEMO_CHECKPOINT, "--recipe", mine).stdout
    assert "read for a byte at 4.5 bytes a patch" in shown and re.search(r"│ halves +│ +[\d.]+ MB", shown)


def test_refused(tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: Capture) -> None:
    def refused(*arguments: object) -> str:
        return sentence(run_command(capfd, "inspect", *arguments))

    checkpoint, bundle = tiny_bundle
    for path in (checkpoint, bundle):
        for wrong in ("0", "0.99", "-4", "nan", "inf"):
            said = refused(path, "--bytes-per-patch", wrong)
            assert re.fullmatch(r"bytes per patch are \S+; give a number that is at least 1, such as 4.5", said)
    assert "there is no recipe 'int3'; use one of fp16, fp32," in refused(checkpoint, "--recipe", "int3")
    assert (
        refused(bundle, "--recipe", "int8")
        == f"{bundle} is a bundle, its weights have their formats; leave out --recipe"
    )
    (tmp_path / "nf4_tables.toml").write_text('[tables]\nformat = "nf4"\n')
    assert "nf4 has no lookup" in refused(checkpoint, "--recipe", tmp_path / "nf4_tables.toml")


def test_a_bundle_is_inspected_without_the_workbench(tiny_bundle: tuple[Path, Path]) -> None:
    result = run_process("inspect", tiny_bundle[1], "--json", "-", before=HIDE_WORKBENCH)
    assert (result.returncode, result.stderr) == (0, b"")
    (plan,) = json.loads(result.stdout)["plans"]
    assert plan == json.loads(json.dumps(dataclasses.asdict(inspect_bundle(open_bundle(tiny_bundle[1])).plans[0])))


# Graphs as files.


def field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def test_an_initializer_byte_by_byte(tmp_path: Path) -> None:
    dims = b"\x08\xac\x02" + b"\x08\x03"  # 300, 3
    floats = dims + b"\x10\x01" + field(8, b"global.a")
    halves = field(1, b"\xac\x02\x05") + b"\x10\x0a" + field(8, b"global.b")  # packed dims
    other = b"\x08\x04\x10\x07" + field(8, b"constant_0") + field(9, bytes(32))
    path, graph = tmp_path / "global.onnx", field(2, b"graph") + b"".join(field(5, t) for t in (floats, halves, other))
    path.write_bytes(b"\x08\x0b" + field(7, graph))
    assert initializers(path, "global.") == [
        StoredTensor("global.a", 300, 3600),
        StoredTensor("global.b", 300, 3000),
    ]
    path.write_bytes(b"")
    assert initializers(path, "global.") == []
    path.write_bytes(b"\x08\x0b" + field(7, b"\x35" + bytes(4) + graph))  # field 6, of 4 bytes
    with pytest.raises(EdgebltError, match="a field has the number 6, which edgeblt writes nowhere"):
        initializers(path, "global.")


@functools.cache
def graph_bytes() -> bytes:
    tensor = onnx.helper.make_tensor("global.x", onnx.TensorProto.FLOAT, [2, 3], range(6))
    return bytes(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])).SerializeToString())


@given(place=st.integers(0, 200), change=st.binary(max_size=12), removed=st.integers(0, 40))
def test_damaged_graphs_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: bytes, removed: int
) -> None:
    path, whole = tmp_path_factory.getbasetemp() / "damaged.onnx", graph_bytes()
    place %= len(whole)
    path.write_bytes(whole[:place] + change + whole[place + removed :])
    try:
        found = initializers(path, "global.")
    except EdgebltError as error:
        assert re.fullmatch(r".*damaged.onnx is no ONNX graph \([ -~]+\); export the bundle again", str(error))
    else:
        assert all(tensor.rows > 0 and tensor.bytes > 0 for tensor in found)


def test_graphs_that_name_more_than_there_is(tmp_path: Path, tiny_bundle: tuple[Path, Path], capfd: Capture) -> None:
    bundle = export_bundle(tiny_bundle[0], tmp_path / "bundle")
    path = bundle.path / "global.onnx"
    model = onnx.load(path, load_external_data=False)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("global."))
    weight.dims[0] = 1 << 30
    onnx.save(model, path)
    rewrite_manifest(bundle.path)
    said = sentence(run_command(capfd, "inspect", bundle.path))
    assert re.fullmatch(
        r".*/global.onnx is .*the tensor 'global\..*' does not lie within global.weights; export again", said
    )
    weight.dims[0] = 0
    onnx.save(model, path)
    rewrite_manifest(bundle.path)
    assert "does not lie within global.weights" in sentence(run_command(capfd, "inspect", bundle.path))


def rewrite_manifest(bundle: Path) -> None:
    """With the sizes and hashes of the files as they are now."""
    from edgeblt.bundle.manifest import MANIFEST, file_record, read_manifest

    manifest = read_manifest(bundle / MANIFEST)
    files = {name: file_record(bundle / name) for name in manifest.files}
    write_manifest(bundle, dataclasses.replace(manifest, files=files))
