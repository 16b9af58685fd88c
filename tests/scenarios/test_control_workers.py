"""Operators and several workers: what one call has done is in force in all of them, and the end of one is told."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from aiohttp import web
from click.testing import CliRunner, Result

from proxy.cli import main
from tests.fakes.acts import Act, Record
from tests.fakes.content import Image, digest_of, make_image, random_bytes
from tests.fakes.fleet import Fleet, _sockets, eventually, fleet, is_stopped, write_config
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, put
from tests.scenarios.operators import call, done, hold_answer, names, tag, tags

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = "the-admin-token"
OLD, NEW = make_image(10, seed=1), make_image(10, seed=2)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def registry() -> AsyncIterator[FakeRegistry]:
    """The registry behind all proxies here."""
    fake = FakeRegistry()
    await fake.start()
    yield fake
    await fake.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, registry: FakeRegistry) -> AsyncIterator[Fleet]:
    """A proxy of two workers; each test has a repository of its own."""
    clusters = [{"name": "edge", "match": {"hosts": ["edge.test"]}}, {"name": "default"}]
    config = write_config(tmp_path_factory.mktemp("shared"), upstreams(registry), clusters=clusters)
    async with fleet(config) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def two(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Fleet]:
    """One of a test's own, whose workers it may end; its admin listener wants a token."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o600)
    admin = {"address": "127.0.0.2:0", "token_file": str(tmp_path / "token")}
    async with fleet(write_config(tmp_path, upstreams(registry), admin=admin)) as started:
        yield started


def upstreams(registry: FakeRegistry) -> dict[str, dict[str, Any]]:
    return {"registry.test": {"url": registry.url}}


@pytest.fixture
def upstream(registry: FakeRegistry) -> FakeRegistry:
    """The registry as if it had just started."""
    registry.script, registry.pause, registry.record, registry.fault = None, None, Record(), None
    registry.__dict__.pop("answer", None)
    registry.seen.clear()
    return registry


def path(name: str) -> str:
    return f"/v2/{name}/manifests/v1"


async def by_each(proxy: Fleet, name: str) -> list[bytes]:
    """The manifest that each worker answers with."""
    found = []
    for worker in proxy.workers():
        reader = await proxy.reader_at(worker, path(name))
        await reader.head()
        assert reader.status == 200
        found.append(await reader.rest())
        reader.leave()
    return found


async def answered(proxy: Fleet, name: str, image: Image) -> None:
    """Both workers answer with this one."""
    assert await by_each(proxy, name) == [image.manifest] * 2


# In force in both at once.


async def test_a_purge(shared: Fleet, upstream: FakeRegistry) -> None:
    """After it the first request at either worker asks, once for both, and nobody is given what was before."""
    for number, image in enumerate((OLD, NEW) * 3):
        upstream.push("purged/app", "v1", image)
        if number:
            await done(shared, "DELETE", "tags", reference="purged/app:v1")
        upstream.seen.clear()
        await answered(shared, "purged/app", image)
        assert [seen.method for seen in upstream.seen] == ["GET"]


async def test_a_404_that_each_worker_remembers(shared: Fleet, upstream: FakeRegistry) -> None:
    """A purge ends it in both."""
    for worker in shared.workers() * 2:
        reader = await shared.reader_at(worker, path("missing/app"))
        await reader.head()
        assert reader.status == 404
        reader.leave()
    assert upstream.count("GET", "missing/app") == 2
    upstream.push("missing/app", "v1", OLD)
    await done(shared, "DELETE", "tags", reference="missing/app:v1")
    await answered(shared, "missing/app", OLD)


async def test_what_one_worker_asked_before_a_purge(shared: Fleet, upstream: FakeRegistry) -> None:
    """Is written down by no worker after it, whichever of them the purge came to."""
    upstream.push("early/app", "v1", OLD)
    for worker in shared.workers():
        gate = hold_answer(upstream, path("early/app"))
        early = await shared.reader_at(worker, path("early/app"))
        await gate.reached.wait()
        upstream.push("early/app", "v1", NEW)
        await done(shared, "DELETE", "tags", reference="early/app:v1")
        gate.open()
        await early.head()
        assert await early.rest() == OLD.manifest
        await answered(shared, "early/app", NEW)
        upstream.push("early/app", "v1", OLD)
        await done(shared, "DELETE", "tags", reference="*/early/*")
        upstream.__dict__.pop("answer", None)


async def test_a_refresh(shared: Fleet, upstream: FakeRegistry) -> None:
    """Both serve what has moved, and neither asks for it again."""
    upstream.push("refreshed/app", "v1", OLD)
    await answered(shared, "refreshed/app", OLD)
    upstream.push("refreshed/app", "v1", NEW)
    await answered(shared, "refreshed/app", OLD)
    (found,) = (await done(shared, "POST", "tags/refresh", "refreshed/app:v1"))["tags"]
    assert (found["before"], found["after"], found["changed"]) == (OLD.digest, NEW.digest, True)
    upstream.seen.clear()
    await answered(shared, "refreshed/app", NEW)
    assert upstream.seen == []


async def test_a_hold_and_its_release(shared: Fleet, upstream: FakeRegistry) -> None:
    """Both serve the held digest from the answer on, and the upstream's from the release on."""
    upstream.push("held/app", "v1", OLD)
    await answered(shared, "held/app", OLD)
    upstream.push("held/app", "v1", NEW)
    await done(shared, "POST", "tags/refresh", "held/app:v1")
    await answered(shared, "held/app", NEW)
    await done(shared, "POST", "tags/hold", f"held/app:v1@{OLD.digest}")
    await answered(shared, "held/app", OLD)
    found = await tag(shared, "held/app:v1")
    assert (found["state"], found["drifted"], found["held"]["by"]) == ("held", True, "127.0.0.1")
    assert await shared.metric('pullthrough_tag_drift{registry="registry.test"}') >= 0
    await done(shared, "POST", "tags/release", "*/held/*")
    await answered(shared, "held/app", NEW)


async def test_a_blob_is_removed_for_both(shared: Fleet, upstream: FakeRegistry) -> None:
    """Whoever had it in its hands a moment ago: the next request fetches it."""
    blob = random_bytes(MIB, 77)
    place = put(upstream, blob)
    before = int(await shared.metric("pullthrough_cache_blobs"))
    for worker in shared.workers():
        reader = await shared.reader_at(worker, place)
        await reader.head()
        assert await reader.rest() == blob
    await shared.stored(before + 1)
    async with asyncio.timeout(20):
        while (await call(shared, "DELETE", f"blobs/{digest_of(blob)}"))[0] == 409:
            await asyncio.sleep(0.01)
    assert await shared.metric("pullthrough_cache_blobs") == before
    assert (await shared.get(place)).body == blob
    assert upstream.record.times_sent(digest_of(blob)) == [(0, MIB, 2)]


# One picture.


async def test_counts_of_both_are_one(shared: Fleet, upstream: FakeRegistry) -> None:
    """Stats add up what both served; a tag's history has the pulls of both; a fill that both follow is one."""
    upstream.push("counted/app", "v1", OLD)
    before = (await done(shared, "GET", "stats"))["clusters"][1]["requests"]
    for _ in range(3):
        await answered(shared, "counted/app", OLD)
    async with asyncio.timeout(20):
        while (await done(shared, "GET", "stats"))["clusters"][1]["requests"] < before + 6:
            await asyncio.sleep(0.01)
        # Each worker writes down what it served every few seconds.
        while (await tag(shared, "counted/app:v1"))["pulls"] < 6:
            await asyncio.sleep(0.05)
    found = await tag(shared, "counted/app:v1", nodes="true")
    assert (found["pulls"], found["clusters"]) == (6, {"default": 6})
    assert [(node["address"], node["pulls"]) for node in found["history"][0]["nodes"]] == [("127.0.0.1", 6)]
    stats = await done(shared, "GET", "stats")
    assert stats["clusters"][1]["requests"] == before + 6
    assert stats["workers"] == {"configured": 2, "serving": 2}

    blob = random_bytes(4 * MIB, 78)
    place, gate = put(upstream, blob), Gate(MIB)
    upstream.script = [Act(gate=gate)]
    readers = [await shared.reader_at(worker, place) for worker in shared.workers()]
    await gate.reached.wait()
    for reader in readers:
        await reader.head()
    (fill,) = (await done(shared, "GET", "stats"))["fills"]
    assert (fill["digest"], fill["readers"], fill["size"]) == (digest_of(blob), 2, 4 * MIB)
    gate.open()
    for reader in readers:
        assert await reader.rest() == blob


async def test_an_upstream_that_fails_one_worker(shared: Fleet, upstream: FakeRegistry) -> None:
    """Is shown as failing, whichever of them has met it."""
    upstream.fault = lambda _: web.Response(status=503)
    for worker in shared.workers():
        reader = await shared.reader_at(worker, path(f"failing{worker}/app"))
        await reader.head()
        assert reader.status == 502
        reader.leave()
        (shown,) = (await done(shared, "GET", "stats"))["upstreams"]
        assert shown["state"] == "failing"
        assert f"failing{worker}/app" in json.dumps(shown["failing"])
    upstream.fault = None


async def test_many_questions_at_once(shared: Fleet, upstream: FakeRegistry) -> None:
    """Each has its own answer, also beside one that waits for an upstream that hangs."""
    for number in range(10):
        upstream.push("busy/app", f"v{number}", OLD)
    gate = hold_answer(upstream, "/v2/busy/app/manifests/v9")
    slow = asyncio.create_task(done(shared, "POST", "tags/refresh", "busy/app:v9"))
    await gate.reached.wait()
    found = await asyncio.gather(
        *(done(shared, "POST", "tags/refresh", f"busy/app:v{number}") for number in range(9)),
        *(done(shared, "GET", "stats") for _ in range(5)),
    )
    assert [one["tags"][0]["reference"] for one in found[:9]] == [f"registry.test/busy/app:v{n}" for n in range(9)]
    assert not slow.done()
    gate.open()
    assert (await slow)["tags"][0]["after"] == OLD.digest


DEEP = [b"[" * depth + b"]" * depth for depth in (100, 500, 900, 980, 995, 100_000)]


async def test_bodies_that_mean_nothing(shared: Fleet) -> None:
    """However deep: an error as JSON, and the next question is answered as ever."""
    for deep in DEEP:
        for body in (deep, b'{"reference": ' + deep + b"}", b'{"reference": 7, "more": ' + deep + b"}"):
            status, found = await call(shared, "POST", "tags/refresh", body)
            assert (status in {400, 500}, list(found)) == (True, ["error"])
    assert names(await tags(shared, reference="nothing/*")) == []
    assert len(shared.workers()) == 2


# The end of one.


async def asking(proxy: Fleet, registry: FakeRegistry) -> int:
    """The worker that has a connection to the registry; there is one."""
    port = int(registry.url.rpartition(":")[2])
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[2].partition(":")[2], 16) == port and words[3] == "01":
            for worker in proxy.workers():
                if words[9] in _sockets(worker):
                    return worker
    raise AssertionError("nobody asks")


def authorized() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


async def test_a_worker_that_is_killed_while_it_answers(two: Fleet, upstream: FakeRegistry) -> None:
    """Who asked for a change is told that it may have been done; a question is answered by the other one."""
    upstream.push("killed/app", "v1", OLD)
    gate = hold_answer(upstream, path("killed/app"))
    refresh = {"reference": "killed/app:v1"}
    changing = asyncio.create_task(call(two, "POST", "tags/refresh", refresh, authorized()))
    await gate.reached.wait()
    worker = await asking(two, upstream)
    os.kill(worker, signal.SIGKILL)
    status, found = await changing
    assert status == 503
    assert found["error"] == "no worker answers (it ended meanwhile); it may or may not have been done"
    gate.open()
    await two.program.says("is replaced")
    async with asyncio.timeout(20):
        while (await call(two, "GET", "stats", None, authorized()))[1]["workers"]["serving"] < 2:
            await asyncio.sleep(0.01)
    (found,) = (await call(two, "POST", "tags/refresh", refresh, authorized()))[1]["tags"]
    assert found["error"] is None

    first = await asking(two, upstream)
    os.kill(first, signal.SIGSTOP)
    await eventually(lambda: is_stopped(first))
    questions = [asyncio.create_task(call(two, "GET", "tags", None, authorized())) for _ in range(5)]
    _, pending = await asyncio.wait(questions, timeout=0.2)
    assert len(pending) == 5
    os.kill(first, signal.SIGKILL)
    for status, found in await asyncio.gather(*questions):
        assert status == 200, found
        assert names(found["tags"]) == ["registry.test/killed/app:v1"]


async def test_no_worker_is_left(two: Fleet) -> None:
    """503 and one line, and readiness says so too; health and metrics go on."""
    nobody = (503, {"error": "no worker answers (no worker serves)"})
    async with asyncio.timeout(20):
        # Each is replaced, at first at once; those that live shortly ever later.
        while (await two.admin("/readyz"))[0] == 200 or await call(two, "GET", "tags", None, authorized()) != nobody:
            for worker in two.workers():
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        assert (await two.admin("/healthz"))[0] == (await two.admin("/metrics"))[0] == 200
    async with asyncio.timeout(20):
        while (await call(two, "GET", "tags", None, authorized()))[0] != 200:
            await asyncio.sleep(0.01)


# The token, and the commands.


async def test_the_token_is_wanted_on_loopback_too(two: Fleet) -> None:
    """By everything but health, readiness and metrics; what is wrong or missing reaches no worker."""
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        for method, path in (("GET", "tags"), ("GET", "stats"), ("POST", "tags/hold"), ("DELETE", "tags")):
            status, found = await call(two, method, path, {"reference": "*"}, headers)
            assert (status, TOKEN in str(found)) == (401, False)
    assert (await call(two, "GET", "stats", None, authorized()))[0] == 200
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await two.admin(path))[0] == 200


async def test_the_commands(two: Fleet, upstream: FakeRegistry, tmp_path: Path) -> None:
    """Against a running proxy, with its token: what they print, how they end, and no token in any log."""

    def run(*arguments: str, token: bool = True) -> Result:
        given = ["--token-file", str(tmp_path / "token")] if token else []
        return CliRunner().invoke(main, [*arguments, "--admin", two.admin_url, *given])

    async def said(*arguments: str, **how: bool) -> tuple[int, str, str]:
        result = await asyncio.to_thread(run, *arguments, **how)
        return result.exit_code, result.stdout, result.stderr

    reference = "registry.test/cli/app:v1"
    upstream.push("cli/app", "v1", OLD)
    assert await said("refresh", "cli/app:v1") == (0, f"{reference} is {OLD.digest} now, and was unknown\n", "")
    assert await said("refresh", "cli/app:v1") == (0, f"{reference} is {OLD.digest}, as before\n", "")
    await answered(two, "cli/app", OLD)
    upstream.push("cli/app", "v1", NEW)
    assert await said("hold", f"cli/app:v1@{NEW.digest}") == (0, f"{reference} is held at {NEW.digest}\n", "")
    code, out, _ = await said("tags", "--drifted", "--held")
    assert (code, out.splitlines()[0]) == (0, f"{reference}  DRIFTED")
    assert f"pullthrough release {reference}" in out
    code, out, _ = await said("tags")
    assert (code, out.splitlines()[1].split()[:3]) == (0, [reference, "held", NEW.digest[:19]])
    code, out, _ = await said("tags", "--json", "cli/app:v1")
    assert [one["reference"] for one in json.loads(out)["tags"]] == [reference]
    code, out, err = await said("refresh", "*/cli/*")
    assert (code, out, err) == (1, "", f"{reference} was not refreshed: it is held until it is released\n")
    assert await said("release", "*/cli/*") == (
        0, f"{reference} is not held any more; it was {NEW.digest} before\n", "",
    )  # fmt: skip
    assert await said("purge", "cli/app:v1") == (0, f"{reference} is forgotten\n", "")
    for command in ("refresh", "purge", "release"):
        code, out, err = await said(command, "nothing/*")
        assert (code, out, err.count("\n")) == (1, "", 1)
    code, out, err = await said("hold", "cli/app:none")
    assert (code, out) == (1, "")
    assert "say which digest to hold it at" in err
    code, out, err = await said("tags", token=False)
    assert (code, out, err) == (1, "", "error: this needs the admin token (Authorization: Bearer …)\n")
    audit = [line.partition("pullthrough.audit: ")[2] for line in two.program.lines if "pullthrough.audit" in line]
    assert audit == [
        f"refresh {reference} by 127.0.0.1",
        f"refresh {reference} by 127.0.0.1",
        f"hold {reference}@{NEW.digest} by 127.0.0.1",
        f"refresh {reference} by 127.0.0.1",
        f"release {reference} by 127.0.0.1",
        f"purge {reference} by 127.0.0.1",
        "refresh by 127.0.0.1: 0 tags in all",
        "purge by 127.0.0.1: 0 tags in all",
        "release by 127.0.0.1: 0 tags in all",
    ]
    assert TOKEN not in "\n".join(two.program.lines)


async def test_a_reload(two: Fleet, upstream: FakeRegistry, tmp_path: Path) -> None:
    """Another token, and a cluster that is gone, count as soon as the log says so, whoever answers."""
    config = tmp_path / "proxy.yaml"
    document = yaml.safe_load(config.read_text())
    document["clusters"] = [{"name": "prod"}]
    (tmp_path / "other").write_text("another")
    document["admin"]["token_file"] = str(tmp_path / "other")
    config.write_text(yaml.safe_dump(document))
    assert (await call(two, "GET", "tags", None, authorized(), cluster="default"))[0] == 200
    two.program.signal(signal.SIGHUP)
    await two.program.says(": reloaded")
    assert (await call(two, "GET", "tags", None, authorized()))[0] == 401
    headers = {"Authorization": "Bearer another"}
    for _ in range(4):
        assert (await call(two, "GET", "tags", None, headers, cluster="default"))[0] == 400
        assert (await call(two, "GET", "tags", None, headers, cluster="prod"))[0] == 200
    stats = (await call(two, "GET", "stats", None, headers))[1]
    assert [one["name"] for one in stats["clusters"]] == ["prod"]
