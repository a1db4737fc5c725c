"""Opening a bundle and using it: generate, stream, score."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, Unpack, cast

import numpy as np
import onnxruntime

from edgeblt.arguments import as_bytes, as_path, whole_number
from edgeblt.batching.calls import LARGEST_BATCH, BatchCalls
from edgeblt.bundle.architectures import ByteModelConfig, architecture, check_prompt
from edgeblt.bundle.contract import StageName
from edgeblt.bundle.manifest import hold_bundle
from edgeblt.bundle.placement import describe_placement
from edgeblt.bundle.weight_plan import typical_bytes_per_patch
from edgeblt.decoding.draft_costs import PassCosts
from edgeblt.decoding.settings import GenerationSettings, OtherSettings, check_draft, merged_settings
from edgeblt.decoding.speculation import AUTO, NONE, DraftStatistics, usable_drafters
from edgeblt.decoding.text_stream import TextStream
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.inspection import bundle_plan
from edgeblt.names import DraftName, Name, ProviderName
from edgeblt.runtime.batch.opening import open_stepper
from edgeblt.runtime.batch.stepper import Stepper
from edgeblt.runtime.cuda import gpu_memory
from edgeblt.runtime.exactness import is_exact
from edgeblt.runtime.machine.cores import check_threads
from edgeblt.runtime.machine.device import device_name
from edgeblt.runtime.machine.memory import resident_memory, return_freed_memory
from edgeblt.runtime.opening import checked_threshold, open_graphs, place_stages
from edgeblt.runtime.packed_weights import Prepared, find_prepared
from edgeblt.runtime.portable.opening import open_portable
from edgeblt.runtime.portable.session import PortableSession
from edgeblt.runtime.run_errors import EnoughMemory
from edgeblt.runtime.saved.prefix_cache import PREFIX_CACHE_BYTES, PrefixCache
from edgeblt.runtime.saved.restore_calls import RestoreCalls
from edgeblt.runtime.session import Session
from edgeblt.scores import Scores, empty_scores, store_scores


class Model(BatchCalls, RestoreCalls):
    """A bundle opened on an execution provider, by `load`. Its sessions may run in several threads.

    It is pickled as its path and settings: another process, such as one that `multiprocessing` spawns, opens the bundle
    again. `prefix_cache` keeps states of recent prompts: `.statistics` says what, `.clear()` drops them. `prepared`
    says which stages use prepared weights, `load_seconds` how long opening took; `memory_before` and
    `gpu_memory_before` are the bytes in use before it, the latter None without a GPU.
    """

    def __init__(
        self,
        path: str | Path,
        provider: str | None,
        threads: int | None,
        *,
        verify: bool = False,
        prepared: Prepared | None = None,
        threshold: float | None = None,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
    ) -> None:
        """Open a bundle as `load` does; `prepared` replaces the prepared weights beside the bundle."""
        self.prefix_cache = PrefixCache(whole_number("prefix_cache_bytes", prefix_cache_bytes))
        path, threads = as_path("path", path), None if threads is None else whole_number("threads", threads, 1)
        check_threads(threads)
        self.memory_before, started = resident_memory(), time.perf_counter()
        held = hold_bundle(path, verify)
        self.bundle = held.bundle
        self.threads, self.threshold = threads, checked_threshold(self.bundle, threshold)
        self.placement = place_stages(self.bundle, provider)
        self.gpu_memory_before = None if self.is_on_host else gpu_memory().used
        self.prepared = prepared or find_prepared(self.bundle, self.provider_name, verify)
        self._opened = (os.path.abspath(path), self.bundle.id, provider, threads, verify, prepared)
        self.config: ByteModelConfig = self.bundle.manifest.config
        self._draft_statistics: dict[str, DraftStatistics] = {}
        self._step_costs: dict[int, PassCosts] = {}
        self._is_exact: bool | None = None
        self.is_portable = self.bundle.manifest.is_portable
        if self.is_portable:
            self.prefix_cache = PrefixCache(0)  # its sessions have no copies to start from
            self._graphs = open_portable(held, threads)
        else:
            self._graphs = open_graphs(held, self.prepared, self.placement, threads)
        kind = PortableSession if self.is_portable else architecture(self.bundle.manifest.architecture).session_class
        self._session_class = cast("Callable[..., Session]", kind)
        return_freed_memory()
        self.load_seconds = time.perf_counter() - started

    @property
    def provider_name(self) -> str:
        """Execution provider in the form that `load` takes: one name, or one by stage."""
        return describe_placement(self.placement)

    @property
    def is_on_host(self) -> bool:
        """Whether no stage runs on a GPU."""
        return set(self.placement.values()) == {"cpu"}

    @property
    def is_exact(self) -> bool:
        """Whether a byte's logits are the same to the last bit whatever else is computed in the same run, so that
        drafts cannot change a text. Tested once, on first use; never true with a stage on a GPU."""
        if self._is_exact is None:
            self._is_exact = self.is_on_host and is_exact(self.session)
        return self._is_exact

    @property
    def device(self) -> str:
        """Names of the processor and, if a stage runs on one, the GPU."""
        return device_name(with_gpu=not self.is_on_host)

    def graph(self, stage: StageName) -> onnxruntime.InferenceSession:
        """The stage's open ONNX Runtime session.

        stage: patcher, encoder, global or decoder.

        Raises EdgebltError once the model is closed.
        """
        return self._graphs[stage].for_positions(1)

    def close(self) -> None:
        """Free the graphs and their weights.

        Afterwards every use of the model, of those that share its graphs (`with_threshold`, `copy.copy`) and of their
        sessions raises EdgebltError. A run that another thread has begun ends first, its next one raises. Closing
        again does nothing; leaving a `with` block closes too.
        """
        self._graphs.close()
        self.prefix_cache.clear()

    def __enter__(self) -> Self:
        self._graphs.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def with_threshold(self, threshold: float | None) -> "Model":
        """A model that shares the open graphs and has another threshold.

        threshold: as `load` takes it; None is the bundle's own.
        """
        other = self.__copy__()
        other.threshold = checked_threshold(self.bundle, threshold)
        return other

    def __repr__(self) -> str:
        return f"<edgeblt.Model {str(self.bundle.path)!r}: {self.bundle.manifest.recipe}, on {self.provider_name}>"

    def __copy__(self) -> "Model":
        """A model that shares the open graphs."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, and `copy.deepcopy`, as path and settings: the bundle is opened again, in any process."""
        return _opened_again, (*self._opened, self.threshold, self.prefix_cache.limit)

    def session(self) -> Session:
        """A new, empty sequence.

        Raises EdgebltError where a weight file was written to since it was opened, and once the model is closed.
        """
        self._graphs.refuse_changes()
        return self._session_class(self.config, self._graphs, self.threshold)

    def _stepper(self, most_sequences: int, memory: int | None) -> Stepper:
        most = whole_number("most_sequences", most_sequences, 1)
        if most > LARGEST_BATCH:
            raise EdgebltError(f"most_sequences is {most}; it must be at most {LARGEST_BATCH:,}")
        allowed = None if memory is None else whole_number("memory", memory, 1)
        return open_stepper(self.config, self._graphs, self.session, self.threshold, most, allowed)

    def draft_statistics(self, draft: str) -> DraftStatistics:
        """Acceptance rates and costs of one kind of drafts on this model so far, which `generate` uses and updates.

        draft: as `generate` takes it.

        Raises EdgebltError for an unknown kind, and for one that this model cannot draft by.
        """
        check_draft(draft)
        if draft not in self._draft_statistics:
            with EnoughMemory("to prepare drafts"):
                self._draft_statistics[draft] = DraftStatistics(draft, self._usable_drafters(draft))
        return self._draft_statistics[draft]

    def _usable_drafters(self, draft: str) -> list[str]:
        """Drafters for `draft`. `auto` has none where the model is not exact: they could change the text."""
        if self.is_portable and draft not in (AUTO, NONE):
            raise EdgebltError(f"a portable bundle cannot draft; leave draft {draft} out, or export it for the cpu")
        if draft == AUTO and (self.is_portable or not self.is_exact):
            return []
        try:
            plan = bundle_plan(self.bundle, typical_bytes_per_patch(self.config.patching)) if draft == AUTO else None
        except EdgebltError:  # the bundle was removed since it was opened; open graphs still work
            plan = None
        has_patcher, has_heads = self.config.patcher is not None, self.config.further_count > 0
        return usable_drafters(draft, has_patcher, has_heads, self._graphs.contracts, plan)

    def generate(
        self,
        prompt: bytes | str,
        max_new_bytes: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        draft: DraftName | Name | None = None,
        *,
        settings: GenerationSettings | None = None,
        **others: Unpack[OtherSettings],
    ) -> bytes:
        """Generate the bytes that follow a prompt, until the model or a setting ends the text.

        prompt: bytes, or str, which is read as UTF-8; may be empty.
        max_new_bytes, temperature, top_k, top_p, seed, draft: as `GenerationSettings` has them; None, the default, is
            the setting in `settings`.
        settings: a `GenerationSettings`; None, the default, has the default of each.
        others: any other setting of `GenerationSettings`, by its name.

        The id that ends a text is no part of it. Raises EdgebltError for arguments out of range, and where the model
        fails.
        """
        return b"".join(
            self.stream(prompt, max_new_bytes, temperature, top_k, top_p, seed, draft, settings=settings, **others)
        )

    def stream(
        self,
        prompt: bytes | str,
        max_new_bytes: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        draft: DraftName | Name | None = None,
        *,
        settings: GenerationSettings | None = None,
        reading: Callable[[Session], None] | None = None,
        details: int | None = None,
        session: Session | None = None,
        **others: Unpack[OtherSettings],
    ) -> TextStream:
        """Generate as `generate` does, byte by byte; `TextStream` says why the text ended.

        Takes the arguments of `generate`, checks them at once, and takes three more:

        reading: called with the session after each chunk of the prompt, to show its position. Default None.
        details: records the details of each byte, with so many likeliest alternatives; None, the default, records none.
        session: a session of this model whose text the prompt goes on; after the end, or `close`, it has been fed the
            prompt and the bytes yielded. Without a prompt the text generated on it before goes on, as if it had not
            ended. Default None, a session of its own.
        """
        given = {"max_new_bytes": max_new_bytes, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        stated, data = self.config.generation, as_bytes("prompt", prompt)
        chosen = merged_settings(settings, **given, seed=seed, draft=draft, **others).completed(stated)
        if session is None or session.position < 2:
            check_prompt(self.config, data)
        return TextStream(
            self._begin_text,
            self.draft_statistics(chosen.draft),
            data,
            chosen,
            stated.ends,
            reading,
            None if details is None else whole_number("details", details),
            session,
        )

    def score(self, data: bytes | str) -> Scores:
        """Log-probability of each byte of a text, given those before it.

        data: bytes, or str, which is read as UTF-8; may be empty.
        """
        data = as_bytes("data", data)
        with EnoughMemory("to score a text"):
            targets = encode(data)
            scores = empty_scores(len(targets))
            ids = np.concatenate([[BOS], targets])[: len(targets)]
            self.session().read(ids, lambda chunk: store_scores(scores, chunk, targets))
            return scores


def load(
    path: str | Path,
    provider: ProviderName | Name | None = None,
    threads: int | None = None,
    verify: bool = False,
    threshold: float | None = None,
    prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
) -> Model:
    """Open a bundle.

    path: the directory that `edgeblt export` wrote.
    provider: execution provider: cpu, cuda, or one for some stages such as `edgeblt.Name("patcher=cpu,global=cuda")`.
        None, the default, and stages left out run where the bundle was exported for. A stage exported for the cpu runs
        only there; one for cuda runs on both.
    threads: number of threads, 1 or more. None, the default, suits it to each stage's size.
    verify: True checks the sha256 of every file first; by default only sizes and the hashes of graphs are checked.
    threshold: replaces the patching rule's own, in nats; a finite number, default None. A higher one makes patches
        longer, decoding faster and the model less accurate; `edgeblt tune` measures by how much.
    prefix_cache_bytes: most bytes for states of recent prompts, from which prompts that begin alike start; 0 keeps
        none. Default 268,435,456 (256 MiB). They are taken as texts are generated, on the GPU where stages run there.

    Weights that `edgeblt prepare` packed on this machine are used; `Model.prepared` says whether, or why not. Raises
    EdgebltError for a damaged bundle, damaged prepared weights, an unavailable provider, or a rule without threshold.
    """
    return open_model(path, provider, threads, verify, threshold, prefix_cache_bytes)


def open_model(
    path: str | Path,
    provider: str | None = None,
    threads: int | None = None,
    verify: bool = False,
    threshold: float | None = None,
    prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
) -> Model:
    """Open a bundle as `load` does, for unchecked names from a command line or a file."""
    with EnoughMemory("to open the bundle"):
        return Model(path, provider, threads, verify=verify, threshold=threshold, prefix_cache_bytes=prefix_cache_bytes)


def _opened_again(
    path: str,
    bundle_id: str,
    provider: str | None,
    threads: int | None,
    verify: bool,
    prepared: Prepared | None,
    threshold: float | None,
    prefix_cache_bytes: int,
) -> Model:
    """Open a pickled model again. Raises EdgebltError as `load`, and if another bundle is in its place."""
    model = Model(
        path,
        provider,
        threads,
        verify=verify,
        prepared=prepared,
        threshold=threshold,
        prefix_cache_bytes=prefix_cache_bytes,
    )
    if model.bundle.id != bundle_id:
        raise EdgebltError(f"{path} holds another bundle than when the model was pickled; load it and pickle it again")
    return model
