"""How fast a bundle is on this machine: time to the first byte, prefill, each byte after, and what that costs."""

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeblt.bandwidth import measure_bandwidth
from edgeblt.contract import STAGES, StageName
from edgeblt.cuda import gpu_memory
from edgeblt.energy import Energy
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.inspection import bundle_plan
from edgeblt.memory import resident_memory
from edgeblt.model import Model, open_model
from edgeblt.progress import progress
from edgeblt.reference import Text
from edgeblt.samples import held_out_text
from edgeblt.sampling import Sampler, Sampling
from edgeblt.speculation import AUTO, DraftCounts, check_draft, generate_ids
from edgeblt.work import StageWork, weight_bytes_by_stage, weight_bytes_read

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Percentiles:
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Spread:
    """The lowest and the highest of the runs."""

    low: float
    high: float


@dataclass(frozen=True)
class Setting:
    """What one row of a benchmark is measured with."""

    provider: str | None = None  # None: what the bundle was exported for
    threads: int | None = None  # None: what suits each stage's size
    draft: str = AUTO
    threshold: float | None = None  # None: the bundle's own
    prompt_bytes: int = 1024


@dataclass(frozen=True)
class Benchmark:
    """Field by field the JSON of `edgeblt bench`; times in seconds unless the name says otherwise.

    Rates and times are medians over the runs, `spread` their extremes. Bytes of a draft arrive together, the first
    after all the time it took: so says `inter_byte_latency_ms`.

    `weight_bytes_per_byte` counts what the stages' runs read per byte generated, `bandwidth_share` is that times the
    rate over what this machine's memory gives (None where it was not measured); it says how near to the limit decoding
    is where weights exceed the caches, and nothing where they do not. `cpu_s_per_byte` is processor time of all
    threads, `energy_j_per_byte` what the whole processor package took (None where the machine does not tell). Neither
    bandwidth nor energy is known of a GPU: None where a stage runs on one.

    `load_time_s` is what `load` took, with the model's files in the page cache or not, as it was. `anonymous_bytes`
    and `mapped_bytes` are by how much the resident memory of the process had grown after the runs since `load` began:
    the first its own (packed weights, caches, buffers; whatever else the process did in between counts too), the
    second pages of mapped files (weights as far as they were read, and libraries), which other processes share and
    the system can drop; None where the system does not tell. `peak_rss_bytes` is of the whole process, both together.
    `gpu_memory_bytes` is by how much what all processes use of the GPU had grown; None without one.
    """

    bundle: str  # the directory's name
    bundle_id: str
    recipe: str
    provider: str
    device: str
    threads: int | None
    draft: str
    threshold: float | None
    text: str
    prompt_bytes: int
    new_bytes: int
    repeats: int
    load_time_s: float
    time_to_first_byte_s: float
    prefill_bytes_per_s: float
    decode_bytes_per_s: float
    spread: dict[str, Spread]  # of the three above, by name
    inter_byte_latency_ms: Percentiles
    inter_byte_latency_quantiles_ms: tuple[float, ...]  # at 0, 1, ... 100 percent
    bytes_per_patch: float
    bytes_per_pass: float  # bytes that one pass of the model gives; 1 without drafts
    draft_acceptance: float | None  # share of drafted bytes that were kept; None where none was drafted
    weight_bytes_per_byte: float
    bandwidth_bytes_per_s: float | None
    bandwidth_share: float | None
    cpu_s_per_byte: float
    energy_j_per_byte: float | None
    cost_per_million_bytes: float | None  # generated, in the currency of the price an hour
    stage_s_per_byte: dict[StageName, float]  # generated; the rest of a byte's time is spent between the stages
    stage_weight_bytes_per_byte: dict[StageName, float]  # generated
    stage_bytes: dict[StageName, int]
    anonymous_bytes: int | None
    mapped_bytes: int | None
    peak_rss_bytes: int
    prepared: bool  # whether weights packed by `edgeblt prepare` were used
    unprepared_because: str | None
    bundle_bytes: int
    gpu_memory_bytes: int | None = None


def bench(
    bundle: str | Path,
    settings: Sequence[Setting] = (Setting(),),
    new_bytes: int = 256,
    repeats: int = 5,
    text: Text | None = None,
    price_per_hour: float | None = None,
    with_bandwidth: bool = True,
) -> tuple[Benchmark, ...]:
    """Time a bundle on this machine, setting by setting: each `repeats` times in turn, after one run to warm up.

    bundle: the directory that `edgeblt export` wrote; opened once for each way of opening it that settings ask for.
    settings: what to time: provider, threads, draft, threshold and bytes of prompt; by default one, of the usual.
    new_bytes: bytes to generate after the first, 1 or more; default 256. They are chosen greedily.
    repeats: runs to take the median of, 1 or more; default 5.
    text: what the prompt is the beginning of, repeated where it is short; None, the default, is English prose.
    price_per_hour: what the machine costs; gives the cost of a million bytes. Default None.
    with_bandwidth: whether to measure the memory's bandwidth too, with 512 MB; default True.

    Raises EdgebltError for counts below 1 and what `load` refuses.
    """
    text = text or Text("prose", held_out_text("prose"))
    _check(settings, new_bytes, repeats, text, price_per_hour)
    models: dict[tuple[str | None, int | None], Model] = {}
    benches = []
    with progress("timing", len(settings) * (repeats + 1), "runs") as advance:
        for setting in settings:
            key = (setting.provider, setting.threads)
            if key not in models:
                models[key] = open_model(bundle, *key)
            benches.append(_Bench(models[key].with_threshold(setting.threshold), setting, text, new_bytes))
            advance(1)
        for _, timed in itertools.product(range(repeats), benches):
            timed.run()
            advance(1)
    bandwidths: dict[int | None, float] = {}
    for timed in benches if with_bandwidth else ():
        if timed.is_on_host and timed.setting.threads not in bandwidths:
            bandwidths[timed.setting.threads] = measure_bandwidth(timed.setting.threads).bytes_per_s
    return tuple(timed.result(bandwidths.get(timed.setting.threads), price_per_hour) for timed in benches)


def bench_model(model: Model, prompt_bytes: int = 1024, new_bytes: int = 256, repeats: int = 5) -> Benchmark:
    """As `bench`, of an open model on English prose, without the machine's bandwidth."""
    text = Text("prose", held_out_text("prose"))
    setting = Setting(model.provider_name, model.threads, AUTO, model.threshold, prompt_bytes)
    _check((setting,), new_bytes, repeats, text, None)
    timed = _Bench(model, setting, text, new_bytes)
    for _ in range(repeats):
        timed.run()
    return timed.result(None, None)


def _check(settings: Iterable[Setting], new_bytes: int, repeats: int, text: Text, price_per_hour: float | None) -> None:
    counts = [("new_bytes", new_bytes), ("repeats", repeats)]
    for setting in settings:
        counts.append(("prompt_bytes", setting.prompt_bytes))
        check_draft(setting.draft)
    for name, value in counts:
        if value < 1:
            raise EdgebltError(f"{name} is {value}; it must be at least 1")
    if not text.data:
        raise EdgebltError(f"{text.name} is empty; give a text to take the prompt from")
    if price_per_hour is not None and not 0 <= price_per_hour < float("inf"):
        raise EdgebltError(f"the price is {price_per_hour} an hour; give 0 or more")


@dataclass(frozen=True)
class _Run:
    first_byte: float  # seconds from the prompt to the first new byte
    latencies: "np.ndarray[tuple[int], np.dtype[np.float64]]"  # seconds for each byte after it
    cpu: float  # seconds, after the first byte
    joules: float | None
    work: dict[StageName, StageWork]  # after the first byte
    counts: DraftCounts
    bytes_per_patch: float


class _Bench:
    """The runs of one setting, after one to warm up."""

    def __init__(self, model: Model, setting: Setting, text: Text, new_bytes: int) -> None:
        self.setting = setting
        self._model, self._text, self._new_bytes = model, text, new_bytes
        times = setting.prompt_bytes // len(text.data) + 1
        self._prompt = np.concatenate([[BOS], encode((text.data * times)[: setting.prompt_bytes])])
        self._runs: list[_Run] = []
        self.run()
        self._runs.clear()
        self._memory = resident_memory()  # before other models are opened
        before = model.gpu_memory_before
        self._gpu_memory = None if before is None else gpu_memory().used - before

    @property
    def is_on_host(self) -> bool:
        return self._model.is_on_host

    def run(self) -> None:
        """The model's end of text is passed over, so that every run makes as many bytes."""
        session, counts, energy = self._model.session(), DraftCounts(), Energy()
        started = time.perf_counter()
        logits = session.feed(self._prompt)[-1]
        sampler = Sampler(Sampling(), endless=True)
        experience = self._model.experience(self.setting.draft)
        new_ids = generate_ids(session, logits, sampler, experience, self._new_bytes + 1, counts)
        next(new_ids)
        moments = [time.perf_counter()]
        before, cpu, joules = session.work, time.process_time(), energy.joules()
        for _ in new_ids:
            moments.append(time.perf_counter())
        cpu, after = time.process_time() - cpu, energy.joules()
        self._runs.append(
            _Run(
                moments[0] - started,
                np.diff(moments),
                cpu,
                after - joules if after is not None and joules is not None and self.is_on_host else None,
                {name: work.since(before[name]) for name, work in session.work.items()},
                counts,
                session.position / max(session.patch_count, 1),
            )
        )

    def result(self, bandwidth: float | None, price_per_hour: float | None) -> Benchmark:
        bandwidth = bandwidth if self.is_on_host else None
        runs, model, setting, count = self._runs, self._model, self.setting, self._new_bytes
        firsts = [run.first_byte for run in runs]
        rates = [count / float(run.latencies.sum()) for run in runs]
        prefills = [setting.prompt_bytes / first for first in firsts]
        latencies = np.concatenate([run.latencies for run in runs]) * 1e3
        quantiles = tuple(float(value) for value in np.percentile(latencies, range(101)))
        stages = bundle_plan(model.bundle, 1.0).stages
        read = _median(weight_bytes_read(stages, run.work) / count for run in runs)
        rate, drafted = _median(rates), sum(run.counts.drafted for run in runs)
        joules = [run.joules / count for run in runs if run.joules is not None]
        before, after = model.memory_before, self._memory
        return Benchmark(
            bundle=model.bundle.directory_name,
            bundle_id=model.bundle.id,
            recipe=model.bundle.manifest.recipe,
            provider=model.provider_name,
            device=model.device,
            threads=setting.threads,
            draft=setting.draft,
            threshold=setting.threshold,
            text=self._text.name,
            prompt_bytes=setting.prompt_bytes,
            new_bytes=count,
            repeats=len(runs),
            load_time_s=model.load_seconds,
            time_to_first_byte_s=_median(firsts),
            prefill_bytes_per_s=setting.prompt_bytes / _median(firsts),
            decode_bytes_per_s=rate,
            spread={
                "time_to_first_byte_s": _spread(firsts),
                "prefill_bytes_per_s": _spread(prefills),
                "decode_bytes_per_s": _spread(rates),
            },
            inter_byte_latency_ms=Percentiles(quantiles[50], quantiles[95], quantiles[99]),
            inter_byte_latency_quantiles_ms=quantiles,
            bytes_per_patch=_median(run.bytes_per_patch for run in runs),
            bytes_per_pass=count * len(runs) / sum(run.counts.passes for run in runs),
            draft_acceptance=sum(run.counts.accepted for run in runs) / drafted if drafted else None,
            weight_bytes_per_byte=read,
            bandwidth_bytes_per_s=bandwidth,
            bandwidth_share=rate * read / bandwidth if bandwidth else None,
            cpu_s_per_byte=_median(run.cpu / count for run in runs),
            energy_j_per_byte=statistics.median(joules) if joules else None,
            cost_per_million_bytes=price_per_hour / _SECONDS_PER_HOUR / rate * 1e6
            if price_per_hour is not None
            else None,
            stage_s_per_byte={name: _median(run.work[name].seconds / count for run in runs) for name in STAGES},
            stage_weight_bytes_per_byte={
                name: _median(weight_bytes_by_stage(stages, run.work)[name] / count for run in runs) for name in STAGES
            },
            stage_bytes={name: stages[name].bytes for name in STAGES},
            anonymous_bytes=after.anonymous - before.anonymous if before and after else None,
            mapped_bytes=after.mapped - before.mapped if before and after else None,
            peak_rss_bytes=_peak_memory(),
            prepared=model.prepared.unused_because is None,
            unprepared_because=model.prepared.unused_because,
            bundle_bytes=model.bundle.size,
            gpu_memory_bytes=self._gpu_memory,
        )


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def _spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), max(values))


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
