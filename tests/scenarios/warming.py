"""What scenarios of warm jobs share."""

import asyncio
from typing import Any

from tests.fakes.proxy import Served
from tests.fakes.registry import FakeRegistry

NAME = "registry.test/team/app"


async def api(proxy: Served, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """A request of the admin API."""
    async with proxy.session.request(method, f"{proxy.admin_url}/api/v1/{path}", json=body) as response:
        return response.status, await response.json()


async def begin(proxy: Served, *references: str, **more: object) -> str:
    """Ask for a job; gives its id."""
    status, job = await api(proxy, "POST", "warm", {"references": list(references), **more})
    assert (status, job["references"]) == (202, list(references)), job
    return str(job["id"])


async def job(proxy: Served, named: str) -> dict[str, Any]:
    """How it stands."""
    status, found = await api(proxy, "GET", f"warm/{named}")
    assert status == 200, found
    return dict(found)


async def ended(proxy: Served, named: str) -> dict[str, Any]:
    """How it ended."""
    async with asyncio.timeout(20):
        while (found := await job(proxy, named))["ended"] is None:
            await asyncio.sleep(0)
    return found


async def warm(proxy: Served, *references: str, **more: object) -> dict[str, Any]:
    """A job from its beginning to its end."""
    return await ended(proxy, await begin(proxy, *references, **more))


def asked(registry: FakeRegistry, part: str = "") -> list[tuple[str, str]]:
    """What reached the registry: methods and what stands behind the last slash, without its first bytes."""
    return [(seen.method, seen.path.rpartition("/")[2]) for seen in registry.seen if part in seen.path]


async def came(proxy: Served) -> float:
    """How many bytes of bodies have come from upstreams."""
    return await proxy.metric("pullthrough_upstream_bytes_total")


async def in_file(proxy: Served, digest: str) -> int:
    """How many bytes of a blob on its way are in its file."""
    _, stats = await api(proxy, "GET", "stats")
    return sum(int(fill["arrived"]) for fill in stats["fills"] if fill["digest"] == digest)


async def settled(proxy: Served) -> float:
    """The same, once nothing comes for a while."""
    before = -1.0
    while (now := await came(proxy)) != before:
        before = now
        await asyncio.sleep(0.2)
    return now
