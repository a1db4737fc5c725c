"""Random uses of sessions, for the tests of saved sessions; as a program, a process that is killed after it saved one.

Nothing here imports torch or pytest: the processes are many.
"""

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeblt.model import Model, load
from edgeblt.runtime.session import Session


def random_ids(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [1] + [rng.randrange(4, 260) for _ in range(count - 1)]


def wander(session: Session, seed: int, steps: int) -> list[NDArray[np.float32]]:
    """Feed and roll back at random, as the seed says; returns all logits."""
    rng, logits = random.Random(seed), []
    for _ in range(steps):
        if rng.random() < 0.3 and session.position:
            session.rollback(max(session.position - rng.choice([1, 3, 31, 32, 33, 200]), 0))
        if rng.random() < 0.2:
            session.read_ahead([rng.randrange(4, 260) for _ in range(rng.randint(1, 8))])
        count = rng.choice([1, 1, 2, 7, 40, 130, 300])
        fed = [rng.randrange(4, 260) for _ in range(count)]
        if not session.position:
            fed[0] = 1
        logits.append(session.feed(fed))
    return logits


def wandered(model: Model, seed: int) -> Session:
    """A session at a random point."""
    session = model.session()
    wander(session, seed, random.Random(seed).randint(0, 7))
    return session


def main() -> None:
    bundle, seed, path = sys.argv[1:]
    wandered(load(bundle), int(seed)).save(Path(path))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
