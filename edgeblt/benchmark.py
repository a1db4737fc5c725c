"""How fast a bundle is on this machine: time to the first byte, prefill, and each byte after."""

import platform
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.memory import resident_memory
from edgeblt.model import Model
from edgeblt.samples import held_out_text
from edgeblt.sampling import Sampler, Sampling


@dataclass(frozen=True)
class Percentiles:
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Benchmark:
    """Field by field the JSON of `edgeblt bench`; times in seconds unless the name says otherwise.

    `load_time_s` is what `load` took, with the model's files in the page cache or not, as it was. `anonymous_bytes`
    and `mapped_bytes` are by how much the resident memory of the process had grown after the runs since `load` began:
    the first its own (packed weights, caches, buffers; whatever else the process did in between counts too), the
    second pages of mapped files (weights as far as they were read, and libraries), which other processes share and
    the system can drop; None where the system does not tell. `peak_rss_bytes` is of the whole process, both together.
    """

    load_time_s: float
    time_to_first_byte_s: float
    prefill_bytes_per_s: float
    decode_bytes_per_s: float
    inter_byte_latency_ms: Percentiles
    bytes_per_patch: float
    anonymous_bytes: int | None
    mapped_bytes: int | None
    peak_rss_bytes: int
    prepared: bool  # whether weights packed by `edgeblt prepare` were used
    unprepared_because: str | None
    bundle_bytes: int
    provider: str
    device: str


def bench(model: Model, prompt_bytes: int = 1024, new_bytes: int = 256, repeats: int = 3) -> Benchmark:
    """Medians over `repeats` runs, after one to warm up. The prompt is English prose; bytes are chosen greedily.

    Raises EdgebltError for counts below 1.
    """
    for name, value in (("prompt_bytes", prompt_bytes), ("new_bytes", new_bytes), ("repeats", repeats)):
        if value < 1:
            raise EdgebltError(f"{name} is {value}; it must be at least 1")
    prose = held_out_text("prose")
    prompt = (prose * (prompt_bytes // len(prose) + 1))[:prompt_bytes]
    runs = [_run(model, prompt, new_bytes) for _ in range(repeats + 1)][1:]
    latencies = np.concatenate([run.latencies for run in runs])
    first_byte = float(np.median([run.first_byte for run in runs]))
    p50, p95, p99 = (float(value) * 1e3 for value in np.percentile(latencies, [50, 95, 99]))
    before, after = model.memory_before, resident_memory()
    return Benchmark(
        load_time_s=model.load_seconds,
        time_to_first_byte_s=first_byte,
        prefill_bytes_per_s=len(prompt) / first_byte,
        decode_bytes_per_s=float(np.median([1 / run.latencies.mean() for run in runs])),
        inter_byte_latency_ms=Percentiles(p50, p95, p99),
        bytes_per_patch=runs[-1].bytes_per_patch,
        anonymous_bytes=after.anonymous - before.anonymous if before and after else None,
        mapped_bytes=after.mapped - before.mapped if before and after else None,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        prepared=model.prepared.unused_because is None,
        unprepared_because=model.prepared.unused_because,
        bundle_bytes=model.bundle.size,
        provider=model.provider_name,
        device=device_name(),
    )


@dataclass(frozen=True)
class _Run:
    first_byte: float  # seconds from the prompt to the first new byte
    latencies: "np.ndarray[tuple[int], np.dtype[np.float64]]"  # seconds for each byte after it
    bytes_per_patch: float


def _run(model: Model, prompt: bytes, new_bytes: int) -> _Run:
    """The model's end of text is passed over, so that every run makes as many bytes."""
    session, sampler = model.session(), Sampler(Sampling(), endless=True)
    started = time.perf_counter()
    chosen = sampler.choose(session.feed(np.concatenate([[BOS], encode(prompt)]))[-1])
    moments = [time.perf_counter()]
    for _ in range(new_bytes):
        chosen = sampler.choose(session.feed([chosen])[0])
        moments.append(time.perf_counter())
    return _Run(moments[0] - started, np.diff(moments), session.position / max(session.patch_count, 1))


def device_name() -> str:
    """The processor's name, as the machine gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
