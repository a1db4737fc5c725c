"""Results as tables for people."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from edgeblt.printable import printable
from edgeblt.report.narrow_tables import add_row as _add
from edgeblt.report.narrow_tables import new_table as _table
from edgeblt.report.narrow_tables import show as _print
from edgeblt.report.product_table import show_product_speed

if TYPE_CHECKING:  # the runtime, slow to import; and the workbench half, absent on a device
    from edgeblt.bundle.weight_plan import WeightPlan
    from edgeblt.doctor import Diagnosis
    from edgeblt.export.demo import Demo
    from edgeblt.inspection import Inspection, ProviderNodes
    from edgeblt.measure.benchmark import Benchmark
    from edgeblt.measure.reference_file import Recording
    from edgeblt.measure.tuning import Tuning
    from edgeblt.measure.validation import Report, Validation
    from edgeblt.prepare import Preparation

BOUNDARY = "|"


def show_validation(reports: "Sequence[Report]", recording: "Recording | None" = None) -> None:
    """Prints the figures of each text and those over all texts; a column for each report, which differ in provider."""
    several = len(reports[0].texts) > 1
    if several:
        for report in reports:
            _print(_accuracy_table(f"accuracy on {report.provider}", "text", "reference", report.texts))
    figures: dict[str, Callable[[Report], str]] = {
        "bits per byte": lambda report: f"{report.bits_per_byte:.5f}",
        "  of the reference": lambda report: f"{report.reference_bits_per_byte:.5f}",
        "  increase": lambda report: f"{report.bits_per_byte_increase:+.6f}",
        "boundary agreement": lambda report: f"{report.boundary_agreement:.6f}",
        "mean KL, nats": lambda report: f"{report.mean_kl:.3g}",
        "top-1 agreement": lambda report: f"{report.top1_agreement:.6f}",
        "greedy agreement": lambda report: f"{report.greedy_agreement:.6f}",
        "largest logit difference": lambda report: f"{report.max_abs_logit_difference:.3g}",
        "bytes compared": lambda report: f"{report.bytes:,}",
        "provider": lambda report: report.provider,
    }
    table = _table("accuracy over all texts" if several else "accuracy", "", *("" for _ in reports))
    for name, shown in figures.items():
        table.add_row(name, *map(shown, reports))
    _print(table)
    if recording:
        _print(printable(f"recorded from {recording.checkpoint}, sha256 {recording.checkpoint_sha256[:12]}"))


def _accuracy_table(title: str, first: str, reference: str, texts: "Mapping[str, Validation]") -> Table:
    columns = ("bits/byte", reference, "boundaries", "top-1", "greedy", "mean KL", "max logit diff.")
    table = _table(title, first, *columns)
    for name, validation in texts.items():
        _add(
            table,
            name,
            f"{validation.bits_per_byte:.4f}",
            f"{validation.reference_bits_per_byte:.4f}",
            f"{validation.boundary_agreement:.4f}",
            f"{validation.top1_agreement:.4f}",
            f"{validation.greedy_agreement:.4f}",
            f"{validation.mean_kl:.1e}",
            f"{validation.max_abs_logit_difference:.1e}",
        )
    return table


def show_benchmark(result: "Benchmark") -> None:
    from edgeblt.report.benchmark_table import decoded, percentiles

    table = _table("speed", "", "")
    table.add_row("opening", f"{result.load_time_s * 1e3:,.0f} ms")
    table.add_row("time to first byte", f"{result.time_to_first_byte_s * 1e3:.1f} ms")
    table.add_row("prefill", f"{result.prefill_bytes_per_s:,.0f} bytes/s")
    spread = result.spread["decode_bytes_per_s"]
    rate = f"{result.decode_bytes_per_s:,.0f} bytes/s (runs {spread.low:,.0f} .. {spread.high:,.0f})"
    table.add_row(f"decoding, {decoded(result)}", rate)
    table.add_row("a byte takes, p50 / p95 / p99", f"{percentiles(result.inter_byte_latency_ms)} ms")
    if result.bytes_per_pass > 1 and result.arrival_gap_ms:
        table.add_row("between arrivals, p50 / p95 / p99", f"{percentiles(result.arrival_gap_ms)} ms")
    table.add_row("bytes a patch", f"{result.bytes_per_patch:.2f}")
    table.add_row(f"bytes a pass, drafts: {result.draft}", f"{result.bytes_per_pass:.2f}")
    if result.draft_acceptance is not None:
        table.add_row("draft acceptance rate", f"{result.draft_acceptance:.0%}")
    table.add_row("weights read for a byte", _size(result.weight_bytes_per_byte))
    table.add_row("keys and values read for a byte", _size(result.cache_bytes_per_byte))
    if result.bandwidth_share is not None and result.bandwidth_bytes_per_s is not None:
        bandwidth = f"{result.bandwidth_share:.0%} of {_size(result.bandwidth_bytes_per_s)}/s"
        table.add_row("  of the memory's bandwidth", bandwidth)
    table.add_row("processor time for a byte", f"{result.cpu_s_per_byte * 1e3:.2f} ms")
    if result.energy_j_per_byte is not None:
        table.add_row("energy for a byte", f"{result.energy_j_per_byte * 1e3:.2f} mJ")
    if result.cost_per_million_bytes is not None:
        table.add_row("cost of a million bytes", f"{result.cost_per_million_bytes:.4g}")
    table.add_row("memory of its own", _size_or_unknown(result.anonymous_bytes))
    table.add_row("memory mapped from files", _size_or_unknown(result.mapped_bytes))
    table.add_row("peak resident memory", _size(result.peak_rss_bytes))
    if result.gpu_memory_bytes is not None:
        table.add_row("GPU memory taken", _size(result.gpu_memory_bytes))
    else:
        table.add_row("prepared weights", "used" if result.prepared else "not used")
    table.add_row("bundle on disk", _size(result.bundle_bytes))
    table.add_row("provider, device", f"{result.provider}, {result.device}")
    _print(table)
    _print(_byte_table(result))
    if result.unprepared_because and result.gpu_memory_bytes is None:
        _print(printable(f"prepared weights are not used: {result.unprepared_because}"))


def _byte_table(result: "Benchmark") -> Table:
    """Time per byte by stage, in microseconds, beside the time that reading weights, keys and values would take."""
    whole, bandwidth = 1 / result.decode_bytes_per_s, result.bandwidth_bytes_per_s
    limit = ["us, reading alone"] if bandwidth else []
    table = _table("where a byte's time goes", "", "us", "share", "read", *limit)
    rows = [
        (name, taken, result.stage_weight_bytes_per_byte[name] + result.stage_cache_bytes_per_byte[name])
        for name, taken in result.stage_s_per_byte.items()
    ]
    between = max(whole - sum(result.stage_s_per_byte.values()), 0.0)
    for name, taken, read in (*rows, ("between them", between, 0.0)):
        alone = [f"{read / bandwidth * 1e6:,.0f}"] if bandwidth else []
        table.add_row(name, f"{taken * 1e6:,.0f}", f"{taken / whole:.0%}", _size(read), *alone)
    return table


def show_benchmarks(results: "Sequence[Benchmark]") -> None:
    """Prints a table for each group of columns, as one table would be too wide for a screen."""
    from edgeblt.report.benchmark_table import table

    headings, rows = table(results)
    named = [name for name in ("provider", "threads", "threshold", "draft", "decoded", "prompt") if name in headings]
    changing = [name for name in named if len({row[headings.index(name)] for row in rows}) > 1]
    figures = headings[headings.index("prompt") + 1 :]
    half = figures.index("bytes/patch")
    for title, group in (("speed", figures[:half]), ("what it takes", figures[half:])):
        shown = _table(title, *changing, *group)
        for row in rows:
            _add(shown, *(row[headings.index(name)] for name in (*changing, *group)))
        _print(shown)
    first = results[0]
    _print(printable(f"{first.bundle}, recipe {first.recipe}, {_size(first.bundle_bytes)}, on {first.device}"))
    _print(
        f"Medians of {first.repeats} runs in turn, {first.new_bytes:,} bytes after a prompt of {printable(first.text)}"
    )


def show_tuning(result: "Tuning", bundle: Path) -> None:
    columns = ("bytes a patch", "bits/byte", "increase", "weight bytes a byte", "decoding, bytes/s", "")
    table = _table("", "threshold", *columns)
    marked = {result.threshold: ["own"]}
    marked.setdefault(result.chosen_threshold, []).append("chosen")
    for point in result.points:
        table.add_row(
            f"{point.threshold:g}",
            f"{point.bytes_per_patch:.2f}",
            f"{point.bits_per_byte:.5f}",
            f"{point.increase:+.5f}",
            f"{point.weight_bytes_per_byte:,.0f}",
            f"{point.decode_bytes_per_s:,.0f}",
            ", ".join(marked.get(point.threshold, ())),
        )
    _print(table)
    _print(printable(f"on {result.bytes:,} bytes of {result.text}, {result.provider}, {result.device}"))
    if result.chosen_threshold == result.threshold:
        _print("No other threshold is cheaper within the budget: the bundle is best as it is.")
        _print(printable(f"  edgeblt generate {bundle} PROMPT"))
    else:
        _print(printable(f"  edgeblt generate {bundle} PROMPT --threshold {result.chosen_threshold:g}"))


def show_preparation(result: "Preparation") -> None:
    table = _table("", "stage", "packed weights, and the graph", "left as it is because")
    for stage in result.stages:
        table.add_row(stage.stage, _size(stage.bytes) if stage.bytes else "", stage.left_because or "")
    table.add_row("all", _size(result.bytes), "")
    _print(table)
    if result.path is None:
        _print("Nothing was written: this machine uses the weights of the bundle as they are.")
        return
    _print(printable(f"Written to {result.path}. Results are the same, bit by bit; this machine uses it from now on."))


def show_inspection(result: "Inspection") -> None:
    _print(printable(f"{result.kind} {result.path}"))  # no title of the table, which would break a long path
    columns: dict[str, list[str]] = {
        "stage": [part.stage for part in result.parts] + [""],
        "content": [part.content for part in result.parts] + ["all"],
        "format": [part.weight_format for part in result.parts] + [""],
        "parameters": [f"{part.parameters:,}" if part.parameters else "" for part in result.parts] + [""],
        "size": [_size(part.bytes) for part in result.parts] + [_size(result.bytes)],
        "sha256": [part.sha256[:12] if part.sha256 else "" for part in result.parts] + [""],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}  # a bundle counts no parameters
    table = _table("", *columns)
    for row in zip(*columns.values(), strict=True):
        _add(table, *row)
    _print(table)
    for name, value in result.description.items():
        _print(printable(f"{name}: {value}"))
    for note in result.notes:
        _print(printable(f"note: {note}"))
    _print(_plans_table(result.plans))
    if result.placement:
        _print(_placement_table(result.placement))


def _placement_table(placement: "Sequence[ProviderNodes]") -> Table:
    """Nodes of each stage by provider; operators are named where a stage has more than one provider."""
    table, seen = _table("which provider runs a stage's nodes", "stage", "provider", "nodes", "which"), set()
    for part in placement:
        operators = ", ".join(f"{count} {name}" for name, count in part.operators.items())
        _add(table, part.stage, part.provider, f"{part.nodes:,}", operators if part.stage in seen else "all others")
        seen.add(part.stage)
    return table


def _plans_table(plans: "Sequence[WeightPlan]") -> Table:
    title = f"weights stored, and read for a byte at {plans[0].bytes_per_patch:g} bytes a patch"
    table = _table(title, "recipe", "stored", "tables", "the rest", "read", *plans[0].stages, "rows")
    for plan in plans:
        rows = sum(stage.rows_per_byte for stage in plan.stages.values())
        stages = (
            stage.weight_bytes_per_byte(plan.bytes_per_patch) - stage.rows_per_byte for stage in plan.stages.values()
        )
        sizes = (plan.bytes, plan.table_bytes, plan.matrix_bytes, plan.weight_bytes_per_byte, *stages, rows)
        _add(table, plan.recipe, *map(_size, sizes))
    return table


def show_diagnosis(result: "Diagnosis") -> None:
    used = result.native_reason is None
    rows = {
        "edgeblt": result.edgeblt or "(not installed)",
        "python": result.python,
        "machine": f"{result.machine}, {result.cores} usable core(s)",
        "onnxruntime": f"{result.onnxruntime}, providers {', '.join(result.execution_providers)}",
        "native library": result.native_library or "none",
        "  version": result.native_version or "",
        "  instructions": result.native_level or "",
        "  could be": ", ".join(result.native_levels),
        "  kernels for": ", ".join(result.native_operators),
        "CUDA library": result.native_cuda_library or "",
        "  for CUDA": ", ".join(result.native_cuda_operators),
        "GPU": result.gpu or "",
    }
    width = max(map(len, rows))
    for name, shown in rows.items():
        if shown:
            _print(printable(f"{name:{width}}  {shown}"))
    if not used:
        _print(printable(f"The native library is not used: {result.native_reason}"))
        _print("Everything works without it, slower.")
    if result.native_cuda_reason and "CUDAExecutionProvider" in result.execution_providers:
        _print(printable(f"The native library for CUDA is not used: {result.native_cuda_reason}"))
    if result.gpu_reason and "CUDAExecutionProvider" in result.execution_providers:
        _print(printable(f"Nothing runs on cuda here: {result.gpu_reason}"))
    _print("EDGEBLT_NATIVE=0 in the environment turns it off; the name of a level sets the instructions.")
    if result.speed:
        show_product_speed(result.speed)


def show_demo(result: "Demo") -> None:
    title = f"accuracy of {printable(result.bundle.manifest.recipe)} against transformers in float32"
    _print(_accuracy_table(title, "held-out text", "transformers", result.accuracy.texts))
    speed = result.benchmark
    table = _table(f"speed after 1,024 bytes of context, drafts: {speed.draft}", "", "edgeblt", "transformers", "ratio")
    for name, ours, theirs in (
        ("prefill, bytes/s", speed.prefill_bytes_per_s, result.reference_prefill_bytes_per_s),
        ("decoding, bytes/s", speed.decode_bytes_per_s, result.reference_decode_bytes_per_s),
    ):
        table.add_row(name, f"{ours:,.0f}", f"{theirs:,.1f}", f"{ours / theirs:,.1f}")
    _print(table)
    _print(
        f"device: {speed.device}, provider {speed.provider}; peak memory {_size(speed.peak_rss_bytes)}, torch included"
    )
    _print(Text.assemble("\nA passage, patches between ", (BOUNDARY, "bold red"), ":\n"))
    passage = Text()
    for patch in result.passage:
        passage.append(patch.decode(errors="replace"))
        passage.append(BOUNDARY, "bold red")
    _print(passage)
    _print(f"\nThe bundle: {result.bundle.path} ({_size(result.bundle.size)}). Try it:")
    _print(f'  edgeblt generate {result.bundle.path} "The whale " --temperature 0.7')


def _size_or_unknown(count: int | None) -> str:
    return "not told by this system" if count is None else _size(count)


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:.0f} bytes"
