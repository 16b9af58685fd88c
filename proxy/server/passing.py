"""What goes past the cache: blobs of metadata-only clusters, and cache trouble."""

from dataclasses import replace

from aiohttp import web

from proxy.cache.ask import Ask
from proxy.cache.origin import Content
from proxy.oci.errors import OCIError
from proxy.oci.ranges import RangeUnsatisfiable, parse_content_range, parse_range
from proxy.oci.route import BlobRoute
from proxy.policy.freshness import CacheState, Verdict
from proxy.server.body import cut, send_head, send_reply
from proxy.server.exchange import Exchange
from proxy.server.house import House
from proxy.server.respond import state_headers
from proxy.upstream.client import Reply
from proxy.upstream.errors import UpstreamError

# What of an upstream's head means the same to our client.
_PASSED_ON = (
    "Content-Type", "Content-Length", "Content-Range", "Content-Encoding", "Accept-Ranges", "Docker-Content-Digest",
    "ETag", "OCI-Filters-Applied", "OCI-Subject",
)  # fmt: skip


async def redirect_blob(exchange: Exchange, house: House, ask: Ask, route: BlobRoute) -> web.StreamResponse:
    """metadata-only: 307 to where the upstream redirects, or its bytes as a stream that is kept nowhere."""
    exchange.passing, exchange.detail = True, "metadata-only"
    range_header = exchange.request.headers.get("Range")
    async with house.blobs.past(ask, route.digest, range_header, follow=False) as reply:
        return await _pass_on(exchange, reply, "metadata-only", {"Docker-Content-Digest": str(route.digest)})


def to_object_store(exchange: Exchange, route: BlobRoute, address: str, verdict: Verdict) -> web.Response:
    """307 to the object store, where the client has the bytes by itself."""
    headers = state_headers(exchange, replace(verdict, detail="object-store"))
    # A signed address is a credential for its blob: no cache on the way may keep it.
    headers |= {"Docker-Content-Digest": str(route.digest), "Location": address, "Cache-Control": "no-store"}
    return web.Response(status=307, headers=headers)


async def stream_blob(
    exchange: Exchange, house: House, ask: Ask, route: BlobRoute, range_header: str | None
) -> web.StreamResponse:
    """Cache trouble: the upstream's bytes as a stream.

    Where the upstream ignores the range but says how long the blob is, the range is cut out here: containerd does not
    look whether later chunks are answered with 206 as the first one was.
    """
    exchange.passing, exchange.detail = True, "cache-trouble"
    async with house.blobs.past(ask, route.digest, range_header, follow=True) as reply:
        exchange.asked = True
        headers = {"Docker-Content-Digest": str(route.digest)}
        size = reply.content_length
        span = satisfied(range_header, size) if reply.status == 200 and size is not None else None
        if span is None:
            return await _pass_on(exchange, reply, "cache-trouble", headers)
        start, stop = span
        headers |= state_headers(exchange, Verdict(CacheState.PASS, detail="cache-trouble"))
        headers |= {"Content-Length": str(stop - start), "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        response = web.StreamResponse(status=206, headers=headers)
        await send_head(exchange, response)
        await send_reply(exchange, response, reply, skip=start, most=stop - start)
        await response.write_eof()
        return response


def satisfied(range_header: str | None, size: int) -> tuple[int, int] | None:
    """See `parse_range`. Raises OCIError RANGE_INVALID, with the size."""
    try:
        return parse_range(range_header, size)
    except RangeUnsatisfiable:
        headers = {"Content-Range": f"bytes */{size}"}
        raise OCIError("RANGE_INVALID", "the range starts past the end", headers=headers) from None


def _is_whole(reply: Reply, stop: int) -> bool:
    """Is it all of a blob that goes on to `stop` at least?"""
    return reply.status == 200 and reply.content_length is not None and reply.content_length >= stop


async def send_rest(
    exchange: Exchange,
    house: House,
    ask: Ask,
    route: BlobRoute,
    response: web.StreamResponse,
    start: int,
    stop: int,
) -> None:
    """Cache trouble in the middle of a body: the bytes from `start` to `stop` come from the upstream.

    Raises ConnectionError where they do not come.
    """
    exchange.detail = "cache-trouble"
    try:
        async with house.blobs.past(ask, route.digest, f"bytes={start}-{stop - 1}", follow=True) as reply:
            found = parse_content_range(reply.headers.get("Content-Range"))
            ranged = reply.status == 206 and found is not None and found[:2] == (start, stop)
            length = reply.content_length
            if length is None or (ranged and length != stop - start) or not (ranged or _is_whole(reply, stop)):
                raise cut(exchange, "the upstream has no such range")
            await send_reply(exchange, response, reply, skip=0 if ranged else start, most=stop - start)
    except UpstreamError as error:
        raise cut(exchange, str(error)) from error


def manifest_headers(content: Content) -> dict[str, str]:
    """What every answer with a manifest, or its head, carries."""
    return {
        "Content-Type": content.media_type,
        "Content-Length": str(content.size),
        "Docker-Content-Digest": str(content.digest),
        "ETag": f'"{content.digest}"',
    }


async def _pass_on(exchange: Exchange, reply: Reply, detail: str, headers: dict[str, str]) -> web.StreamResponse:
    headers = state_headers(exchange, Verdict(CacheState.PASS, detail=detail)) | headers
    if reply.location is not None:
        # A signed address is a credential for its blob: no cache on the way may keep it.
        headers |= {"Location": reply.location, "Cache-Control": "no-store"}
        return web.Response(status=307, headers=headers)
    passed = {name: value for name in _PASSED_ON if (value := reply.headers.get(name)) is not None}
    response = web.StreamResponse(status=reply.status, headers=passed | headers)
    await send_head(exchange, response)
    if exchange.request.method != "HEAD":
        await send_reply(exchange, response, reply)
    await response.write_eof()
    return response
