"""A fuzzer of the native library's operators: models of one node that are legal, then changed.

Attributes go to the edges of int64 (the legal value plus a power of two among them: what wraps looks legal); sizes,
ranks, types and indices go to theirs; inputs and outputs disappear; initializers become inputs. Every case has to be
answered or refused in one line, and one that nobody changed to be answered. Cases follow from a seed and their number.

They run in a process of their own, which may die: that is what is looked for. `make fuzz-native` runs them in a library
under sanitizers; by hand, for the library that is installed:

    python tests/fuzz_operators.py --seed 1 --count 2000 [--first N] [--library PATH] [--only SparseMatMul]
"""

import argparse
import ctypes
import faulthandler
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fuzzed_operators import OPERATORS, Case, changed

MOST_FINDINGS = 20
MOST_MEMORY = 8 << 30  # bytes of addresses; where a sanitizer has its own, what one allocation may take
SECONDS = 120  # limit of one case: beyond it, it hangs
# A sanitizer's message where an ordinary library would have raised std::bad_alloc.
NO_MEMORY = ("allocation-size-too-big", "out-of-memory", "failed to allocate", "requested allocation size")


@dataclass(frozen=True)
class Finding:
    """A case that was neither answered nor refused as it should be; `number` and the seed make it again."""

    number: int
    operator: str
    changes: tuple[str, ...]
    what: str

    def __str__(self) -> str:
        return f"case {self.number}, {self.operator} ({', '.join(self.changes) or 'unchanged'}): {self.what}"


def make(seed: int, number: int, only: str | None = None) -> Case:
    """The case of this number."""
    chance = np.random.default_rng([seed, number])
    names = [only] if only else list(OPERATORS)
    case = OPERATORS[names[number % len(names)]](chance)
    return changed(case, chance) if chance.random() < 0.9 else case


def run(
    seed: int, count: int, *, first: int = 0, library: Path | None = None, only: str | None = None,
    environment: dict[str, str] | None = None,
) -> list[Finding]:  # fmt: skip
    """Findings of cases `first` to `first` + `count` - 1, at most MOST_FINDINGS.

    `library` is the one in use where it is None; `environment` is added to the process's own.
    """
    findings: list[Finding] = []
    end = first + count
    while first < end and len(findings) < MOST_FINDINGS:
        command = [sys.executable, __file__, "--cases", "--seed", str(seed), "--first", str(first)]
        command += ["--count", str(end - first), *(["--only", only] if only else [])]
        command += ["--library", str(library)] if library else []
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=os.environ | (environment or {})
        )
        started, reported = _read(process.stdout)
        findings += reported
        if process.returncode == 0:
            break
        if started is None:  # none was started
            raise RuntimeError(f"the cases did not start: {process.stderr[-2000:]}")
        if not any(sign in process.stderr for sign in NO_MEMORY):
            findings.append(_finding(seed, started, only, _last_words(process)))
        first = started + 1
    return findings[:MOST_FINDINGS]


def sanitizers() -> dict[str, str]:
    """The environment in which a process opens a library that was built with -DEDGEBLT_SANITIZE=ON.

    Their runtime has to be there first, and C++'s own before whatever is linked to it.
    """
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    paths = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    # What Python and the runtime never give back is none of ours; allocations that cannot be are refused, as elsewhere.
    options = f"detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb={MOST_MEMORY >> 20}"
    return {"LD_PRELOAD": " ".join(paths), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}


def _read(printed: str) -> tuple[int | None, list[Finding]]:
    """The number of the last case that began, and what was reported on."""
    started, findings = None, []
    for line in printed.splitlines():
        if line.startswith("case "):
            started = int(line.removeprefix("case "))
        elif line.startswith("finding "):
            said = json.loads(line.removeprefix("finding "))
            findings.append(Finding(said["number"], said["operator"], tuple(said["changes"]), said["what"]))
    return started, findings


def _finding(seed: int, number: int, only: str | None, what: str) -> Finding:
    case = make(seed, number, only)
    return Finding(number, case.operator, case.changes, what)


def _last_words(process: "subprocess.CompletedProcess[str]") -> str:
    lines = process.stderr.strip().splitlines()
    said = [line for line in lines if "runtime error" in line or line.startswith("SUMMARY")] or lines[:1]
    return f"ended with {process.returncode}: {' '.join(said)[:500]}"


# The following runs in the process that may die.


def model_of(case: Case) -> bytes:
    """One node with its initializers and inputs."""
    inputs, initializers, names = [], [], []
    for name, array in case.inputs.items():
        names.append("" if array is None else name)
        if array is None:
            continue
        if name in case.initializers:
            initializers.append(numpy_helper.from_array(array, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, [f"{name}_{i}" for i in range(array.ndim)]))
    outputs = [helper.make_tensor_value_info(name, output_type(case, name), None) for name in case.outputs if name]
    node = helper.make_node(case.operator, names, list(case.outputs), domain="edgeblt")
    node.attribute.extend(helper.make_attribute(name, value) for name, value in case.attributes.items())
    graph = helper.make_graph([node], "case", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("edgeblt", 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
    return serialized


def output_type(case: Case, name: str) -> int:
    """ONNX's number of an output's type: a cache's is that of its past."""
    past = case.inputs.get(name.replace("present", "past")) if name.startswith("present") else None
    if past is not None:
        return helper.np_dtype_to_tensor_dtype(past.dtype)
    return TensorProto.BOOL if name == "patch_starts" else TensorProto.FLOAT


def answer(case: Case, library: Path, threads: int) -> list[np.ndarray[Any, Any]]:
    """The first output, twice; raises whatever ONNX Runtime does."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.inter_op_num_threads = 4, threads, 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # each tensor's memory by itself, for sanitizers
    options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model_of(case), options, providers=["CPUExecutionProvider"])
    feeds = {name: array for name, array in case.inputs.items() if array is not None and name not in case.initializers}
    found = []
    for _ in range(2):
        binding, values = session.io_binding(), {}
        for name, array in feeds.items():
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array.copy())
            binding.bind_ortvalue_input(name, values[name])
        for output in filter(None, case.outputs):
            past = values.get(output.replace("present", "past")) if case.shared and output != "attended" else None
            if past is not None and output.startswith("present"):
                binding.bind_ortvalue_output(output, past)
            else:
                binding.bind_output(output)
        session.run_with_iobinding(binding)
        found.append(np.array(binding.get_outputs()[0].numpy()))
    return found


def judge(case: Case, library: Path, threads: int) -> str | None:
    """What is wrong with how the case ends, if anything."""
    try:
        first, second = answer(case, library, threads)
    except Exception as error:  # the runtime has no common class for its errors
        _, mark, said = str(error).partition("edgeblt::")
        if not case.changes:
            return f"a legal case was refused: {error}"
        if mark and ("\n" in said.strip() or any(word in said for word in ("std::", "vector::", "basic_string"))):
            return f"no sentence: {error}"
        return None
    if first.tobytes() != second.tobytes():
        return "two runs gave two answers"
    if not case.changes and not np.isfinite(first).all():
        return "a legal case has no finite answer"
    return None


def _cases(seed: int, first: int, count: int, library: Path, only: str | None) -> None:
    native = ctypes.CDLL(str(library))
    levels = [level for level in range(4) if native.edgeblt_level_available(level)]
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    for number in range(first, first + count):
        print("case", number, flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        case = make(seed, number, only)
        native.edgeblt_use_level(levels[number // len(OPERATORS) % len(levels)])
        if what := judge(case, library, 1 + number % 2):
            found = {"number": number, "operator": case.operator, "changes": case.changes, "what": what}
            print("finding", json.dumps(found), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fuzz the operators of the native library.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=2000, help="of cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", choices=list(OPERATORS))
    parser.add_argument("--library", type=Path, help="libedgeblt.so; the installed one where it is not given")
    parser.add_argument("--sanitized", action="store_true", help="the library was built with sanitizers, by g++")
    parser.add_argument("--cases", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    library = given.library or _installed()
    if given.cases:
        _cases(given.seed, given.first, given.count, library, given.only)
        return 0
    environment = sanitizers() if given.sanitized else None
    findings = run(
        given.seed, given.count, first=given.first, library=library, only=given.only, environment=environment
    )
    for finding in findings:
        print(finding)
    print(f"{given.count} cases of seed {given.seed}: {len(findings)} findings")
    return 1 if findings else 0


def _installed() -> Path:
    from edgeblt.runtime import native

    path = native.library_path()
    if path is None:
        raise SystemExit(f"no native library: {native.status().reason}")
    return path


if __name__ == "__main__":
    sys.exit(main())
