"""Time to read very long texts: bytes per second, and the share of the global stage, as the text grows.

    python benchmarks/long_prompts.py BUNDLE [--bytes 40000] [--letter-bytes 24576]

English, and a single letter, at each of which the bundled model starts a patch: each patch attends to all before it.
With one thread; lines at lengths that double, in wall time. The last line is JSON.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from edgeblt.ids import BOS, encode
from edgeblt.measure.texts import held_out_text
from edgeblt.model import Model, load
from edgeblt.runtime.machine.device import device_name

FIRST_BYTES = 256  # length at the first line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bytes", type=int, default=40_000, help="length of the English text")
    parser.add_argument("--letter-bytes", type=int, default=24_576, help="how often the letter is repeated")
    chosen = parser.parse_args()
    english = held_out_text("prose")
    texts = {
        "English": (english * (chosen.bytes // len(english) + 1))[: chosen.bytes],
        "letter": b"a" * chosen.letter_bytes,
    }
    print("| text | bytes | patches | seconds | global stage | bytes/s since the line before |")
    print("| --- |" + " ---: |" * 5)
    with load(chosen.bundle, threads=1, prefix_cache_bytes=0) as model:
        results = {name: read(model, name, text) for name, text in texts.items()}
    print(json.dumps({"device": device_name(), "results": results}))


def read(model: Model, name: str, text: bytes) -> list[dict[str, float]]:
    """Read a text and print a line wherever its length has doubled, and at its end."""
    session, found, started = model.session(), list[dict[str, float]](), time.perf_counter()
    next_line, last_bytes, last_seconds = FIRST_BYTES, 0, 0.0
    for _ in session.run(np.concatenate([[BOS], encode(text)])):
        position, seconds = session.position, time.perf_counter() - started
        if position == last_bytes or position < min(next_line, len(text) + 1):
            continue
        rate = (position - last_bytes) / (seconds - last_seconds)
        share = session.work["global"].seconds / seconds
        cells = (name, f"{position:,}", f"{session.patch_count:,}", f"{seconds:.1f}", f"{share:.0%}", f"{rate:,.0f}")
        print("|", " | ".join(cells), "|")
        found.append({"bytes": position, "patches": session.patch_count, "seconds": round(seconds, 3),
                      "global_share": round(share, 4), "bytes_per_s": round(rate, 1)})  # fmt: skip
        last_bytes, last_seconds, next_line = position, seconds, 2 * position
    return found


if __name__ == "__main__":
    main()
