"""Opening a bundle and using it: generate, stream, score."""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeblt.bundle import Bundle, open_bundle
from edgeblt.config import ModelConfig
from edgeblt.contract import STAGES, StageContract, StageName, TensorSpec, stage_contracts
from edgeblt.cuda import explained, gpu_memory
from edgeblt.device import device_name
from edgeblt.drafting import DRAFTERS
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, EOS, OFFSET, encode
from edgeblt.inspection import bundle_plan
from edgeblt.memory import resident_memory, return_freed_memory
from edgeblt.placement import describe_placement, parse_placement
from edgeblt.prepared import Prepared, find_prepared
from edgeblt.providers import PROVIDERS, Provider, memory_of, open_graph, session_options, thread_counts
from edgeblt.roofline import typical_bytes_per_patch
from edgeblt.sampling import Sampler, Sampling
from edgeblt.session import Session
from edgeblt.speculation import AUTO, DECODER, NGRAM, PATCHER, Experience, check_draft, generate_ids
from edgeblt.stage import StageGraph

LARGEST_DRAFTER = 1 / 3  # of the weights that a byte reads: guesses by a larger model cost more than they save

Float = TypeVar("Float", np.float32, np.float64)


@dataclass(frozen=True)
class Scores:
    """What the model makes of a text; entry t is about byte t, given those before it."""

    logprobs: NDArray[np.float32]  # [T] nats
    entropies: NDArray[np.float32]  # [T] nats, the patcher's; all 0 where the patching rule uses none
    patch_starts: NDArray[np.bool_]  # [T] whether the byte starts a patch

    @property
    def bits_per_byte(self) -> float:
        """Mean bits the model needs for a byte; nan for an empty text."""
        return float(-self.logprobs.mean(dtype=np.float64) / np.log(2)) if len(self.logprobs) else float("nan")


class Model:
    """A bundle opened on an execution provider. Its sessions may run in several threads.

    `prepared` says which stages use weights packed before, `load_seconds` how long opening took, and `memory_before`
    and `gpu_memory_before` what was resident then; the latter is None without a GPU.
    """

    def __init__(
        self,
        path: str | Path,
        provider: str | None,
        threads: int | None,
        verify: bool,
        prepared: Prepared | None = None,
        threshold: float | None = None,
    ) -> None:
        """As `load`, with what is `prepared` in another place than beside the bundle."""
        self.memory_before, started = resident_memory(), time.perf_counter()
        self.bundle = open_bundle(path, verify)
        self.threads, self.threshold = threads, threshold
        self.placement = place_stages(self.bundle, provider)
        self.gpu_memory_before = None if self.is_on_host else gpu_memory().used
        self.prepared = prepared or find_prepared(self.bundle, self.provider_name, verify)
        self.config: ModelConfig = self.bundle.manifest.config
        _check_threshold(self.bundle, threshold)
        self._contracts = stage_contracts(self.config, self.bundle.manifest.targets)
        self._experiences: dict[str, Experience] = {}
        self._graphs: dict[StageName, StageGraph] = {}
        for name in STAGES:
            self._graphs[name] = _open_stage(
                self.bundle, self.prepared, name, self._contracts[name], threads, self.placement[name]
            )
        return_freed_memory()
        self.load_seconds = time.perf_counter() - started

    @property
    def provider_name(self) -> str:
        """As `load` takes it: one name, or one by stage."""
        return describe_placement(self.placement)

    @property
    def is_on_host(self) -> bool:
        return set(self.placement.values()) == {"cpu"}

    @property
    def device(self) -> str:
        """Names of what it runs on."""
        return device_name(with_gpu=not self.is_on_host)

    def graph(self, stage: StageName) -> onnxruntime.InferenceSession:
        """The stage as ONNX Runtime has it open."""
        return self._graphs[stage].few

    def with_threshold(self, threshold: float | None) -> "Model":
        """The same open graphs with another threshold, as `load` takes it; None: the bundle's own."""
        _check_threshold(self.bundle, threshold)
        other = copy.copy(self)
        other.threshold = threshold
        return other

    def session(self) -> Session:
        """A new, empty sequence."""
        return Session(self.config, self._graphs, self._contracts, self.threshold)

    def experience(self, draft: str) -> Experience:
        """What drafting of this kind has cost and brought on this model. Raises EdgebltError for an unknown kind."""
        check_draft(draft)
        if draft not in self._experiences:
            self._experiences[draft] = Experience(draft, self._usable_drafters(draft))
        return self._experiences[draft]

    def _usable_drafters(self, draft: str) -> list[str]:
        """A rule that reads no text has no patcher to ask. `auto` asks no model that reads too much for a guess.

        Nor does it guess at all with a stage on a GPU, whose rounding depends on how many bytes it is given at once:
        drafts could change the text.
        """
        if draft == AUTO and not self.is_on_host:
            return []
        usable = [name for name in DRAFTERS if name != PATCHER or self.config.patcher]
        if draft != AUTO:
            return usable
        try:
            plan = bundle_plan(self.bundle, typical_bytes_per_patch(self.config.patching))
        except EdgebltError:  # the bundle has gone since it was opened; what is open works on
            return [NGRAM]
        read: dict[str, tuple[StageName, ...]] = {PATCHER: ("patcher",), DECODER: ("encoder", "decoder")}
        most = LARGEST_DRAFTER * plan.weight_bytes_per_byte
        return [
            name for name in usable if sum(plan.stages[stage].read_per_byte for stage in read.get(name, ())) <= most
        ]

    def generate(
        self,
        prompt: bytes | str,
        max_new_bytes: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        draft: str = AUTO,
    ) -> bytes:
        """The bytes that follow `prompt`, until the model ends the text or `max_new_bytes` are there.

        `draft`, none or a way to guess bytes ahead (`edgeblt.speculation.DRAFTS`), changes the time it takes only; with
        a stage on a GPU, kinds other than `auto` may also turn a near tie (docs/cuda.md).
        Raises EdgebltError for settings out of range.
        """
        return b"".join(self.stream(prompt, max_new_bytes, temperature, top_k, top_p, seed, draft))

    def stream(
        self,
        prompt: bytes | str,
        max_new_bytes: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        draft: str = AUTO,
        *,
        reading: Callable[[Session], None] | None = None,
    ) -> Iterator[bytes]:
        """As `generate`, one byte at a time; `edgeblt.utf8.utf8_pieces` joins them into whole characters.

        `reading` is called with the session after each chunk of the prompt.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        if max_new_bytes < 0:
            raise EdgebltError(f"max_new_bytes is {max_new_bytes}; it must not be negative")
        check_draft(draft)
        return self._stream(_as_bytes(prompt), max_new_bytes, Sampler(sampling), draft, reading)

    def _stream(
        self,
        prompt: bytes,
        max_new_bytes: int,
        sampler: Sampler,
        draft: str,
        reading: Callable[[Session], None] | None,
    ) -> Iterator[bytes]:
        session = self.session()
        logits = np.empty(0, np.float32)
        for chunk in session.run(np.concatenate([[BOS], encode(prompt)])):
            logits = chunk.logits[-1]
            if reading:
                reading(session)
        for chosen in generate_ids(session, logits, sampler, self.experience(draft), max_new_bytes):
            if chosen != EOS:
                yield bytes([chosen - OFFSET])

    def score(self, data: bytes) -> Scores:
        """How likely each byte of `data` is, given those before it."""
        targets = encode(data)
        scores = Scores(np.empty(len(data), np.float32), np.empty(len(data), np.float32), np.empty(len(data), np.bool_))
        for chunk in self.session().run(np.concatenate([[BOS], targets])[: len(targets)]):
            rows = slice(chunk.position, chunk.position + len(chunk.logits))
            scores.logprobs[rows] = log_softmax(chunk.logits)[np.arange(len(chunk.logits)), targets[rows]]
            scores.entropies[rows] = chunk.entropies
            scores.patch_starts[rows] = chunk.patch_starts
        return scores


def cut_into_patches(data: bytes, patch_starts: Sequence[bool] | NDArray[np.bool_]) -> list[bytes]:
    """`data` cut before each byte t for which patch_starts[t]; the first and the last may be parts of a patch."""
    cuts = [0, *(index for index, start in enumerate(patch_starts) if start and index), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(cuts)] if data else []


def load(
    path: str | Path,
    provider: str | None = None,
    threads: int | None = None,
    verify: bool = False,
    threshold: float | None = None,
) -> Model:
    """Open a bundle. `threads` None takes what suits each stage's size; `verify` checks the hash of every file.

    `provider`: cpu, cuda, or for some stages such as `patcher=cpu,global=cuda`; None, and stages left out: what the
    bundle was exported for. A stage exported for the cpu runs only there; one for cuda runs on both.

    `threshold` replaces the patching rule's own, in nats: a higher one makes patches longer, decoding faster and the
    model less accurate; `edgeblt tune` measures by how much.

    What `edgeblt prepare` made for it here is used; `Model.prepared` says if it was, or why not. Raises EdgebltError
    for a damaged bundle, damaged prepared weights, a provider that is not available, or a rule without threshold.
    """
    return Model(path, provider, threads, verify, threshold=threshold)


def place_stages(bundle: Bundle, provider: str | None) -> dict[StageName, Provider]:
    """Where each stage runs; `provider` as `load` takes it. Raises EdgebltError where a stage cannot run there."""
    targets = bundle.manifest.targets
    placement = parse_placement(provider or bundle.manifest.target, "provider", PROVIDERS, targets)
    for stage, place in placement.items():
        if place == "cuda" and targets[stage] != "cuda":
            raise EdgebltError(
                f"the stage {stage} of {bundle.path} was exported for the {targets[stage]}, not for cuda; export the"
                " checkpoint again with --target cuda"
            )
    return placement


def log_softmax(logits: NDArray[Float]) -> NDArray[Float]:
    """Log-probabilities in nats along the last axis, in the logits' own precision."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: NDArray[Float] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _check_threshold(bundle: Bundle, threshold: float | None) -> None:
    if threshold is None:
        return
    if not abs(threshold) <= float(np.finfo(np.float32).max):  # the graph compares in float32
        raise EdgebltError(f"threshold is {threshold}; give a number of nats, such as 1.5")
    if not bundle.manifest.config.patching.rule.needs_entropies:
        raise EdgebltError(f"{bundle.path} starts patches without entropies; leave the threshold out")


def _as_bytes(prompt: bytes | str) -> bytes:
    return prompt.encode() if isinstance(prompt, str) else bytes(prompt)


def _open_stage(
    bundle: Bundle,
    prepared: Prepared,
    name: StageName,
    contract: StageContract,
    threads: int | None,
    provider: Provider,
) -> StageGraph:
    stage = bundle.manifest.stages[name]
    one, many = thread_counts(threads, sum(bundle.manifest.files[weights].size for weights in stage.weights))
    optimized, memory = prepared.graph(name), memory_of(provider)

    def opened(threads: int) -> onnxruntime.InferenceSession:
        options = session_options(threads, provider)
        if optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            return _open_graph(optimized, contract, options, provider, "prepare")
        return _open_graph(bundle.path / stage.graph, contract, options, provider, "export")

    graph = opened(one)
    if memory:
        return StageGraph.on_device(graph, memory)
    return StageGraph(graph, graph if one == many else opened(many))


def _open_graph(
    path: Path, contract: StageContract, options: onnxruntime.SessionOptions, provider: Provider, remedy: str
) -> onnxruntime.InferenceSession:
    try:
        graph = open_graph(str(path), options, provider)
    except EdgebltError:
        raise
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        if provider == "cuda" and (sentence := explained(error)):
            raise sentence from None
        reason = " ".join(str(error).split())[:300]
        raise EdgebltError(f"{path} cannot be opened by onnxruntime ({reason}); {remedy} the bundle again") from None
    _check_interface(path, contract.all_inputs, [*graph.get_inputs(), *graph.get_overridable_initializers()], remedy)
    _check_interface(path, contract.all_outputs, graph.get_outputs(), remedy)
    return graph


def _check_interface(path: Path, specs: tuple[TensorSpec, ...], values: list[Any], remedy: str) -> None:
    """Every tensor the runtime will bind must be there, of its type and fixed dimensions, and no other."""
    seen = {value.name: value for value in values}
    for spec in specs:
        value = seen.pop(spec.name, None)
        kind = {"float32": "tensor(float)"}.get(spec.dtype, f"tensor({spec.dtype})")
        if value is None or value.type != kind or len(value.shape) != len(spec.shape) or any(
            isinstance(wanted, int) and wanted != got for wanted, got in zip(spec.shape, value.shape, strict=True)
        ):  # fmt: skip
            found = f"{value.type} {value.shape}" if value else "nothing"
            raise EdgebltError(f"{path}: {spec.name} should be {kind} {list(spec.shape)}, not {found}; {remedy} again")
    if seen:
        raise EdgebltError(
            f"{path} has the unknown tensor {min(seen)!r:.60}; {remedy} the bundle again with this version"
        )
