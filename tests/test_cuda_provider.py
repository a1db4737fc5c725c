"""Bundles on ONNX Runtime's real CUDA provider, over a stand-in for CUDA's libraries: all but what a GPU computes.

Kernels do nothing there, so nothing is said of numbers; tests/test_on_cuda.py says that, where there is a GPU.
"""

import functools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import cuda_stand_in
from conftest import Exported
from cuda_stand_in import StandIn
from cuda_walk import SHAPES
from edgeblt.bundle.contract import STAGES
from edgeblt.export.export_bundle import export_bundle
from sampled import mostly_slow

WALK = "import cuda_walk; cuda_walk.main()"
PORTABLE = {"EDGEBLT_NATIVE": "0"}  # our own kernels need a driver that runs them

RECIPES = {
    "fp16": '[tables]\nformat = "fp16"',
    "int8": 'format = "int8"\nblock_size = 16\nsymmetric = true',
    "int4": 'format = "int4"\nblock_size = 32',
    "sparse": 'format = "int8"\nblock_size = 64\nsymmetric = true\nsparsity = "2:4"\npruning = "magnitude"',
    "nf4": 'format = "nf4"',
}


@pytest.fixture(scope="module")
def for_cuda(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """By seed, recipe and target."""

    @functools.cache
    def make(seed: int, recipe: str = "fp16", target: str = "cuda") -> Path:
        folder = tmp_path_factory.mktemp("cuda")
        text = RECIPES[recipe]
        if recipe != "fp16":
            text = "".join(f"[{part}]\n{text}\n" for part in STAGES) + '[tables]\nformat = "int8"\n'
        (folder / "recipe.toml").write_text(text)
        return export_bundle(exported(seed).checkpoint, folder / "bundle", folder / "recipe.toml", target).path

    return make


def walked(stand_in: StandIn, bundle: Path, provider: str, **settings: Any) -> dict[str, Any]:
    output = cuda_stand_in.python(
        WALK, "walk", str(bundle), provider, environment=stand_in.environment(**settings) | PORTABLE
    )
    assert (output.returncode, output.stderr) == (0, "")
    found: dict[str, Any] = json.loads(output.stdout)
    return found


def edgeblt(stand_in: StandIn, *arguments: object, **settings: Any) -> "subprocess.CompletedProcess[str]":
    code = "from edgeblt.cli import main; main()"
    environment = stand_in.environment(**settings) | PORTABLE | {"COLUMNS": "120"}
    return cuda_stand_in.python(code, *map(str, arguments), environment=environment)


@pytest.mark.parametrize(
    ("seed", "recipe", "capability"),
    mostly_slow(
        [(10, "fp16", 80), (18, "fp16", 87), (42, "fp16", 90), (10, "int8", 87), (18, "int4", 90), (10, "sparse", 80),
         (10, "nf4", 90)],
        keep=[(10, "fp16", 80), (10, "int8", 87), (18, "int4", 90), (10, "sparse", 80), (10, "nf4", 90)],
    ),
)  # fmt: skip
def test_all_stages_on_cuda(
    stand_in: StandIn, for_cuda: Callable[..., Path], seed: int, recipe: str, capability: int
) -> None:
    """Every kernel takes what it is given, without cuDNN, and state stays on the device."""
    found = walked(stand_in, for_cuda(seed, recipe), "cuda", capability=capability)
    assert found["placement"] == dict.fromkeys(STAGES, "cuda") and found["device"].startswith("stand-in, ")
    assert found["types"] == ["DeviceArray"]
    assert {part["stage"] for part in found["nodes"] if part["provider"] == "CUDAExecutionProvider"} == set(STAGES)
    elsewhere = {
        name for part in found["nodes"] if part["provider"] != "CUDAExecutionProvider" for name in part["operators"]
    }
    assert elsewhere <= SHAPES


@pytest.mark.parametrize("provider", ["patcher=cpu", "patcher=cpu,decoder=cpu", "patcher=cpu,encoder=cpu",
                                      "patcher=cpu,global=cpu", "patcher=cpu,encoder=cpu,decoder=cpu"])  # fmt: skip
def test_stages_on_both(stand_in: StandIn, for_cuda: Callable[..., Path], provider: str) -> None:
    """With the patcher on the CPU patches are real, so the global stage runs too."""
    found = walked(stand_in, for_cuda(10), provider)
    on_cpu = {part.partition("=")[0] for part in provider.split(",")}
    assert {stage for stage, name in found["placement"].items() if name == "cpu"} == on_cpu
    assert found["patches"] > 20 and found["runs"]["global"] > 5
    assert found["types"] == ["DeviceArray", "ndarray"]
    providers = {(part["stage"], part["provider"]) for part in found["nodes"]}
    assert all((stage, "CUDAExecutionProvider") not in providers for stage in on_cpu)


@pytest.mark.parametrize("provider", ["cuda", "patcher=cpu,encoder=cpu"])
def test_sessions_are_saved(stand_in: StandIn, for_cuda: Callable[..., Path], provider: str, tmp_path: Path) -> None:
    """Arrays on the device go to a file, to copies, and back."""
    arguments = ("keep", str(for_cuda(10)), provider, str(tmp_path / "state"))
    output = cuda_stand_in.python(WALK, *arguments, environment=stand_in.environment() | PORTABLE)
    assert (output.returncode, output.stderr) == (0, "")
    found = json.loads(output.stdout)
    assert found["DeviceArray"] > 4 and found["ndarray"] > 4


def test_a_bundle_of_two_targets(stand_in: StandIn, for_cuda: Callable[..., Path]) -> None:
    """Without a word about providers, each stage runs where it was exported for."""
    bundle = for_cuda(10, "int8", "global=cuda")
    found = walked(stand_in, bundle, "global=cuda")
    assert found["placement"] == {"patcher": "cpu", "encoder": "cpu", "global": "cuda", "decoder": "cpu"}
    assert found["patches"] > 20
    result = edgeblt(stand_in, "bench", bundle, "--prompt-bytes", 20, "--new-bytes", 4, "--repeats", 1,
                     "--no-bandwidth", "--json", "-")  # fmt: skip
    document = json.loads(result.stdout)
    assert document["provider"] == "patcher=cpu,encoder=cpu,global=cuda,decoder=cpu"


def test_nothing_is_copied_between_providers_unseen(
    stand_in: StandIn, for_cuda: Callable[..., Path], tmp_path: Path
) -> None:
    """In the graphs as ONNX Runtime runs them: only `total_length`, a number, goes to the GPU, and back nothing but
    whether the portable form of EntropyPatch has a maximum length."""
    code = (
        "import sys, pathlib\nfrom edgeblt.runtime.providers import open_graph, session_options\n"
        "options = session_options(1, 'cuda')\noptions.optimized_model_filepath = sys.argv[2]\n"
        "path = pathlib.Path(sys.argv[1])\nopen_graph(path.read_bytes(), path.parent, options, 'cuda')"
    )
    for stage in STAGES:
        path = tmp_path / f"{stage}.onnx"
        arguments = (str(for_cuda(10) / f"{stage}.onnx"), str(path))
        output = cuda_stand_in.python(code, *arguments, environment=stand_in.environment() | PORTABLE)
        assert output.returncode == 0, output.stderr
        copies = {
            (node.op_type, node.input[0] if node.op_type == "MemcpyFromHost" else "")
            for graph in graphs(onnx.load(path, load_external_data=False).graph)
            for node in graph.node
            if node.op_type.startswith("Memcpy")
        }
        assert copies == {("MemcpyFromHost", "total_length")} | (
            {("MemcpyToHost", "")} if stage == "patcher" else set()
        )


@pytest.fixture(scope="module")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libedgeblt_cuda with its kernel run by the CPU; the stand-in's device memory is the host's."""
    if not shutil.which("c++"):
        pytest.skip("there is no C++ compiler")
    native, path = Path(__file__).parents[1] / "native", tmp_path_factory.mktemp("emulated") / "libedgeblt_cuda.so"
    sources = [native / "tests" / "emulated_entropy_patch.cpp", native / "cuda" / "operators.cpp"]
    sources += [native / name for name in ("version.cpp", "register.cpp", "operator.cpp", "patch_inputs.cpp")]
    options = ["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC", '-DEDGEBLT_VERSION="emulated"']
    includes = [f"-I{native / 'tests' / 'emulated_cuda'}", f"-I{native}"]
    subprocess.run(["c++", *options, *includes, *map(str, sources), "-o", str(path)], check=True)
    return path


def test_entropy_patch_on_cuda(
    stand_in: StandIn, for_cuda: Callable[..., Path], exported: Callable[[int], Exported], emulated_library: Path
) -> None:
    """Our kernel gets the node, on the device, and decides by the very logits that come back."""
    arguments = ("patch", str(for_cuda(10)), str(emulated_library))
    output = cuda_stand_in.python(WALK, *arguments, environment=stand_in.environment())
    assert (output.returncode, output.stderr) == (0, "")
    found = json.loads(output.stdout)
    (on_cuda,) = found["nodes"]  # none is left to the CPU
    assert on_cuda["provider"] == "CUDAExecutionProvider" and on_cuda["operators"]["EntropyPatch"] == 1
    assert found["runs"] == len(found["rows"]) == 4
    threshold = exported(10).model.config.patching.threshold
    for position, (error, starts, entropies) in zip((0, 1, 2, 42), found["rows"], strict=True):
        assert error < 1e-5
        assert starts == [entropy > threshold or position + row == 0 for row, entropy in enumerate(entropies)]


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """It and those of its branches."""
    inner = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return [graph, *(found for each in inner for found in graphs(each))]


def test_commands(
    stand_in: StandIn, exported: Callable[[int], Exported], for_cuda: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = for_cuda(10)
    (tmp_path / "text").write_bytes(bytes(range(32, 127)) * 2)
    logits = tmp_path / "logits"
    reference = ("--reference", exported(10).checkpoint, "--text", tmp_path / "text")
    result = edgeblt(
        stand_in, "validate", bundle, *reference, "--provider", "cpu, cuda,cpu", "--json", "-", "--min-top1", 1.5,
        "--save-reference-logits", logits,
    )  # fmt: skip
    reports = json.loads(result.stdout)
    assert [report["provider"] for report in reports] == ["cpu", "cuda"]
    assert reports[1]["device"] == f"stand-in, {reports[0]['device']}"
    assert reports[1]["bits_per_byte"] == pytest.approx(np.log2(260))  # logits of 0: kernels do nothing
    assert result.returncode == 1
    said = result.stderr.splitlines()[-2:]
    assert said[0].startswith("edgeblt: on cpu, on the text text, top-1 agreement is 1.0")
    assert said[1].startswith("edgeblt: on cuda, ")
    shown = edgeblt(stand_in, "validate", bundle, "--reference-logits", logits, "--provider", "cpu,cuda")
    assert "cuda" in shown.stdout and shown.returncode == 0, shown.stderr

    short = ("--prompt-bytes", 30, "--new-bytes", 8, "--repeats", 1)
    bench = json.loads(edgeblt(stand_in, "bench", bundle, *short, "--provider", "cpu,cuda", "--json", "-").stdout)
    on_cpu, on_cuda = bench
    assert on_cpu["gpu_memory_bytes"] is None and on_cuda["gpu_memory_bytes"] > 0
    assert on_cpu["bandwidth_share"] and on_cuda["bandwidth_share"] is None and on_cuda["energy_j_per_byte"] is None
    assert on_cuda["device"] == f"stand-in, {on_cpu['device']}" and not on_cuda["prepared"]
    assert (
        "GPU memory taken" in edgeblt(stand_in, "bench", bundle, *short, "--no-bandwidth").stdout
    )  # by default where it is exported for

    doctor = json.loads(edgeblt(stand_in, "doctor", "--json", "-", capability=87).stdout)
    assert (doctor["gpu"], doctor["gpu_reason"]) == ("stand-in, compute capability 8.7", None)
    doctor = edgeblt(stand_in, "doctor", fault="none-counted")
    assert "Nothing runs on cuda here: the NVIDIA driver gives access to no GPU" in " ".join(doctor.stdout.split())
    inspected = edgeblt(stand_in, "inspect", bundle, "--provider", "cuda").stdout
    assert "CUDAExecutionProvider" in inspected
    generated = edgeblt(stand_in, "generate", bundle, "ab", "--max-new-bytes", 4)
    assert generated.returncode == 0 and not generated.stderr


def test_a_gpu_that_is_too_small(stand_in: StandIn, for_cuda: Callable[..., Path]) -> None:
    result = edgeblt(stand_in, "generate", for_cuda(10), "ab", memory=200_000)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("edgeblt: stand-in has no room for ") and "end other processes on it" in line


def test_cuda_that_is_missing(for_cuda: Callable[..., Path], stand_in: StandIn) -> None:
    """Whatever the command, one sentence; and never the CPU instead."""
    for command in (
        ["generate", for_cuda(10), "ab"],
        ["bench", for_cuda(10)],
        ["inspect", for_cuda(10), "--provider", "cuda"],
    ):
        result = edgeblt(stand_in, *command, fault="none-counted")
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("edgeblt: the NVIDIA driver gives access to no GPU")
