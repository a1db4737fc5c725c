"""Metrics in Prometheus' form."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as MetricCollector

from edgeblt.serving.records import RequestRecord
from edgeblt.serving.served import ServedModel, ServedModels

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_BYTE_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self, models: ServedModels) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("edgeblt_requests", "Requests answered.", ("endpoint", "status"), registry=registry)
        self._seconds = Histogram(
            "edgeblt_request_seconds", "Time of a request.", ("endpoint",), buckets=_SECONDS, registry=registry
        )
        self._first = Histogram(
            "edgeblt_time_to_first_byte_seconds", "Time until an answer's first bytes, waiting included.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._between = Histogram(
            "edgeblt_inter_byte_seconds", "Time from one piece of an answer to the next.",
            buckets=_BYTE_SECONDS, registry=registry,
        )  # fmt: skip
        registry.register(_EngineCollector(models))

    def took(self, seconds: float) -> None:
        """Count the time from one piece of an answer to the next."""
        self._between.observe(seconds)

    def answered(self, record: RequestRecord) -> None:
        """Count a request that has been answered."""
        self._requests.labels(record.endpoint, str(record.status)).inc()
        self._seconds.labels(record.endpoint).observe(record.seconds)
        if record.first_s is not None:
            self._first.observe(record.first_s)

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(MetricCollector):
    """Numbers that engines and slots know, read when they are asked for."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yields a family for each number, with a value for each model."""
        gauges = {
            "slots": "Texts generated at once at most.",
            "active_texts": "Texts that have a slot.",
            "queued_texts": "Texts that wait for a slot.",
            "state_bytes": "Memory of the texts' keys and values.",
        }
        counters = {
            "finished_texts": "Texts that have ended.",
            "steps": "Steps of the engine.",
            "rows": "Ids read in these steps; divided by the steps it is how full they are.",
            "prompt_bytes": "Bytes of prompts read.",
            "generated_bytes": "Bytes generated.",
            "drafted_bytes": "Bytes drafted.",
            "accepted_bytes": "Drafted bytes that were generated; divided by those drafted, the acceptance rate.",
            "prefix_hits": "Texts that started from a state in the prefix cache.",
            "prefix_misses": "Texts that started from their beginning.",
        }
        families: dict[str, Metric] = {
            **{name: GaugeMetricFamily(f"edgeblt_{name}", text, labels=["model"]) for name, text in gauges.items()},
            **{name: CounterMetricFamily(f"edgeblt_{name}", text, labels=["model"]) for name, text in counters.items()},
        }
        for served in self._models:
            for name, value in _numbers(served).items():
                families[name].add_metric([served.name], value)  # type: ignore[attr-defined]
        yield from families.values()


def _numbers(served: ServedModel) -> dict[str, float]:
    counts, slots = served.engine.counts, served.slots
    return {
        "slots": slots.count,
        "active_texts": slots.active,
        "queued_texts": slots.queued,
        "state_bytes": served.engine.state_bytes,
        "finished_texts": counts.finished,
        "steps": counts.steps,
        "rows": counts.rows,
        "prompt_bytes": counts.prompt_bytes,
        "generated_bytes": counts.generated_bytes,
        "drafted_bytes": counts.drafted_bytes,
        "accepted_bytes": counts.accepted_bytes,
        "prefix_hits": counts.prefix_hits,
        "prefix_misses": counts.prefix_misses,
    }
