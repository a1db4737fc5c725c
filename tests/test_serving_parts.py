"""Parts of the server without a server: text from bytes, slots, checks of fields, the page's policy."""

import asyncio
import base64
import hashlib
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.types import Message

import edgeblt
from edgeblt.decoding.details import ByteDetails
from edgeblt.serving.api.fields import REFUSED, chat_schema, completion_schema, refuse_fields, score_schema
from edgeblt.serving.api.openapi import openapi_document
from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.api.schemas import check
from edgeblt.serving.api.texts import TextBuilder, joined
from edgeblt.serving.app import serving_app
from edgeblt.serving.options import ServerOptions, ServingLimits
from edgeblt.serving.page import Page
from edgeblt.serving.served import ServedModels
from edgeblt.serving.slots import Slots
from edgeblt.serving.state import ServingState

MIXED = st.lists(st.one_of(st.binary(max_size=4), st.text(max_size=3).map(str.encode)), max_size=8)


def details(data: bytes) -> list[ByteDetails]:
    return [ByteDetails(bytes([byte]), -1.0, (), 0.0, False, "sampled") for byte in data]


@given(pieces=MIXED, has_details=st.booleans())
def test_text_is_that_of_all_bytes_and_every_byte_has_its_place(pieces: list[bytes], has_details: bool) -> None:
    builder, data = TextBuilder(), b"".join(pieces)
    parts = [builder.take(piece, details(piece) if has_details else ()) for piece in pieces]
    text = joined([*parts, builder.finish()])
    assert text.text == data.decode(errors="replace")
    if has_details:
        assert b"".join(each.byte for each in text.details) == data
        assert list(text.offsets) == sorted(text.offsets)
        for byte, place in zip(data, text.offsets, strict=True):
            assert byte >= 128 or text.text[place] == chr(byte)
    for part in parts:
        assert "\ud800" not in part.text and len(part.details) == len(part.offsets)


# Slots.


def test_texts_get_slots_in_the_order_they_came() -> None:
    async def run() -> list[str]:
        slots, order = Slots(ServingLimits(slots=2, queue=4)), list[str]()

        async def text(name: str, count: int, until: asyncio.Event) -> None:
            async with slots.taken(count):
                order.append(name)
                await until.wait()

        events = {name: asyncio.Event() for name in "abcd"}
        tasks = {}
        for name, count in (("a", 1), ("b", 1), ("c", 2), ("d", 1)):
            slots.admit(count)
            tasks[name] = asyncio.ensure_future(text(name, count, events[name]))
            await asyncio.sleep(0)
        assert (slots.active, slots.queued, order) == (2, 3, ["a", "b"])
        events["a"].set()
        await tasks["a"]
        await asyncio.sleep(0)
        assert order == ["a", "b"]  # c needs both, and d came later
        tasks["c"].cancel()
        await asyncio.wait([tasks["c"]])
        await asyncio.sleep(0.01)
        assert order == ["a", "b", "d"]
        for event in events.values():
            event.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert slots.active == 0
        return order

    assert asyncio.run(run()) == ["a", "b", "d"]


def test_a_full_queue_refuses_and_a_draining_one_too() -> None:
    async def run() -> None:
        slots = Slots(ServingLimits(slots=1, queue=1))
        slots.admit(2)
        with pytest.raises(RefusedError) as full:
            slots.admit(1)
        assert full.value.status == 429 and full.value.retry_after and full.value.retry_after >= 1
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(slots.taken(1))
            waiting = asyncio.ensure_future(stack.enter_async_context(slots.taken(1)))
            await asyncio.sleep(0)
            slots.drain()
            with pytest.raises(RefusedError) as ended:
                await waiting
            assert ended.value.status == 503
        assert (slots.active, slots.queued) == (0, 2)
        slots.leave(2)
        with pytest.raises(RefusedError, match="the server is ending"):
            slots.admit(1)

    asyncio.run(run())


# Fields.


def is_met(value: Any, schema: Any) -> bool:
    try:
        check(value, schema, "")
    except RefusedError:
        return False
    return True


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 300), st.floats(-3, 3), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
    max_leaves=5,
)
SCHEMAS: dict[str, Any] = {
    "completion": completion_schema(ServingLimits()), "chat": chat_schema(ServingLimits()), "score": score_schema(),
}  # fmt: skip
FIELDS = [(name, field) for name, schema in SCHEMAS.items() for field in schema["properties"] if field not in REFUSED]


@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_checks_agree_with_json_schema(field: tuple[str, str], value: Any) -> None:
    schema = SCHEMAS[field[0]]["properties"][field[1]]
    assert is_met(value, schema) == jsonschema_rs.is_valid(schema, value)


def test_unknown_and_missing_fields_are_refused() -> None:
    bodies: list[Any] = [{}, {"x": 1}, [], None, 3]
    for name, schema in SCHEMAS.items():
        for body in bodies:
            assert not is_met(body, schema), name
            assert not jsonschema_rs.is_valid(schema, body)


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_would_change_the_text_is_refused_by_name(name: str) -> None:
    reason, harmless = REFUSED[name]
    for value in (None, *harmless):
        refuse_fields({name: value})
    with pytest.raises(RefusedError, match=f"{name} is not offered: ") as refused:
        refuse_fields({name: "something"})
    assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")
    assert reason in refused.value.message


@pytest.mark.parametrize("needs_key", [False, True])
def test_the_document_is_well_formed(needs_key: bool) -> None:
    document = openapi_document("1", ServingLimits(), needs_key)
    assert ("security" in document) is needs_key
    for path in document["paths"].values():
        for operation in (path.get("get"), path.get("post")):
            for response in (operation or {"responses": {}})["responses"].values():
                for content in response["content"].values():
                    schema = {"components": document["components"], **content["schema"]}
                    jsonschema_rs.validator_for(schema)


# The page.


def test_the_policy_allows_the_pages_own_script_and_style_only() -> None:
    page = Page(b"<html><style>p{}</style><body><script>let a = 1\n</script></body></html>")
    policy = page.headers["Content-Security-Policy"]
    for content in (b"p{}", b"let a = 1\n"):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert "script-src 'none'" in Page(b"<p>nothing</p>").headers["Content-Security-Policy"]


# Health.


def test_health_tells_of_an_engine_that_has_ended(
    tiny_bundle: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "edgeblt.serving")
    limits = ServingLimits()
    with edgeblt.load(tiny_bundle[1]) as model:
        models = ServedModels([("tiny", model)], limits)
        app = serving_app(ServingState(models, ServerOptions(), limits))
        assert asked(app, "/health") == (200, "ok") and not caplog.records
        models.chosen(None).engine.close()
        assert asked(app, "/health") == (503, "failed")
        assert [record.message for record in caplog.records if " 503 " in record.message]


def asked(app: Starlette, path: str) -> tuple[int, str]:
    """Status code, and `status` of the answer."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["status"]
