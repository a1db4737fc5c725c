"""Time to the first byte of a prompt whose beginning is known: read again, kept by the prefix cache, or in a file.

    python benchmarks/prefixes.py BUNDLE [--prompt-bytes 1024 4096 16384] [--last-bytes 96] [--rounds N]

All but the last bytes of each prompt are known.

In each round, one after the other: the prompt without a prefix cache; with one that has seen a prompt with the same
beginning and another end; and from a saved session of that beginning, read from a file. Each round has another end.
Also the time to save and to keep a state, and sizes. With one thread; the least of all rounds, in processor time, which
counts neither other processes nor waiting for the disk. The last line is JSON.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeblt.ids import BOS, encode
from edgeblt.measure.texts import held_out_text
from edgeblt.model import Model, load
from edgeblt.runtime.machine.device import device_name

Result = TypeVar("Result")


@dataclass(frozen=True)
class Figures:
    prompt_bytes: int
    known_bytes: int
    read_ms: float  # to the first byte, everything read
    cached_ms: float  # to the first byte, the beginning kept
    restored_ms: float  # to the first byte, the beginning in a file
    cached_ratio: float  # read_ms / cached_ms
    restored_ratio: float
    begin_ms: float  # reading the beginning alone
    save_ms: float
    restore_ms: float  # without what follows
    keep_ms: float  # time to make a copy for the cache
    file_bytes: int
    state_bytes: int  # size of that copy
    device: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt-bytes", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--last-bytes", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print("| prompt, bytes | all read | kept in memory | from a file | copy | save | restore | file |")
    print("|" + " ---: |" * 8)
    found = []
    for size in options.prompt_bytes:
        with tempfile.TemporaryDirectory() as folder:
            known = size - options.last_bytes
            found.append(measured(options.bundle, size, known, options.rounds, Path(folder)))
        print(row(found[-1]), flush=True)
    print(json.dumps([asdict(figures) for figures in found]))


def row(found: Figures) -> str:
    """A line of the table, times in milliseconds."""
    return (
        f"| {found.prompt_bytes:,} | {found.read_ms:,.1f} | {found.cached_ms:.1f} ({found.cached_ratio:.1f} times"
        f" faster) | {found.restored_ms:.1f} ({found.restored_ratio:.1f}) | {found.keep_ms:.1f} | {found.save_ms:.1f}"
        f" | {found.restore_ms:.1f} | {found.file_bytes / 1e6:.1f} MB |"
    )


def measured(bundle: Path, prompt_bytes: int, known_bytes: int, rounds: int, folder: Path) -> Figures:
    plain, caching = load(bundle, threads=1, prefix_cache_bytes=0), load(bundle, threads=1)
    text = held_out_text("prose") * (2 * (prompt_bytes + rounds) // 10_000 + 2)
    beginning, ends = text[:known_bytes], [text[known_bytes + shift :] for shift in range(1, rounds + 1)]
    state = folder / "session.state"
    begun = plain.session()
    begin, _ = timed(begun.feed, np.concatenate([[BOS], encode(beginning)]))
    caching.generate(beginning, max_new_bytes=1)
    times: dict[str, list[float]] = defaultdict(list)
    for end in ends:
        rest, found = end[: prompt_bytes - known_bytes], []
        for name, work, *arguments in (
            ("read", first_byte, plain, beginning + rest),
            ("cached", first_byte, caching, beginning + rest),
            ("save", begun.save, state),
            ("restore", plain.restore, state),
            ("restored", first_byte_after, plain, state, rest),
            ("keep", begun.snapshot),
        ):
            seconds, result = timed(work, *arguments)
            times[name].append(seconds)
            found += [result] if isinstance(result, bytes) else []
        assert len({*found}) == 1 or not plain.is_exact, "the first byte differs"
    least = {name: 1e3 * min(values) for name, values in times.items()}
    ratios = least["read"] / least["cached"], least["read"] / least["restored"]
    assert caching.prefix_cache.statistics.hits == rounds
    size = sum(array.nbytes for array in begun.snapshot().arrays())
    return Figures(
        prompt_bytes, known_bytes, least["read"], least["cached"], least["restored"], *ratios, 1e3 * begin,
        least["save"], least["restore"], least["keep"], state.stat().st_size, size, device_name(),
    )  # fmt: skip


def timed(work: Callable[..., Result], *arguments: Any) -> tuple[float, Result]:
    started = time.process_time()
    result = work(*arguments)
    return time.process_time() - started, result


def first_byte(model: Model, prompt: bytes) -> bytes:
    return next(model.stream(prompt, max_new_bytes=1, draft="none", ignore_eos=True))


def first_byte_after(model: Model, state: Path, rest: bytes) -> bytes:
    stream = model.stream(rest, max_new_bytes=1, draft="none", ignore_eos=True, session=model.restore(state))
    return next(stream)


if __name__ == "__main__":
    main()
