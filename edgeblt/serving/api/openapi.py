"""The OpenAPI document: routes, what they take, and every answer they give."""

from typing import Any

from edgeblt.serving.api.fields import chat_schema, completion_schema, score_schema
from edgeblt.serving.api.refusals import ERROR_SCHEMA
from edgeblt.serving.api.schemas import Schema, optional
from edgeblt.serving.options import ServingLimits

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_NUMBERS: Schema = {"type": "array", "items": _NUMBER}
_FLAG: Schema = {"type": "boolean"}
_ALTERNATIVES: Schema = {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2}}
_REASONS = {
    400: "The request is wrong; the message says what.",
    401: "The key is missing or wrong.",
    403: "The request names another host.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "The model failed on this request.",
    503: "The server is ending, or nothing was generated in time.",
}


def openapi_document(version: str, limits: ServingLimits, needs_key: bool) -> dict[str, Any]:
    """The document for a server with these limits."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeblt",
            "version": version,
            "description": "Byte Latent Transformers with OpenAI's protocol; it counts bytes, not tokens.",
        },
        "paths": {
            "/v1/completions": _posted("Continue texts.", completion_schema(limits), _completion(), streams=True),
            "/v1/chat/completions": _posted("Continue a chat.", chat_schema(limits), _chat(), streams=True),
            "/v1/score": _posted("Score the bytes of a text.", score_schema(), _score()),
            "/v1/models": _got("The models.", _object(object=_TEXT, data={"type": "array", "items": _model()})),
            "/v1/models/{model}": {
                **_got("One model.", _model(), 404),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
            },
            "/health": _got("Whether the server answers, and how much it has to do.", _health(), 503, key=False),
            "/metrics": {"get": {"summary": "Metrics for Prometheus.", "responses": _plain("text/plain")}},
            "/openapi.json": _got("This document.", {"type": "object"}, key=False),
            "/": {"get": {"summary": "The page.", "responses": _plain("text/html", 404), "security": []}},
        },
        "components": {
            "schemas": {"Error": ERROR_SCHEMA},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    if needs_key:
        document["security"] = [{"key": []}]
    return document


def _posted(summary: str, body: Schema, answer: Schema, streams: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if streams:
        content["text/event-stream"] = {"schema": _object(data=_TEXT)}
    responses = _errors(*_REASONS)
    responses["200"] = {"description": "The answer.", "content": content}
    post = {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": responses,
    }
    return {"post": post}


def _got(summary: str, answer: Schema, *errors: int, key: bool = True) -> dict[str, Any]:
    responses = _errors(*((401, 403, *errors) if key else (403, *errors)))
    responses["200"] = {"description": "The answer.", "content": {"application/json": {"schema": answer}}}
    return {"get": {"summary": summary, "responses": responses, **({} if key else {"security": []})}}


def _plain(kind: str, *errors: int) -> dict[str, Any]:
    return {"200": {"description": "The answer.", "content": {kind: {"schema": _TEXT}}}, **_errors(401, 403, *errors)}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: dict[str, Any] = {str(status): {"description": _REASONS[status], "content": content} for status in statuses}
    for status in {"429", "503"} & found.keys():
        found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return found


def _object(**properties: Schema) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _usage() -> dict[str, Any]:
    unit = {"type": "string", "enum": ["bytes"]}
    return _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT, unit=unit)


def _head(kind: str) -> dict[str, Schema]:
    return {
        "id": _TEXT,
        "object": {"type": "string", "enum": [kind]},
        "created": _COUNT,
        "model": _TEXT,
        "system_fingerprint": _TEXT,
        "usage": _usage(),
    }


def _choice(**said: Schema) -> dict[str, Any]:
    choice = _object(
        index=_COUNT,
        **said,
        logprobs={"type": ["object", "null"]},
        finish_reason={"type": "string", "enum": ["stop", "length"]},
        end_reason={"type": "string", "enum": ["stop", "eos", "constraint", "length", "time"]},
    )
    choice["properties"]["edgeblt"] = {"type": "array", "items": _byte()}
    return choice


def _byte() -> dict[str, Any]:
    byte: Schema = {"type": "integer", "minimum": 0, "maximum": 255}
    marks = {"starts_patch": _FLAG, "drafted": _FLAG, "forced": _FLAG}
    return _object(byte=byte, logprob=_NUMBER, entropy=_NUMBER, **marks, alternatives=_ALTERNATIVES)


def _completion() -> dict[str, Any]:
    return _object(**_head("text_completion"), choices={"type": "array", "items": _choice(text=_TEXT)})


def _chat() -> dict[str, Any]:
    message = _object(role=_TEXT, content=_TEXT, refusal={"type": "null"})
    choices: Schema = {"type": "array", "items": _choice(message=message)}
    return _object(**_head("chat.completion"), choices=choices, note=_TEXT)


def _score() -> dict[str, Any]:
    head = {name: schema for name, schema in _head("edgeblt.score").items() if name not in ("id", "created")}
    answer = _object(
        **head,
        bytes=_COUNT,
        bits_per_byte=optional(_NUMBER),
        patches=_COUNT,
        logprobs=_NUMBERS,
        entropies=_NUMBERS,
        patch_starts={"type": "array", "items": _FLAG},
    )
    answer["properties"]["alternatives"] = {"type": "array", "items": _ALTERNATIVES}
    return answer


def _model() -> dict[str, Any]:
    return _object(id=_TEXT, object={"type": "string", "enum": ["model"]}, created=_COUNT, owned_by=_TEXT)


def _health() -> dict[str, Any]:
    return _object(
        status={"type": "string", "enum": ["ok", "draining", "failed"]},
        model=_TEXT,
        slots=_COUNT,
        active=_COUNT,
        queued=_COUNT,
        bytes_per_second=_NUMBER,
        threshold=optional(_NUMBER),
        models={"type": "array", "items": _TEXT},
    )
