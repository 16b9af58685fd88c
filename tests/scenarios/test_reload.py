"""A changed configuration while the proxy runs: what counts at once, what runs on, what stays."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from proxy.settings import Settings
from proxy.sharing import StartError
from tests.fakes.acts import Act
from tests.fakes.content import make_image, random_bytes
from tests.fakes.proxy import make_settings, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry, FakeStorage
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, came_in, put, until

BLOB = random_bytes(2 * MIB, 31)
OLD, NEW = make_image(2, seed=32), make_image(2, seed=33)
TAG = "/v2/team/app/manifests/v1"


@pytest.fixture
def logs() -> Iterator[None]:
    """The log is as it was afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("pullthrough")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


# What counts at once.


async def test_a_changed_tag_ttl(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """It counts for the next request, for tags that are cached already as well; the pools are kept."""
    registry.push("team/app", "v1", OLD)
    async with running(settings(manifests={"tag_ttl": "1h"})) as proxy:
        assert (await proxy.get(TAG)).body == OLD.manifest
        registry.push("team/app", "v1", NEW)
        proxy.clock.advance(30)
        assert (await proxy.get(TAG)).body == OLD.manifest
        assert await proxy.application.reload(settings(manifests={"tag_ttl": "10s"})) == []
        assert registry.connections == 1
        assert (await proxy.get(TAG)).body == NEW.manifest
        assert registry.connections == 1


async def test_a_changed_mode(settings: Callable[..., Settings], registry: FakeRegistry, storage: FakeStorage) -> None:
    """The next blob is a redirect instead of a body."""
    registry.storage = storage
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        assert (await proxy.get(path)).status == 200
        await proxy.application.reload(settings(clusters=[{"name": "default", "mode": "metadata-only"}]))
        assert (await proxy.get(path)).status == 307


async def test_a_changed_url_while_a_body_runs(
    settings: Callable[..., Settings], registry: FakeRegistry, other: FakeRegistry
) -> None:
    """The next request goes to the new upstream, of the same blob too: what the old one sends is not hashed yet.

    The body goes on to its end from the old one, which then is left.
    """
    path = put(registry, BLOB)
    put(other, BLOB)
    other.push("team/app", "v1", NEW)
    registry.pause = gate = Gate(MIB)
    async with running(settings()) as proxy:
        body = await Reader.open(proxy, path)
        await gate.reached.wait()
        await proxy.application.reload(settings({"url": other.url}))
        assert (await proxy.get(TAG)).body == NEW.manifest
        second = await Reader.open(proxy, path)
        gate.open()
        assert await body.rest() == BLOB
        assert await second.rest() == BLOB
        await until(lambda: registry.connections == 0)
        assert (other.sent, registry.sent) == (len(NEW.manifest) + len(BLOB), len(BLOB))
        body.leave()
        second.leave()


async def test_a_fill_is_resumed(
    settings: Callable[..., Settings], registry: FakeRegistry, other: FakeRegistry, tmp_path: Path, quick: None
) -> None:
    """A fill whose registry was removed and breaks off is gone on with at the upstream that it began with."""
    path = put(registry, BLOB)
    gate = Gate(MIB)
    registry.script = [Act(gate=gate, fin_at=MIB + 100)]
    without = make_settings(tmp_path / "cache", {"other.test": {"url": other.url}})
    async with running(settings()) as proxy:
        body = await Reader.open(proxy, path)
        await gate.reached.wait()
        await came_in(proxy, MIB)
        assert await proxy.application.reload(without) == []
        assert (await proxy.get(path)).code == "BLOB_UNKNOWN"
        gate.open()
        assert await body.rest() == BLOB
        body.leave()
        assert await proxy.metric("pullthrough_fill_resumes_total") == 1
        await proxy.stored(1)
        await until(lambda: registry.connections == 0)


async def test_registries_come_and_go(tmp_path: Path, registry: FakeRegistry, other: FakeRegistry) -> None:
    """An added one is served, a removed one is 404 NAME_UNKNOWN and left; one that comes again is served again."""
    registry.push("team/app", "v1", OLD)
    other.push("team/app", "v1", NEW)
    one = {"registry.test": {"url": registry.url}}
    both = one | {"other.test": {"url": other.url}}
    async with running(make_settings(tmp_path, one)) as proxy:
        for _ in range(2):
            assert (await proxy.get(f"{TAG}?ns=other.test")).code == "NAME_UNKNOWN"
            await proxy.application.reload(make_settings(tmp_path, both))
            assert (await proxy.get(f"{TAG}?ns=other.test")).body == NEW.manifest
            assert (await proxy.get("/v2/team/app/tags/list?ns=other.test")).status == 200
            await proxy.application.reload(make_settings(tmp_path, one))
            await until(lambda: other.connections == 0)
        assert (await proxy.get(TAG)).body == OLD.manifest
        answer = await proxy.get(f"{TAG}?ns=other.test")
        assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


async def test_a_request_that_was_routed_before(tmp_path: Path, registry: FakeRegistry, other: FakeRegistry) -> None:
    """Its registry is removed before it asks for more there: it is served, and no connection is left of it."""
    other.push("team/app", "v1", NEW)
    both = {"registry.test": {"url": registry.url}, "other.test": {"url": other.url}}
    async with running(make_settings(tmp_path, both)) as proxy:
        other.head_blobs = False
        path = put(other, BLOB) + "?ns=other.test"
        await proxy.get(path)
        await proxy.stored(1)
        proxy.clock.advance(3600)
        arrived, gone_on = asyncio.Event(), asyncio.Event()

        async def removed(offset: int) -> None:
            arrived.set()
            await gone_on.wait()

        # HEAD is refused, and the byte that is asked for instead waits.
        other.pause = removed
        asked = asyncio.create_task(proxy.get(path))
        await arrived.wait()
        await proxy.application.reload(make_settings(tmp_path, {"registry.test": {"url": registry.url}}))
        gone_on.set()
        assert (await asked).body == BLOB
        await until(lambda: other.connections == 0)


async def test_a_held_back_registry_is_asked_at_its_new_address(
    settings: Callable[..., Settings], registry: FakeRegistry
) -> None:
    """That the old address failed a moment ago does not count against the new one."""
    registry.push("team/app", "v1", OLD)
    async with running(settings({"url": "http://127.0.0.1:1"})) as proxy:
        assert (await proxy.get(TAG)).status == 502
        await proxy.application.reload(settings())
        assert (await proxy.get(TAG)).body == OLD.manifest


async def test_limits_of_the_cache(settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path) -> None:
    """A smaller max_size evicts at once; what is to be kept stays from now on."""
    cache = {"directory": str(tmp_path / "cache"), "min_free": 0}
    paths = [put(registry, random_bytes(MIB, seed), f"team/{seed}") for seed in (41, 42, 43)]
    async with running(settings()) as proxy:
        for path in paths:
            await proxy.get(path)
            proxy.clock.advance(1)
        await proxy.stored(3)
        keep = ["registry.test/team/41"]
        await proxy.application.reload(settings(cache=cache | {"max_size": "1MiB", "keep": keep}))
        assert await proxy.metric("pullthrough_cache_bytes") == MIB
        assert (await proxy.get(paths[0])).state == "pullthrough; hit"


@pytest.mark.usefixtures("logs")
async def test_the_log(settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]) -> None:
    """Level, form and access lines change."""
    async with running(settings()) as proxy:
        await proxy.application.reload(settings(log={"format": "json", "level": "debug"}))
        await proxy.get("/v2/")
        logging.getLogger("pullthrough").debug("seen")
        await proxy.application.reload(settings(log={"format": "json", "access": False}))
        await proxy.get("/v2/")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("{") for line in lines)


# What does not.


async def test_what_needs_a_restart_is_said_each_time(settings: Callable[..., Settings], tmp_path: Path) -> None:
    """It stays as it runs, until the file says again what runs; the rest of the file counts."""
    changed = settings(
        listen=[{"address": "127.0.0.1:9"}],
        cache={"directory": str(tmp_path / "other"), "max_size": "1GiB", "min_free": 0},
        clusters=[{"name": "edge", "match": {"hosts": ["edge.test"]}}],
    )
    async with running(settings()) as proxy:
        for _ in range(2):
            lines = await proxy.application.reload(changed)
            assert [line.split()[0] for line in lines] == ["listen", "cache.directory"]
        assert (await proxy.get("/v2/")).status == 403
        assert await proxy.application.reload(settings()) == []
        assert (await proxy.get("/v2/")).status == 200
    assert not (tmp_path / "other").exists()


async def test_a_ca_that_cannot_be_read(
    settings: Callable[..., Settings], registry: FakeRegistry, other: FakeRegistry, tmp_path: Path
) -> None:
    """Nothing of the new configuration counts, whatever else it changes, and nothing is left open."""
    registry.push("team/app", "v1", OLD)
    async with running(settings()) as proxy:
        assert (await proxy.get(TAG)).body == OLD.manifest
        upstreams = {
            "registry.test": {"url": other.url},
            "other.test": {"url": other.url, "ca": str(tmp_path / "none.crt")},
        }
        broken = make_settings(tmp_path / "cache", upstreams, clusters=[{"name": "x", "mode": "metadata-only"}])
        with pytest.raises(StartError, match=r"other\.test"):
            await proxy.application.reload(broken)
        assert (await proxy.get("/v2/team/app/tags/list")).status == 200
        assert (await proxy.get(f"{TAG}?ns=other.test")).code == "NAME_UNKNOWN"
        assert (other.seen, registry.connections) == ([], 1)


# A process of its own.


class Process:
    """`python -m proxy serve`; its log is read line by line."""

    def __init__(self, running: asyncio.subprocess.Process) -> None:
        self._running = running

    def hang_up(self) -> None:
        self._running.send_signal(signal.SIGHUP)

    async def says(self, text: str) -> list[str]:
        """Wait for a line with `text`; gives the lines up to it."""
        assert self._running.stderr is not None
        lines: list[str] = []
        async with asyncio.timeout(20):
            while not lines or text not in lines[-1]:
                line = await self._running.stderr.readline()
                assert line, lines
                lines.append(line.decode())
        return lines

    async def end(self) -> int:
        self._running.terminate()
        await self._running.communicate()
        return await self._running.wait()


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[Process]:
    """Killed at the end if it still runs."""
    command = (sys.executable, "-m", "proxy", "serve", *arguments)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PULLTHROUGH_")}
    started = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment)
    try:
        yield Process(started)
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def test_sighup(
    registry: FakeRegistry, other: FakeRegistry, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """The file is read again, `--listen` stays over it; of a broken one every mistake is a line, and it serves on."""
    registry.push("team/app", "v1", OLD)
    other.push("team/app", "v1", NEW)
    port, config = unused_tcp_port_factory(), tmp_path / "proxy.yaml"
    document: dict[str, Any] = {
        "admin": {"address": f"127.0.0.1:{unused_tcp_port_factory()}"},
        "cache": {"directory": str(tmp_path / "cache"), "min_free": 0},
        "manifests": {"tag_ttl": 0},
        "upstreams": {"registry.test": {"url": registry.url, "default": True}},
    }

    def write(**more: Any) -> None:
        config.write_text(yaml.safe_dump(document | more))

    async def manifest() -> bytes:
        async with aiohttp.request("GET", f"http://127.0.0.1:{port}{TAG}") as response:
            return await response.read()

    write()
    async with process("--config", str(config), "--listen", f"127.0.0.1:{port}") as proxy:
        await proxy.says("serving on")
        assert await manifest() == OLD.manifest
        write(workers=0, log={"level": "loud"})
        proxy.hang_up()
        for mistake in ("workers: ", "log.level: "):
            line = (await proxy.says(mistake))[-1]
            assert " error " in line
            assert "not reloaded, the running configuration stays" in line
        assert await manifest() == OLD.manifest
        moved = {"registry.test": {"url": other.url, "default": True}}
        write(upstreams=moved, cache={"directory": str(tmp_path / "elsewhere")})
        proxy.hang_up()
        lines = await proxy.says("reloaded")
        assert any("cache.directory was changed" in line for line in lines)
        assert not any("listen was changed" in line for line in lines)
        assert await manifest() == NEW.manifest
        write(upstreams=moved)
        proxy.hang_up()
        assert (await proxy.says("reloaded"))[-1].endswith("reloaded\n")
        assert await proxy.end() == 0
