"""`pullthrough tags` and what changes them, as commands: what people read."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from proxy.cli import main
from tests.fakes.clock import ManualClock
from tests.fakes.content import make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import FakeServer
from tests.scenarios.conftest import MakeSettings
from tests.scenarios.operators import tags

OLD, NEW = make_image(10, seed=1), make_image(10, seed=2)
TAG = "/v2/team/app/manifests/v1"
REFERENCE = "registry.test/team/app:v1"
PROD = [{"name": "prod", "match": {"hosts": ["prod.test"]}, "manifests": {"tag_ttl": "1d"}}, {"name": "default"}]
# The commands say how long ago something was by the clock on the wall.
NOW = float(int(time.time()))


@pytest.fixture
async def proxy(settings: MakeSettings) -> AsyncIterator[Proxy]:
    """A proxy of two clusters; the tags of one live for a day."""
    async with running(settings(clusters=PROD, manifests={"proof_ttl": "30d"}), ManualClock(NOW)) as started:
        yield started


async def command(proxy: Proxy, *words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, main, [*words, "--admin", proxy.admin_url])


async def drifted(proxy: Proxy, registry: FakeRegistry) -> dict[str, object]:
    """A tag that a node of `prod` got, and that has moved; what the API says of it."""
    registry.push("team/app", "v1", OLD)
    assert (await proxy.get(TAG, Host="prod.test")).status == 200
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(901)
    await tags(proxy)
    operating = proxy.application._operating
    assert operating is not None
    assert await operating._drift.check() == 1
    (found,) = await tags(proxy, drifted="true")
    return found


async def test_which_nodes_since_when_until_when_and_what_to_do(proxy: Proxy, registry: FakeRegistry) -> None:
    """One command says all of it; until when also where a cluster that was served it has times of its own."""
    found = await drifted(proxy, registry)
    said = await command(proxy, "tags", "--drifted")
    assert said.exit_code == 0
    until = found["expires_in"]
    assert isinstance(until, dict)
    for words in (
        f"{REFERENCE}  DRIFTED",
        f"  serves    {OLD.digest} (",
        f"  since     {found['fetched']}, last checked ",
        f"  until     the next request; prod: {until['prod']}",
        f"  upstream  {NEW.digest}",
        f"    127.0.0.1 (prod) 1 pulls, last {found['fetched']}",
        f"pullthrough refresh {REFERENCE}",
        f"pullthrough hold {REFERENCE}@{OLD.digest}",
    ):
        assert words in said.output
    # And it is what clients of that cluster meet.
    answer = await proxy.head(TAG, Host="prod.test")
    assert (answer.state, answer.headers["Docker-Content-Digest"]) == ("pullthrough; hit; ttl=85499", OLD.digest)


async def test_the_way_out(proxy: Proxy, registry: FakeRegistry) -> None:
    """Each of the changes says what it did, and ends with 1 where there was nothing to do."""
    await drifted(proxy, registry)
    said = await command(proxy, "refresh", REFERENCE)
    assert (said.exit_code, said.output) == (0, f"{REFERENCE} is {NEW.digest} now, and was {OLD.digest}\n")
    assert (await command(proxy, "tags", "--drifted")).stderr == "no such tags\n"
    said = await command(proxy, "hold", f"{REFERENCE}@{OLD.digest}")
    assert (said.exit_code, said.output) == (0, f"{REFERENCE} is held at {OLD.digest}\n")
    assert "  until     released\n" in (await command(proxy, "tags", REFERENCE)).output
    assert [
        one["reference"] for one in json.loads((await command(proxy, "tags", "--held", "--json")).stdout)["tags"]
    ] == [REFERENCE]
    assert (await command(proxy, "release", "*/app:*")).exit_code == 0
    assert (await command(proxy, "release", REFERENCE)).exit_code == 1
    assert (await command(proxy, "purge", REFERENCE)).output == f"{REFERENCE} is forgotten\n"
    assert (await command(proxy, "purge", "*/app:*")).exit_code == 1


async def test_what_is_no_admin_listener() -> None:
    """JSON of something else is one clear line, and no traceback."""

    class Other(FakeServer):
        async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
            return web.json_response({"hello": "world"})

    server = Other()
    await server.start()
    for words in (["tags"], ["refresh", "nginx"], ["purge", "nginx"], ["hold", "nginx"], ["release", "nginx"]):
        said = await asyncio.to_thread(CliRunner().invoke, main, [*words, "--admin", server.url])
        assert (said.exit_code, type(said.exception), said.stdout) == (1, SystemExit, "")
        assert said.stderr.endswith("answered without tags: is that the admin listener?\n")
    await server.stop()
