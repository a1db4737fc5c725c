"""How fast a bundle is on this machine: time to the first byte, prefill, each byte after, and what that costs."""

import itertools
import resource
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import STAGES, StageName
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.speculation import AUTO, check_draft
from edgeblt.errors import EdgebltError, shown
from edgeblt.ids import encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure.bandwidth import measure_bandwidth
from edgeblt.measure.benchmark_runs import FollowedText, Run, timed_run
from edgeblt.measure.reference import Text
from edgeblt.measure.texts import held_out_text
from edgeblt.model import Model, open_model
from edgeblt.progress import progress
from edgeblt.runtime.cuda import gpu_memory
from edgeblt.runtime.machine.cores import check_threads
from edgeblt.runtime.machine.memory import resident_memory
from edgeblt.runtime.stage_work import weight_bytes_by_stage, weight_bytes_read

GENERATED, TEXT = "generated", "text"
DECODED = (GENERATED, TEXT)  # what the model writes itself, or the bytes that follow the prompt in the text
_SECONDS_PER_HOUR = 3600
_MOST_BYTES, _MOST_RUNS = 10_000_000, 10_000  # beyond any patience
_HIGHEST_PRICE = 1e9  # an hour


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
    decode: str = GENERATED  # one of DECODED
    temperature: float = 0.0  # of what is generated; 0: the likeliest bytes


@dataclass(frozen=True)
class Benchmark:
    """Field by field the JSON of `edgeblt bench`; times in seconds unless the name says otherwise.

    Rates and times are medians over the runs, `spread` their extremes. Bytes of a draft arrive together, when the pass
    that checked them has ended: `arrival_gap_ms` is how long nothing came, from one arrival to the next, and
    `inter_byte_latency_ms` that time shared evenly by the bytes that then came at once. Without drafts both are the
    same; with them the first is what a reader who watches sees, and the second what a byte takes.

    `decode` says what was decoded: with `text` the bytes of a real text, so that drafts are as often right as there.
    Greedy text of a small model repeats itself, and flatters drafts.

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
    decode: str = GENERATED
    temperature: float = 0.0
    seed: int | None = None  # of the first run, the next ones' are those after it; None where nothing is sampled
    arrival_gap_ms: Percentiles | None = None  # None in results of versions that did not measure it


def bench(
    bundle: str | Path,
    settings: Sequence[Setting] = (Setting(),),
    new_bytes: int = 256,
    repeats: int = 5,
    text: Text | None = None,
    price_per_hour: float | None = None,
    with_bandwidth: bool = True,
    seed: int = 0,
) -> tuple[Benchmark, ...]:
    """Time a bundle on this machine, setting by setting: each `repeats` times in turn, after one run to warm up.

    bundle: the directory that `edgeblt export` wrote; opened once for each way of opening it that settings ask for.
    settings: what to time: provider, threads, draft, threshold and bytes of prompt; by default one, of the usual.
    new_bytes: bytes to decode after the first, 1 or more; default 256.
    repeats: runs to take the median of, 1 or more; default 5.
    text: what the prompt is the beginning of, repeated where it is short; None, the default, is English prose. Where
        the bytes of the text are decoded, each run starts at another place of it.
    price_per_hour: what the machine costs; gives the cost of a million bytes. Default None.
    with_bandwidth: whether to measure the memory's bandwidth too, with 512 MB; default True.
    seed: sampled runs have the seeds `seed`, `seed` + 1 and so on; default 0.

    Raises EdgebltError for counts below 1 or beyond any patience, settings out of range, a text that is too short to
    be decoded, and what `load` refuses.
    """
    text = text or Text("prose", held_out_text("prose"))
    _check(settings, new_bytes, repeats, text, price_per_hour, seed)
    models: dict[tuple[str | None, int | None], Model] = {}
    benches = []
    with progress("timing", len(settings) * (repeats + 1), "runs") as advance:
        for setting in settings:
            key = (setting.provider, setting.threads)
            if key not in models:
                models[key] = open_model(bundle, *key)
            model = models[key].with_threshold(setting.threshold)
            benches.append(_Bench(model, setting, text, new_bytes, repeats, seed))
            advance(1)
        for _, timed in itertools.product(range(repeats), benches):
            timed.run()
            advance(1)
    peak_memory = _peak_memory()  # before the buffer that the bandwidth is measured with
    bandwidths: dict[int | None, float] = {}
    for timed in benches if with_bandwidth else ():
        if timed.is_on_host and timed.setting.threads not in bandwidths:
            bandwidths[timed.setting.threads] = measure_bandwidth(timed.setting.threads).bytes_per_s
    return tuple(timed.result(bandwidths.get(timed.setting.threads), price_per_hour, peak_memory) for timed in benches)


def bench_model(model: Model, prompt_bytes: int = 1024, new_bytes: int = 256, repeats: int = 5) -> Benchmark:
    """As `bench`, of an open model on English prose, without the machine's bandwidth."""
    text = Text("prose", held_out_text("prose"))
    setting = Setting(model.provider_name, model.threads, AUTO, model.threshold, prompt_bytes)
    _check((setting,), new_bytes, repeats, text, None, 0)
    timed = _Bench(model, setting, text, new_bytes, repeats, 0)
    for _ in range(repeats):
        timed.run()
    return timed.result(None, None, _peak_memory())


def _check(
    settings: Iterable[Setting], new_bytes: int, repeats: int, text: Text, price_per_hour: float | None, seed: int
) -> None:
    counts = [("new_bytes", new_bytes, _MOST_BYTES), ("repeats", repeats, _MOST_RUNS)]
    for setting in settings:
        counts.append(("prompt_bytes", setting.prompt_bytes, _MOST_BYTES))
        check_draft(setting.draft)
        check_threads(setting.threads)
        Sampling(setting.temperature, seed=seed)
        _check_decoded(setting, new_bytes, text)
    for name, value, most in counts:
        if not 1 <= value <= most:
            bound = "at least 1" if value < 1 else f"at most {most:,}"
            raise EdgebltError(f"{name} is {shown(value)}; it must be {bound}")
    if not text.data:
        raise EdgebltError(f"{text.name} is empty; give a text to take the prompt from")
    if price_per_hour is not None and not 0 <= price_per_hour <= _HIGHEST_PRICE:
        raise EdgebltError(f"the price is {shown(price_per_hour)} an hour; give 0 or more, no more than anybody pays")


def _check_decoded(setting: Setting, new_bytes: int, text: Text) -> None:
    if setting.decode not in DECODED:
        raise EdgebltError(f"decode is {shown(setting.decode)}; use one of {', '.join(DECODED)}")
    if setting.decode != TEXT:
        return
    if setting.temperature:
        raise EdgebltError(
            f"temperature is {setting.temperature}, but a text is decoded as it is; leave it out, or decode what is "
            "generated"
        )
    needed = setting.prompt_bytes + new_bytes + 1
    if 0 < len(text.data) < needed:
        raise EdgebltError(
            f"{text.name} has {len(text.data):,} bytes, and {shown(needed)} are to be read and decoded; give a longer "
            "text, or fewer bytes"
        )


class _Bench:
    """The runs of one setting, after one to warm up."""

    def __init__(self, model: Model, setting: Setting, text: Text, new_bytes: int, repeats: int, seed: int) -> None:
        self.setting = setting
        self._model, self._text, self._new_bytes, self._seed = model, text, new_bytes, seed
        needed = setting.prompt_bytes + new_bytes + 1
        self._data = text.data * (1 if setting.decode == TEXT else needed // len(text.data) + 1)
        self._starts = [(len(self._data) - needed) * run // repeats for run in range(repeats)]
        self._runs: list[Run] = []
        self.run()
        self._runs.clear()
        self._memory = resident_memory()  # before other models are opened
        before = model.gpu_memory_before
        self._gpu_memory = None if before is None else gpu_memory().used - before

    @property
    def is_on_host(self) -> bool:
        return self._model.is_on_host

    def run(self) -> None:
        """The model's end of text is passed over, so that every run makes as many bytes.

        Runs that follow a text do so from places of their own, and sampled ones have seeds of their own.
        """
        setting, number = self.setting, len(self._runs)
        start = self._starts[number] if setting.decode == TEXT else 0
        prompt = self._data[start : start + setting.prompt_bytes]
        if setting.decode == TEXT:
            following = self._data[start + setting.prompt_bytes :][: self._new_bytes + 1]
            sampler: Sampler = FollowedText(encode(following).tolist())
        else:
            sampler = Sampler(Sampling(setting.temperature, seed=self._seed + number), endless=True)
        self._runs.append(timed_run(self._model, setting.draft, prompt, sampler, self._new_bytes))

    def result(self, bandwidth: float | None, price_per_hour: float | None, peak_memory: int) -> Benchmark:
        bandwidth = bandwidth if self.is_on_host else None
        runs, model, setting, count = self._runs, self._model, self.setting, self._new_bytes
        firsts = [run.first_byte for run in runs]
        rates = [count / run.seconds for run in runs]
        prefills = [setting.prompt_bytes / first for first in firsts]
        quantiles = _quantiles(run.byte_seconds for run in runs)
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
            inter_byte_latency_ms=_percentiles(quantiles),
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
            peak_rss_bytes=peak_memory,
            prepared=model.prepared.unused_because is None,
            unprepared_because=model.prepared.unused_because,
            bundle_bytes=model.bundle.size,
            gpu_memory_bytes=self._gpu_memory,
            decode=setting.decode,
            temperature=setting.temperature,
            seed=self._seed if setting.temperature else None,
            arrival_gap_ms=_percentiles(_quantiles(run.gaps for run in runs)),
        )


def _quantiles(seconds: Iterable[NDArray[np.float64]]) -> tuple[float, ...]:
    """Milliseconds at 0, 1, ... 100 percent."""
    return tuple(float(value) for value in np.percentile(np.concatenate(list(seconds)) * 1e3, range(101)))


def _percentiles(quantiles: tuple[float, ...]) -> Percentiles:
    return Percentiles(quantiles[50], quantiles[95], quantiles[99])


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def _spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), max(values))


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
