"""Routes that only look: models, health, metrics, the OpenAPI document and the page."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeblt.runtime.native import package_version
from edgeblt.serving.api.forms import BASE_MODEL
from edgeblt.serving.api.openapi import openapi_document
from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.page import Page
from edgeblt.serving.served import ServedModel
from edgeblt.serving.state import ServingState


def _state(request: Request) -> ServingState:
    state: ServingState = request.app.state.serving
    return state


async def models(request: Request) -> Response:
    """Answer with a list of the models."""
    return JSONResponse({"object": "list", "data": [_model_json(served) for served in _state(request).models]})


async def one_model(request: Request) -> Response:
    """Answer with what is known of one model."""
    return JSONResponse(_model_json(_state(request).models.chosen(request.path_params["model"])))


def _model_json(served: ServedModel) -> dict[str, Any]:
    manifest = served.model.bundle.manifest
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "edgeblt",
        "system_fingerprint": served.fingerprint,
        "recipe": manifest.recipe,
        "provider": served.model.provider_name,
        "is_batched": served.engine.is_batched,
        "note": BASE_MODEL,
    }


async def health(request: Request) -> Response:
    """Answer whether the server works, with numbers for gauges; 503 where an engine has failed."""
    state = _state(request)
    served = state.models.chosen(None)
    has_failed = any(each.has_failed for each in state.models)
    return JSONResponse(
        {
            "status": "failed" if has_failed else "draining" if state.is_draining else "ok",
            "model": served.name,
            "slots": served.slots.count,
            "active": sum(each.slots.active for each in state.models),
            "queued": sum(each.slots.queued for each in state.models),
            "bytes_per_second": sum(each.bytes_per_second() for each in state.models),
            "threshold": served.threshold,
            "models": [each.name for each in state.models],
            "queue": state.limits.queue,
            "state_bytes": sum(each.engine.state_bytes for each in state.models),
        },
        503 if has_failed else 200,
    )


async def metrics(request: Request) -> Response:
    """Answer with all metrics."""
    return Response(_state(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: Request) -> Response:
    """Answer with the OpenAPI document."""
    state = _state(request)
    needs_key = state.options.api_key is not None
    return JSONResponse(openapi_document(package_version() or "unknown", state.limits, needs_key))


async def page(request: Request) -> Response:
    """Answer with the page."""
    found: Page | None = request.app.state.page
    if found is None:
        raise RefusedError(404, "this installation has no page")
    return Response(found.content, headers=found.headers, media_type="text/html")
