"""What operators see and do, in a process that serves: tags, checks for drift, and the admin API over them."""

import contextlib
from collections.abc import Callable
from typing import Any

from proxy.cache.ask import Records
from proxy.cache.control import Control
from proxy.cache.drift import Drift
from proxy.learnt import Learnt
from proxy.server.api import Api, ApiRequest, ApiResponse
from proxy.server.handlers import Handlers
from proxy.server.stats import part
from proxy.storage.base import BlobStore


class Operating:
    """Makes them of what serves; they go by the configuration that counts at present."""

    def __init__(
        self, handlers: Handlers, records: Records, store: BlobStore, learnt: Learnt, clock: Callable[[], float]
    ) -> None:
        house = handlers.house
        self._handlers = handlers
        self._learnt = learnt
        self._clock = clock
        self._control = Control(house.manifests, house.changes, house.history, records, lambda: handlers.house, clock)
        self._drift = Drift(house.manifests, house.history, records, store, lambda: handlers.house, clock)
        self._api = Api(
            self._control, store, lambda: handlers.house.registries,
            lambda: [cluster.name for cluster in handlers.house.settings.clusters], self._stats, clock,
        )  # fmt: skip

    def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin what runs by itself; `stack` ends it."""
        stack.push_async_callback(self._drift.close)
        self._drift.start()

    async def answer(self, request: ApiRequest) -> ApiResponse:
        """Answer a request of the admin API."""
        return await self._api.answer(request)

    async def _stats(self) -> dict[str, Any]:
        """What this process knows of itself."""
        house, learnt, counts = self._handlers.house, self._learnt, await self._control.counts()
        limits = {registry: learnt.budgets.describe(registry) for registry in house.settings.upstreams}
        return part(limits, learnt.circuits.living(), house.blobs.fills, counts, self._clock())
