"""Sampling of the JavaScript clients, examples/javascript/blt.mjs, against the distribution that edgeblt samples."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.ids import EOS, OFFSET

MODULE = Path(__file__).parents[1] / "examples" / "javascript" / "blt.mjs"
ALLOWED = [*range(OFFSET, OFFSET + 256), EOS]
SAMPLES = 20_000
PROGRAM = """
import { sampler } from %s;
import { readFileSync } from 'node:fs';
const { bits, allowed, options, count } = JSON.parse(readFileSync(0, 'utf8'));
const logits = new Float32Array(Uint32Array.from(bits).buffer);
const choose = sampler(options, allowed);
console.log(JSON.stringify(Array.from({ length: count }, () => choose(logits))));
"""

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None, reason="node is not installed (Debian: apt install nodejs)"
)


def samples(logits: NDArray[np.float32], count: int, **options: Any) -> list[int]:
    """Ids that one sampler with these options gives for the same logits, one after the other."""
    given = {"bits": logits.view(np.uint32).tolist(), "allowed": ALLOWED, "options": options, "count": count}
    program = PROGRAM % json.dumps(MODULE.as_uri())
    command = ["node", "--input-type=module", "--eval", program]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found


def some_logits() -> NDArray[np.float32]:
    """Logits [260] of which a few matter, the largest being that of an id that is never sampled."""
    logits = (np.random.default_rng(5).standard_normal(260) * 3).astype(np.float32)
    logits[0] = logits.max() + 5
    return logits


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.7, 5, None), (1.3, None, 0.6), (0.9, 12, 0.8), (0.5, 1, 1.0)],
)
def test_samples_have_the_distribution_of_the_settings(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = some_logits()
    wanted = Sampler(Sampling(temperature, top_k, top_p)).distribution(logits)
    cuts = {name: cut for name, cut in (("topK", top_k), ("topP", top_p)) if cut is not None}
    ids = samples(logits, SAMPLES, temperature=temperature, seed=1, **cuts)
    shares = np.bincount(ids, minlength=len(wanted)) / SAMPLES
    assert not shares[wanted == 0].any()
    # Five standard deviations of a share, or two samples of a rare id; the seed is fixed: this holds always or never.
    assert (abs(shares - wanted) <= np.maximum(5 * np.sqrt(wanted * (1 - wanted) / SAMPLES), 2 / SAMPLES)).all()


def test_greedy_is_the_first_of_the_likeliest() -> None:
    logits = some_logits()
    logits[[100, 200]] = logits[1:].max() + 1
    assert samples(logits, 3) == [100] * 3 == [Sampler(Sampling()).choose(logits)] * 3


def test_a_seed_repeats_and_another_differs() -> None:
    first, again, other = (samples(some_logits(), 50, temperature=1, seed=seed) for seed in (7, 7, 8))
    assert first == again != other


def test_logits_that_are_not_numbers_are_an_error() -> None:
    logits = some_logits()
    logits[:] = np.nan
    with pytest.raises(AssertionError, match="the model gives logits that are not numbers"):
        samples(logits, 1)
