"""What the upstream said before a delete that came through here makes nothing a member after it."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.pushable import PushableRegistry
from tests.fakes.server import Gate
from tests.scenarios.conftest import MakeSettings

ONE, TWO = make_image(1000, seed=1), make_image(1000, seed=2)
REPOSITORY = "/v2/team/app"
BLOB = f"{REPOSITORY}/blobs/{digest_of(ONE.blobs[1])}"


@pytest.fixture
def registry(pushable: PushableRegistry) -> PushableRegistry:
    """A registry that takes pushes, and has two images."""
    pushable.push("team/app", "v1", ONE)
    pushable.push("team/app", "v2", TWO)
    return pushable


@pytest.fixture(params=["transparent", "metadata-only"])
async def proxy(settings: MakeSettings, request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    """A proxy that passes pushes on."""
    cluster = {"name": "default", "mode": request.param, "push": "forward"}
    async with running(settings(clusters=[cluster])) as started:
        yield started


def hold_first(registry: PushableRegistry, path: str) -> Gate:
    """The first answer for `path` is made at once, and leaves when the gate opens."""
    gate, answered = Gate(0), registry.answer

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        first = request.rel_url.path == path and request.method != "DELETE" and not gate.waiting
        if first and request.method == "GET" and "/blobs/" in path:
            body = registry.content[path.rpartition("/")[2]][1]
            await gate(0)
            return web.Response(body=body)
        response = await answered(request)
        if first:
            await gate(0)
        return response

    registry.answer = answer  # type: ignore[method-assign]
    return gate


@pytest.mark.parametrize(
    ("method", "path", "deleted"),
    [
        ("GET", f"{REPOSITORY}/manifests/{ONE.digest}", f"{REPOSITORY}/manifests/{ONE.digest}"),
        ("HEAD", f"{REPOSITORY}/manifests/{ONE.digest}", f"{REPOSITORY}/manifests/{ONE.digest}"),
        ("GET", f"{REPOSITORY}/manifests/v1", f"{REPOSITORY}/manifests/{ONE.digest}"),
        ("GET", BLOB, BLOB),
        ("HEAD", BLOB, BLOB),
    ],
)
async def test_a_read_from_before_a_delete(
    proxy: Proxy, registry: PushableRegistry, method: str, path: str, deleted: str
) -> None:
    """It is answered as it was asked; whoever asks afterwards is told that it is gone."""
    gate = hold_first(registry, path)
    before = asyncio.create_task(proxy.get(path) if method == "GET" else proxy.head(path))
    await gate.reached.wait()
    async with proxy.session.delete(proxy.url + deleted) as answer:
        assert answer.status == 202
    gate.open()
    assert (await before).status == 200
    for again in (deleted, path):
        assert (await proxy.head(again)).status == 404
        assert (await proxy.get(again)).status == 404
