"""Who of a region's replicas does what, who has what, and who is there: kept in Valkey, none of it for long.

Invariants:
- A lease is one key with who has it; it ends `_LASTS` after the last beat of who has it, or with `release`. Beats go on
  for all leases of a process together, in a thread of their own (`beats`): being late for clients ends no lease.
- Two may have one at once: the server may lose it, or be away, and then everybody has it. Whoever relies on a lease
  saves bytes by it, and nothing else.
- Whoever took a lease has heard of everything that the one before it had changed.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import redis.asyncio as redis

from proxy.oci.digest import Digest
from proxy.storage.base import StorageError
from proxy.storage.beats import Beats
from proxy.storage.link import Link

_log = logging.getLogger("pullthrough.storage")

# Seconds.
_LASTS = 5.0
_REMEMBERED = 86400
# How many of those who have a blob are remembered.
_HOLDERS = 8

# KEYS: the leases. ARGV: their value, milliseconds.
_HOLD = """
for _, key in ipairs(KEYS) do
  local had = redis.call('GET', key)
  if not had then redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
  elseif had == ARGV[1] then redis.call('PEXPIRE', key, ARGV[2]) end
end
"""
# KEYS: a lease. ARGV: its value, milliseconds. Gives who has it where that is another one.
_TAKE = """
local had = redis.call('GET', KEYS[1])
if had and had ~= ARGV[1] then return had end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
# KEYS: addresses by time. ARGV: an address, seconds that one counts, the most of them, seconds to keep them all.
_NOTE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[3]))
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""
_MOST_REPLICAS = 1000


class ValkeyLeases:
    """The `Leases` and the `Holders` of one process, at whose `address` other replicas read from this one."""

    def __init__(self, link: Link, address: str) -> None:
        self.address = address
        self._link = link
        self._value = f"{address} {uuid.uuid4().hex}"
        # Read by the thread as well: what it names counts with the first beat that begins after that.
        self._held: dict[str, int] = {}
        # The beat that is under way, for those in the process's loop.
        self._beating: Future[None] | None = None
        self._beats = Beats(link.connect, self._beat)
        self._giving_back: set[asyncio.Future[None]] = set()
        texts = (_HOLD, _TAKE, _RELEASE, _NOTE)
        self._scripts = {text: link.client.register_script(text) for text in texts}

    async def start(self) -> None:
        """Begin to say that this replica is there."""
        await self._beats.start()

    async def close(self) -> None:
        """Give everything up."""
        await self._beats.close()
        await asyncio.gather(*self._giving_back, return_exceptions=True)
        for name in list(self._held):
            self._held[name] = 1
            await self.release(name)
        try:
            await self._link.ask(lambda client: client.zrem(self._name("replicas"), self.address))
        except StorageError as error:
            _log.debug("%s", error)

    async def take(self, name: str) -> str | None:
        """See `Leases.take`."""
        taking = asyncio.ensure_future(self._take(name))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # What is under way may still make it ours, so it is given back after that.
            giving_back = asyncio.ensure_future(self._give_back(name, taking))
            self._giving_back.add(giving_back)
            giving_back.add_done_callback(self._giving_back.discard)
            raise

    async def _take(self, name: str) -> str | None:
        self._held[name] = self._held.get(name, 0) + 1
        try:
            had = await self._run(_TAKE, [self._lease(name)], [self._value, int(_LASTS * 1000)])
        except StorageError:
            # Twice is better than not at all; once the server is there again this is the one that has it.
            return None
        if had is not None:
            await self.release(name)
            return _address_of(had)
        with contextlib.suppress(StorageError):
            await self._link.sync()
        return None

    async def _give_back(self, name: str, taking: "asyncio.Future[str | None]") -> None:
        await asyncio.wait([taking])
        if not taking.cancelled() and taking.exception() is None and taking.result() is None:
            await self.release(name)

    async def holder(self, name: str) -> str | None:
        """See `Leases.holder`."""
        had = await self._link.ask(lambda client: client.get(self._lease(name)))
        return _address_of(had) if had is not None else None

    async def release(self, name: str) -> None:
        """See `Leases.release`."""
        if self._let_go(name):
            # A beat that is under way may still make it ours.
            if (beating := self._beating) is not None:
                await asyncio.wait([asyncio.wrap_future(beating)])
            try:
                await self._run(_RELEASE, [self._lease(name)], [self._value])
            except StorageError as error:
                # It ends by itself.
                _log.debug("%s", error)

    def _let_go(self, name: str) -> bool:
        """Count one less who has it here; gives whether that was the last one."""
        count = self._held.pop(name, 0)
        if count > 1:
            self._held[name] = count - 1
        return count == 1

    async def add(self, digest: Digest) -> None:
        """See `Holders.add`."""
        await self._note(f"at:{digest}", _REMEMBERED, _HOLDERS)

    async def of(self, digest: Digest) -> Sequence[str]:
        """See `Holders.of`."""
        return await self._addresses(f"at:{digest}")

    async def drop(self, digest: Digest, address: str | None = None) -> None:
        """See `Holders.drop`."""
        try:
            await self._link.ask(lambda client: client.zrem(self._name(f"at:{digest}"), address or self.address))
        except StorageError as error:
            _log.debug("%s", error)

    async def everybody(self) -> Sequence[str]:
        """See `Holders.everybody`."""
        return await self._addresses("replicas")

    async def _addresses(self, name: str) -> list[str]:
        """The addresses of others in a list, the latest first. Raises StorageError."""
        found: list[Any] = await self._link.ask(lambda client: client.zrevrange(self._name(name), 0, -1))
        return [address for address in map(_address_of, found) if address != self.address]

    async def _note(self, name: str, lasts: int, most: int) -> None:
        try:
            await self._run(_NOTE, [self._name(name)], [self.address, lasts, most, lasts])
        except StorageError as error:
            _log.debug("%s", error)

    async def _beat(self, client: redis.Redis) -> None:
        """In the thread: say that this replica is there, and has its leases. Whether the process's loop, which may be
        late, takes the server for away says nothing here."""
        words: list[Any] = [self.address, int(_LASTS), _MOST_REPLICAS, int(_LASTS)]
        await self._scripts[_NOTE](keys=[self._name("replicas")], args=words, client=client)
        beating = self._beating = Future[None]()
        try:
            # After that: who lets go of one waits for a beat that may have it.
            held = [self._lease(name) for name in list(self._held)]
            if held:
                await self._scripts[_HOLD](keys=held, args=[self._value, int(_LASTS * 1000)], client=client)
        finally:
            self._beating = None
            beating.set_result(None)

    async def _run(self, script: str, keys: list[str], words: list[Any]) -> Any:
        return await self._link.ask(lambda client: self._scripts[script](keys=keys, args=words, client=client))

    def _lease(self, name: str) -> str:
        return self._name(f"lease:{name}")

    def _name(self, name: str) -> str:
        return f"{self._link.prefix}{name}"


def _address_of(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.partition(" ")[0]
