"""What the tests of the CUDA provider run in a process of their own, over the stand-in for CUDA's libraries.

Nothing here imports torch: the processes are many.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import STAGES
from edgeblt.decoding.sampling import log_softmax
from edgeblt.model import open_model
from edgeblt.node_providers import node_providers
from edgeblt.runtime import native
from edgeblt.runtime.state import cache
from edgeblt.runtime.state.device_array import Array, DeviceArray

LENGTH = 400
SHAPES = {
    "Cast",
    "Concat",
    "Greater",
    "Shape",
}  # operators that may be left to the CPU, where counts and shapes are anyway


def walk(bundle: str, provider: str) -> None:
    """Opens a bundle, wanders over a text, and prints what ran where."""
    cache.DEVICE_SLACK = 40  # so that caches move their content
    model = open_model(bundle, provider)
    rng = random.Random(0)
    ids = [1] + [rng.randrange(4, 260) for _ in range(LENGTH - 1)]
    session = model.session()
    runs = dict.fromkeys(STAGES, 0)
    for step in range(30):
        session.feed(ids[session.position : session.position + rng.choice([1, 1, 1, 2, 9, 60, 150, 300])])
        if session.position == LENGTH or step % 4 == 3:
            session.rollback(session.position - min(rng.choice([1, 5, 32, 300]), session.position))
        if step % 7 == 6:
            runs = {name: count + session.work[name].runs for name, count in runs.items()}
            session = session.fork()
    print(
        json.dumps(
            {
                "placement": model.placement,
                "device": model.device,
                "nodes": [vars(part) for part in node_providers(model)],
                "runs": runs,
                "patches": session.patch_count,
                "types": sorted({type(array).__name__ for array in session.state.stage_arrays}),
            }
        )
    )


def keep(bundle: str, provider: str, path: str) -> None:
    """Saves and restores a session and copies it, and prints how many arrays were compared, on the device or not.

    What kernels leave is whatever the memory held, so some values are set to be numbers.
    """
    cache.DEVICE_SLACK = 40
    model = open_model(bundle, provider)
    session, rng = model.session(), random.Random(0)
    for count in (300, 1, 1, 70, 140):
        session.feed([1 if not session.position else 4] + [rng.randrange(4, 260) for _ in range(count - 1)])
    for array in session.state.stage_arrays:
        if isinstance(array, DeviceArray):
            array[:] = np.full(array.shape, rng.random(), array.dtype)
    session.save(path)
    restored, copied = model.restore(path), model.session()
    copied.start_from(session.snapshot())
    compared = []
    for other in (restored, copied):
        assert (other.position, other.patch_count) == (session.position, session.patch_count)
        assert other.state.can_rewind(other.position - 32)
        pairs = zip(session.snapshot().arrays(), other.snapshot().arrays(), strict=True)
        for own, its in pairs:
            assert type(own) is type(its)
            np.testing.assert_array_equal(on_host(own), on_host(its))
            compared.append(type(own).__name__)
        other.feed([70, 71])
    print(json.dumps(Counter(compared)))


def on_host(array: Array) -> NDArray[Any]:
    return array.numpy() if isinstance(array, DeviceArray) else array


def patch(bundle: str, library: str) -> None:
    """Opens a bundle with this library of kernels for CUDA, and prints what its EntropyPatch makes of its logits."""
    found = native.NativeStatus(Path(library), "emulated", None)
    native.cuda_status = lambda: found  # type: ignore[assignment]
    model = open_model(bundle, "cuda")
    nodes = [part for part in node_providers(model) if part.stage == "patcher"]
    rows = []
    session = model.session()
    for count in (1, 1, 40, 3):
        for chunk in session.run([5] * count):
            log_probabilities = log_softmax(chunk.logits.astype(np.float64))
            entropies = -(np.exp(log_probabilities) * log_probabilities).sum(axis=1)
            rows.append(
                [float(np.abs(entropies - chunk.entropies).max()), chunk.patch_starts.tolist(), entropies.tolist()]
            )
    print(json.dumps({"nodes": [vars(part) for part in nodes], "rows": rows, "runs": native.cuda_runs("EntropyPatch")}))


def main() -> None:
    tasks: dict[str, Callable[..., None]] = {"walk": walk, "patch": patch, "keep": keep}
    tasks[sys.argv[1]](*sys.argv[2:])
