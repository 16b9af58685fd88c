"""Metadata in Valkey or Redis, for all replicas of a region.

- A record is a string: whether it is one or was deleted, when it ends (by the clock of who wrote it), its value. The
  server drops it at that time by itself, but for what cannot be fetched again: that has no end there, so that a server
  that evicts what has one (`volatile-lru`) never takes it.
- What was deleted leaves a mark for a week, so that a replica's own copy is not taken for what the server has lost.
- All keys are in one sorted set as well, in their order, to be listed by their beginning. What has ended is taken out
  of it when it is met there, and by `sweep`.
- Each change is one script, so all of it happens or nothing, and the same script publishes it. Keys are stamped anew in
  every process that hears of it, in this one when the call returns besides (`stamps`).
"""

import json
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis

from proxy.storage.base import Stamp
from proxy.storage.link import Link
from proxy.storage.stamps import Stamps

# Seconds. What is to be kept for longer than this is kept until it is deleted.
LASTING = 365 * 86400.0
# How long it is known that something was deleted.
DELETED_FOR = 7 * 86400.0

_HEAD = struct.Struct(">Bd")
_THERE, _DELETED = 1, 0
_SWEPT_AT_ONCE = 500

# KEYS: the index, the guard, the keys. ARGV: now, milliseconds until the end (0: none), "", "is" or "absent", what the
# guard is to be, the channel, the message, and for each key its name and its record.
_PUT = """
if ARGV[3] ~= '' then
  local raw, value = redis.call('GET', KEYS[2]), nil
  if raw and string.byte(raw, 1) == 1 and struct.unpack('>d', raw, 2) > tonumber(ARGV[1]) then
    value = string.sub(raw, 10)
  end
  if (ARGV[3] == 'is' and value ~= ARGV[4]) or (ARGV[3] == 'absent' and value) then return 0 end
end
for i = 3, #KEYS do
  local name, record = ARGV[2 * i + 1], ARGV[2 * i + 2]
  if ARGV[2] == '0' then redis.call('SET', KEYS[i], record) else redis.call('SET', KEYS[i], record, 'PX', ARGV[2]) end
  redis.call('ZADD', KEYS[1], 0, name)
end
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
"""

# KEYS: the index, what was deleted by time, the keys. ARGV: milliseconds that the marks last, the mark, the channel,
# the message, now, the names. A server that is full deletes all the same, and leaves no marks.
_DELETE = """
for i = 3, #KEYS do
  redis.call('DEL', KEYS[i])
  redis.call('ZREM', KEYS[1], ARGV[i + 3])
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', tonumber(ARGV[5]) - tonumber(ARGV[1]) / 1000)
redis.call('PUBLISH', ARGV[3], ARGV[4])
for i = 3, #KEYS do
  redis.pcall('SET', KEYS[i], ARGV[2], 'PX', ARGV[1])
  redis.pcall('ZADD', KEYS[2], ARGV[5], ARGV[i + 3])
end
return 1
"""

# KEYS: the index, the keys. ARGV: the channel, the message, and for each key its name, its record, and milliseconds.
_OFFER = """
local new = 0
for i = 2, #KEYS do
  local at = 3 * (i - 2) + 3
  if redis.call('EXISTS', KEYS[i]) == 0 then
    if ARGV[at + 2] == '0' then redis.call('SET', KEYS[i], ARGV[at + 1])
    else redis.call('SET', KEYS[i], ARGV[at + 1], 'PX', ARGV[at + 2]) end
    redis.call('ZADD', KEYS[1], 0, ARGV[at])
    new = new + 1
  end
end
if new > 0 then redis.call('PUBLISH', ARGV[1], ARGV[2]) end
return new
"""

# KEYS: the index, the keys. ARGV: the channel, the message, the names.
_LOSE = """
for i = 2, #KEYS do
  redis.call('DEL', KEYS[i])
  redis.call('ZREM', KEYS[1], ARGV[i + 1])
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
"""

# KEYS: the index, the keys. ARGV: the names.
_FORGET = """
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('ZREM', KEYS[1], ARGV[i - 1]) end
end
"""


@dataclass(frozen=True, slots=True)
class Record:
    """What the server knows under a key: the value, None where it was deleted, and when that ends (Unix seconds)."""

    value: bytes | None
    ends: float


@dataclass(frozen=True, slots=True)
class Heard:
    """What a replica has told: `keys` have changed, or were `deleted`."""

    keys: Sequence[str]
    deleted: bool
    change: str

    @staticmethod
    def of(message: bytes) -> "Heard | None":
        """Out of what came in; None for what nobody of ours has sent."""
        try:
            kind, change, keys = json.loads(message)
        except (ValueError, TypeError):
            return None
        if kind not in {"changed", "deleted"} or not isinstance(keys, list) or not isinstance(change, str):
            return None
        return Heard([key for key in keys if isinstance(key, str)], kind == "deleted", change)


class ValkeyMetadata:
    """The `MetadataStore` of a region, by a link that its owner starts and closes."""

    def __init__(self, link: Link, stamps: Stamps) -> None:
        """`stamps` are those of all processes that hear of changes by the same table."""
        self._link = link
        self._stamps = stamps
        # Changes of this process that were told, or will be, and that it knows of: not those that nobody knows ended.
        self._own: set[str] = set()
        self._scripts = {text: link.client.register_script(text) for text in (_PUT, _DELETE, _OFFER, _LOSE, _FORGET)}

    def stamp(self, *keys: str) -> Stamp:
        """See `MetadataStore.stamp`."""
        return self._stamps.take(*keys)

    def hear(self, message: bytes) -> Heard | None:
        """What another process has told, once it counts here; None for what is no news."""
        heard = Heard.of(message)
        if heard is None or heard.change in self._own:
            self._own.discard(heard.change if heard is not None else "")
            return None
        self._stamps.renew(*heard.keys)
        return heard

    def forget(self) -> None:
        """Anything may have been told that was not heard."""
        self._own.clear()
        self._stamps.renew_all()

    async def get(self, *keys: str) -> list[bytes | None]:
        """See `MetadataStore.get`."""
        return [record.value if record is not None else None for record in await self.read(*keys)]

    async def read(self, *keys: str) -> list[Record | None]:
        """What the server knows under `keys`: None is nothing, not even that it was deleted. Raises Away."""
        if not keys:
            return []
        names = [self._name(key) for key in keys]
        found: list[Any] = await self._link.ask(lambda client: client.mget(names))
        now = time.time()
        return [_record(raw, now) for raw in found]

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """See `MetadataStore.scan`."""
        begin, found = _encoded(prefix), list[str]()
        last = _encoded(after) if after > prefix else None
        # No text has this byte in UTF-8.
        until = b"(" + begin + b"\xff"
        while True:
            start = b"[" + begin if last is None else b"(" + last
            names = await self._page(start, until, limit)
            found += await self._living(names)
            if len(names) < limit or len(found) >= limit:
                return found[:limit]
            last = names[-1]

    async def put(
        self,
        entries: Mapping[str, bytes],
        keep: float,
        only_while: tuple[str, bytes | None] | None = None,
        arriving: bool = False,
    ) -> bool:
        """See `MetadataStore.put`, and `Link.ask`. Raises Full where there is no room."""
        now = time.time()
        records = {_checked(key): _packed(_THERE, now + keep, value) for key, value in entries.items()}
        guard, mode, value = "", "", b""
        if only_while is not None:
            guard, mode, value = only_while[0], "absent" if only_while[1] is None else "is", only_while[1] or b""
        named = [part for key, record in records.items() for part in (_encoded(key), record)]
        keys = [self._name(guard), *map(self._name, records)]
        async with self._change("changed", entries) as (change, message):
            words = [now, _milliseconds(keep), mode, value, self._link.channel, message, *named]
            done = bool(await self._run(_PUT, keys, words, arriving))
        if not done:
            self._own.discard(change)
        return done

    async def delete(self, *keys: str, arriving: bool = False) -> None:
        """See `MetadataStore.delete`, and `Link.ask`."""
        if not keys:
            return
        mark = _packed(_DELETED, time.time() + DELETED_FOR, b"")
        names = list(map(_encoded, keys))
        async with self._change("deleted", keys) as (_, message):
            words = [_milliseconds(DELETED_FOR), mark, self._link.channel, message, time.time(), *names]
            await self._run(_DELETE, [self._gone, *map(self._raw, names)], words, arriving)

    async def deleted_since(self, at: float) -> list[str]:
        """The keys that were deleted after `at` (Unix seconds), for as long as that is known. For `Link.arriving`."""
        found: list[Any] = await self._link.ask(lambda client: client.zrangebyscore(self._gone, at, "+inf"), True)
        return [_decoded(name) for name in found]

    async def offer(self, entries: Mapping[str, tuple[bytes, float]], arriving: bool = False) -> None:
        """Store what the server knows nothing of, not even that it was deleted: values, and seconds to keep each.

        Raises Away or Full.
        """
        now, words = time.time(), list[Any]()
        for key, (value, keep) in entries.items():
            words += [_encoded(key), _packed(_THERE, now + keep, value), _milliseconds(keep)]
        async with self._change("changed", entries) as (change, message):
            words = [self._link.channel, message, *words]
            stored = await self._run(_OFFER, [self._name(key) for key in entries], words, arriving)
        if not stored:
            self._own.discard(change)

    async def lose(self, *keys: str, arriving: bool = False) -> None:
        """Know nothing of `keys` any more, which takes no room: what was to be stored there counts elsewhere."""
        async with self._change("changed", keys) as (_, message):
            words = [self._link.channel, message, *map(_encoded, keys)]
            await self._run(_LOSE, [self._name(key) for key in keys], words, arriving)

    async def sweep(self) -> None:
        """Take out of the list of all keys those that have ended. Raises Away."""
        start = b"-"
        while names := await self._page(start, b"+", _SWEPT_AT_ONCE):
            await self._run(_FORGET, [self._raw(name) for name in names], names)
            start = b"(" + names[-1]

    async def close(self) -> None:
        """See `MetadataStore.close`."""

    async def _page(self, start: bytes, until: bytes, limit: int) -> list[bytes]:
        index = self._index
        found: list[Any] = await self._link.ask(lambda client: client.zrangebylex(index, start, until, 0, limit))
        return [bytes(name) for name in found]

    async def _living(self, names: Sequence[bytes]) -> list[str]:
        """The keys of `names` that have a value now; what the server has nothing of is taken out of the list."""

        async def heads(client: redis.Redis) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.getrange(self._raw(name), 0, _HEAD.size - 1)
            return list(await pipeline.execute())

        now, found = time.time(), await self._link.ask(heads) if names else []
        gone = [name for name, raw in zip(names, found, strict=True) if not raw]
        if gone:
            await self._run(_FORGET, [self._raw(name) for name in gone], gone)
        living = zip(names, (_record(raw, now) for raw in found), strict=True)
        return [_decoded(name) for name, record in living if record is not None and record.value is not None]

    @asynccontextmanager
    async def _change(self, kind: str, keys: Collection[str]) -> AsyncIterator[tuple[str, str]]:
        """A change of `keys` inside of the context: its name, and the message that it sends."""
        name = uuid.uuid4().hex
        self._own.add(name)
        try:
            yield name, json.dumps([kind, name, list(keys)])
        except BaseException:
            # It may be made later, when what was read meanwhile counts no more: then it is news.
            self._own.discard(name)
            raise
        finally:
            self._stamps.renew(*keys)

    async def _run(self, script: str, keys: list[bytes], words: Sequence[Any], arriving: bool = False) -> Any:
        call: Callable[[redis.Redis], Any] = lambda client: self._scripts[script](  # noqa: E731 - a line
            keys=[self._index, *keys], args=list(words), client=client
        )
        return await self._link.ask(call, arriving)

    @property
    def _index(self) -> bytes:
        return f"{self._link.prefix}keys".encode()

    @property
    def _gone(self) -> bytes:
        return f"{self._link.prefix}deleted".encode()

    def _name(self, key: str) -> bytes:
        return self._raw(_encoded(key))

    def _raw(self, name: bytes) -> bytes:
        return f"{self._link.prefix}r:".encode() + name


def _checked(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError("metadata keys are strings")
    return key


def _packed(kind: int, ends: float, value: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("metadata values are bytes")
    return _HEAD.pack(kind, ends) + value


def _record(raw: bytes | None, now: float) -> Record | None:
    if raw is None or len(raw) < _HEAD.size:
        return None
    kind, ends = _HEAD.unpack_from(raw)
    if ends <= now:
        return None
    return Record(raw[_HEAD.size :] if kind == _THERE else None, ends)


def _milliseconds(keep: float) -> int:
    """Until the server may drop it; 0 for what it never may."""
    return 0 if keep >= LASTING else max(1, int(keep * 1000))


def _encoded(key: str) -> bytes:
    return key.encode(errors="surrogatepass")


def _decoded(name: bytes) -> str:
    return name.decode(errors="surrogatepass")
