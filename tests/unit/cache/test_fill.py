"""A fill and those who wait for it, where the upstream room fails in a way that nobody foresaw."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.cache.ask import Ask
from proxy.cache.fill import Fill
from proxy.cache.means import Means
from proxy.cache.place import Place
from proxy.cache.region import Region
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.access import Principal
from proxy.policy.freshness import lifetimes_of
from proxy.settings import ManifestSettings
from proxy.telemetry.events import silent
from proxy.upstream.client import Reply
from proxy.upstream.slots import Slots
from tests.conformance.memory import MemoryBlobs, Shelf

ASK = Ask(Repository("reg.test", "a"), Principal("anonymous", "anonymous"), lifetimes_of(ManifestSettings()))


@pytest.mark.parametrize("error", [UnicodeError("label empty or too long"), RecursionError(), ValueError(), KeyError()])
async def test_nobody_waits_for_a_fill_that_has_ended(error: Exception) -> None:
    """Whatever ends it, readers are told: a client must never hang on a task that is gone."""

    @asynccontextmanager
    async def request(*_: object) -> AsyncIterator[Reply]:
        raise error
        yield

    async def nothing(*_: object) -> None:
        return None

    place, region = Place("upstream", request, Slots(1), 1), Region(silent)
    means = Means(
        MemoryBlobs(Shelf(), 100, 0), place, region, nothing, nothing, nothing, nothing, silent, bytes(16)
    )  # fmt: skip
    fill = Fill(Digest.of(b"x"), ASK, 0, means)
    reader = fill.join(ASK)
    await asyncio.gather(fill.run(), return_exceptions=True)
    assert fill.error is not None
    with pytest.raises(Exception):  # noqa: B017 - which one is the fill's to choose
        await reader.confirmed()
    await reader.close()
