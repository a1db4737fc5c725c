"""The recorded table of CUDA kernels is that of the installed runtime, and what is not in it ONNX Runtime leaves to the
CPU."""

import itertools
import json
from pathlib import Path

import onnx
import onnxruntime
import pytest

import cuda_stand_in
import kernel_table
from cuda_stand_in import StandIn
from kernel_table import Kernel, unlisted

# Which nodes of a model the CUDA provider is not given, as ONNX Runtime says itself: operators, of inner graphs too.
LEFT_TO_THE_CPU = """
import json, sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=providers)
assert session.get_providers() == providers
graphs = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != "CUDAExecutionProvider"]
print(json.dumps(sorted(f"{node.domain}:{node.op_type}" for part in graphs for node in part.get_nodes())))
"""

CASES = {
    "float16 products": ("(float16[2,2] x) => (float16[2,2] y)", "y = MatMul(x, x)", []),
    "int64 products": ("(int64[2,2] x) => (int64[2,2] y)", "y = MatMul(x, x)", [":MatMul 13 (T=int64) "]),
    "a type from an attribute": (
        "(float[2,2] x) => (int64[2,2] y)",
        "i = Cast<to=7>(x) y = MatMul(i, i)",
        [":MatMul 13 (T=int64) "],
    ),
    "a type from a signature": (
        "(float[2,2] x) => (int64[1] y)",
        "s = Shape(x) y = BitwiseAnd(s, s)",
        [":BitwiseAnd 18 (T=int64) "],
    ),
    "a type from a constant": (
        "(int64[1] n) => (uint8[n] y)",
        "z = ConstantOfShape<value=uint8[1]{0}>(n) y = BitwiseNot(z)",
        [":BitwiseNot 18 (T=uint8) "],
    ),
    "a branch": (
        "(bool b, int64[2,2] x) => (int64[2,2] y)",
        "y = If(b)<then_branch=t()=>(int64[2,2] p){p = MatMul(x, x)}, else_branch=e()=>(int64[2,2] q){q = Add(x, x)}>",
        [":MatMul 13 (T=int64) "],
    ),
    "after a branch": (
        "(bool b, int64[2,2] x) => (int64[2,2] y)",
        "z = If(b)<then_branch=t()=>(int64[2,2] p){p = Add(x, x)}, else_branch=e()=>(int64[2,2] q){q = Identity(x)}>"
        " y = MatMul(z, z)",
        [":MatMul 13 (T=int64) "],
    ),
    "a function": ("(int64[2,2] x) => (int64[2,2] y)", "y = edgeblt.Square(x)", [":MatMul 13 (T=int64) "]),
}
ATTENTION = (
    "({0}[1,1,48] x, {0}[1,1,8,16] k, {0}[1,1,8,16] v, int32[1] n, int32[1] t)"
    " => ({0}[1,1,16] y, {0}[1,1,8,16] k2, {0}[1,1,8,16] v2)",
    'y, k2, v2 = com.microsoft.GroupQueryAttention<num_heads=1, kv_num_heads=1>(x, "", "", k, v, n, t)',
)
CASES["float16 attention"] = (ATTENTION[0].format("float16"), ATTENTION[1], [])
CASES["float attention"] = (
    ATTENTION[0].format("float"),
    ATTENTION[1],
    ["com.microsoft:GroupQueryAttention 1 (M=int32, T=float, T_CACHE=float) "],
)


def model_file(case: str, path: Path) -> Path:
    signature, nodes, _ = CASES[case]
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1, "edgeblt": 1]>'
        f"graph {signature} {{ {nodes} }}"
        '<domain: "edgeblt", opset_import: ["": 23]> Square (a) => (b) { b = MatMul(a, a) }'
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_nodes_without_a_kernel_are_listed(case: str, tmp_path: Path) -> None:
    assert unlisted(model_file(case, tmp_path / "model.onnx")) == CASES[case][2]


@pytest.mark.parametrize("case", CASES)
def test_and_are_what_onnxruntime_leaves_to_the_cpu(case: str, tmp_path: Path, stand_in: StandIn) -> None:
    model = model_file(case, tmp_path / "model.onnx")
    assert left_to_the_cpu(model, stand_in) == sorted(line.split()[0] for line in CASES[case][2])


def left_to_the_cpu(model: Path, stand_in: StandIn) -> list[str]:
    output = cuda_stand_in.python(LEFT_TO_THE_CPU, str(model), environment=stand_in.environment())
    assert output.returncode == 0, output.stderr
    found: list[str] = json.loads(output.stdout)
    return found


@pytest.mark.parametrize("stage", ["patcher", "encoder", "global", "decoder"])
def test_exported_graphs_are_read_to_the_end(stage: str, tiny_bundle: tuple[Path, Path], stand_in: StandIn) -> None:
    """ONNX Runtime keeps more on the CPU than it must: small shapes are cheaper there."""
    model = tiny_bundle[1] / f"{stage}.onnx"
    listed = {line.split()[0] for line in unlisted(model)}
    assert "com.microsoft:GroupQueryAttention" in listed  # of floats
    assert listed <= set(left_to_the_cpu(model, stand_in))


def test_an_operator_nobody_knows_is_an_error(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> graph (float[1] x) => (float[1] y) { y = Unheard(x) }'
    )
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(LookupError, match="onnxruntime knows no :Unheard of opset 23"):
        unlisted(tmp_path / "model.onnx")


def test_the_table_is_the_installed_runtimes(stand_in: StandIn) -> None:
    version, table = kernel_table.recorded()
    if onnxruntime.__version__ != version:
        pytest.skip(f"the table is of onnxruntime-gpu {version}; write it anew with tools/cuda_kernels.py")
    assert kernel_table.compact(kernel_table.installed_kernels(stand_in)) == table


def test_merged_kernels_take_what_they_took_before() -> None:
    before = [("x", "x"), ("x", "y"), ("y", "x"), ("z", "z")]
    kernels = [Kernel("d:Op", 1, 3, {"A": frozenset({a}), "B": frozenset({b})}) for a, b in before]
    kernels += [Kernel("d:Op", 4, kernel_table.NO_LAST, kernel.types) for kernel in kernels]
    kernels += [Kernel("d:Op", 4, kernel_table.NO_LAST, {"B": frozenset({"w"})})]
    table = kernel_table.compact(kernels)
    accepted = {
        (versions, a, b)
        for versions, rows in table["d:Op"]
        for row in rows
        for a, b in itertools.product("xyzw", "xyzw")
        if a in row.get("A", "xyzw") and b in row["B"]
    }
    first = {("1-3", a, b) for a, b in before}
    then = {("4-", a, b) for a, b in [*before, *((a, "w") for a in "xyzw")]}
    assert accepted == first | then
