"""Opens and runs the bundles named on its input, one a line, and says how each ended: works, refused, or what else.

A process of its own, with limits on memory and time, and without torch: a crash or a hang is this process's, and the
one that feeds it (`fuzz_graphs.py`) sees it.
"""

import faulthandler
import json
import resource
import sys
from pathlib import Path

import numpy as np

from edgeblt.errors import EdgebltError
from edgeblt.inspection import inspect_bundle
from edgeblt.model import load

MEMORY = 6 << 30  # bytes of addresses; a tiny model takes less than half
TEXT = b"A word, a word. 123\n\xc3\xa4 word"


def run(path: Path) -> dict[str, str]:
    before = listing(path.parent)
    ended, said = outcome(path)
    return {"ended": ended, "said": said, "left": " ".join(sorted(listing(path.parent) ^ before))}


def outcome(path: Path) -> tuple[str, str]:
    try:
        use(path)
    except EdgebltError as error:
        said = str(error)
        return ("refused" if said.isprintable() and 10 < len(said) < 2000 else "is refused in odd words"), said
    except Exception as error:  # the fuzzer's finding
        return f"raises {type(error).__module__}.{type(error).__name__}", " ".join(str(error).split())[:300]
    return "works", ""


def use(path: Path) -> None:
    model = load(path, threads=1)
    inspect_bundle(model.bundle)
    session = model.session()
    ids = np.array([1, *(byte + 4 for byte in TEXT)], np.int64)
    for stop in (9, 10, 11, len(ids)):
        session.feed(ids[session.position : stop])
    session.rollback(5)
    session.feed(ids[5:8])
    scores = model.score(TEXT)
    assert len(scores.logprobs) == len(TEXT)


def listing(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def main() -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(run(Path(line.rstrip("\n")))), flush=True)


if __name__ == "__main__":
    main()
