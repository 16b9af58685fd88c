"""Other replicas of the region, as this one asks them: for blobs that they have or are filling, and to drop some."""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import IntEnum
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from proxy import __version__
from proxy.oci.digest import Digest
from proxy.policy.replica import signature
from proxy.telemetry.events import SharedBytes, Tell
from proxy.upstream.errors import NETWORK_ERRORS, UpstreamFailure, failure_of

# Seconds. Replicas are near, and may be busy; one that is silent for so long is asked again, or is not there any more.
_CONNECT, _SILENCE = 2.0, 4.0
_ANSWER = 10.0
_READ_BUFFER = 512 * 1024
_CONNECTIONS = 64


class Dropped(IntEnum):
    """What became of a blob that a replica was to drop, as it answers: it has gone, was not there, or is being read."""

    GONE = 204
    NONE = 404
    READ = 409


class ReplicaUnreachable(UpstreamFailure):
    """There is no such replica, or it does not know us, or has nothing of this blob."""


class ReplicaReply:
    """A replica's 200 or 206, as `download.RangeReply`."""

    address: str | None = None

    def __init__(self, name: str, response: aiohttp.ClientResponse, tell: Tell) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.content_length = response.content_length
        self._name = name
        self._response = response
        self._tell = tell

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises UpstreamFailure where it breaks off."""
        try:
            async for piece in self._response.content.iter_any():
                self._tell(SharedBytes("replica", len(piece)))
                yield piece
        except NETWORK_ERRORS as error:
            raise failure_of(error, self._name) from error


class Replicas:
    """All of them, by their addresses. `key` is the region's for this. `start` in the running loop, `close` there."""

    def __init__(self, key: bytes, tell: Tell, clock: Callable[[], float]) -> None:
        self._key = key
        self._tell = tell
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Get ready; no connection is opened."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit_per_host=_CONNECTIONS, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"pullthrough/{__version__}", "Accept-Encoding": "identity"},
            read_bufsize=_READ_BUFFER,
        )

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def blob(
        self, address: str, digest: Digest, source: bytes | None, span: tuple[int, int] | None
    ) -> AsyncIterator[ReplicaReply]:
        """The bytes of `span` (all without one) of a blob that the replica has, or fills from `source`, where given.

        Raises ReplicaUnreachable, or UpstreamFailure where it does not answer in time.
        """
        query = f"?source={source.hex()}" if source is not None else ""
        wanted = f"bytes={span[0]}-{span[1] - 1}" if span is not None else ""
        async with self._asked("GET", address, f"/v1/blobs/{digest}{query}", wanted) as response:
            if response.status not in {200, 206}:
                raise ReplicaUnreachable("connect", f"the replica at {_name(address)} answered {response.status}")
            yield ReplicaReply(f"the replica at {_name(address)}", response, self._tell)

    async def remove(self, address: str, digest: Digest) -> Dropped:
        """Have the replica drop the blob. Raises UpstreamFailure."""
        async with self._asked("DELETE", address, f"/v1/blobs/{digest}", "", _ANSWER) as response:
            try:
                return Dropped(response.status)
            except ValueError:
                message = f"the replica at {_name(address)} answered {response.status}"
                raise ReplicaUnreachable("connect", message) from None

    @asynccontextmanager
    async def _asked(
        self, method: str, address: str, target: str, span: str, silence: float = _SILENCE
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None  # noqa: S101 - it was started
        headers = {"Authorization": signature(self._key, method, target, span, self._clock())}
        if span:
            headers["Range"] = span
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=silence)
        try:
            url = URL(f"{address}{target}", encoded=True)
            response = await self._session.request(method, url, headers=headers, allow_redirects=False, timeout=timeout)
        except NETWORK_ERRORS as error:
            failure = failure_of(error, f"the replica at {_name(address)}")
            if failure.reason == "timeout" and not isinstance(error, aiohttp.ConnectionTimeoutError):
                raise failure from error
            raise ReplicaUnreachable("connect", str(failure)) from error
        try:
            yield response
        finally:
            response.release()


def _name(address: str) -> str:
    """For operators; what is no address by its form is not repeated."""
    try:
        return urlsplit(address).netloc[:253] or "nowhere"
    except ValueError:
        return hashlib.sha256(address.encode(errors="replace")).hexdigest()[:8]
