"""Answers to completions and chats: whole, or in server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgeblt.serving.api.bodies import read_body
from edgeblt.serving.api.chats import PLAIN_STOP
from edgeblt.serving.api.collecting import Collector, jobs_of, whole_texts
from edgeblt.serving.api.fields import chat_schema, completion_schema
from edgeblt.serving.api.forms import AnswerForm
from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.api.requests import TextRequest, prompts_of, read_json, text_request
from edgeblt.serving.api.texts import AnswerText
from edgeblt.serving.records import RequestRecord
from edgeblt.serving.runs import RequestRun
from edgeblt.serving.state import ServingState

GONE = 499  # in log and metrics: the client went away before its answer


async def complete(request: Request) -> Response:
    """Answer a request for completions."""
    return await _answer(request, is_chat=False)


async def chat(request: Request) -> Response:
    """Answer a request for the next message of a chat."""
    return await _answer(request, is_chat=True)


async def _answer(request: Request, is_chat: bool) -> Response:
    state: ServingState = request.app.state.serving
    data = await read_body(request, state.limits)
    asked = await asyncio.to_thread(_understand, state, data, is_chat)
    form = AnswerForm(state.models.chosen(asked.model), asked, is_chat)
    record: RequestRecord = request.scope["edgeblt"]
    record.note_texts(form.served.name, asked.prompts, state.options.log_prompts)
    answer = AnswerResponse(state, form, record)
    return answer if asked.stream else await answer.whole(request.receive)


def _understand(state: ServingState, data: bytes, is_chat: bool) -> TextRequest:
    """The request in a body; takes long where a grammar is large."""
    body: Mapping[str, Any] = read_json(data, (chat_schema if is_chat else completion_schema)(state.limits))
    if not is_chat:
        return text_request(body, prompts_of(body["prompt"]), state.limits, is_chat)
    prompt, stops = state.template.prompt(body["messages"]), body.get("stop")
    if state.template.is_plain:
        given = [stops] if isinstance(stops, str) else stops or []
        body = {**body, "stop": [*given, PLAIN_STOP]}
    return text_request(body, prompts_of(prompt), state.limits, is_chat)


class AnswerResponse(Response):
    """The answer to one request, sent as events while it grows, or whole."""

    def __init__(self, state: ServingState, form: AnswerForm, record: RequestRecord) -> None:
        super().__init__(media_type="text/event-stream")
        self._state, self._form, self._record = state, form, record
        self._collector = Collector(form.request)
        self._run = RequestRun(form.served, jobs_of(form.request), state.metrics.took)

    async def whole(self, receive: Receive) -> Response:
        """The answer when it is complete. Raises RefusedError where there is none."""
        parts = []
        async with self._followed(receive):
            async for more in self._parts():
                parts += more
        if self._run.stopped == "gone":
            return Response(status_code=GONE)  # nobody reads it
        self._refuse_unbegun()
        reasons = [reason or "" for reason in self._collector.reasons]
        texts = whole_texts(len(reasons), parts)
        return JSONResponse(self._form.answer(texts, reasons, self._collector.usage))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer as events. What fails before the first is an error of its own."""
        form, collector, is_open = self._form, self._collector, False

        async def say(*documents: dict[str, Any] | str) -> None:
            nonlocal is_open
            if not is_open:
                is_open = True
                headers = [*self.raw_headers, (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
                headers = [each for each in headers if each[0] != b"content-length"]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                if form.is_chat:
                    documents = (*(form.opening(index) for index in range(len(collector.reasons))), *documents)
            data = "".join(f"data: {each if isinstance(each, str) else _compact(each)}\n\n" for each in documents)
            await send({"type": "http.response.body", "body": data.encode(), "more_body": True})

        try:
            async with self._followed(receive):
                async for parts in self._parts():
                    await say(*(form.part(*each) for each in parts))
            if self._run.stopped != "gone":
                self._refuse_unbegun()
                usage = [form.usage(collector.usage)] if form.request.include_usage else []
                await say(*usage, "[DONE]")
        except RefusedError as refusal:
            if not is_open:
                return await refusal.response(scope, receive, send)
            await say(refusal.document)
        if self._run.stopped == "gone":
            self._record.status = GONE
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self) -> AsyncIterator[list[tuple[int, AnswerText, str | None]]]:
        """New parts of the texts; those that the run leaves open at its time limit end there."""
        async with aclosing(self._run.events()) as batches:
            async for events in batches:
                if parts := self._collector.take(events):
                    yield parts
        if self._run.stopped == "draining":
            raise RefusedError(503, "the server has ended; try again later", code="draining", retry_after=5)
        if self._run.stopped == "time" and self._collector.has_begun and (parts := self._collector.cut("time")):
            yield parts

    def _refuse_unbegun(self) -> None:
        if self._run.stopped == "time" and not self._collector.has_begun:
            limit = self._state.limits.request_s
            raise RefusedError(
                503, f"nothing was generated within {limit:g} seconds; try again later", code="timeout", retry_after=5
            )

    @asynccontextmanager
    async def _followed(self, receive: Receive) -> AsyncIterator[None]:
        """Stops the run when its time is over, when its client goes away, and when the server ends."""
        async with self._state.followed(self._run, receive):
            try:
                yield
            finally:
                self._record.first_s, self._record.generated_bytes = self._run.first_s, self._collector.usage.generated
                self._record.reasons = [reason or self._run.stopped or "error" for reason in self._collector.reasons]


def _compact(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)
