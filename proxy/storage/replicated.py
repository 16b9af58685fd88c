"""The metadata of a replica: what all replicas share, and behind it copies of its own, on its disk.

Invariants:
- While the shared store answers, its word counts, and every change is made there first. What this replica reads and
  writes there is copied; a copy is used only for what the shared store knows nothing of, not even that it was deleted:
  that has lost it, and is offered it back.
- While it is away the copies count, and what is changed is changed there: `_journal` has what the shared store has not
  heard of, with what it had before. That is brought to it before it counts again: what was deleted here is deleted
  there; a value is stored unless another replica has stored one meanwhile.
- What has to be in force everywhere when its call returns (deletions, and what is never fetched again) raises
  StorageError while the store is away, or has no room: it counts here at once, and elsewhere when it can be told.
- Whoever was not there for as long as deletions are remembered has copies that nobody can vouch for: they go.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from proxy.storage.base import Stamp, StorageError
from proxy.storage.link import Away, Full, Link
from proxy.storage.metadata import DiskcacheMetadata
from proxy.storage.valkey import DELETED_FOR, LASTING, Record, ValkeyMetadata

_log = logging.getLogger("pullthrough.storage")

# Seconds.
_COPY_INTERVAL = 0.5
_SWEEP_INTERVAL = 3600.0
# How far clocks may be apart.
_CLOCKS = 120.0
_LINKED_KEEP = 3650 * 86400.0
# How many wait to be copied, or to be brought to the shared store, at most; others are fetched again in the end.
_MOST_COPIES = 10_000
_MOST_JOURNALED = 50_000
_AT_ONCE = 32
_PAGE = 200
# Copies that are the replica's own affair.
_OWN = "replica/"
_LINKED, _EPOCH = f"{_OWN}linked", f"{_OWN}epoch"

_Copy = tuple[bytes, float]


@dataclass(frozen=True, slots=True)
class _Unheard:
    """A change that the shared store has not heard of: what it had `before`, and what there is since."""

    before: bytes | None
    now: _Copy | None
    # It was deleted before that.
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What is to be copied while `stamp` holds; None where it is there no more, which needs no stamp."""

    copy: _Copy | None
    stamp: Stamp | None

    @property
    def is_good(self) -> bool:
        return self.stamp is None or self.stamp.holds()


class ReplicatedMetadata:
    """The `MetadataStore` of a replica. `local` is open, and closed by its owner."""

    def __init__(self, local: DiskcacheMetadata, link: Link, first: bool = True) -> None:
        """`first`: of the replica's processes the one that does what one is to do."""
        self._local = local
        self._link = link
        self._shared = ValkeyMetadata(link, local.stamps)
        self._first = first
        self._copies: dict[str, _Waiting] = {}
        # What others have changed, of which there may be copies.
        self._changed: set[str] = set()
        self._journal: dict[str, _Unheard] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._refilling: asyncio.Task[None] | None = None
        link.heard, link.turned, link.arriving = self._heard, self._turned, self._arriving

    async def start(self) -> None:
        """Look for the shared store; it need not be there."""
        with contextlib.suppress(StorageError):
            (epoch,) = await self._local.get(_EPOCH)
            self._link.epoch = epoch.decode(errors="replace") if epoch is not None else ""
        await self._link.start()
        works: list[tuple[str, Callable[[], Awaitable[None]], float]] = [("copies", self._write_copies, _COPY_INTERVAL)]
        if self._first:
            works.append(("sweep of the shared metadata", self._sweep, _SWEEP_INTERVAL))
        for name, work, interval in works:
            self._tasks.append(asyncio.create_task(_now_and_then(work, interval), name=name))

    # The store.

    def stamp(self, *keys: str) -> Stamp:
        """See `MetadataStore.stamp`."""
        return self._shared.stamp(*keys)

    async def get(self, *keys: str) -> list[bytes | None]:
        """See `MetadataStore.get`."""
        stamps = [self.stamp(key) for key in keys]
        try:
            found = await self._shared.read(*keys)
        except Away:
            return [copy[0] if copy is not None else None for copy in await self._own(*keys)]
        for key, record, stamp in zip(keys, found, stamps, strict=True):
            if record is not None:
                self._copy(key, _copy_of(record), stamp)
        lost = [key for key, record in zip(keys, found, strict=True) if record is None]
        kept = await self._kept(*lost) if lost else {}
        return [record.value if record is not None else kept.get(key) for key, record in zip(keys, found, strict=True)]

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """See `MetadataStore.scan`."""
        try:
            return await self._shared.scan(prefix, after, limit)
        except Away:
            await self._write_copies()
            found = await self._local.scan(prefix, after, limit)
            return [key for key in found if not key.startswith(_OWN)]

    async def put(
        self, entries: Mapping[str, bytes], keep: float, only_while: tuple[str, bytes | None] | None = None
    ) -> bool:
        """See `MetadataStore.put`."""
        try:
            stored = await self._shared.put(entries, keep, only_while)
        except StorageError as error:
            return await self._put_here(entries, keep, only_while, error)
        if stored:
            ends = time.time() + keep
            await self._keep({key: (value, ends) for key, value in entries.items()})
        return stored

    async def delete(self, *keys: str) -> None:
        """See `MetadataStore.delete`."""
        try:
            await self._shared.delete(*keys)
        except StorageError:
            for key in keys:
                self._journaled(key, None, None)
                self._copies.pop(key, None)
            await self._local.delete(*keys)
            raise
        await self._keep(dict.fromkeys(keys))

    async def close(self) -> None:
        """See `MetadataStore.close`."""
        tasks = [*self._tasks, *([self._refilling] if self._refilling is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._link.close()
        with contextlib.suppress(StorageError):
            await self._write_copies()

    async def _put_here(
        self,
        entries: Mapping[str, bytes],
        keep: float,
        only_while: tuple[str, bytes | None] | None,
        error: StorageError,
    ) -> bool:
        """Put it among the copies, as far as that is enough."""
        await self._write_copies()
        if isinstance(error, Full) and keep >= LASTING:
            raise error
        if isinstance(error, Full):
            # Its guard has let it pass. What the server has there is older than what there is here: it is to know
            # nothing of it, so that the copies count.
            with contextlib.suppress(StorageError):
                await self._shared.lose(*entries)
            only_while = None
        befores = await self._own(*entries)
        if not await self._local.put(entries, keep, only_while):
            return False
        if self._link.up and isinstance(error, Away):
            # It has come back meanwhile, and has what was brought to it.
            return await self._shared.put(entries, keep, only_while)
        if isinstance(error, Away):
            ends = time.time() + keep
            for (key, value), before in zip(entries.items(), befores, strict=True):
                self._journaled(key, before, (value, ends))
        if keep >= LASTING:
            raise error
        return True

    # Copies.

    async def _own(self, *keys: str) -> list[_Copy | None]:
        """What there is of `keys` here."""
        found = await self._local.aged(*keys)
        now = time.time()
        for place, key in enumerate(keys):
            waiting = self._copies.get(key)
            if waiting is not None and waiting.is_good:
                found[place] = waiting.copy
        return [copy if copy is not None and copy[1] > now else None for copy in found]

    async def _kept(self, *keys: str) -> dict[str, bytes]:
        """Of `keys`, which the shared store has lost, what there is here; it has that again when this returns."""
        try:
            copies = await self._own(*keys)
        except StorageError:
            return {}
        kept = {key: copy for key, copy in zip(keys, copies, strict=True) if copy is not None}
        if kept:
            with contextlib.suppress(StorageError):
                await self._offer(kept)
        return {key: value for key, (value, _) in kept.items()}

    async def _offer(self, kept: Mapping[str, _Copy], arriving: bool = False) -> None:
        now = time.time()
        entries = {key: (value, ends - now) for key, (value, ends) in kept.items() if ends > now}
        if entries:
            await self._shared.offer(entries, arriving)

    def _copy(self, key: str, copy: _Copy | None, stamp: Stamp) -> None:
        """What was read after `stamp` was taken is copied later, if that holds still."""
        if key in self._copies or len(self._copies) < _MOST_COPIES:
            self._copies[key] = _Waiting(copy, stamp)

    async def _keep(self, copies: Mapping[str, _Copy | None]) -> None:
        """This replica has made it so."""
        for key in copies:
            self._copies.pop(key, None)
        with contextlib.suppress(StorageError):
            await self._local.copy(copies)

    async def _write_copies(self) -> None:
        await self._renew_copies()
        while self._copies:
            several = dict(list(self._copies.items())[:_PAGE])
            good = {key: waiting.copy for key, waiting in several.items() if waiting.is_good}
            await self._local.copy(good)
            for key, waiting in several.items():
                # Another one may have come while this was written.
                if self._copies.get(key) is waiting:
                    del self._copies[key]

    async def _renew_copies(self) -> None:
        """Copies of what others have changed are had anew, as far as there are any."""
        while self._changed:
            keys = [self._changed.pop() for _ in range(min(_PAGE, len(self._changed)))]
            copied = [key for key, copy in zip(keys, await self._local.aged(*keys), strict=True) if copy is not None]
            try:
                stamps = [self.stamp(key) for key in copied]
                found = await self._shared.read(*copied)
            except Away:
                # They are what there is; their own times say what they are worth.
                return
            for key, record, stamp in zip(copied, found, stamps, strict=True):
                if record is not None:
                    self._copy(key, _copy_of(record), stamp)

    # What happens to the shared store.

    def _turned(self) -> None:
        """What was read until now is copied all the same."""
        good = {key: waiting for key, waiting in self._copies.items() if waiting.is_good}
        self._shared.forget()
        self._copies = {
            key: waiting if waiting.copy is None else _Waiting(waiting.copy, self.stamp(key))
            for key, waiting in good.items()
        }

    def _heard(self, message: bytes) -> None:
        heard = self._shared.hear(message)
        if heard is None:
            return
        for key in heard.keys:
            if heard.deleted:
                self._copies[key] = _Waiting(None, None)
            elif len(self._changed) < _MOST_COPIES:
                self._changed.add(key)

    async def _arriving(self, other: bool) -> None:
        """It is there again; `other`: and has lost its memory, or is met for the first time."""
        await self._drop_old_copies()
        # The last thing, after which nothing waits before it is up: so nothing is journaled in between.
        while self._journal:
            several = dict(list(self._journal.items())[:_AT_ONCE])
            await self._bring(several)
            for key, unheard in several.items():
                if self._journal.get(key) is unheard:
                    del self._journal[key]
        if other and self._first and (self._refilling is None or self._refilling.done()):
            self._refilling = asyncio.create_task(self._refill(), name="what the shared metadata store has lost")

    async def _bring(self, several: Mapping[str, _Unheard]) -> None:
        deleted = [key for key, unheard in several.items() if unheard.deleted]
        values = {key: unheard for key, unheard in several.items() if not unheard.deleted}
        if deleted:
            # What came after that here may be older than what came after it elsewhere: it is asked for anew.
            await self._shared.delete(*deleted, arriving=True)
            await self._local.delete(*deleted)
        await asyncio.gather(*(self._bring_value(key, unheard) for key, unheard in values.items()))

    async def _bring_value(self, key: str, unheard: _Unheard) -> None:
        assert unheard.now is not None  # noqa: S101 - chosen by that
        value, ends = unheard.now
        keep, before = ends - time.time(), unheard.before
        if keep <= 0:
            return
        try:
            # What another replica has deleted stays deleted: it is no value that was there before, nor is it unknown.
            if before is None or not await self._shared.put({key: value}, keep, (key, before), arriving=True):
                await self._offer({key: unheard.now}, arriving=True)
        except Full:
            if keep < LASTING:
                await self._shared.lose(key, arriving=True)

    async def _drop_old_copies(self) -> None:
        """Copies of what was deleted while this replica was away go; all of them, where that is remembered no more."""
        now = time.time()
        try:
            found = await self._local.aged(_LINKED)
            # When it was linked last is what is left of how long that is kept.
            linked = found[0][1] - _LINKED_KEEP if found[0] is not None else now
            if now - linked > DELETED_FOR - 2 * _SWEEP_INTERVAL:
                _log.warning("this replica was away for days: its copies of the shared metadata are dropped")
                await self._local.clear()
                self._copies.clear()
            else:
                gone = await self._shared.deleted_since(linked - _CLOCKS)
                await self._local.copy(dict.fromkeys(gone))
            await self._local.copy({_LINKED: (b"", now + _LINKED_KEEP)})
        except Away:
            # Then it has not arrived.
            raise
        except StorageError as error:
            _log.warning("%s", error)

    async def _refill(self) -> None:
        """Offer everything that there is here, a page at a time."""
        after, offered = "", 0
        epoch = self._link.epoch
        try:
            await self._write_copies()
            while keys := await self._local.scan("", after, _PAGE):
                after = keys[-1]
                wanted = [key for key in keys if not key.startswith(_OWN)]
                copies = await self._own(*wanted)
                kept = {key: copy for key, copy in zip(wanted, copies, strict=True) if copy is not None}
                await self._offer(kept)
                offered += len(kept)
            await self._local.copy({_EPOCH: (epoch.encode(), time.time() + _LINKED_KEEP)})
            if offered:
                _log.info("the shared metadata store was offered %d records of this replica", offered)
        except StorageError as error:
            _log.warning("the shared metadata store was not offered all that this replica has: %s", error)

    async def _sweep(self) -> None:
        if self._link.up:
            await self._local.copy({_LINKED: (b"", time.time() + _LINKED_KEEP)})
            await self._shared.sweep()

    def _journaled(self, key: str, before: _Copy | None, now: _Copy | None) -> None:
        """The shared store has not heard of this change, before which there was that."""
        earlier = self._journal.get(key)
        if earlier is not None:
            self._journal[key] = _Unheard(earlier.before, now, earlier.deleted or now is None)
        elif now is None or len(self._journal) < _MOST_JOURNALED:
            self._journal[key] = _Unheard(before[0] if before is not None else None, now, now is None)


def _copy_of(record: Record) -> _Copy | None:
    return (record.value, record.ends) if record.value is not None else None


async def _now_and_then(work: Callable[[], Awaitable[None]], interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        try:
            await work()
        except StorageError as error:
            _log.debug("%s", error)
