"""A cold and a warm blob beside a direct download, without limits: what `python -m benchmarks` prints."""

import asyncio
import time
from collections.abc import Iterator

import aiohttp

from benchmarks.programs import Bench
from benchmarks.report import Figure, Scenario, at_most, failures, last

_SIZE = 256_000_000
_CLIENTS = 8
_REQUESTS = 3000


def _cold(bench: Bench) -> Iterator[Figure]:
    origin = bench.origin((30, _SIZE))
    [blob] = origin.blobs
    direct = bench.read(origin.port, blob, clients=_CLIENTS)
    origin.reset()
    results = bench.read(bench.proxy(origin).port, blob, clients=_CLIENTS)
    yield Figure("upstream bytes / blob", origin.sent() / _SIZE, None, _CLIENTS)
    yield Figure("last client, seconds", last(results), None, last(direct))
    yield Figure("clients without the right bytes", failures(results), at_most(0))


def _warm(bench: Bench) -> Iterator[Figure]:
    origin = bench.origin((31, _SIZE))
    [blob] = origin.blobs
    proxy = bench.proxy(origin)
    bench.read(proxy.port, blob)
    direct = last(bench.read(origin.port, blob, sha256=""))
    seconds = last(bench.read(proxy.port, blob, sha256=""))
    yield Figure("a present blob, GB a second", _SIZE / seconds / 1e9, None, _SIZE / direct / 1e9)
    rates = [asyncio.run(_manifests(port)) for port in (proxy.port, origin.port)]
    yield Figure("manifests by tag a second, client included", rates[0], None, rates[1])


async def _manifests(port: int) -> float:
    """Requests a second of 8 clients."""
    url = f"http://127.0.0.1:{port}/v2/bench/app/manifests/v1"
    async with aiohttp.ClientSession() as session:

        async def ask(times: int) -> None:
            for _ in range(times):
                async with session.get(url) as response:
                    response.raise_for_status()
                    await response.read()

        await ask(1)
        began = time.perf_counter()
        await asyncio.gather(*(ask(_REQUESTS // 8) for _ in range(8)))
        return _REQUESTS / (time.perf_counter() - began)


SCENARIOS = {
    "cold": Scenario("8 clients, a cold blob of 256 MB", _cold),
    "warm": Scenario("a present blob of 256 MB and a cached manifest", _warm),
}
