"""Everything that a machine with an NVIDIA GPU has to prove, in one table and one JSON; `check_cuda.sh` starts it.

Stages run one after the other, each in a process of its own; one that fails leaves its figures out, and the limits on
them count as not held. Written to the directory: check_cuda.md, check_cuda.json, validations.json and benchmarks.json
for `edgeblt report`, and check_cuda.log with all that the stages printed.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they need what `missing` looks for
    from cuda_results import Results
    from cuda_stages import Work

HERE = Path(__file__).parent
NEEDED = ("numpy", "onnxruntime", "typer", "rich", "onnx", "onnx_ir", "safetensors", "torch", "transformers", "pytest")
RECIPES = ("fp16", "int8", "int4", "int4-small", "sparse-int8", "sparse-int4", "nf4")
QUICK_RECIPES = ("fp16", "int8", "nf4")  # recipes that take seconds
BUDGET = 480
# The share of the budget by whose end a stage is stopped, so that those after it come to something.
UNTIL = {"environment": 0.2, "export": 0.45, "reference": 0.55, "check": 0.75, "speed": 0.88, "tests": 1.0}
CORES_OF_AN_EXPORT = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 where every limit held, 1 where one did not, 2 where nothing can be checked."""
    options = _parser().parse_args(arguments)
    reason = missing() or refused() or unusable_directory(options.out)
    if reason:
        print(f"check_cuda: {reason}", file=sys.stderr)
        return 2
    from cuda_results import Results
    from cuda_stages import Work

    recipes = tuple(options.recipes or (QUICK_RECIPES if options.quick else RECIPES))
    results = Results(recipes, options.quick)
    with tempfile.TemporaryDirectory(prefix="check_cuda") as folder:
        checkpoints = options.checkpoints and str(options.checkpoints.resolve())
        work = Work(folder, recipes, checkpoints, options.quick)
        Check(work, results, options.out / "check_cuda.log", options.budget).run()
    return write(results, options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "check_cuda", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("check-cuda"), help="where to write; made where it is missing")
    parser.add_argument("--quick", action="store_true", help="few recipes, bytes and rounds")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", choices=RECIPES, help=f"of {', '.join(RECIPES)}")
    parser.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="compressed checkpoints, by recipe, made before: DIR/int4"
    )
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="S", help=f"seconds that all may take, {BUDGET} by default"
    )
    return parser


def missing() -> str | None:
    """The reason why this Python cannot run the check, or None."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"{sys.executable} lacks {', '.join(absent)}; give another Python with --python" if absent else None


def refused() -> str | None:
    """Result of `without_cuda` in another process, so that this one holds no memory of the GPU; None if all is well."""
    code = f"import sys; sys.path.append({str(HERE)!r}); import check_cuda; sys.exit(check_cuda.without_cuda())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if ended.returncode == 0:
        return None
    lines = ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"opening a model on the GPU was ended by {_ending(ended.returncode)}"


def without_cuda() -> str | None:
    """The reason why no session can be opened on the GPU, or None."""
    import onnx.parser
    import onnxruntime

    from edgeblt.errors import EdgebltError
    from edgeblt.runtime.providers import open_graph

    text = '<ir_version: 10, opset_import: ["": 23]> graph (float[n] x) => (float[n] y) { y = Add(x, x) }'
    content = onnx.parser.parse_model(text).SerializeToString()
    try:
        open_graph(content, HERE, onnxruntime.SessionOptions(), "cuda")
    except EdgebltError as error:
        return str(error)
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        return f"onnxruntime cannot open a model on the GPU ({' '.join(str(error).split())[:300]})"
    return None


def unusable_directory(path: Path) -> str | None:
    """Creates the directory; the reason why results cannot be written there, or None."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "check_cuda.log").write_text("", encoding="utf-8")
    except OSError as error:
        return f"{path} cannot be written ({error.strerror}); give another directory with --out"
    return None


class Check:
    """Runs the stages of `work` and gathers what they measure in `results`."""

    def __init__(self, work: "Work", results: "Results", log: Path, budget: float) -> None:
        self.work, self.results, self.log = work, results, log
        self._started, self._budget = time.monotonic(), budget
        self._file = Path(work.directory) / "work.json"

    def run(self) -> None:
        self._describe(self.work)
        self.stage("environment")
        with ThreadPoolExecutor(max(1, _cores() // CORES_OF_AN_EXPORT)) as pool:
            list(pool.map(self.stage, [f"export {recipe}" for recipe in self.work.recipes]))
        self.stage("reference")
        exported = [recipe for recipe in self.work.recipes if self.work.is_exported(recipe)]
        # A recipe whose check ended its process is left out, as it would end the later stages too.
        sound = tuple([recipe for recipe in exported if self.stage(f"check {recipe}")])
        self._describe(dataclasses.replace(self.work, recipes=sound))
        self.stage("speed")
        self.stage("tests")

    def _describe(self, work: "Work") -> None:
        self._file.write_text(json.dumps(dataclasses.asdict(work)), encoding="utf-8")

    def stage(self, stage: str) -> bool:
        """Run it while time is left; whether its process came to its end."""
        from cuda_results import Failure, read_records

        started = time.monotonic()
        left = self._started + self._budget * UNTIL[stage.split()[0]] - started
        records = Path(self.work.directory) / f"{stage}.records"
        reason = self._process(stage, records, left) if left > 1 else "left out: its time was over before it began"
        self.results.records += read_records(records)
        if reason:
            self.results.records.append(Failure(stage, reason))
        self.results.stage_seconds[stage] = round(time.monotonic() - started, 1)
        print(
            f"check_cuda: {stage}, {self.results.stage_seconds[stage]} s{f': {reason}' if reason else ''}", flush=True
        )
        return reason is None

    def _process(self, stage: str, records: Path, seconds: float) -> str | None:
        """Why it did not come to its end. A session of its own: what it has started is ended with it."""
        command = [sys.executable, str(HERE / "cuda_stages.py"), str(self._file), stage, str(records)]
        with self.log.open("a", encoding="utf-8") as log:
            print(f"== {stage}", file=log, flush=True)
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=_environment(stage))
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return f"stopped after {seconds:.0f} s, all that the budget left it"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return None if code == 0 else f"ended by {_ending(code)}; see {self.log.name}"


def _environment(stage: str) -> dict[str, str]:
    """Exports run beside each other: together they take as many threads as there are cores."""
    threads = {"OMP_NUM_THREADS": str(min(_cores(), CORES_OF_AN_EXPORT))} if stage.startswith("export") else {}
    return threads | os.environ


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def write(results: "Results", directory: Path) -> int:
    """Writes all result files; returns the exit code."""
    from cuda_results import Accuracy, document, limits, markdown
    from edgeblt.bundle.dataclass_json import dataclass_document
    from edgeblt.measure.benchmark import Benchmark

    table = markdown(results)
    (directory / "check_cuda.md").write_text(table, encoding="utf-8")
    files = {
        "check_cuda.json": document(results),
        "validations.json": dataclass_document([each.report for each in results.of(Accuracy)]),
        "benchmarks.json": dataclass_document(results.of(Benchmark)),
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table)
    broken = [limit for limit in limits(results) if not limit.held]
    print(f"{len(broken)} of {len(limits(results))} limits NOT held" if broken else "every limit held")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
