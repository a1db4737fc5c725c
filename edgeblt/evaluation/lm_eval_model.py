"""The model `edgeblt` of lm-evaluation-harness: bundles on its tasks, scored and continued byte by byte.

The harness knows only models that are registered, so this module must be imported before one is asked for by name;
`python -m edgeblt.evaluation` is the harness's own command with that done.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import lm_eval.models  # registers the harness's own models, which it does only while no other is registered
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from edgeblt.arguments import as_bytes, real_number, whole_number
from edgeblt.batching.answers import Answer
from edgeblt.batching.calls import MOST_SEQUENCES
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.evaluation.generation_arguments import BYTES_PER_TOKEN, task_settings
from edgeblt.model import open_model
from edgeblt.progress import progress

__all__ = ["BundleLM", "lm_eval"]

NAME = "edgeblt"
GROUP = 64  # texts scored in one call, after which progress is shown and answers are cached
Result = TypeVar("Result")


@register_model(NAME)
class BundleLM(LM):  # type: ignore[misc]  # the harness has no type information
    """A bundle as a model of lm-evaluation-harness.

    bundle, provider, threads, threshold: as `edgeblt.load` takes them.
    batch_size: texts generated at once, up to 1,024; `auto` and 1, which the harness passes where nobody asks for more,
        are 16. Answers do not depend on it.
    bytes_per_token: bytes that a token stands for in a task's `max_gen_toks`; above 0, default 4.
    max_batch_size, device: what the harness passes to every model, by default too; ignored, `provider` says where.

    Texts are never cut: caches grow with them. Raises EdgebltError for arguments that are wrong.
    """

    def __init__(
        self,
        bundle: str,
        provider: str | None = None,
        threads: int | None = None,
        threshold: float | None = None,
        batch_size: int | str | None = None,
        bytes_per_token: float = BYTES_PER_TOKEN,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        rest = "it must be a number above 0"
        self._bytes_per_token = real_number("bytes_per_token", bytes_per_token, rest)
        if self._bytes_per_token <= 0:
            raise EdgebltError(f"bytes_per_token is {bytes_per_token}; {rest}")
        self._most_sequences = _most_sequences(batch_size)
        self.model = open_model(bundle, provider, threads, threshold=threshold)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): nats of the continuation's bytes, and whether decoding greedily gives them.

        The bytes are those of the two strings in UTF-8, after a BOS, so a continuation is scored as it is wherever it
        begins. A context may be empty.
        """

        def score(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[float, bool]]:
            contexts = [as_bytes("a context", context) for context, _ in pairs]
            texts = [
                context + as_bytes("a continuation", pair[1]) for context, pair in zip(contexts, pairs, strict=True)
            ]
            for context, scores in zip(contexts, self.model.score_batch(texts), strict=True):
                part = slice(len(context), None)
                yield float(scores.logprobs[part].sum(dtype=np.float64)), bool(scores.likeliest[part].all())

        return self._answered("loglikelihood", requests, score)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each whole text's bytes, in one piece however long it is."""

        def score(texts: Sequence[tuple[str]]) -> Iterator[float]:
            for scores in self.model.score_batch([text for (text,) in texts]):
                yield float(scores.logprobs.sum(dtype=np.float64))

        return self._answered("loglikelihood_rolling", requests, score)

    def _answered(
        self, kind: str, requests: Sequence[Instance], score: Callable[[Sequence[Any]], Iterator[Result]]
    ) -> list[Result]:
        """Answers in the order of the requests, a group at a time."""
        answers: list[Result] = []
        with progress(f"scoring with {self.model.bundle.directory_name}", len(requests), "texts") as advance:
            for start in range(0, len(requests), GROUP):
                group = [request.args for request in requests[start : start + GROUP]]
                for arguments, answer in zip(group, score(group), strict=True):
                    self.cache_hook.add_partial(kind, arguments, answer)
                    answers.append(answer)
                advance(len(group))
        return answers

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that follow each context, up to its stop sequences; bytes that are not UTF-8 become U+FFFD.

        The n-th request with the same arguments has the seed of the first plus n, so that repeats are other samples.
        """
        repeats: Counter[tuple[str, GenerationSettings]] = Counter()
        answers: list[Answer] = []
        texts: list[str] = []
        with (
            self.model.engine(self._most_sequences) as engine,
            progress(f"generating with {self.model.bundle.directory_name}", len(requests), "texts") as advance,
        ):
            for context, arguments in (request.args for request in requests):
                settings = task_settings(arguments, self._bytes_per_token)
                key = (context, settings)
                if settings.seed is not None:
                    settings = replace(settings, seed=settings.seed + repeats[key])
                repeats[key] += 1
                answers += engine.submit(context, settings)
            for request, answer in zip(requests, answers, strict=True):
                texts.append(answer.read().decode(errors="replace"))
                self.cache_hook.add_partial("generate_until", request.args, texts[-1])
                advance(1)
        return texts


def _most_sequences(batch_size: int | str | None) -> int:
    """Texts under way at once for the harness's --batch_size. Raises EdgebltError unless it is a number or auto."""
    if batch_size is None or (isinstance(batch_size, str) and batch_size.split(":")[0] == "auto"):
        return MOST_SEQUENCES
    given = int(batch_size) if isinstance(batch_size, str) and batch_size.isdecimal() else batch_size
    number = whole_number("batch_size", given, 1)
    return number if number > 1 else MOST_SEQUENCES
