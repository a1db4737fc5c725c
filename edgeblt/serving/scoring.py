"""Scores of a text: log-probabilities, entropies and patch starts, byte by byte."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeblt.batching.engine import Engine
from edgeblt.decoding.details import ByteDetails
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.runtime.machine.memory import available_memory
from edgeblt.serving.answering import GONE
from edgeblt.serving.api.bodies import read_body
from edgeblt.serving.api.fields import score_schema
from edgeblt.serving.api.forms import Usage
from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.api.requests import ScoreRequest, read_json, score_request
from edgeblt.serving.api.texts import alternatives_json, finite
from edgeblt.serving.runs import AnswerPiece, Job, RequestRun
from edgeblt.serving.served import ServedModel
from edgeblt.serving.state import ServingState

_SHARE = 8  # one part of so many of the free memory is for the engine of another threshold


async def score(request: Request) -> Response:
    """Answer a request for the scores of a text."""
    state: ServingState = request.app.state.serving
    data = await read_body(request, state.limits)
    asked = score_request(read_json(data, score_schema()), state.limits)
    served = state.models.chosen(asked.model)
    request.scope["edgeblt"].note_texts(served.name, [asked.text], state.options.log_prompts)
    async with _engine(served, asked.threshold) as engine:
        # A byte is generated for nothing: an engine reads what it is to go on with.
        job = Job(asked.text, GenerationSettings(max_new_bytes=1), 1, asked.alternatives or 0, with_prompt=True)
        run, details = RequestRun(served, [job], engine=engine), tuple[ByteDetails, ...]()
        async with state.followed(run, request.receive), aclosing(run.events()) as batches:
            async for events in batches:
                for event in events:
                    if isinstance(event, AnswerPiece) and event.prompt_details:
                        details = event.prompt_details
    if run.stopped == "gone":
        return Response(status_code=GONE)
    if run.stopped:
        raise RefusedError(503, "the text was not read in time; try again later", code="timeout", retry_after=5)
    return JSONResponse(_document(served, asked, details))


@asynccontextmanager
async def _engine(served: ServedModel, threshold: float | None) -> AsyncIterator[Engine | None]:
    """An engine with another threshold, one at a time for each model; None for the model's own."""
    if threshold is None or threshold == served.threshold:
        yield None
        return
    async with served.scoring:
        memory = max((available_memory() or 1 << 30) // _SHARE, 1)
        try:
            engine = await asyncio.to_thread(lambda: served.model.with_threshold(threshold).engine(1, memory))
        except EdgebltError as error:
            raise RefusedError(400, str(error), param="threshold") from None
        try:
            yield engine
        finally:
            await asyncio.to_thread(engine.close)


def _document(served: ServedModel, asked: ScoreRequest, details: Sequence[ByteDetails]) -> dict[str, Any]:
    logprobs = [finite(each.logprob) for each in details]
    bits = -math.fsum(logprobs) / len(logprobs) / math.log(2) if logprobs else None
    document: dict[str, Any] = {
        "object": "edgeblt.score",
        "model": served.name,
        "system_fingerprint": served.fingerprint,
        "bytes": len(asked.text),
        "bits_per_byte": bits,
        "patches": sum(each.starts_patch for each in details),
        "logprobs": logprobs,
        "entropies": [each.entropy for each in details],
        "patch_starts": [each.starts_patch for each in details],
        "usage": Usage(len(asked.text)).document,
    }
    if asked.alternatives is not None:
        document["alternatives"] = [alternatives_json(each, asked.alternatives) for each in details]
    return document
