"""All that requests share: models, limits, template, metrics, and the runs under way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive

from edgeblt.serving.api.chats import ChatTemplate
from edgeblt.serving.metrics import Metrics
from edgeblt.serving.options import ServerOptions, ServingLimits
from edgeblt.serving.runs import RequestRun
from edgeblt.serving.served import ServedModels


class ServingState:
    """State of one server."""

    def __init__(self, models: ServedModels, options: ServerOptions, limits: ServingLimits) -> None:
        """Raises EdgebltError for a chat template that cannot be parsed."""
        self.models, self.options, self.limits = models, options, limits
        self.template, self.metrics = ChatTemplate(options.chat_template), Metrics(models)
        self.is_draining = False
        self._runs: set[RequestRun] = set()

    @asynccontextmanager
    async def followed(self, run: RequestRun, receive: Receive) -> AsyncIterator[None]:
        """Stops a run when its time is over, when its client goes away, and when the server ends."""
        timer = asyncio.get_running_loop().call_later(self.limits.request_s, run.stop, "time")
        watcher = asyncio.ensure_future(_stop_when_gone(run, receive))
        self._runs.add(run)
        try:
            yield
        finally:
            self._runs.discard(run)
            timer.cancel()
            watcher.cancel()

    def drain(self) -> None:
        """Refuse what waits and what comes; what runs has its time of grace. Nothing happens a second time."""
        if self.is_draining:
            return
        self.is_draining = True
        for served in self.models:
            served.slots.drain()
        asyncio.get_running_loop().call_later(self.options.grace_s, self._end)

    def _end(self) -> None:
        for run in tuple(self._runs):
            run.stop("draining")


async def _stop_when_gone(run: RequestRun, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    run.stop("gone")
