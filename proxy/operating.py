"""What operators see and do, in a process that serves: tags, checks for drift, warm jobs, and the API over them."""

import contextlib
from collections.abc import Callable
from typing import Any

from proxy.cache.ask import Records
from proxy.cache.control import Control
from proxy.cache.drift import Drift
from proxy.cache.turns import Turns
from proxy.cache.warm import Warming
from proxy.cache.warm_run import WarmMeans
from proxy.learnt import Learnt
from proxy.server.api import Api, ApiRequest, ApiResponse
from proxy.server.handlers import Handlers
from proxy.server.stats import part
from proxy.server.warming import WarmApi, asking
from proxy.storage.base import BlobStore


class Operating:
    """Makes them of what serves; they go by the configuration that counts at present."""

    def __init__(
        self,
        handlers: Handlers,
        records: Records,
        store: BlobStore,
        learnt: Learnt,
        clock: Callable[[], float],
        turns: Turns,
        shared: bool,
    ) -> None:
        """`turns` are those of all processes; `shared`: there are others."""
        house = handlers.house
        self._handlers = handlers
        self._learnt = learnt
        self._clock = clock
        self._control = Control(house.manifests, house.changes, house.history, records, lambda: handlers.house, clock)
        self._drift = Drift(house.manifests, house.history, records, turns, lambda: handlers.house, clock)
        means = WarmMeans(
            house.manifests, house.blobs, records, store, asking(lambda: handlers.house),
            lambda: handlers.house.settings.cache.max_size,
            lambda ask: learnt.budgets.allows(ask.repository.registry, ask.principal, "background"), clock,
        )  # fmt: skip
        self._warming = Warming(means, turns, shared)
        self._warm = WarmApi(self._warming, lambda: handlers.house)
        self._api = Api(
            self._control, store, house.blobs.purge, lambda: handlers.house.registries,
            lambda: [cluster.name for cluster in handlers.house.settings.clusters], self._stats, clock,
            self._warm.answer,
        )  # fmt: skip

    def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin what runs by itself; `stack` ends it."""
        for runs in (self._warming, self._drift):
            stack.push_async_callback(runs.close)
            runs.start()
        stack.push_async_callback(self._api.close)

    async def answer(self, request: ApiRequest) -> ApiResponse:
        """Answer a request of the admin API."""
        return await self._api.answer(request)

    async def _stats(self) -> dict[str, Any]:
        """What this process knows of itself."""
        house, learnt, counts = self._handlers.house, self._learnt, await self._control.counts()
        limits = {registry: learnt.budgets.describe(registry) for registry in house.settings.upstreams}
        said = part(limits, learnt.circuits.living(), house.blobs.fills, counts, self._clock())
        return said | {"warm": await self._warm.current()}
