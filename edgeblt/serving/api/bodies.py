"""Bodies of requests, read within limits of size and time."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from edgeblt.serving.api.refusals import RefusedError
from edgeblt.serving.options import ServingLimits


async def read_body(request: Request, limits: ServingLimits) -> bytes:
    """The body of a JSON request. Raises RefusedError for one that is too large, too slow, or something else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, "the body must be JSON; send it with Content-Type: application/json")
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated[:20]) > limits.body_bytes:
        raise _too_large(limits)
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(limits.slow_s):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise RefusedError(408, f"the body did not come within {limits.slow_s:g} seconds; send it at once") from None
    except ClientDisconnect:
        raise RefusedError(400, "the client went away") from None
    return b"".join(parts)


def _too_large(limits: ServingLimits) -> RefusedError:
    return RefusedError(413, f"the body is too large; this server takes at most {limits.body_bytes:,} bytes")
