"""Speed of a bundle on this machine: time to the first byte, prefill, decoding, and the memory and energy they take."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeblt.bundle.contract import StageName
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.settings import check_draft
from edgeblt.decoding.speculation import AUTO
from edgeblt.errors import EdgebltError, shown
from edgeblt.ids import encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure.bandwidth import measure_bandwidth
from edgeblt.measure.benchmark_runs import FollowedText, Run, timed_run
from edgeblt.measure.distribution import Percentiles, Spread, median, percentiles, quantiles_ms, spread
from edgeblt.measure.reference import Text
from edgeblt.measure.texts import held_out_text
from edgeblt.measure.weight_traffic import weight_bytes_by_stage, weight_bytes_read
from edgeblt.model import Model, open_model
from edgeblt.progress import progress
from edgeblt.runtime.cuda import gpu_memory
from edgeblt.runtime.machine.cores import check_threads
from edgeblt.runtime.machine.memory import peak_resident_bytes, resident_memory

GENERATED, TEXT = "generated", "text"
DECODED = (GENERATED, TEXT)  # the model's own bytes, or those that follow the prompt in the text
_SECONDS_PER_HOUR = 3600
_MOST_BYTES, _MOST_RUNS = 10_000_000, 10_000  # more would run for days
_HIGHEST_PRICE = 1e9  # an hour


@dataclass(frozen=True)
class Setting:
    """Settings that one benchmark is measured with."""

    provider: str | None = None  # None: the provider the bundle was exported for
    threads: int | None = None  # None: chosen by each stage's size
    draft: str = AUTO
    threshold: float | None = None  # None: the bundle's own
    prompt_bytes: int = 1024
    decode: str = GENERATED  # one of DECODED
    temperature: float = 0.0  # sampling temperature; 0: greedy


@dataclass(frozen=True)
class Benchmark:
    """Field by field the JSON of `edgeblt bench`; times in seconds unless the name says otherwise.

    Rates and times are medians over the runs, `spread` their extremes. All bytes of an accepted draft arrive together,
    at the end of the pass that verified them: `arrival_gap_ms` is the time from one arrival to the next, and
    `inter_byte_latency_ms` that time divided evenly among the bytes that arrived. The two are equal without drafts;
    with drafts the first is the pause that a reader sees, the second the mean cost of a byte.

    `decode` says which bytes were decoded: with `text` those of a real text, so that the acceptance rate of drafts is
    realistic. Greedy text of a small model repeats itself, which raises the acceptance rate.

    `weight_bytes_per_byte` is the bytes of weights read per byte generated, `cache_bytes_per_byte` those of keys and
    values within the windows. `bandwidth_share` is both together times the decoding rate, divided by the memory
    bandwidth of this machine (None where it was not measured); it says how near decoding is to the limit where weights
    exceed the processor's caches, and nothing where they fit. `cpu_s_per_byte` is processor
    time of all threads, `energy_j_per_byte` the energy of the whole processor package (None where the machine has no
    counter). Bandwidth and energy are None where a stage runs on a GPU.

    `load_time_s` is the duration of `load`, whether or not the files were in the page cache. `anonymous_bytes` and
    `mapped_bytes` are the growth of the process's resident memory from before `load` to after a warm-up run:
    anonymous memory (packed weights, caches, buffers, and anything else the process allocated) and pages of mapped
    files (weights that were read, and libraries), which other processes share and the system can drop; None where the
    system does not report them. `peak_rss_bytes` is the peak of both together, over the whole process.
    `gpu_memory_bytes` is the growth of the GPU memory in use by all processes; None without a GPU.
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
    spread: dict[str, Spread]  # extremes of the three above by name
    inter_byte_latency_ms: Percentiles
    inter_byte_latency_quantiles_ms: tuple[float, ...]  # quantiles at 0, 1, ... 100 percent
    bytes_per_patch: float
    bytes_per_pass: float  # bytes generated per pass of the model; 1 without drafts
    draft_acceptance: float | None  # acceptance rate: share of drafted bytes; None where none was drafted
    weight_bytes_per_byte: float
    cache_bytes_per_byte: float
    bandwidth_bytes_per_s: float | None
    bandwidth_share: float | None
    cpu_s_per_byte: float
    energy_j_per_byte: float | None
    cost_per_million_bytes: float | None  # generated bytes, in the currency of the hourly price
    stage_s_per_byte: dict[StageName, float]  # a generated byte; the rest of its time is spent between the stages
    stage_weight_bytes_per_byte: dict[StageName, float]  # a generated byte
    stage_cache_bytes_per_byte: dict[StageName, float]  # a generated byte
    stage_bytes: dict[StageName, int]
    anonymous_bytes: int | None
    mapped_bytes: int | None
    peak_rss_bytes: int
    prepared: bool  # true if weights packed by `edgeblt prepare` were used
    unprepared_because: str | None
    bundle_bytes: int
    gpu_memory_bytes: int | None = None
    decode: str = GENERATED
    temperature: float = 0.0
    seed: int | None = None  # seed of the first run, each later run adds 1; None where nothing is sampled
    arrival_gap_ms: Percentiles | None = None  # None in results of versions that did not measure this


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
    """Times a bundle on this machine in each setting: `repeats` runs, the settings in turn, after a warm-up run each.

    bundle: the directory that `edgeblt export` wrote; opened once for each provider and number of threads in settings.
    settings: provider, threads, draft, threshold, bytes of prompt and so on; by default one `Setting()`.
    new_bytes: bytes to decode after the first, 1 or more; default 256.
    repeats: runs of each setting, 1 or more, of which medians are taken; default 5.
    text: the text whose beginning is the prompt, repeated where it is short; None, the default, is English prose.
        Where the bytes of the text are decoded, each run starts at another place of it.
    price_per_hour: price of the machine, for the cost of a million bytes; default None.
    with_bandwidth: whether to measure the memory bandwidth too, which takes 512 MB of memory; default True.
    seed: sampled runs have the seeds `seed`, `seed` + 1 and so on; default 0.

    Raises EdgebltError for counts below 1 or absurdly large, settings out of range, a text that is too short to be
    decoded, and a bundle that `load` refuses.
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
    peak_memory = peak_resident_bytes()  # without the buffer of the bandwidth measurement
    bandwidths: dict[int | None, float] = {}
    for timed in benches if with_bandwidth else ():
        if timed.is_on_host and timed.setting.threads not in bandwidths:
            bandwidths[timed.setting.threads] = measure_bandwidth(timed.setting.threads).bytes_per_s
    return tuple(timed.result(bandwidths.get(timed.setting.threads), price_per_hour, peak_memory) for timed in benches)


def bench_model(model: Model, prompt_bytes: int = 1024, new_bytes: int = 256, repeats: int = 5) -> Benchmark:
    """Times an open model on English prose, without measuring the memory bandwidth."""
    text = Text("prose", held_out_text("prose"))
    setting = Setting(model.provider_name, model.threads, AUTO, model.threshold, prompt_bytes)
    _check((setting,), new_bytes, repeats, text, None, 0)
    timed = _Bench(model, setting, text, new_bytes, repeats, 0)
    for _ in range(repeats):
        timed.run()
    return timed.result(None, None, peak_resident_bytes())


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
        raise EdgebltError(f"the price is {shown(price_per_hour)} an hour; it must be from 0 to {_HIGHEST_PRICE:,.0f}")


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
            f"{text.name} has {len(text.data):,} bytes, but {shown(needed)} would be read and decoded; give a longer "
            "text, or ask for fewer bytes"
        )


class _Bench:
    """Timed runs of one setting, after a warm-up run."""

    def __init__(self, model: Model, setting: Setting, text: Text, new_bytes: int, repeats: int, seed: int) -> None:
        self.setting = setting
        self._model, self._text, self._new_bytes, self._seed = model, text, new_bytes, seed
        needed = setting.prompt_bytes + new_bytes + 1
        self._data = text.data * (1 if setting.decode == TEXT else needed // len(text.data) + 1)
        self._starts = [(len(self._data) - needed) * run // repeats for run in range(repeats)]
        self._runs: list[Run] = []
        self.run()
        self._runs.clear()
        self._memory = resident_memory()  # without other models, opened later
        before = model.gpu_memory_before
        self._gpu_memory = None if before is None else gpu_memory().used - before

    @property
    def is_on_host(self) -> bool:
        return self._model.is_on_host

    def run(self) -> None:
        """Runs once, never ending a text early, so that every run decodes the same number of bytes.

        Each run that follows a text starts at a place of its own, and each sampled run has a seed of its own.
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
        quantiles = quantiles_ms(run.byte_seconds for run in runs)
        stages = bundle_plan(model.bundle, 1.0).stages
        read = median(weight_bytes_read(stages, run.work) / count for run in runs)
        cached = {name: median(run.work[name].cache_bytes / count for run in runs) for name in stages}
        rate, drafted = median(rates), sum(run.counts.drafted for run in runs)
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
            time_to_first_byte_s=median(firsts),
            prefill_bytes_per_s=setting.prompt_bytes / median(firsts),
            decode_bytes_per_s=rate,
            spread={
                "time_to_first_byte_s": spread(firsts),
                "prefill_bytes_per_s": spread(prefills),
                "decode_bytes_per_s": spread(rates),
            },
            inter_byte_latency_ms=percentiles(quantiles),
            inter_byte_latency_quantiles_ms=quantiles,
            bytes_per_patch=median(run.bytes_per_patch for run in runs),
            bytes_per_pass=count * len(runs) / sum(run.counts.passes for run in runs),
            draft_acceptance=sum(run.counts.accepted for run in runs) / drafted if drafted else None,
            weight_bytes_per_byte=read,
            cache_bytes_per_byte=sum(cached.values()),
            bandwidth_bytes_per_s=bandwidth,
            bandwidth_share=rate * (read + sum(cached.values())) / bandwidth if bandwidth else None,
            cpu_s_per_byte=median(run.cpu / count for run in runs),
            energy_j_per_byte=median(joules) if joules else None,
            cost_per_million_bytes=price_per_hour / _SECONDS_PER_HOUR / rate * 1e6
            if price_per_hour is not None
            else None,
            stage_s_per_byte={name: median(run.work[name].seconds / count for run in runs) for name in stages},
            stage_weight_bytes_per_byte={
                name: median(weight_bytes_by_stage(stages, run.work)[name] / count for run in runs) for name in stages
            },
            stage_cache_bytes_per_byte=cached,
            stage_bytes={name: stage.bytes for name, stage in stages.items()},
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
            arrival_gap_ms=percentiles(quantiles_ms(run.gaps for run in runs)),
        )
