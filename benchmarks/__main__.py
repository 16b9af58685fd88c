"""`python -m benchmarks cold|warm|all`: the proxy beside a direct download, on loopback.

cold   Does one upstream download serve many clients, and how soon is the last one done?
warm   How fast are a cached blob and a cached manifest?
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

_REQUESTS = 3000


async def fetch(session: aiohttp.ClientSession, url: str) -> int:
    """Download `url`; gives its bytes."""
    size = 0
    async with session.get(url) as response:
        response.raise_for_status()
        async for piece in response.content.iter_chunked(1 << 20):
            size += len(piece)
    return size


async def timed(action: Callable[[], Awaitable[object]]) -> float:
    """Seconds that `action` takes."""
    started = time.perf_counter()
    await action()
    return time.perf_counter() - started


async def cold(session: aiohttp.ClientSession, origin: str, proxy: str, path: str, clients: int) -> None:
    """One cold blob, `clients` at once, beside as many direct downloads."""
    before = int(await (await session.get(f"{origin}/sent")).text())
    through = await timed(lambda: asyncio.gather(*(fetch(session, proxy + path) for _ in range(clients))))
    after = int(await (await session.get(f"{origin}/sent")).text())
    size = await fetch(session, origin + path)
    direct = await timed(lambda: asyncio.gather(*(fetch(session, origin + path) for _ in range(clients))))
    print(f"cold: {clients} clients, {size >> 20} MiB")
    print(f"  upstream bytes / blob        {(after - before) / size:.3f}")
    print(f"  last client done / all direct {through / direct:.2f}  ({through:.2f} s, {direct:.2f} s)")


async def warm(session: aiohttp.ClientSession, origin: str, proxy: str, path: str) -> None:
    """The same blob again, and a manifest by tag, one client."""
    size = await fetch(session, proxy + path)
    through = await timed(lambda: fetch(session, proxy + path))
    direct = await timed(lambda: fetch(session, origin + path))
    tag = f"{proxy}/v2/bench/app/manifests/v1"
    await fetch(session, tag)

    async def manifests() -> None:
        for _ in range(_REQUESTS // 8):
            await fetch(session, tag)

    seconds = await timed(lambda: asyncio.gather(*(manifests() for _ in range(8))))
    print(f"warm: {size >> 20} MiB")
    print(f"  blob seconds / direct         {through / direct:.2f}  ({size / through / 1e9:.2f} GB/s)")
    print(f"  manifests a second (8 clients, client included) {_REQUESTS / seconds:.0f}")


@contextmanager
def proxy_of(origin: str, folder: Path) -> Iterator[str]:
    """A proxy in a process of its own; gives its URL."""
    ports = [free_port(), free_port()]
    config = {
        "listen": [{"address": f"127.0.0.1:{ports[0]}"}],
        "admin": {"address": f"127.0.0.1:{ports[1]}"},
        "cache": {"directory": str(folder / "cache")},
        "upstreams": {"bench.test": {"url": origin, "default": True}},
        "log": {"access": False},
    }
    (folder / "proxy.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(folder / "proxy.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        while "serving on" not in (line := process.stderr.readline()):
            if not line:
                raise SystemExit("the proxy did not start")
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def run(scenario: str, origin: str, digest: str, proxy: str, clients: int) -> None:
    """Run one scenario, or all."""
    path = f"/v2/bench/app/blobs/{digest}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        if scenario in {"cold", "all"}:
            await cold(session, origin, proxy, path, clients)
        if scenario in {"warm", "all"}:
            await warm(session, origin, proxy, path)


def main() -> None:
    """Start the origin and the proxy, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenario", choices=["cold", "warm", "all"], nargs="?", default="all")
    parser.add_argument("--size", type=int, default=256 << 20, help="bytes of the blob")
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "benchmarks.origin", str(arguments.size)]
    origin = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert origin.stdout is not None
        told = json.loads(origin.stdout.readline())
        with tempfile.TemporaryDirectory() as folder, proxy_of(told["url"], Path(folder)) as proxy:
            asyncio.run(run(arguments.scenario, told["url"], told["digest"], proxy, arguments.clients))
    finally:
        origin.terminate()
        origin.wait()


if __name__ == "__main__":
    main()
