"""Runs the clients of examples/ with portable bundles, and the same loop in Python, to which they are compared."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeblt.ids import BOS, EOS, OFFSET

EXAMPLES = Path(__file__).parents[1] / "examples"
BYTES = slice(OFFSET, OFFSET + 256)
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


def skip_without(example: str, package: str) -> None:
    """Skips the test where there is no node, or the packages of the example are not installed."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed (Debian: apt install nodejs npm)")
    if not (EXAMPLES / example / "node_modules" / package).is_dir():
        pytest.skip(f"{package} is not installed for examples/{example} (make examples)")


def opened(bundle: Path, unpacked: bool) -> onnxruntime.InferenceSession:
    """The graph of a portable bundle on one thread; `unpacked`: with its weights in float32, as in a browser."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1" if unpacked else "0")
    return onnxruntime.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])


class PortableText:
    """One text of a portable graph, by the contract of docs/portable.md."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._state: dict[str, NDArray[Any]] = {}
        for given in (given for given in session.get_inputs() if given.name != "ids"):
            shape = [size if isinstance(size, int) else 1 for size in given.shape]
            self._state[given.name] = np.zeros(shape, TYPES[given.type])

    def feed(self, ids: Sequence[int]) -> tuple[NDArray[np.float32], list[bool]]:
        """Logits [vocabulary] of the id after `ids`, and for each of them whether the id after it starts a patch."""
        values = self._session.run(self._outputs, {"ids": np.array([ids], np.int64), **self._state})
        results = dict(zip(self._outputs, values, strict=True))
        self._state = {name: results[f"next.{name}"] for name in self._state}
        return results["logits"][0, -1], results["patch_starts"][0].tolist()


@dataclass(frozen=True)
class GreedyBytes:
    """Bytes that a client wrote by argmax, beside what the Python loop makes of the same text."""

    gaps: NDArray[np.float64]  # [count] the largest logit minus that of the byte that was written
    patches: int  # patches of prompt and text together


def greedy_bytes(session: onnxruntime.InferenceSession, prompt: bytes, written: bytes) -> GreedyBytes:
    """Reads the prompt at once and the written bytes one by one, as the clients do."""
    text, gaps = PortableText(session), list[float]()
    logits, starts = text.feed([BOS, *(byte + OFFSET for byte in prompt)])
    for byte in written:
        gaps.append(float(max(logits[BYTES].max(), logits[EOS]) - logits[byte + OFFSET]))
        logits, more = text.feed([byte + OFFSET])
        starts += more
    # A start is given one id before it; that of the first byte does not matter, and that after the last is not shown.
    return GreedyBytes(np.array(gaps), 1 + sum(starts[1:-1]))


def node_text(bundle: Path, prompt: str, *options: str) -> str:
    """The output of examples/node, the newline at its end left out."""
    command = ["node", str(EXAMPLES / "node" / "generate.mjs"), str(bundle), prompt, *options]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().removesuffix("\n")


def built_site(bundle: Path, site: Path) -> Path:
    """The page of examples/browser with a bundle, built into `site`."""
    build = ["node", str(EXAMPLES / "browser" / "build.mjs"), str(bundle), str(site)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return site


@contextmanager
def served_site(site: Path) -> Iterator[str]:
    """The address of a site, served by examples/browser's own server on a free port, which ends afterwards."""
    serve = ["node", str(EXAMPLES / "browser" / "serve.mjs"), str(site), "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def graph_file(bundle: Path) -> dict[str, Any]:
    """Size and hash of the graph, as the manifest says."""
    record: dict[str, Any] = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["files"]["model.onnx"]
    return record
