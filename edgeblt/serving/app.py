"""The application: routes and what stands before them."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeblt.serving import answering, looking, scoring
from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.guards import KeyGuard, RecordingGuard
from edgeblt.serving.page import read_page
from edgeblt.serving.state import ServingState


def serving_app(state: ServingState) -> Starlette:
    """The application of one server."""
    routes = [
        Route("/v1/completions", answering.complete, methods=["POST"]),
        Route("/v1/chat/completions", answering.chat, methods=["POST"]),
        Route("/v1/score", scoring.score, methods=["POST"]),
        Route("/v1/models", looking.models),
        Route("/v1/models/{model:path}", looking.one_model),
        Route("/health", looking.health),
        Route("/metrics", looking.metrics),
        Route("/openapi.json", looking.openapi),
        Route("/", looking.page),
    ]
    middleware = [Middleware(RecordingGuard, state)]
    if state.options.cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=state.options.cors,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
            )
        )
    middleware.append(Middleware(KeyGuard, state))
    handlers = {RefusedError: _refused, HTTPException: _wrong_route}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.serving, app.state.page = state, read_page()
    return app


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response


async def _wrong_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:80]
    message = f"{path} takes no {request.method}" if error.status_code == 405 else f"there is nothing at {path}"
    response = RefusedError(error.status_code, f"{message}; see /openapi.json").response
    response.headers.update(error.headers or {})
    return response
