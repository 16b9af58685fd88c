"""What scenarios of fills share: sizes, and what they wait for, by looking and never by the clock."""

import asyncio
from collections.abc import Callable

from tests.fakes.proxy import Served
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry

KIB = 1024
MIB = 1024 * 1024
# Ranges begin at multiples of this.
BLOCK = 256 * KIB


def put(registry: FakeRegistry, content: bytes, repository: str = "team/app", digest: str | None = None) -> str:
    """Let `repository` have the blob; gives its path at the proxy."""
    return f"/v2/{repository}/blobs/{registry.put(repository, 'application/octet-stream', content, digest)}"


def digest_in(path: str) -> str:
    """The digest that a blob's path ends with."""
    return path.rpartition("/")[2]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, which something under way brings about."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def came_in(proxy: Served, count: int) -> None:
    """Wait until the proxy has taken so many bytes of bodies from its upstreams."""
    async with asyncio.timeout(20):
        while await proxy.metric("pullthrough_upstream_bytes_total") < count:
            await asyncio.sleep(0)


async def no_fill_runs(proxy: Served) -> None:
    """Wait until no fill is active."""
    async with asyncio.timeout(20):
        while await proxy.metric("pullthrough_fills_active"):
            await asyncio.sleep(0)


async def leave(*readers: Reader) -> None:
    """Let them go, and the loop see it."""
    for reader in readers:
        reader.leave()
    await asyncio.sleep(0)
