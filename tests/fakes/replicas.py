"""Several proxies of one region in the test's process: real listeners for each other, leases and objects in memory."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from proxy.cache.region import Region
from proxy.policy.replica import region_key, signature
from proxy.server.gate import Gate
from proxy.server.listener import Handler, Listener
from proxy.settings import Address, Settings
from proxy.sharing import Shared
from proxy.storage.base import BlobStore
from proxy.storage.disk import DiskBlobs
from proxy.storage.metadata import DiskcacheMetadata
from proxy.storage.tiers import TieredBlobs
from proxy.telemetry.events import Tell
from proxy.upstream.replicas import Replicas
from tests.fakes.clock import ManualClock
from tests.fakes.proxy import Answer, Proxy, make_settings, running
from tests.fakes.region import Common, FakeObjects, Member

KEY = region_key(b"a secret of the region, for tests", "replicas")


class FakeRegion:
    """What its replicas share. `objects`: an object store, for those that are started after it was set."""

    def __init__(self, directory: Path, upstreams: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.common = Common()
        self.objects: FakeObjects | None = None
        self._directory = directory
        self._upstreams = upstreams
        # Bound before their listeners start: others are told of the address before that.
        self._sockets: dict[str, socket.socket] = {}
        monkeypatch.setattr("proxy.app.Sharing", self._sharing)
        monkeypatch.setattr("proxy.app.Listener", self._listener)

    @asynccontextmanager
    async def replica(self, name: str) -> AsyncIterator["Replica"]:
        """A replica that runs inside of the context."""
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{bound.getsockname()[1]}"
        self._sockets[listen] = bound
        settings = make_settings(self._directory / name, self._upstreams, shared={"listen": listen})
        async with running(settings) as proxy:
            yield Replica(proxy, settings)

    def _sharing(
        self, settings: Settings, tell: Tell, clock: Callable[[], float], stack: AsyncExitStack, first: bool
    ) -> "_Sharing":
        return _Sharing(self, address_of(settings), tell, clock, stack)

    def _listener(self, address: Address, handler: Handler, gate: Gate, *more: Any) -> Listener:
        bound = self._sockets.pop(str(address), None)
        return Listener(address, handler, gate, *([(bound,)] if bound is not None else more))


class _Sharing:
    """As `proxy.sharing.Sharing`: closed by the same stack, in the same order."""

    def __init__(
        self, region: FakeRegion, address: str, tell: Tell, clock: Callable[[], float], stack: AsyncExitStack
    ) -> None:
        self._region = region
        self._address = address
        self._tell = tell
        self._clock = clock
        self._stack = stack

    async def open(self, local: DiskcacheMetadata, disk: DiskBlobs, key: bytes) -> Shared:
        common, objects = self._region.common, self._region.objects
        shown: BlobStore = disk
        if objects is not None:
            shown = tiers = TieredBlobs(disk, objects, self._tell)
            self._stack.push_async_callback(tiers.close)
            await tiers.start()
        member = Member(common, self._address)
        self._stack.callback(self._gone)
        replicas = Replicas(KEY, self._tell, self._clock)
        self._stack.push_async_callback(replicas.close)
        await replicas.start()
        return Shared(local, shown, Region(self._tell, member, member, replicas, objects), key, member, KEY)

    def _gone(self) -> None:
        with contextlib.suppress(ValueError):
            self._region.common.there.remove(self._address)


class Replica(Proxy):
    """A proxy with an address for other replicas."""

    def __init__(self, proxy: Proxy, settings: Settings) -> None:
        super().__init__(proxy.application, proxy.clock, proxy.session)
        self.address = address_of(settings)

    def source(self, registry: str = "registry.test") -> bytes:
        """What its fills from there are of."""
        return self.application._upstreams[registry].source

    async def asked(self, method: str, target: str, span: str = "", **given: Any) -> Answer:
        """What it answers another replica; `given`: another key, clock, or an Authorization."""
        clock: ManualClock = given.get("clock", self.clock)
        signed = signature(given.get("key", KEY), method, given.get("signed", target), span, clock())
        headers = {"Authorization": given.get("authorization", signed)} | ({"Range": span} if span else {})
        headers = {name: value for name, value in headers.items() if value}
        async with self.session.request(
            method, URL(self.address + target, encoded=True), headers=headers, allow_redirects=False
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def leave(self) -> None:
        """It stops, in the middle of whatever it does."""
        await self.application.close()


def address_of(settings: Settings) -> str:
    """Where others reach it."""
    return f"http://{settings.shared.listen}"
