"""What every scenario stands on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings
from proxy.telemetry.events import RequestFinished
from tests.fakes.authority import Authority, Pair
from tests.fakes.nodes import Signer
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.pushable import PushableRegistry
from tests.fakes.registry import FakeRegistry
from tests.scenarios.repeats import Counts, count_requests

MakeSettings = Callable[..., Settings]


@pytest.fixture(autouse=True)
async def no_task_left_behind() -> AsyncIterator[None]:
    """Every task has an owner that ends it."""
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if not task.done() and task is not asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


@pytest.fixture
async def other() -> AsyncIterator[FakeRegistry]:
    """A second registry."""
    fake = FakeRegistry()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def pushable() -> AsyncIterator[PushableRegistry]:
    """A registry that takes pushes; a module whose `registry` it is says so."""
    fake = PushableRegistry()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def settings(tmp_path: Path, registry: FakeRegistry) -> MakeSettings:
    """Makes settings with the fake registry as `registry.test`, the default; keywords are further settings."""

    def make(upstream: dict[str, Any] | None = None, **more: Any) -> Settings:
        described = {"url": registry.url, "connect_timeout": "1s", "read_timeout": "2s"} | (upstream or {})
        return make_settings(tmp_path / "cache", {"registry.test": described}, **more)

    return make


@pytest.fixture
async def proxy(settings: MakeSettings) -> AsyncIterator[Proxy]:
    """A proxy in front of the fake registry."""
    async with running(settings()) as started:
        yield started


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """How far the requests came of proxies that start after it."""
    return count_requests(monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumes follow each other without the pauses that a real upstream is given."""
    monkeypatch.setattr("proxy.cache.download._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("proxy.cache.download._LONGEST_PAUSE", 1.0)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority for all tests that want one."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def server_pair(authority: Authority) -> Pair:
    """The proxy's own certificate."""
    return authority.server()


@pytest.fixture(scope="session")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """The authority by which listeners intercept."""
    return Signer.made_in(tmp_path_factory.mktemp("nodes"))


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[RequestFinished]:
    """What access lines are written of, by proxies in this process."""
    told: list[RequestFinished] = []
    monkeypatch.setattr("proxy.app.log_access", told.append)
    return told
