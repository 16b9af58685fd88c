"""Pushes of clusters with `push: forward`: streamed to the upstream with the client's own rights, or none.

What a client is told of its upload leads back here, by the name and the `ns` that it came by: always as a path, since
only the client knows our host as it sees it. A push that was done is seen by whoever asks after its answer has left.
"""

import asyncio
import contextlib
import logging
from typing import cast
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, web

from proxy.cache.ask import Ask
from proxy.cache.changes import Change, Changes, change_of
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.reference import Repository, parse_name
from proxy.oci.route import ChangeRoute, PushRoute, Route, UploadRoute
from proxy.policy.access import ANONYMOUS, Principal
from proxy.policy.cluster import check_repository
from proxy.policy.freshness import CacheState, Verdict
from proxy.policy.registry import name_at
from proxy.policy.upload import (
    ForeignUpload,
    UnknownUpload,
    Uploads,
    client_path,
    values_in,
    with_mount_from,
    without_ns,
)
from proxy.server.exchange import Exchange
from proxy.server.house import House
from proxy.server.refusals import Refused, body_too_large
from proxy.server.respond import state_headers
from proxy.settings import LimitSettings
from proxy.telemetry.events import TargetWasRefused
from proxy.upstream.errors import UpstreamError, UpstreamFailure, UpstreamOffline, UpstreamRejected
from proxy.upstream.push import IN_DOUBT, Push, PushesBusy, PushMethod, PushReply

_log = logging.getLogger("pullthrough.server")

# So much of a body has one `body_timeout`.
_AWAITED = 1024 * 1024
# What of a client's head describes its body, and what of an upstream's head means the same to the client.
_OF_THE_BODY = ("Content-Type", "Content-Length", "Content-Range")
_TRY_AGAIN = {"Retry-After": "5"}
_PASSED_ON = (
    "Range", "Docker-Upload-UUID", "Docker-Content-Digest", "OCI-Chunk-Min-Length", "OCI-Chunk-Max-Length",
    "OCI-Subject", "OCI-Tag",
)  # fmt: skip


class ClientBody:
    """The body of a request, as it comes, of up to `limit` bytes (0: of any size)."""

    def __init__(self, request: web.BaseRequest, limit: int, timeout: float) -> None:
        """`timeout`: the seconds in which a MiB, or the rest, has to come; time in which nobody asks does not count."""
        self._request = request
        self._limit = limit
        self._timeout = self._time_left = timeout
        self._came = 0
        self._next_mark = _AWAITED
        # Clients of HTTP/1.0 would take it for the answer.
        self._expects = request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11

    def __aiter__(self) -> "ClientBody":
        return self

    async def __anext__(self) -> bytes:
        """The next piece; asked for only once there is somewhere to put it.

        Raises what the client is to be told: OCIError, or ConnectionError where it left.
        """
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._time_left):
                await self._continue()
                piece = await self._request.content.readany()
            self._count(len(piece), asyncio.get_running_loop().time() - began)
        except TimeoutError as error:
            message = "the body of the request did not come in time"
            raise Refused("body-timeout", "BLOB_UPLOAD_INVALID", message, status=408) from error
        except (Refused, ConnectionError):
            raise
        except Exception as error:
            raise OCIError("BLOB_UPLOAD_INVALID", "the body is not what its head says") from error
        if not piece:
            raise StopAsyncIteration
        return piece

    async def whole(self) -> bytes:
        """All of it. Raises as above."""
        return b"".join([piece async for piece in self])

    def _count(self, size: int, waited: float) -> None:
        """Raises Refused for a body that is too long after all."""
        self._came += size
        self._time_left -= waited
        if self._came >= self._next_mark:
            self._next_mark = self._came + _AWAITED
            self._time_left = self._timeout
        if self._limit and self._came > self._limit:
            raise body_too_large(self._limit)

    async def _continue(self) -> None:
        """Let a client begin that waits to be told (RFC 9110, section 10.1.1); aiohttp's own server does not."""
        if self._expects:
            self._expects = False
            writer = self._request.writer
            await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # The answer itself has not begun.
            writer.output_size = 0


def body_limit(route: Route, limits: LimitSettings) -> int:
    """The most bytes that a request may bring along: blobs, and their chunks, are not like other bodies. 0: any."""
    return limits.max_upload_size if isinstance(route, UploadRoute) else limits.max_body_size


async def forward_push(exchange: Exchange, house: House, ask: Ask, route: PushRoute) -> web.StreamResponse:
    """Pass a push on and answer it. Raises OCIError or UpstreamError; ConnectionError where the client left.

    However it ends, what it changed or may have changed is written down first.
    """
    if exchange.deadline is not None:
        # A body takes as long as it takes: from here on it is silence that ends it.
        exchange.deadline.reschedule(None)
    exchange.passing, exchange.detail = True, "push"
    if ask.lifetimes.offline:
        # Before its body is waited for.
        raise UpstreamOffline(ask.repository.registry)
    request, registry = exchange.request, ask.repository.registry
    settings = house.settings.upstreams[registry]
    uploads = Uploads(ask.repository, settings.url, (registry, *settings.aliases), house.key)
    mounted = _mounted_from(exchange, house, registry)
    body = _body(exchange, route)
    push = Push(
        method=cast(PushMethod, request.method),
        repository=ask.repository,
        target=_target(request, uploads, route, mounted),
        principal=_principal(ask),
        scopes=_scopes(request, ask, mounted),
        headers={name: request.headers[name] for name in _OF_THE_BODY if body is not None and name in request.headers},
        body=body,
    )
    if body is not None and isinstance(route, ChangeRoute) and push.principal.basic is not None:
        # So that it can be sent again when a token is no good any more; it is no larger than `max_body_size`.
        push.body = await body.whole()
    try:
        reply = await house.upstreams[registry].pushes.send(push)
        exchange.asked, exchange.fwd_status = True, reply.status
    except UpstreamError as error:
        raise _told(error, exchange, route) from error
    finally:
        await _write_down(house.changes, _change(request, ask, route), push)
    return _answer(exchange, house, uploads, route, reply)


def _body(exchange: Exchange, route: PushRoute) -> ClientBody | None:
    # An upstream is not asked to change anything by GET or DELETE with a body.
    if exchange.request.method not in {"POST", "PATCH", "PUT"} or not exchange.request.body_exists:
        return None
    limits = exchange.limits
    return ClientBody(exchange.request, body_limit(route, limits), limits.body_timeout)


def _principal(ask: Ask) -> Principal:
    """The client itself: whatever the proxy's own credential may read for its cluster, it pushes nothing."""
    return ask.principal if ask.principal.kind == "client" else ANONYMOUS


def _scopes(request: web.BaseRequest, ask: Ask, mounted: str | None) -> tuple[str, ...]:
    """What a token for this push has to allow (distribution's token authentication specification)."""
    actions = "pull,push,delete" if request.method == "DELETE" else "pull,push"
    more = (f"repository:{mounted}:pull",) if mounted is not None and mounted != ask.repository.name else ()
    return (f"repository:{ask.repository.name}:{actions}", *more)


def _mounted_from(exchange: Exchange, house: House, registry: str) -> str | None:
    """The repository, as the upstream names it, that a blob is to be mounted from. Raises OCIError."""
    source = next(filter(None, values_in(exchange.request.rel_url.raw_query_string, "from")), None)
    if source is None or exchange.request.method != "POST":
        return None
    mounted = name_at(house.registries, registry, parse_name(source))
    if exchange.cluster is not None:
        check_repository(exchange.cluster, Repository(registry, mounted))
    return mounted


def _target(request: web.BaseRequest, uploads: Uploads, route: PushRoute, mounted: str | None) -> str:
    """Path and query upstream. Raises OCIError."""
    query = request.rel_url.raw_query_string
    if isinstance(route, ChangeRoute):
        query = without_ns(query)
        path = f"{urlsplit(uploads.url).path}/v2/{uploads.repository.name}/{route.what}/{route.reference}"
        return f"{path}?{query}" if query else path
    if route.session:
        try:
            return uploads.target(route.session, query)
        except UnknownUpload:
            raise OCIError("BLOB_UPLOAD_UNKNOWN", "this is no upload of the repository") from None
    query = with_mount_from(without_ns(query), mounted)
    return f"{uploads.path}?{query}" if query else uploads.path


def _told(error: UpstreamError, exchange: Exchange, route: PushRoute) -> Exception:
    """The error as the client is told of it."""
    if isinstance(error, PushesBusy):
        exchange.detail = ""
        _log.warning("a push failed: %s", error)
        return OCIError("UNAVAILABLE", "the proxy's connections for pushes are all in use", headers=_TRY_AGAIN)
    if isinstance(error, UpstreamFailure):
        exchange.detail = ""
        _log.warning("a push failed: %s (%s)", error, error.reason)
    if not isinstance(error, UpstreamRejected) or error.status != 404 or error.code is not None:
        return error
    if isinstance(route, UploadRoute):
        code = "BLOB_UPLOAD_UNKNOWN" if route.session else "NAME_UNKNOWN"
    else:
        code = "BLOB_UNKNOWN" if route.what == "blobs" else "MANIFEST_UNKNOWN"
    return UpstreamRejected(404, str(error), code)


def _change(request: web.BaseRequest, ask: Ask, route: PushRoute) -> Change | None:
    """What the push changes when it is done; None where only an upload goes on."""
    query = request.rel_url.raw_query_string
    if isinstance(route, ChangeRoute):
        return change_of(request.method, ask.repository, route.reference, values_in(query, "tag"))
    at_once = request.method == "POST" and (values_in(query, "digest") or values_in(query, "mount"))
    return Change(ask.repository) if request.method == "PUT" or at_once else None


async def _write_down(changes: Changes, change: Change | None, push: Push) -> None:
    """Let the cache know of `change`, as far as it is known whether it was made."""
    if change is None:
        return
    # A mount that is not done begins an upload instead (202). What is not there to be deleted is gone.
    done = push.outcome == 201 if push.method == "POST" else 200 <= push.outcome < 300
    if done or (push.method == "DELETE" and push.outcome == 404):
        await changes.happened(change)
    elif push.outcome == IN_DOUBT:
        await changes.in_doubt(change)


def _answer(exchange: Exchange, house: House, uploads: Uploads, route: PushRoute, reply: PushReply) -> web.Response:
    headers = {name: ", ".join(reply.headers.getall(name)) for name in _PASSED_ON if name in reply.headers}
    location = _location(exchange.request, house, uploads, route, reply)
    if location is not None:
        headers["Location"] = location
    headers |= state_headers(exchange, Verdict(CacheState.PASS, detail="push"))
    # An upstream's body says nothing here that its head does not.
    return web.Response(status=reply.status, headers=headers)


def _location(
    request: web.BaseRequest, house: House, uploads: Uploads, route: PushRoute, reply: PushReply
) -> str | None:
    """Where the upload goes on, or what was pushed can be pulled. Raises OCIError for uploads that cannot go on."""
    ns = request.rel_url.query.get("ns")
    if isinstance(route, ChangeRoute):
        if request.method != "PUT":
            return None
        reference = _digest(reply.headers.get("Docker-Content-Digest")) or route.reference
        return client_path(route.name, f"{route.what}/{reference}", "", ns)
    if reply.status == 201:
        query = request.rel_url.raw_query_string
        asked = [*values_in(query, "digest"), *values_in(query, "mount")]
        digest = _digest(asked[0]) if asked else None
        return client_path(route.name, f"blobs/{digest}", "", ns) if digest is not None else None
    if "Location" not in reply.headers:
        return None
    try:
        session, query = uploads.for_client(reply.headers["Location"], reply.url)
    except ForeignUpload as error:
        registry = uploads.repository.registry
        house.tell(TargetWasRefused(registry, "push"))
        _log.warning("an upload to %s cannot go on: %s", uploads.repository, error)
        message = f"{registry} keeps its uploads where this proxy does not go"
        raise OCIError("UNSUPPORTED", message, status=502) from None
    return client_path(route.name, f"blobs/uploads/{session}", query, ns)


def _digest(text: str | None) -> Digest | None:
    with contextlib.suppress(OCIError):
        return Digest.parse(text or "")
    return None
