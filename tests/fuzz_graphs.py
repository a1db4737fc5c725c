"""A fuzzer of bundles: graphs, weights and manifests changed at random, opened and run in processes with limits.

    python tests/fuzz_graphs.py --seed 1 --count 1000      cases 1:0 to 1:999
    python tests/fuzz_graphs.py --case 1:17                that one, its bundle kept for a look

Each case must work or be refused in one sentence, and leave the directory as it was. All else is printed with its case
and ends in exit code 1: a crash, more than the time allowed, another exception, a file left behind.
"""

import argparse
import collections
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from graph_mutations import mutate

SECONDS = 120.0  # limit of one case; the slowest that work take less than a second on an idle machine
NATIVE = {"native": "", "portable": "0"}
WORKER = Path(__file__).with_name("fuzz_worker.py")


@dataclass(frozen=True)
class Outcome:
    case: str
    bundle: str
    native: str
    changes: tuple[str, ...]
    ended: str
    said: str
    left: str

    @property
    def is_finding(self) -> bool:
        return self.ended not in ("works", "refused") or bool(self.left)

    def __str__(self) -> str:
        changes = ", ".join(self.changes)
        return f"case {self.case} ({self.bundle}, {self.native}: {changes}): {self.ended} {self.said} {self.left}"


class Worker:
    """A process that runs bundles, started anew when it has ended."""

    def __init__(self, native: str, seconds: float) -> None:
        self._native, self.seconds = native, seconds
        self.process: subprocess.Popen[str] | None = None

    def run(self, path: Path) -> dict[str, str]:
        process = self.process = self.process or self._started()
        assert process.stdin and process.stdout
        with suppress(BrokenPipeError):  # it has ended, which the lines below find
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], self.seconds)[0]:
            self.stop()
            return {"ended": f"runs longer than {self.seconds:.0f} s", "said": "", "left": ""}
        line = process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = process.wait()
        said = self._errors.read_text(errors="replace").strip().replace("\n", " | ")[-600:]
        self.stop()
        return {"ended": f"crashes with exit code {code}", "said": said, "left": ""}

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe and not pipe.closed:
                    with suppress(BrokenPipeError):  # the process has ended
                        pipe.close()
            self._errors.unlink(missing_ok=True)
        self.process = None

    def _started(self) -> subprocess.Popen[str]:
        handle, name = tempfile.mkstemp(prefix="edgeblt-fuzz-", suffix=".txt")
        self._errors = Path(name)
        environment = {**os.environ, "EDGEBLT_NATIVE": NATIVE[self._native], "OMP_NUM_THREADS": "1"}
        try:
            return subprocess.Popen(
                [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=handle, text=True,
                env=environment,
            )  # fmt: skip
        finally:
            os.close(handle)


def fuzz(bundles: dict[str, Path], cases: list[str], scratch: Path, seconds: float = SECONDS) -> Iterator[Outcome]:
    """Runs cases `SEED:NUMBER`; what a case does depends on its name alone."""
    workers = {native: Worker(native, seconds) for native in NATIVE}
    try:
        for case in cases:
            rng = random.Random(case)
            name, native = rng.choice(sorted(bundles)), rng.choice(sorted(NATIVE))
            parent = scratch / "case"
            shutil.rmtree(parent, ignore_errors=True)
            directory = Path(shutil.copytree(bundles[name], parent / "bundle"))
            prepared = bundles[name].with_name(f"{name}.prepared")
            if prepared.exists():  # it is used by the portable bodies, and then instead of the bundle's own
                native = "portable"
                shutil.copytree(prepared, parent / "bundle.prepared")
                changes = tuple(mutate(parent / "bundle.prepared", rng))
            else:
                changes = tuple(mutate(directory, rng))
            result = workers[native].run(directory)
            yield Outcome(case, name, native, changes, result["ended"], result["said"], result["left"])
    finally:
        for worker in workers.values():
            worker.stop()


def make_bundles(directory: Path) -> dict[str, Path]:
    """Small models in every kind of format, with whole layers in one operator and without, for both targets."""
    from tiny_bundles import small_bundles

    return small_bundles(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description="Open and run bundles changed at random.")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--case", help="one case again, as SEED:NUMBER")
    parser.add_argument("--bundles", type=Path, help="where they are kept from run to run")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    cases = [options.case] if options.case else [
        f"{options.seed}:{number}" for number in range(options.first, options.first + options.count)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edgeblt-fuzz-") as name:
        bundles = make_bundles(options.bundles or Path(name) / "bundles")
        counts: collections.Counter[str] = collections.Counter()
        findings = 0
        print(f"fuzzing {cases[0]} to {cases[-1]}", flush=True)
        for outcome in fuzz(bundles, cases, Path(name), options.seconds):
            counts[outcome.ended] += 1
            findings += outcome.is_finding
            if outcome.is_finding or options.case:
                print(outcome, flush=True)
        if options.case:
            kept = Path(tempfile.mkdtemp(prefix="edgeblt-case-")) / "bundle"
            shutil.copytree(Path(name) / "case" / "bundle", kept)
            print(f"its bundle: {kept}")
    print(f"{len(cases)} cases: {', '.join(f'{count} {ended}' for ended, count in counts.most_common())}")
    if findings:
        print(f"{findings} findings; look at one with: python tests/fuzz_graphs.py --case SEED:NUMBER")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
