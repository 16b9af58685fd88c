"""What tags were, and who was given what: counted as it is served, written down every few seconds.

Invariants:
- Serving never waits for it: `served` only counts in memory, and what cannot be written is forgotten.
- What was taken out of memory is written to its end, whoever leaves meanwhile, and whoever reads waits for that.
- Processes that share the metadata add to the same records, each by compare and set: none loses another's counts.
- Everything is bounded: digests of a tag, nodes of a digest, and what waits to be written. Nodes go with their digest.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from proxy.cache.ask import Ask, Clock, Records
from proxy.cache.records import (
    KEEP_CONTENT,
    HistoryRecord,
    Node,
    NodesRecord,
    Served,
    history_key,
    named_in,
    nodes_key,
)
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository

_log = logging.getLogger("pullthrough.cache")

_INTERVAL = 2.0
_MOST_DIGESTS = 20
_MOST_NODES = 2000
_MOST_PENDING = 20_000
# So often another process may come in between.
_TRIES = 8


@dataclass(slots=True)
class _Client:
    """What is to be added to a node; as `Node` has it."""

    cluster: str
    first: float
    last: float
    pulls: int = 1

    def node(self) -> Node:
        return Node(self.cluster, self.first, self.last, self.pulls)


@dataclass(slots=True)
class _News:
    """What there is to be added to one digest of a tag; `others`: pulls of clients that are too many to be named."""

    first: float
    last: float
    given: float = 0.0
    clusters: dict[str, int] = field(default_factory=dict)
    clients: dict[str, _Client] = field(default_factory=dict)
    others: int = 0

    def add(self, cluster: str, client: str, now: float) -> None:
        """A client of that cluster was given the digest."""
        self.last = self.given = now
        self.clusters[cluster] = self.clusters.get(cluster, 0) + 1
        seen = self.clients.get(client)
        if seen is not None:
            seen.cluster = cluster
            seen.last = now
            seen.pulls += 1
        elif len(self.clients) < _MOST_NODES:
            self.clients[client] = _Client(cluster, now, now)
        else:
            self.others += 1

    def served(self, digest: str) -> Served:
        return Served(digest, self.first, self.last, sum(self.clusters.values()), self.clusters, self.given)

    def nodes(self) -> dict[str, Node]:
        return {address: client.node() for address, client in self.clients.items()}


# By the key of the history, and by digest. Keys are text, whose hash is computed once.
_Pending = dict[str, dict[str, _News]]


class History:
    """The tags of all registries. `start` it, and `close` it before the store."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._pending: _Pending = {}
        self._turn = asyncio.Lock()
        self._writing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Write down every few seconds from now on."""
        self._task = asyncio.get_running_loop().create_task(self._write_now_and_then(), name="history of tags")

    def served(self, ask: Ask, tag: str, digest: Digest, client: str) -> None:
        """The client at this address was answered `digest` for `tag`."""
        self.tally(ask, tag, digest)(client)

    def tally(self, ask: Ask, tag: str, digest: Digest) -> Callable[[str], None]:
        """What is to be called, with its address, whenever a client of `ask`'s cluster was answered `digest` for `tag`.

        It counts as `served` does, for less, as long as somebody calls it, and keeps nothing of what it counted.
        """
        key, name, cluster, clock = history_key(ask.repository, tag), str(digest), ask.cluster, self._clock

        def served(client: str) -> None:
            now = clock()
            if (news := self._news(key, name, now)) is not None:
                news.add(cluster, client, now)

        return served

    def seen(self, repository: Repository, tag: str, digest: str) -> None:
        """The upstream has `digest` for `tag`, which nobody was given yet."""
        now = self._clock()
        if (news := self._news(history_key(repository, tag), digest, now)) is not None:
            news.last = now

    async def read(self, repository: Repository, *tags: str) -> list[HistoryRecord]:
        """The history of each of `tags`, with all that this process knows."""
        await self.write()
        found = await self._records.get(*(history_key(repository, tag) for tag in tags))
        return [HistoryRecord.load(raw) or HistoryRecord() for raw in found]

    async def nodes(self, repository: Repository, tag: str, digest: str) -> NodesRecord:
        """Who was given `digest` for `tag`. Raises StorageError."""
        (raw,) = await self._records.read(nodes_key(repository, tag, digest))
        return NodesRecord.load(raw) or NodesRecord()

    async def write(self) -> None:
        """Write down what waits; it is written when this returns."""
        writing = asyncio.get_running_loop().create_task(self._write(), name="history that waited")
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.shield(writing)

    async def close(self) -> None:
        """Write down what waits, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._writing, return_exceptions=True)
        await self.write()

    async def _write(self) -> None:
        async with self._turn:
            pending, self._pending = self._pending, {}
            for key, news in pending.items():
                await self._add(key, news)

    def _news(self, key: str, digest: str, now: float) -> _News | None:
        """What waits; made where nothing does. None where too much waits already."""
        found = self._pending.get(key)
        if found is None:
            if len(self._pending) >= _MOST_PENDING:
                return None
            found = self._pending[key] = {}
        news = found.get(digest)
        if news is None:
            news = found[digest] = _News(now, now)
        return news

    async def _add(self, key: str, news: dict[str, _News]) -> None:
        repository, tag = named_in(key)
        served = [one.served(digest) for digest, one in news.items()]
        before, after = await self._change(
            key, lambda raw: merged(HistoryRecord.load(raw) or HistoryRecord(), served).dump()
        )
        kept = _digests_of(after)
        for digest, one in news.items():
            if one.clients and digest in kept:
                await self._change(nodes_key(repository, tag, digest), partial(_more_nodes, one))
        if gone := _digests_of(before) - kept:
            await self._records.delete(*(nodes_key(repository, tag, digest) for digest in gone))

    async def _change(self, key: str, change: Callable[[bytes | None], bytes]) -> tuple[bytes | None, bytes | None]:
        """Put what `change` makes of the value in its place; again where another process was quicker.

        Gives what was there, and what is there now; None and None where it could not.
        """
        before: bytes | None = None
        for attempt in range(_TRIES):
            (raw,) = await self._records.get(key)
            if attempt and raw == before:
                # Nobody was quicker: the store is in trouble, and said so.
                return None, None
            after = change(raw)
            if await self._records.put({key: after}, KEEP_CONTENT, only_while=(key, raw)):
                return raw, after
            before = raw
        return None, None

    async def _write_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self.write()
            except Exception as error:  # noqa: BLE001 - whatever it is, what comes next is to be written
                _log.error("the history of tags could not be written", exc_info=error)


def merged(record: HistoryRecord, more: Iterable[Served]) -> HistoryRecord:
    """`record` with `more` added to it; those last seen are kept, and before others those that somebody was served."""
    digests = {one.digest: one for one in record.digests}
    for one in more:
        before = digests.get(one.digest)
        digests[one.digest] = one if before is None else _both(before, one)
    newest = sorted(digests.values(), key=lambda one: one.last, reverse=True)
    if len(newest) > _MOST_DIGESTS:
        # Of a tag that moves all the time checks see many digests that nobody is served: they push out nothing else.
        kept = newest[:1] + sorted(newest[1:], key=lambda one: not one.pulls)[: _MOST_DIGESTS - 1]
        newest = sorted(kept, key=lambda one: one.last, reverse=True)
    return HistoryRecord(tuple(newest))


def merged_nodes(record: NodesRecord, more: Mapping[str, Node], more_others: int = 0) -> NodesRecord:
    """`record` with `more` added to it; beyond the most that are kept apart, only their pulls are counted."""
    nodes, others = dict(record.nodes), record.others + more_others
    for address, node in more.items():
        before = nodes.get(address)
        if before is not None:
            # The clock may have been set back, or another process may have written later things first.
            first, last = min(before.first, node.first), max(before.last, node.last)
            nodes[address] = Node(node.cluster, first, last, before.pulls + node.pulls)
        elif len(nodes) < _MOST_NODES:
            nodes[address] = node
        else:
            others += node.pulls
    return NodesRecord(nodes, others)


def _both(before: Served, after: Served) -> Served:
    clusters = {
        name: before.clusters.get(name, 0) + after.clusters.get(name, 0) for name in before.clusters | after.clusters
    }
    return Served(
        before.digest,
        min(before.first, after.first),
        max(before.last, after.last),
        before.pulls + after.pulls,
        clusters,
        max(before.given, after.given),
    )


def _digests_of(raw: bytes | None) -> set[str]:
    return {one.digest for one in (HistoryRecord.load(raw) or HistoryRecord()).digests}


def _more_nodes(news: _News, raw: bytes | None) -> bytes:
    return merged_nodes(NodesRecord.load(raw) or NodesRecord(), news.nodes(), news.others).dump()
