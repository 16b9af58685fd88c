"""A server for shared metadata, in memory and with faults, as replicas see it: without Valkey's client and wire."""

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from proxy.storage.link import Away, Full, Link
from proxy.storage.metadata import DiskcacheMetadata
from proxy.storage.replicated import ReplicatedMetadata
from proxy.storage.stamps import Stamps
from proxy.storage.valkey import DELETED_FOR, Record, ValkeyMetadata


class FakeServer:
    """What it knows of each key: a record, or that it was deleted, or nothing.

    `full`: it stores nothing new. `fails`: so many calls fail, though it is there. `calls` are what it was asked.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.links: list[FakeLink] = []
        self.epoch = "one"
        self.full = False
        self.fails = 0
        self.calls: list[tuple[str, tuple[str, ...]]] = []

    def lose(self) -> None:
        """It has lost its memory, as replicas find out when they come back."""
        self.records.clear()
        self.epoch += "+"

    def value(self, key: str) -> bytes | None:
        """What there is under `key` now."""
        record = self.record(key)
        return record.value if record is not None else None

    def record(self, key: str) -> Record | None:
        """What it knows of it."""
        record = self.records.get(key)
        return record if record is not None and record.ends > time.time() else None

    def store(self, key: str, value: bytes, keep: float) -> None:
        """Store it, if there is room."""
        if self.full:
            raise Full("the server is full")
        self.records[key] = Record(value, time.time() + keep)

    def tell(self, message: str) -> None:
        """All who listen hear of it."""
        for link in self.links:
            link.heard(message.encode())


class FakeLink(Link):
    """A link that is there when a test says so."""

    def __init__(self, server: FakeServer) -> None:
        self.prefix = self.channel = ""
        self.epoch = ""
        self.server = server
        # What it would ask is asked of `server`.
        client: Any = SimpleNamespace(register_script=lambda text: text)
        self.client = client
        self._up = False
        self.reachable = True

    async def start(self) -> None:
        if self.reachable:
            await self.come()

    async def come(self) -> None:
        """The server is there (again)."""
        if self not in self.server.links:
            self.server.links.append(self)
        self.reachable = True
        other, self.epoch = self.epoch != self.server.epoch, self.server.epoch
        await self.arriving(other)
        self._up = True
        self.turned()

    def leave(self) -> None:
        """The server is away."""
        self._up = self.reachable = False
        if self in self.server.links:
            self.server.links.remove(self)
        self.turned()

    async def close(self) -> None:
        self._up = False
        if self in self.server.links:
            self.server.links.remove(self)

    def called(self, what: str, arriving: bool, *keys: str) -> FakeServer:
        """The server, which is asked for something. Raises Away."""
        if not (self._up or (arriving and self.reachable)):
            raise Away("the server does not answer")
        self.server.calls.append((what, keys))
        if self.server.fails:
            self.server.fails -= 1
            raise Away("the server failed")
        return self.server


class FakeShared(ValkeyMetadata):
    """The shared store by a `FakeLink`."""

    def __init__(self, link: FakeLink, stamps: Stamps) -> None:
        super().__init__(link, stamps)
        self._fake = link

    async def read(self, *keys: str) -> list[Record | None]:
        server = self._fake.called("read", False, *keys)
        return [server.record(key) for key in keys]

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        server = self._fake.called("scan", False)
        found = sorted(key for key in server.records if key.startswith(prefix) and server.value(key) is not None)
        return [key for key in found if key > after][:limit]

    async def put(
        self,
        entries: Mapping[str, bytes],
        keep: float,
        only_while: tuple[str, bytes | None] | None = None,
        arriving: bool = False,
    ) -> bool:
        async with self._change("changed", entries) as (change, message):
            server = self._fake.called("put", arriving, *entries)
            done = only_while is None or server.value(only_while[0]) == only_while[1]
            if done:
                for key, value in entries.items():
                    server.store(key, value, keep)
                server.tell(message)
        if not done:
            self._own.discard(change)
        return done

    async def delete(self, *keys: str, arriving: bool = False) -> None:
        async with self._change("deleted", keys) as (_, message):
            server = self._fake.called("delete", arriving, *keys)
            server.records.update({key: Record(None, time.time() + DELETED_FOR) for key in keys})
            server.tell(message)

    async def deleted_since(self, at: float) -> list[str]:
        """The keys that are known to have been deleted after `at`."""
        server = self._fake.server
        return [key for key, one in server.records.items() if one.value is None and one.ends - DELETED_FOR >= at]

    async def offer(self, entries: Mapping[str, tuple[bytes, float]], arriving: bool = False) -> None:
        async with self._change("changed", entries) as (_, message):
            server = self._fake.called("offer", arriving, *entries)
            for key, (value, keep) in entries.items():
                if server.record(key) is None:
                    server.store(key, value, keep)
            server.tell(message)

    async def lose(self, *keys: str, arriving: bool = False) -> None:
        async with self._change("changed", keys) as (_, message):
            server = self._fake.called("lose", arriving, *keys)
            for key in keys:
                server.records.pop(key, None)
            server.tell(message)

    async def sweep(self) -> None:
        self._fake.called("sweep", False)


class FakeReplica(ReplicatedMetadata):
    """The store of one process of a replica."""

    def __init__(self, local: DiskcacheMetadata, server: FakeServer, first: bool = True) -> None:
        self.link = FakeLink(server)
        super().__init__(local, self.link, first)
        self._shared = FakeShared(self.link, local.stamps)
        self.link.turned = self._shared.forget

    @property
    def unheard(self) -> set[str]:
        """The keys whose changes the server has not heard of."""
        return set(self._journal)

    async def refilled(self) -> None:
        """Wait until everything was offered, where that has begun."""
        if self._refilling is not None:
            await self._refilling

    async def write(self) -> None:
        """Have all copies on the disk."""
        await self._write_copies()

    async def work(self) -> None:
        """Do what is done now and then."""
        await self.write()
        if self._first:
            await self._sweep()
