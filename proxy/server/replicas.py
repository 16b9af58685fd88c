"""What other replicas of the region ask of this one: the bytes of blobs that it has or is filling, and to drop some.

`GET /v1/blobs/<digest>` (with a Range; with `?source=<hex>` what is being filled from there, too) and
`DELETE /v1/blobs/<digest>`, each signed (`policy.replica`).
Nothing is said of rights here: the replica that asks knows whom it gives the bytes to. No fill begins for it.
"""

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from proxy.cache.blobs import Blobs
from proxy.cache.bodies import BlobSource
from proxy.cache.download import Uncacheable
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.ranges import RangeUnsatisfiable, parse_range
from proxy.policy.cluster import Client, client_address
from proxy.policy.replica import is_signed
from proxy.server.body import cut, send_head, send_source
from proxy.server.exchange import Exchange
from proxy.server.windows import Windows
from proxy.settings import Address, LimitSettings
from proxy.storage.base import StorageError
from proxy.upstream.errors import UpstreamError

_log = logging.getLogger("pullthrough.server")

_BLOBS = "/v1/blobs/"
_HEAD_DEADLINE = 25.0


class ReplicaListener:
    """Answers at `address`. `key` is the region's for this; `blobs` and `limits` as they are at present."""

    def __init__(
        self,
        address: Address,
        key: bytes,
        blobs: Callable[[], Blobs],
        limits: Callable[[], LimitSettings],
        clock: Callable[[], float],
    ) -> None:
        self._address = address
        self._key = key
        self._blobs = blobs
        self._limits = limits
        self._clock = clock
        self._windows = Windows()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        headers = request.headers
        given = headers.get("Authorization", ""), headers.get("Range", "")
        if not is_signed(self._key, request.method, request.raw_path, given[1], given[0], self._clock()):
            return web.Response(status=401, text="not signed by a replica of this region\n")
        path = request.rel_url.raw_path
        try:
            digest = Digest.parse(path.removeprefix(_BLOBS)) if path.startswith(_BLOBS) else None
            source = bytes.fromhex(request.rel_url.query.get("source", "")) or None
        except (OCIError, ValueError):
            digest = None
        if digest is None:
            return web.Response(status=404, text="there is no such thing\n")
        if request.method == "GET":
            return await self._give(request, digest, source)
        if request.method == "DELETE":
            return await self._remove(digest)
        return web.Response(status=405, headers={"Allow": "GET, DELETE"})

    async def _remove(self, digest: Digest) -> web.Response:
        try:
            dropped = await self._blobs().drop(digest)
        except StorageError as error:
            _log.warning("%s", error)
            return web.Response(status=503, text="the blob cannot be removed\n")
        return web.Response(status=dropped)

    async def _give(self, request: web.BaseRequest, digest: Digest, source: bytes | None) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_HEAD_DEADLINE) as deadline:
                body = await self._blobs().for_replica(digest, source)
                if body is None:
                    return web.Response(status=404, text="it is not here\n")
                try:
                    return await self._send(request, body, deadline)
                finally:
                    await body.close()
        except (UpstreamError, Uncacheable, TimeoutError) as error:
            _log.debug("another replica is not given %s: %s", digest, error)
            return web.Response(status=404, text="it does not come\n")

    async def _send(self, request: web.BaseRequest, body: BlobSource, deadline: asyncio.Timeout) -> web.StreamResponse:
        client = Client(client_address(request.remote or "", "", ()), "", self._address)
        exchange = Exchange(
            request, client, asyncio.get_running_loop().time(), self._limits(), self._windows, deadline=deadline
        )
        try:
            span = parse_range(request.headers.get("Range"), body.size)
        except RangeUnsatisfiable:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{body.size}"})
        start, stop = span or (0, body.size)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(stop - start)}
        if span is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{body.size}"
        response = web.StreamResponse(status=206 if span is not None else 200, headers=headers)
        await send_head(exchange, response)
        if await send_source(exchange, response, body, start, stop) < stop:
            raise cut(exchange, "it does not come any more")
        await response.write_eof()
        return response
