"""Blobs as upstreams have them: how long they are, their ranges, and their bodies as they come."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

from proxy.cache.ask import Ask
from proxy.cache.place import Place, Request
from proxy.oci.digest import Digest
from proxy.oci.manifest import content_type_of
from proxy.oci.ranges import parse_content_range
from proxy.upstream.client import Call, Reply, Upstream
from proxy.upstream.errors import UpstreamFailure, UpstreamInvalid, UpstreamRefused, UpstreamRejected
from proxy.upstream.pools import Pool


class BlobOrigin:
    """Asks upstreams for blobs."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams

    async def size(self, ask: Ask, digest: Digest) -> int:
        """How long the upstream says the blob is, in bytes. Raises UpstreamError."""
        call = Call("blob", "HEAD", ask.repository, ask.principal, f"blobs/{digest}")
        try:
            async with self._upstreams[ask.repository.registry].request(call) as reply:
                if (size := reply.content_length) is not None:
                    return _checked_size(ask, reply, size)
        except (UpstreamRefused, UpstreamRejected, UpstreamInvalid):
            # ECR Public answers HEAD with 401, GHCR's signed addresses answer it with 403, where GET works.
            pass
        async with self._get(ask, digest, "bytes=0-0", pool="metadata") as reply:
            _, _, total = parse_content_range(reply.headers.get("Content-Range")) or (0, 0, None)
            if reply.status == 206 and total is not None:
                return _checked_size(ask, reply, total)
            if reply.status == 200 and reply.content_length is not None:
                return _checked_size(ask, reply, reply.content_length)
        raise UpstreamInvalid(f"{ask.repository.registry} does not say how long {digest} is")

    def pass_through(
        self, ask: Ask, digest: Digest, range_header: str | None, follow: bool
    ) -> AbstractAsyncContextManager[Reply]:
        """The upstream's own answer; with `follow` False a redirect elsewhere is given back. Raises UpstreamError."""
        return self._get(ask, digest, range_header, follow)

    def _get(
        self, ask: Ask, digest: Digest, range_header: str | None, follow: bool = True, pool: Pool = "passing"
    ) -> AbstractAsyncContextManager[Reply]:
        headers = {"Range": range_header} if range_header else {}
        path = f"blobs/{digest}"
        call = Call("blob", "GET", ask.repository, ask.principal, path, headers, follow=follow, pool=pool)
        return self._upstreams[ask.repository.registry].request(call)


def ranges_of(digest: Digest, upstream: Upstream) -> Request:
    """Requests for ranges of the blob, all of them to this `upstream`, whatever a reload does meanwhile."""

    def request(ask: Ask, span: tuple[int, int] | None, address: str | None) -> AbstractAsyncContextManager[Reply]:
        headers = {"Range": f"bytes={span[0]}-{span[1] - 1}"} if span is not None else {}
        path = f"blobs/{digest}"
        return upstream.request(
            Call("blob", "GET", ask.repository, ask.principal, path, headers, address=address, pool="blobs")
        )

    return request


def upstream_place(digest: Digest, upstream: Upstream) -> Place:
    """The `upstream` as a place of the blob, the same whatever a reload does meanwhile."""
    return Place("upstream", ranges_of(digest, upstream), upstream.slots, upstream.parallel)


def failing_place(place: Place, error: UpstreamFailure) -> Place:
    """The same place while it is not to be asked: whoever does meets `error`."""

    @asynccontextmanager
    async def request(_ask: Ask, _span: tuple[int, int] | None, _address: str | None) -> AsyncIterator[Reply]:
        raise error
        yield

    return replace(place, request=request, tries=0)


def is_page(reply: Reply) -> bool:
    """Is it something to look at, such as a page to log in at, instead of a blob?"""
    return content_type_of(reply.headers.get("Content-Type", "")) == "text/html"


def _checked_size(ask: Ask, reply: Reply, size: int) -> int:
    """`size`, where `reply` speaks of a blob. Raises UpstreamInvalid for a page to log in at, which has one too."""
    if is_page(reply):
        raise UpstreamInvalid(f"{ask.repository.registry} answered for a blob with a page")
    return size
