"""Finding tags that have moved on upstream: a HEAD now and then for each that is in use.

Invariants:
- It asks by HEAD only, with rights of the proxy's own (`control.Configured.background`), and not while circuits stand.
- Of the processes of all replicas one does it at a time, and what it has looked at is not due for the others.
- It changes nothing that is served: what has moved on stays what it is until its time ends, and says so.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from proxy.cache.ask import Ask, Clock, Records
from proxy.cache.control import Configured
from proxy.cache.history import History
from proxy.cache.manifests import Manifests
from proxy.cache.records import HistoryRecord, Prover, TagRecord, history_key, named_in, tag_key
from proxy.cache.sticky import Named
from proxy.cache.turns import Turns
from proxy.storage.base import StorageError
from proxy.upstream.errors import UpstreamError, UpstreamFailure

_log = logging.getLogger("pullthrough.cache")

_TURN = "checks of all tags for drift"
_PAGE = 500
# Seconds: how often it is looked whether something is due, and the longest pause between two questions.
_TICK = 15.0
_LONGEST_PAUSE = 1.0
# A tag that nobody was served for so long is nobody's trouble: 7 days, in seconds.
_IN_USE = 7 * 86400.0


class Drift:
    """The checks of one process. `start` them, and `close` them before the store."""

    def __init__(
        self,
        manifests: Manifests,
        history: History,
        records: Records,
        turns: Turns,
        configured: Callable[[], Configured],
        clock: Clock,
    ) -> None:
        """`configured` gives what counts at present."""
        self._manifests = manifests
        self._history = history
        self._records = records
        self._turns = turns
        self._configured = configured
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        # When each that is in use was last asked for by this process, whatever came of it.
        self._asked: dict[Named, float] = {}

    def start(self) -> None:
        """Check from now on, whenever something is due."""
        self._task = asyncio.get_running_loop().create_task(self._check_now_and_then(), name="checks for drift")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def check(self) -> int:
        """Look at every tag that is due; gives how many were asked for. Nothing where another process does it.

        Raises StorageError.
        """
        if not await self._turns.take(_TURN):
            return 0
        try:
            return await self._check()
        finally:
            await self._turns.give_back(_TURN)

    async def _check(self) -> int:
        due = [one async for one in self._due()]
        self._asked = {named: at for named, at in self._asked.items() if self._clock() - at < _IN_USE}
        failing: set[str] = set()
        asked = 0
        for named, proved_by, interval in due:
            registry = named[0].registry
            if registry in failing:
                continue
            if asked:
                # Spread over half of the interval, so that a thousand tags are no burst.
                await asyncio.sleep(min(_LONGEST_PAUSE, interval / 2 / len(due)))
            # By what counts now: a round lasts for minutes, and a reload may have come in between.
            if (ask := self._ask(named, proved_by)) is None:
                continue
            asked += 1
            if not await self._look(named, ask):
                failing.add(registry)
        return asked

    async def _look(self, named: Named, ask: Ask) -> bool:
        """Look at one; False where others of the registry need not be looked at either now."""
        repository, tag = named
        try:
            record = await self._manifests.look(ask, tag, fetch=False)
        except UpstreamError as error:
            _log.debug("%s:%s could not be checked for drift: %s", repository, tag, error)
            if isinstance(error, UpstreamFailure):
                return False
            # It concerns this tag alone, which is asked for again when its time has come.
            self._asked[named] = self._clock()
            return True
        if record.upstream_digest is not None:
            self._history.seen(repository, tag, record.upstream_digest)
        return True

    def _ask(self, named: Named, proved_by: Prover) -> Ask | None:
        """How the tag is to be looked at; None where it cannot be, or nobody wants it."""
        ask = self._configured().background(named[0], proved_by)
        return ask if ask is not None and ask.lifetimes.drift_interval else None

    async def _due(self) -> AsyncIterator[tuple[Named, Prover, float]]:
        """The tags to be looked at now, whose right to them was confirmed, and how often their registry's are."""
        last = "tag/"
        while keys := await self._records.scan("tag/", last, _PAGE):
            last = keys[-1]
            several = [named_in(key) for key in keys]
            found = await self._records.get(*(key(*named) for named in several for key in (tag_key, history_key)))
            for place, named in enumerate(several):
                record, history = TagRecord.load(found[2 * place]), HistoryRecord.load(found[2 * place + 1])
                if record is not None and history is not None:
                    interval = self._is_due(named, record, history)
                    if interval is not None:
                        yield named, record.proved_by, interval

    def _is_due(self, named: Named, record: TagRecord, history: HistoryRecord) -> float | None:
        """How often the tag is looked at, in seconds, where that is to be done now."""
        ask, now = self._ask(named, record.proved_by), self._clock()
        if ask is None:
            return None
        served = max((one.given for one in history.digests), default=0.0)
        interval = ask.lifetimes.drift_interval
        # One by one: where the clock was set back, what lies ahead says nothing.
        looked = (record.checked, record.looked, self._asked.get(named, 0.0))
        if now - served >= _IN_USE or any(0 <= now - at < interval for at in looked):
            return None
        return interval

    async def _check_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            try:
                await self.check()
            except StorageError as error:
                _log.debug("no check for drift: %s", error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next one is to be made
                _log.error("a check for drift failed", exc_info=error)
