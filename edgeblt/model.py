"""Opening a bundle and using it: generate, stream, score."""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeblt.arguments import as_bytes, as_path, real_number, shown, whole_number
from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STAGES, StageContract, StageName, TensorSpec, stage_contracts
from edgeblt.bundle.held_files import is_too_many_open, too_many_open
from edgeblt.bundle.manifest import Bundle, HeldStage, hold_bundle, refuse_replacement
from edgeblt.bundle.placement import describe_placement, parse_placement
from edgeblt.bundle.weight_plan import typical_bytes_per_patch
from edgeblt.decoding.drafters import DRAFTERS
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.speculation import AUTO, DECODER, NGRAM, PATCHER, Experience, check_draft, generate_ids
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, OFFSET, encode
from edgeblt.inspection import bundle_plan
from edgeblt.names import DraftName, Name, ProviderName
from edgeblt.runtime.cuda import explained, gpu_memory
from edgeblt.runtime.exactness import is_exact
from edgeblt.runtime.machine.cores import check_threads
from edgeblt.runtime.machine.device import device_name
from edgeblt.runtime.machine.memory import resident_memory, return_freed_memory
from edgeblt.runtime.packed_weights import Prepared, find_prepared
from edgeblt.runtime.providers import PROVIDERS, Provider, memory_of, open_graph, session_options, thread_counts
from edgeblt.runtime.run_errors import EnoughMemory, no_memory
from edgeblt.runtime.session import Session
from edgeblt.runtime.stage import StageGraph

LARGEST_DRAFTER = 1 / 3  # of the weights that a byte reads: guesses by a larger model cost more than they save

Float = TypeVar("Float", np.float32, np.float64)


@dataclass(frozen=True, repr=False)
class Scores:
    """What the model makes of a text; entry t is about byte t, given those before it.

    logprobs: float32 [T], nats.
    entropies: float32 [T], nats: how uncertain the patcher was about the byte; all 0 where the patching rule uses none.
    patch_starts: bool [T], whether the byte starts a patch.
    """

    logprobs: NDArray[np.float32]  # [T] nats
    entropies: NDArray[np.float32]  # [T] nats, the patcher's; all 0 where the patching rule uses none
    patch_starts: NDArray[np.bool_]  # [T] whether the byte starts a patch

    @property
    def bits_per_byte(self) -> float:
        """Mean bits the model needs for a byte; nan for an empty text."""
        return float(-self.logprobs.mean(dtype=np.float64) / np.log(2)) if len(self.logprobs) else float("nan")

    def __repr__(self) -> str:
        sizes = f"{len(self.logprobs)} bytes in {int(self.patch_starts.sum())} patches"
        return f"<edgeblt.Scores of {sizes}: {self.bits_per_byte:.4f} bits per byte>"


class Model:
    """A bundle opened on an execution provider, by `load`. Its sessions may run in several threads.

    It can be pickled, which takes its path and settings along: another process, as `multiprocessing` starts by spawn,
    opens the bundle again. `prepared` says which stages use weights packed before, `load_seconds` how long opening
    took, and `memory_before` and `gpu_memory_before` what was resident then; the latter is None without a GPU.
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
        path, threads = as_path("path", path), None if threads is None else whole_number("threads", threads, 1)
        check_threads(threads)
        self.memory_before, started = resident_memory(), time.perf_counter()
        held = hold_bundle(path, verify)
        self.bundle = held.bundle
        self.threads, self.threshold = threads, _checked_threshold(self.bundle, threshold)
        self.placement = place_stages(self.bundle, provider)
        self.gpu_memory_before = None if self.is_on_host else gpu_memory().used
        self.prepared = prepared or find_prepared(self.bundle, self.provider_name, verify)
        self._opened = (os.path.abspath(path), self.bundle.id, provider, threads, verify, prepared)
        self.config: ModelConfig = self.bundle.manifest.config
        self._contracts = stage_contracts(self.config, self.bundle.manifest.targets)
        self._experiences: dict[str, Experience] = {}
        self._is_exact: bool | None = None
        self._graphs: dict[StageName, StageGraph] = {}
        used = []
        for name in STAGES:
            own, packed = held.stages[name], self.prepared.stage(name)
            counts = thread_counts(threads, sum(file.size for file in own.weights))
            used.append(packed or own)
            self._graphs[name] = _open_stage(
                used[-1], packed is not None, self._contracts[name], counts, self.placement[name]
            )
        self._weights = [file for stage in used for file in stage.weights]  # what is mapped
        refuse_replacement(used)  # ONNX Runtime opened the weights by their names
        return_freed_memory()
        self.load_seconds = time.perf_counter() - started

    @property
    def provider_name(self) -> str:
        """As `load` takes it: one name, or one by stage."""
        return describe_placement(self.placement)

    @property
    def is_on_host(self) -> bool:
        """Whether no stage runs on a GPU."""
        return set(self.placement.values()) == {"cpu"}

    @property
    def is_exact(self) -> bool:
        """Whether a byte gets the same logits to the last bit whatever is computed beside it, so that drafts cannot
        change a text: tried once, when it is first asked about. Never with a stage on a GPU."""
        if self._is_exact is None:
            self._is_exact = self.is_on_host and is_exact(self.session)
        return self._is_exact

    @property
    def device(self) -> str:
        """Names of what it runs on."""
        return device_name(with_gpu=not self.is_on_host)

    def graph(self, stage: StageName) -> onnxruntime.InferenceSession:
        """The stage as ONNX Runtime has it open.

        stage: patcher, encoder, global or decoder.
        """
        return self._graphs[stage].few

    def with_threshold(self, threshold: float | None) -> "Model":
        """The same open graphs with another threshold.

        threshold: as `load` takes it; None is the bundle's own.
        """
        other = self.__copy__()
        other.threshold = _checked_threshold(self.bundle, threshold)
        return other

    def __repr__(self) -> str:
        return f"<edgeblt.Model {str(self.bundle.path)!r}: {self.bundle.manifest.recipe}, on {self.provider_name}>"

    def __copy__(self) -> "Model":
        """The same open graphs."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, and copied by `copy.deepcopy`, as its path and settings: it is opened again, in any process."""
        return _opened_again, (*self._opened, self.threshold)

    def session(self) -> Session:
        """A new, empty sequence. Raises EdgebltError where a file of weights was written to since it was opened."""
        for file in self._weights:
            file.refuse_changes()
        return Session(self.config, self._graphs, self._contracts, self.threshold)

    def experience(self, draft: str) -> Experience:
        """What drafts of one kind have cost and brought on this model so far; `generate` learns from it.

        draft: as `generate` takes it.

        Raises EdgebltError for an unknown kind.
        """
        check_draft(draft)
        if draft not in self._experiences:
            self._experiences[draft] = Experience(draft, self._usable_drafters(draft))
        return self._experiences[draft]

    def _usable_drafters(self, draft: str) -> list[str]:
        """A rule that reads no text has no patcher to ask. `auto` asks no model that reads too much for a guess.

        Nor does it guess at all where rounding depends on how many bytes are computed at once, as on a GPU: drafts
        could change the text.
        """
        if draft == AUTO and not self.is_exact:
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
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        draft: DraftName | Name = AUTO,
    ) -> bytes:
        """The bytes that follow a prompt, until the model ends the text or `max_new_bytes` are there.

        prompt: bytes, or str, which is read as UTF-8; may be empty.
        max_new_bytes: 0 or more; default 256.
        temperature: 0 takes the likeliest byte; above 0 bytes are drawn: at 1 as the model believes, below 1 more
            likely ones more often. None, the default, is what the checkpoint states, or 0 if it states none.
        top_k: draw from the k likeliest bytes only, 1 or more; None as for the temperature, 260 for all.
        top_p: draw from the likeliest bytes that add up to this share, above 0 and at most 1, of what top_k leaves;
            None as for the temperature, 1 for all.
        seed: 0 or more; the same one repeats what is drawn. None, the default, is another every time.
        draft: how bytes are guessed ahead, which changes the time it takes only: none, patcher, decoder, ngram, or
            auto, the default. Where `is_exact` is false, kinds other than auto may also turn a near tie.

        What ends a text is no part of it. Raises EdgebltError for arguments out of range, and where the model fails.
        """
        return b"".join(self.stream(prompt, max_new_bytes, temperature, top_k, top_p, seed, draft))

    def stream(
        self,
        prompt: bytes | str,
        max_new_bytes: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        draft: DraftName | Name = AUTO,
        *,
        reading: Callable[[Session], None] | None = None,
    ) -> Iterator[bytes]:
        """What `generate` gives, one byte at a time; `decoding.utf8.utf8_pieces` joins them into whole characters.

        Takes what `generate` takes, and refuses what it refuses when it is called; and

        reading: called with the session after each chunk of the prompt; it may ask where that is. Default None.
        """
        stated = self.config.generation
        sampling = Sampling(
            stated.temperature if temperature is None else temperature,
            stated.top_k if top_k is None else top_k,
            stated.top_p if top_p is None else top_p,
            seed,
        )
        most = whole_number("max_new_bytes", max_new_bytes)
        check_draft(draft)
        return self._stream(as_bytes("prompt", prompt), most, Sampler(sampling, ends=stated.ends), draft, reading)

    def _stream(
        self,
        prompt: bytes,
        max_new_bytes: int,
        sampler: Sampler,
        draft: str,
        reading: Callable[[Session], None] | None,
    ) -> Iterator[bytes]:
        with EnoughMemory("to generate a text"):
            session = self.session()
            logits = np.empty(0, np.float32)
            for chunk in session.run(np.concatenate([[BOS], encode(prompt)])):
                logits = chunk.logits[-1]
                if reading:
                    reading(session)
            for chosen in generate_ids(session, logits, sampler, self.experience(draft), max_new_bytes):
                if chosen not in sampler.ends:
                    yield bytes([chosen - OFFSET])

    def score(self, data: bytes | str) -> Scores:
        """How likely each byte of a text is, given those before it.

        data: bytes, or str, which is read as UTF-8; may be empty.
        """
        data = as_bytes("data", data)
        with EnoughMemory("to score a text"):
            return self._score(data)

    def _score(self, data: bytes) -> Scores:
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
    provider: ProviderName | Name | None = None,
    threads: int | None = None,
    verify: bool = False,
    threshold: float | None = None,
) -> Model:
    """Open a bundle.

    path: the directory that `edgeblt export` wrote.
    provider: where it runs: cpu, cuda, or some stages' own such as `edgeblt.Name("patcher=cpu,global=cuda")`. None, the
        default, and stages left out: what the bundle was exported for. A stage exported for the cpu runs only there;
        one for cuda runs on both.
    threads: how many to compute with, 1 or more. None, the default, is what suits each stage's size.
    verify: True checks the sha256 of every file first; by default sizes and the graphs' are checked.
    threshold: replaces the patching rule's own, in nats; a finite number, default None. A higher one makes patches
        longer, decoding faster and the model less accurate; `edgeblt tune` measures by how much.

    What `edgeblt prepare` made for it here is used; `Model.prepared` says if it was, or why not. Raises EdgebltError
    for a damaged bundle, damaged prepared weights, a provider that is not available, or a rule without threshold.
    """
    return open_model(path, provider, threads, verify, threshold)


def open_model(
    path: str | Path,
    provider: str | None = None,
    threads: int | None = None,
    verify: bool = False,
    threshold: float | None = None,
) -> Model:
    """As `load`, for names that a command line or a file gave."""
    with EnoughMemory("to open the bundle"):
        return Model(path, provider, threads, verify, threshold=threshold)


def _opened_again(
    path: str,
    bundle_id: str,
    provider: str | None,
    threads: int | None,
    verify: bool,
    prepared: Prepared | None,
    threshold: float | None,
) -> Model:
    """A model that was pickled. Raises EdgebltError as `load`, and if another bundle is in its place."""
    model = Model(path, provider, threads, verify, prepared, threshold)
    if model.bundle.id != bundle_id:
        raise EdgebltError(f"{path} holds another bundle than when the model was pickled; load it and pickle it again")
    return model


def place_stages(bundle: Bundle, provider: str | None) -> dict[StageName, Provider]:
    """Where each stage runs; `provider` as `load` takes it. Raises EdgebltError where a stage cannot run there."""
    if provider is not None and not isinstance(provider, str):
        raise EdgebltError(f"provider is {shown(provider)}; it must be a name such as {', '.join(PROVIDERS)}")
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
    """Log-probabilities in nats along the last axis, in the logits' own precision.

    Entries of +inf share all the probability; a row with NaN, or with nothing above -inf, has NaN everywhere.
    """
    with np.errstate(all="ignore"):
        largest = logits.max(axis=-1, keepdims=True)
        if np.isposinf(largest).any():
            logits = np.where(np.isposinf(largest), np.where(np.isposinf(logits), 0, -np.inf), logits)
            largest = np.where(np.isposinf(largest), 0, largest)
        shifted = logits - largest
        result: NDArray[Float] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _checked_threshold(bundle: Bundle, threshold: float | None) -> float | None:
    if threshold is None:
        return None
    rest = "give a number of nats, such as 1.5"
    number = real_number("threshold", threshold, rest)
    if not abs(number) <= float(np.finfo(np.float32).max):  # the graph compares in float32
        raise EdgebltError(f"threshold is {shown(threshold)}; {rest}")
    if not bundle.manifest.config.patching.rule.needs_entropies:
        raise EdgebltError(f"{bundle.path} starts patches without entropies; leave the threshold out")
    return number


def _open_stage(
    stage: HeldStage, is_prepared: bool, contract: StageContract, counts: tuple[int, int], provider: Provider
) -> StageGraph:
    """`counts`: threads for runs on few positions, and on many."""
    (few, many), memory = counts, memory_of(provider)

    def opened(threads: int) -> onnxruntime.InferenceSession:
        options = session_options(threads, provider)
        if is_prepared:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return _open_graph(stage, contract, options, provider, "prepare" if is_prepared else "export")

    graph = opened(few)
    if memory:
        return StageGraph.on_device(graph, memory)
    return StageGraph(graph, graph if few == many else opened(many))


def _open_graph(
    stage: HeldStage, contract: StageContract, options: onnxruntime.SessionOptions, provider: Provider, remedy: str
) -> onnxruntime.InferenceSession:
    path = stage.graph
    try:
        graph = open_graph(stage.content, stage.directory.path, options, provider)
    except EdgebltError:
        raise
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        refuse_replacement([stage])
        if is_too_many_open(error):
            raise too_many_open(path) from None
        if provider == "cuda" and (sentence := explained(error)):
            raise sentence from None
        if sentence := no_memory(error, f"to open {path}"):
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
