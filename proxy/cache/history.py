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
from dataclasses import dataclass, field, replace
from functools import partial

from proxy.cache.ask import Ask, Clock, Records
from proxy.cache.records import (
    KEEP_CONTENT,
    HistoryRecord,
    Node,
    NodesRecord,
    Served,
    history_key,
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
class _News:
    """What there is to be added to one digest of a tag; `others`: pulls of clients that are too many to be named."""

    served: Served
    nodes: dict[str, Node] = field(default_factory=dict)
    others: int = 0


_Pending = dict[tuple[Repository, str], dict[str, _News]]


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
        now = self._clock()
        news = self._news(ask.repository, tag, str(digest), now)
        if news is None:
            return
        seen = news.served
        clusters = seen.clusters | {ask.cluster: seen.clusters.get(ask.cluster, 0) + 1}
        news.served = replace(seen, last=now, pulls=seen.pulls + 1, clusters=clusters, given=now)
        node = news.nodes.get(client)
        if node is None and len(news.nodes) >= _MOST_NODES:
            news.others += 1
            return
        news.nodes[client] = Node(ask.cluster, node.first if node else now, now, node.pulls + 1 if node else 1)

    def seen(self, repository: Repository, tag: str, digest: str) -> None:
        """The upstream has `digest` for `tag`, which nobody was given yet."""
        now = self._clock()
        if (news := self._news(repository, tag, digest, now)) is not None:
            news.served = replace(news.served, last=now)

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
            for (repository, tag), news in pending.items():
                await self._add(repository, tag, news)

    def _news(self, repository: Repository, tag: str, digest: str, now: float) -> _News | None:
        if (repository, tag) not in self._pending and len(self._pending) >= _MOST_PENDING:
            return None
        found = self._pending.setdefault((repository, tag), {})
        return found.setdefault(digest, _News(Served(digest, now, now)))

    async def _add(self, repository: Repository, tag: str, news: dict[str, _News]) -> None:
        served = [one.served for one in news.values()]
        before, after = await self._change(
            history_key(repository, tag), lambda raw: merged(HistoryRecord.load(raw) or HistoryRecord(), served).dump()
        )
        kept = _digests_of(after)
        for digest, one in news.items():
            if one.nodes and digest in kept:
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
    return merged_nodes(NodesRecord.load(raw) or NodesRecord(), news.nodes, news.others).dump()
