"""What every MetadataStore does, by the suite of all of them, unchanged, against a real server."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.storage.link import Link
from proxy.storage.metadata import DiskcacheMetadata
from proxy.storage.remembered import Remembered
from proxy.storage.replicated import ReplicatedMetadata
from proxy.storage.servers import Place
from proxy.storage.stamps import Stamps
from proxy.storage.valkey import ValkeyMetadata
from proxy.telemetry.events import silent
from tests.clients.valkey import ValkeyServer
from tests.conformance import test_metadata_stores as suite
from tests.conformance.test_metadata_stores import *  # noqa: F403 - every test of the suite, as it is

_PREFIXES = itertools.count()


class LinkedValkey(ValkeyMetadata):
    """With a link of its own."""

    def __init__(self, url: str) -> None:
        self._linked = Link(Place.of(url), silent)
        super().__init__(self._linked, Stamps(None))
        self._linked.heard, self._linked.turned = self.hear, self.forget

    async def open(self) -> None:
        await self._linked.start()
        assert self._linked.up

    async def close(self) -> None:
        await self._linked.close()


class RememberedReplica(Remembered):
    """And with the memory before it."""

    def __init__(self, replica: "Replica") -> None:
        super().__init__(replica, 64 << 20)
        self.open = replica.open


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(Path(tmp_path_factory.mktemp("valkey")))
    yield server
    server.stop()


class Replica(ReplicatedMetadata):
    """As a replica has it: with its own copies behind it."""

    def __init__(self, directory: Path, url: str) -> None:
        self._disk, self._url = DiskcacheMetadata(directory), url

    async def open(self) -> None:
        await self._disk.open()
        link = Link(Place.of(self._url), silent)
        super().__init__(self._disk, link)
        await self.start()
        assert link.up

    async def close(self) -> None:
        await super().close()
        await self._disk.close()


@pytest.fixture(params=["shared", "replica", "remembered"])  # type: ignore[no-redef]
async def stores(request: pytest.FixtureRequest, server: ValkeyServer, tmp_path: Path) -> AsyncIterator[suite.Stores]:
    """Each test has its own keys."""
    url = f"redis://127.0.0.1:{server.port}/0?prefix=test{next(_PREFIXES)}"
    made = {
        "shared": lambda: LinkedValkey(url),
        "replica": lambda: Replica(tmp_path / "metadata", url),
        "remembered": lambda: RememberedReplica(Replica(tmp_path / "metadata", url)),
    }
    opened = suite.Stores(made[request.param])
    yield opened
    await opened.stop()
