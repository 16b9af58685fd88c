"""What every BlobStore does, by the suite of all of them, unchanged, where a real object store is behind it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxy.storage.directory import open_directory
from proxy.storage.disk import DiskBlobs
from proxy.storage.guarded import Guarded
from proxy.storage.object import Bucket
from proxy.storage.tiers import TieredBlobs
from proxy.telemetry.events import silent
from tests.clients.s3 import S3Server
from tests.conformance import test_blob_stores as suite
from tests.conformance.test_blob_stores import *  # noqa: F403 - every test of the suite, as it is

_PREFIXES = itertools.count()


class TieredDisk(TieredBlobs):
    """As a replica has it."""

    def __init__(self, directory: Any, objects: Guarded, *limits: Any, **options: Any) -> None:
        self._disk = DiskBlobs(directory, *limits, **options)
        super().__init__(self._disk, objects, silent)

    async def start(self) -> None:
        await self._disk.start()
        await super().start()

    async def close(self) -> None:
        await super().close()
        await self._disk.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture  # type: ignore[no-redef]
async def kind(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[suite.Kind]:
    """Instead of the suite's own."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    objects = Guarded(await asyncio.to_thread(Bucket, server.url(f"test{next(_PREFIXES)}"), b"secret"), silent)
    directory = await asyncio.to_thread(open_directory, tmp_path / "cache")
    kind = suite.Kind(partial(TieredDisk, directory, objects))
    yield kind
    await kind.close()
    await objects.close()
    directory.close()
