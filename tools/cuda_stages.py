"""The stages of `check_cuda.py`, each run in a process of its own, as an error on a GPU may end the process.

    python tools/cuda_stages.py WORK.json STAGE RECORDS

A stage writes what it has measured, a record of `cuda_results.py` a line, as soon as it has it.
"""

import copy
import ctypes
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import cuda_results
from cuda_results import Accuracy, Environment, Failure, Placement, Record, SuiteRun, Timed
from edgeblt.bundle.dataclass_json import parse_dataclass
from edgeblt.bundle.manifest import MANIFEST
from edgeblt.decoding.speculation import NONE
from edgeblt.ids import BOS, encode
from edgeblt.measure.benchmark import Setting, bench
from edgeblt.measure.reference import Text
from edgeblt.measure.reference_file import ReferenceFile
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text
from edgeblt.measure.validation import validate
from edgeblt.model import open_model
from edgeblt.names import Name
from edgeblt.node_providers import node_providers
from edgeblt.runtime import cuda, native
from edgeblt.runtime.machine.cores import usable_cores
from edgeblt.runtime.machine.device import device_name

ROOT = Path(__file__).parents[1]
TEXTS = ("prose", "code", "typos")
CONTEXT_BYTES, PREFILL_BYTES = 1024, 4096
TIMED_ON_CPU = (cuda_results.FLOAT, "int8")
_PAUSE = 0.2  # seconds: no thread of the run before is still waiting for work


@dataclass(frozen=True)
class Work:
    """Settings that all stages of one check share."""

    directory: str  # directory of bundles and the reference
    recipes: tuple[str, ...]
    checkpoints: str | None  # directory of compressed checkpoints, by recipe
    quick: bool

    @property
    def reference(self) -> Path:
        return Path(self.directory) / "reference"

    def bundle(self, recipe: str, target: str) -> Path:
        return Path(self.directory) / (recipe if target == "cpu" else f"{recipe}-{target}")

    def is_exported(self, recipe: str) -> bool:
        return all((self.bundle(*each) / MANIFEST).exists() for each in bundles_of(recipe))


def bundles_of(recipe: str) -> tuple[tuple[str, str], ...]:
    """Recipe and target of the two that are compared, the cpu's first."""
    return (cuda_results.FLOAT if recipe == cuda_results.HALF else recipe, "cpu"), (recipe, "cuda")


def describe_environment(work: Work) -> Iterator[Record]:
    import torch
    import transformers

    major, minor = cuda.compute_capability()
    version, has_gpu = ctypes.c_int(), torch.cuda.is_available()
    ctypes.CDLL(cuda.DRIVER).cuDriverGetVersion(ctypes.byref(version))
    yield Environment(
        gpu=cuda.gpu_name(),
        compute_capability=f"{major}.{minor}",
        gpu_bytes=cuda.gpu_memory().total,
        driver=_driver_version(),
        driver_cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        processor=device_name(),
        cores=usable_cores(),
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
        onnxruntime_cuda=onnxruntime.cuda_version,
        cudnn=cuda.has_cudnn(),
        torch=torch.__version__,
        torch_gpu=torch.cuda.get_device_name(0) if has_gpu else None,
        transformers=transformers.__version__,
        native_kernels=native.describe(),
        native_cuda_kernels=native.register_cuda(onnxruntime.SessionOptions()) or "used",
    )


def _driver_version() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip().partition("\n")[0] or None


def export_recipe(work: Work, recipe: str) -> Iterator[Record]:
    """Both bundles; what needs calibration is quantized once, where no one has before."""
    from edgeblt.export.export_bundle import export_bundle
    from edgeblt.quant.compress import quantize_checkpoint
    from edgeblt.quant.recipes.recipe import load_recipe

    compressed = Path(work.checkpoints or work.directory) / (recipe if work.checkpoints else f"{recipe}-checkpoint")
    if load_recipe(recipe).needs_calibration and not compressed.is_dir():
        compressed = quantize_checkpoint(DEMO_CHECKPOINT, Path(work.directory) / f"{recipe}-checkpoint", Name(recipe))
    for name, target in bundles_of(recipe):
        if compressed.is_dir() and name == recipe:
            export_bundle(compressed, work.bundle(name, target), target=target)
        else:
            export_bundle(DEMO_CHECKPOINT, work.bundle(name, target), Name(name), target)
    yield from ()


def record_reference(work: Work) -> Iterator[Record]:
    """Records transformers' results on the texts in float32."""
    from edgeblt.export.reference import validate_against

    most = 2048 if work.quick else None
    texts = [Text(name, held_out_text(name)[:most]) for name in TEXTS]
    validate_against(DEMO_CHECKPOINT, [], texts, work.reference, device=torch_device())
    yield from ()


def torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_recipe(work: Work, recipe: str) -> Iterator[Record]:
    """Where its nodes are, how near it comes to the reference, how fast it is; what fails leaves out the rest of it."""
    (cpu_recipe, _), _ = bundles_of(recipe)
    on_cpu, on_cuda = work.bundle(cpu_recipe, "cpu"), work.bundle(recipe, "cuda")
    yield from attempt(
        f"{recipe} on cuda: nodes", lambda: iter([Placement(recipe, node_providers(open_model(on_cuda, "cuda")))])
    )
    for bundle, target, provider in ((on_cuda, "cuda", "cuda"), (on_cpu, "cpu", "cpu"), (on_cuda, "cuda", "cpu")):
        compare = functools.partial(_accuracy, work, bundle, recipe, target, provider)
        yield from attempt(f"{recipe}, bundle for {target}, on {provider}: accuracy", compare)
    new_bytes, repeats = (32, 1) if work.quick else (128, 3)
    settings = [Setting("cuda", draft=NONE, prompt_bytes=CONTEXT_BYTES)]
    timed = functools.partial(bench, on_cuda, settings, new_bytes, repeats, with_bandwidth=False)
    yield from attempt(f"{recipe} on cuda: benchmark", lambda: iter(timed()))


def _accuracy(work: Work, bundle: Path, recipe: str, target: str, provider: str) -> Iterator[Record]:
    (report,) = validate([open_model(bundle, provider)], ReferenceFile(work.reference))
    yield Accuracy(recipe, target, report)


def attempt(what: str, measure: Callable[[], Iterator[Record]]) -> Iterator[Record]:
    """The records of `measure`, or a Failure with the reason."""
    try:
        yield from measure()
    except Exception as error:  # whatever it is, the others may work
        yield Failure(what, reason_of(error))


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def time_all(work: Work) -> Iterator[Record]:
    """Decoding and prefill of all bundles and of transformers in turn."""
    prose = np.concatenate([[BOS], encode(held_out_text("prose"))])
    context, long_text = prose[: CONTEXT_BYTES + 1], prose[: PREFILL_BYTES + 1]
    runs: dict[tuple[str, str], tuple[int, Callable[[], float]]] = {}
    yield from _add_transformers(work, runs, context, long_text)
    yield from _add_bundles(work, runs, context, long_text)
    for work_kind in (cuda_results.DECODE, cuda_results.PREFILL):
        named = {name: run for (kind, name), run in runs.items() if kind == work_kind}
        yield from in_turn(work_kind, 2 if work.quick else 5, named)


Runs = dict[tuple[str, str], tuple[int, Callable[[], float]]]  # bytes and seconds, by work and name


def _add_transformers(
    work: Work, runs: Runs, context: NDArray[np.int64], long_text: NDArray[np.int64]
) -> Iterator[Record]:
    from against_transformers import time_reference_decoding, time_reference_prefill
    from edgeblt.export.reference import TransformersReference

    device, new_bytes = torch_device(), 8 if work.quick else 16
    reference = TransformersReference(DEMO_CHECKPOINT, device=device)
    half = copy.copy(reference)
    half.model = copy.deepcopy(reference.model).half()
    for name, each in zip(cuda_results.TRANSFORMERS, (reference, half), strict=True):
        if each is half and device == "cpu":  # float16 is slower there, and nothing is compared with it
            continue
        shown = f"{name} on {device}"
        decode = functools.partial(time_reference_decoding, each, context, new_bytes)
        prefill = functools.partial(time_reference_prefill, each, long_text)
        runs[cuda_results.DECODE, shown] = new_bytes, decode
        runs[cuda_results.PREFILL, shown] = PREFILL_BYTES, prefill
    yield from ()


def _add_bundles(work: Work, runs: Runs, context: NDArray[np.int64], long_text: NDArray[np.int64]) -> Iterator[Record]:
    from against_transformers import time_decoding, time_prefill

    new_bytes = 64 if work.quick else 128
    timed = [each for recipe in work.recipes for each in reversed(bundles_of(recipe))]
    for recipe, target in timed:
        if target == "cpu" and recipe not in TIMED_ON_CPU:
            continue
        name = f"{recipe} on {target}"
        try:
            model = open_model(work.bundle(recipe, target), target)
        except Exception as error:  # the others are timed without it
            yield Failure(f"{name}: speed", reason_of(error))
            continue
        runs[cuda_results.DECODE, name] = new_bytes, functools.partial(time_decoding, model, context, NONE, new_bytes)
        runs[cuda_results.PREFILL, name] = PREFILL_BYTES, functools.partial(time_prefill, model, long_text)


def in_turn(kind: str, rounds: int, runs: Mapping[str, tuple[int, Callable[[], float]]]) -> Iterator[Record]:
    """Each once to warm up, then in rounds, telling all so far after each; what fails is left out from then on."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in tuple(seconds):
            time.sleep(_PAUSE)
            try:
                taken = runs[name][1]()
            except Exception as error:  # the others are timed without it
                del seconds[name]
                yield Failure(f"{name}: {kind}", reason_of(error))
                continue
            if number:
                seconds[name].append(taken)
        if number:
            yield from (Timed(kind, name, runs[name][0], tuple(each)) for name, each in seconds.items())


def run_tests(work: Work) -> Iterator[Record]:
    """Runs the tests that need a GPU; their output goes to the log."""
    report = Path(work.directory) / "tests.xml"
    # The project's settings are left out: they require a newer pytest than may be there, and stop at warnings.
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "-m", "cuda", "-p", "no:cacheprovider"]
    subprocess.run([*command, f"--junitxml={report}", "tests/test_on_cuda.py"], cwd=ROOT, check=False)
    yield read_tests(report)


def read_tests(report: Path) -> SuiteRun:
    """From JUnit's XML, as pytest writes it."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return SuiteRun(
        passed=len(cases) - len(failed) - len(skipped),
        failed=len(failed),
        skipped=len(skipped),
        seconds=sum(float(case.get("time", 0)) for case in cases),
        failures=tuple(case.get("name", "?") for case in failed),
    )


STAGES: dict[str, Callable[..., Iterator[Record]]] = {
    "environment": describe_environment,
    "export": export_recipe,
    "reference": record_reference,
    "check": check_recipe,
    "speed": time_all,
    "tests": run_tests,
}


def main(work_file: str, stage: str, records: str) -> None:
    """`stage`: such as `speed`, or of one recipe `check int8`."""
    work = parse_dataclass(Work, json.loads(Path(work_file).read_text(encoding="utf-8")), work_file)
    name, *recipes = stage.split()
    with Path(records).open("w", encoding="utf-8") as file:
        for record in STAGES[name](work, *recipes):
            file.write(cuda_results.write_record(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


if __name__ == "__main__":
    sys.path.append(str(ROOT / "benchmarks"))
    main(*sys.argv[1:])
