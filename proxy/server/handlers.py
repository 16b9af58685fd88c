"""The walk of one request: client → cluster → route → registry → principal → use case → response.

Each step either adds to the exchange or raises; `respond` turns what was raised into HTTP.
"""

import asyncio
import logging
from itertools import chain
from typing import Protocol, assert_never, cast

from aiohttp import web

from proxy.cache.ask import Ask
from proxy.cache.download import Uncacheable
from proxy.cache.known import Lasting
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.route import BlobRoute, ManifestRoute, Ping, PushRoute, ReferrersRoute, TagsRoute, parse_route
from proxy.policy.access import is_empty_authorization, takes_basic
from proxy.policy.cluster import Client, check_repository, client_address, select_cluster
from proxy.policy.registry import Asked, choose_repository
from proxy.server import passing
from proxy.server.answers import Answer, Answers, Decision, Question, Ready, question, size_of
from proxy.server.body import cut, send_head, send_source
from proxy.server.connection import Connection
from proxy.server.exchange import Exchange, Repeatable
from proxy.server.fast import FastConnection
from proxy.server.house import House
from proxy.server.lists import answer_list
from proxy.server.push import body_limit, forward_push
from proxy.server.refusals import Refusals, Refused, body_too_large, header_too_large
from proxy.server.respond import BASIC_CHALLENGE, EVERY_ANSWER, error_response, oci_error, state_headers
from proxy.server.tls import TLSConnection, certificate_names
from proxy.server.windows import Windows
from proxy.settings import Address, ClusterSettings, LimitSettings
from proxy.telemetry.events import RequestFinished, Tell
from proxy.telemetry.tallies import Tallies

_log = logging.getLogger("pullthrough.server")

# containerd 2.3 gives up on a head after 30 s.
_HEAD_DEADLINE = 25.0
_BLOB_TYPE = "application/octet-stream"


class Logins(Protocol):
    """Answers log-ins of clients that know of no proxy (`intercept_login`)."""

    async def answer(self, exchange: Exchange, house: House) -> web.StreamResponse | None:
        """None for what is none. Raises UpstreamError or OCIError."""
        ...


class Handlers:
    """Answers requests of the distribution API. `house` may be replaced by another one; requests keep theirs."""

    def __init__(self, house: House, tell: Tell, refusals: Refusals, tallies: Tallies) -> None:
        self.house = house
        # Where a listener intercepts.
        self.logins: Logins | None = None
        self._tell = tell
        self._refusals = refusals
        self._tallies = tallies
        self._windows = Windows()
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no request runs."""
        await self._idle.wait()

    async def handle(self, listener: Address, request: web.BaseRequest) -> web.StreamResponse:
        """Answer `request`, which came in at `listener`; tell of it when it is over."""
        loop = asyncio.get_running_loop()
        began, house, limits = loop.time(), self.house, self.house.settings.limits
        key = _question(house.answers, request, limits)
        if key is not None and (ready := _ready(house.answers, request, key, began)) is not None:
            return ready
        decision = house.answers.decision(key, house.answers.clock()) if key is not None else None
        client = _client(house, listener, request, decision is not None)
        exchange = Exchange(request, client, began, limits, self._windows)
        self._active += 1
        self._idle.clear()
        try:
            return await self._answer(exchange, decision)
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()
            if exchange.refusal is not None:
                self._refusals.add(exchange.refusal, exchange.client.address)
            finished = exchange.finished(loop.time())
            self._tell(finished)
            # One whose client left before its answer was not answered as others will be.
            if key is not None and exchange.repeatable is not None and exchange.status == exchange.repeatable.status:
                self._keep(house, key, exchange, finished)
            elif key is not None and exchange.decided is not None and decision is None:
                house.answers.decide(key, _decision(exchange, house.answers.clock()))

    def _keep(self, house: House, key: Question, exchange: Exchange, finished: RequestFinished) -> None:
        """What was answered may be answered again."""
        ask, route, connection = exchange.ask, exchange.route, exchange.request.protocol
        assert ask is not None and exchange.repeatable is not None  # noqa: S101 - it was answered
        given = None
        if isinstance(route, ManifestRoute) and isinstance(route.reference, str):
            digest = Digest.parse(exchange.repeatable.headers["Docker-Content-Digest"])
            given = house.history.tally(ask, route.reference, digest)
        elif isinstance(route, BlobRoute) and exchange.request.method == "GET":
            given = house.blobs.uses(ask, route.digest)
        answer = Answer(exchange.repeatable, self._tallies.of(finished), given, house.answers.clock())
        house.answers.keep(key, answer, size_of(key))
        if isinstance(connection, FastConnection):
            connection.keep(house.answers, answer)

    async def _answer(self, exchange: Exchange, decision: Decision | None) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_HEAD_DEADLINE) as exchange.deadline:
                response = await (self._walk(exchange) if decision is None else self._decided(exchange, decision))
        except ConnectionError:
            # The client left, or its body was cut: there is nobody to answer.
            raise
        except Exception as error:
            if exchange.head_sent is not None:
                # There is one answer to a request, and this one has begun.
                _log.error("a body for %s failed", exchange.client.address, exc_info=error)
                raise cut(exchange, "the answer failed after its head") from error
            if isinstance(error, Refused):
                exchange.refusal = error.reason
            response = error_response(oci_error(error, exchange), exchange)
        if not response.prepared:
            exchange.status = response.status
            exchange.head_sent = asyncio.get_running_loop().time()
            body = getattr(response, "body", None)
            if isinstance(body, bytes) and exchange.request.method != "HEAD":
                exchange.bytes_sent = len(body)
                if exchange.pace is not None:
                    exchange.pace.charge(len(body))
        return response

    async def _walk(self, exchange: Exchange) -> web.StreamResponse:
        request, house = exchange.request, self.house
        cluster = _admitted(exchange, house)
        authorization = request.headers.get("Authorization", "")
        intercepted = isinstance(request.protocol, Connection) and request.protocol.intercepted
        if intercepted and self.logins is not None:
            answered = await self.logins.answer(exchange, house)
            if answered is not None:
                return answered
        query = request.rel_url.query
        exchange.route = route = parse_route(
            request.method, request.rel_url.raw_path, query, pushes=cluster.push == "forward"
        )
        limit = body_limit(route, exchange.limits)
        if limit and (request.content_length or 0) > limit:
            raise body_too_large(limit)
        if isinstance(route, Ping):
            return _ping(cluster, request.secure, authorization)
        asked = Asked(query.get("ns"), exchange.client.host, route.name, exchange.client.server_name, intercepted)
        repository = choose_repository(house.registries, cluster.upstreams, asked)
        exchange.chosen = repository.registry
        check_repository(cluster, repository)
        if house.paces:
            await exchange.take_turn(house.paces.get(cluster.name))
        exchange.takes_basic = takes_basic(
            cluster.login, route.name != repository.name, request.secure, cluster.allow_plain_login
        )
        principal = house.principal(cluster, repository.registry, authorization, exchange.takes_basic)
        lifetimes = house.lifetimes[cluster.name, repository.registry]
        exchange.ask = ask = Ask(repository, principal, lifetimes, cluster.name)
        if isinstance(route, PushRoute):
            return await forward_push(exchange, house, ask, route)
        match route:
            case ManifestRoute():
                return await self._manifest(exchange, ask, route)
            case BlobRoute():
                return await self._blob(exchange, ask, route)
            case TagsRoute() | ReferrersRoute():
                return await answer_list(exchange, house, ask, route)
            case _:
                assert_never(route)

    async def _decided(self, exchange: Exchange, decision: Decision) -> web.StreamResponse:
        exchange.cluster, exchange.route, exchange.ask = decision.cluster, decision.route, decision.ask
        exchange.chosen, exchange.takes_basic = decision.ask.repository.registry, decision.takes_basic
        return await self._blob_from_here(exchange, decision.ask, decision.route, decision.lasting)

    async def _manifest(self, exchange: Exchange, ask: Ask, route: ManifestRoute) -> web.StreamResponse:
        wants_body = exchange.request.method == "GET"
        answer = await self.house.manifests.get(ask, route.reference, wants_body)
        content = answer.content
        if isinstance(route.reference, str):
            self.house.history.served(ask, route.reference, content.digest, str(exchange.client.address or ""))
        headers, described = state_headers(exchange, answer.verdict), passing.manifest_headers(content)
        self._may_repeat(exchange, answer.lasting, described, (content.body or b"") if wants_body else b"")
        if content.body is None or not wants_body:
            return await _head_only(exchange, headers | described)
        return web.Response(body=content.body, headers=headers | described)

    def _may_repeat(
        self, exchange: Exchange, lasting: Lasting | None, headers: dict[str, str], body: bytes, status: int = 200
    ) -> None:
        """Whoever asks the same is answered the same as long as that lasts."""
        if lasting is not None and exchange.verdict is not None and not self._counts_each(exchange):
            exchange.repeatable = Repeatable(exchange.registry, exchange.verdict, lasting, headers, body, status)

    def _counts_each(self, exchange: Exchange) -> bool:
        """Is a rate limited, so that no request may go by?"""
        return exchange.cluster is None or exchange.cluster.name in self.house.paces

    async def _blob(self, exchange: Exchange, ask: Ask, route: BlobRoute) -> web.StreamResponse:
        assert exchange.cluster is not None  # noqa: S101 - chosen before the registry
        cached = exchange.cluster.mode == "transparent"
        if exchange.request.method == "HEAD":
            found = await self.house.blobs.head(ask, route.digest, from_records=not cached)
            headers, described = state_headers(exchange, found.verdict), _blob_headers(route, found.size)
            if not cached:
                # Elsewhere it says that the blob is here, which nobody tells the others when it is evicted.
                self._may_repeat(exchange, found.lasting, described, b"")
            return await _head_only(exchange, headers | described)
        if not cached:
            return await passing.redirect_blob(exchange, self.house, ask, route)
        return await self._blob_from_here(exchange, ask, route)

    async def _blob_from_here(
        self, exchange: Exchange, ask: Ask, route: BlobRoute, lasting: Lasting | None = None
    ) -> web.StreamResponse:
        if self._redirects(exchange) and (found := await self.house.blobs.redirect(ask, route.digest)) is not None:
            return passing.to_object_store(exchange, route, *found)
        try:
            return await self._cached_blob(exchange, ask, route, lasting)
        except Uncacheable:
            range_header = _range_header(exchange.request, route)
            return await passing.stream_blob(exchange, self.house, ask, route, range_header)

    def _redirects(self, exchange: Exchange) -> bool:
        """Are blobs of this cluster had from the object store?"""
        cluster = exchange.cluster
        said = cluster.blob_redirect if cluster is not None else None
        return self.house.settings.shared.blob_redirect if said is None else said

    async def _cached_blob(
        self, exchange: Exchange, ask: Ask, route: BlobRoute, lasting: Lasting | None
    ) -> web.StreamResponse:
        range_header = _range_header(exchange.request, route)
        answer = await self.house.blobs.open(ask, route.digest, range_header, lasting)
        source = answer.source
        headers = state_headers(exchange, answer.verdict)
        try:
            span = passing.satisfied(range_header, source.size)
            start, stop = span or (0, source.size)
            status, described = 206 if span is not None else 200, _blob_headers(route, stop - start)
            if span is not None:
                described["Content-Range"] = f"bytes {start}-{stop - 1}/{source.size}"
            if answer.body is not None:
                body = answer.body[start:stop]
                self._may_repeat(exchange, answer.lasting, described, body, status)
                return web.Response(status=status, body=body, headers=headers | described)
            exchange.decided = None if self._counts_each(exchange) else answer.lasting
            response = web.StreamResponse(status=status, headers=headers | described)
            await send_head(exchange, response)
            reached = await send_source(exchange, response, source, start, stop)
            if reached < stop and start == 0:
                # Such a body must not complete unless its bytes were hashed; the client comes back for the rest.
                raise cut(exchange, "the cache cannot go on with it")
            if reached < stop:
                await passing.send_rest(exchange, self.house, ask, route, response, reached, stop)
            await response.write_eof()
            return response
        except OSError as error:
            if not isinstance(error, ConnectionError) and exchange.head_sent is not None:
                exchange.damaged = True
            raise
        finally:
            await source.close()
            if exchange.damaged:
                await self.house.blobs.damaged(route.digest)


def _admitted(exchange: Exchange, house: House) -> ClusterSettings:
    """The cluster of the request's client. Raises OCIError for what is refused whatever it asks for."""
    if _header_size(exchange.request) > exchange.limits.max_header_size:
        raise header_too_large(exchange.limits.max_header_size)
    cluster = exchange.cluster = select_cluster(house.settings.clusters, exchange.client)
    if cluster is None:
        raise OCIError("DENIED", "this client belongs to no cluster of this proxy")
    if not exchange.request.headers.get("Authorization", "").isascii():
        # What is no text would go out as something else than it came, and be somebody else's.
        raise OCIError("UNAUTHORIZED", "the Authorization of the request is not ASCII", status=400)
    return cluster


def _ping(cluster: ClusterSettings, secure: bool, authorization: str) -> web.Response:
    """`GET /v2/`: Docker's older store and podman's library log in only where it asks them to."""
    if takes_basic(cluster.login, False, secure, cluster.allow_plain_login) and is_empty_authorization(authorization):
        raise OCIError("UNAUTHORIZED", "this cluster logs in", headers={"WWW-Authenticate": BASIC_CHALLENGE})
    return web.Response(body=b"{}", content_type="application/json", headers=EVERY_ANSWER)


async def _head_only(exchange: Exchange, headers: dict[str, str]) -> web.StreamResponse:
    """A head whose Content-Length is that of a body that is not sent."""
    response = web.StreamResponse(headers=headers)
    await send_head(exchange, response)
    await response.write_eof()
    return response


def _blob_headers(route: BlobRoute, length: int) -> dict[str, str]:
    return {
        "Content-Type": _BLOB_TYPE,
        "Content-Length": str(length),
        "Docker-Content-Digest": str(route.digest),
        "ETag": f'"{route.digest}"',
        "Accept-Ranges": "bytes",
    }


def _range_header(request: web.BaseRequest, route: BlobRoute) -> str | None:
    """The Range that counts: none where If-Range names another version of the content (RFC 9110, section 13.1.5)."""
    condition = request.headers.get("If-Range")
    if condition is not None and condition.strip() != f'"{route.digest}"':
        return None
    return request.headers.get("Range")


def _question(answers: Answers, request: web.BaseRequest, limits: LimitSettings) -> Question | None:
    connection = request.protocol
    if not isinstance(connection, FastConnection) or _header_size(request) > limits.max_header_size:
        return None
    entrance = connection.entrance(answers)
    return question(entrance, request) if entrance is not None else None


def _ready(answers: Answers, request: web.BaseRequest, key: Question, began: float) -> web.StreamResponse | None:
    """The answer from memory, if there is one."""
    connection, now = request.protocol, answers.clock()
    answer = answers.find(key, now)
    if answer is None or not isinstance(connection, FastConnection):
        return None
    connection.keep(answers, answer)
    return cast(web.StreamResponse, Ready(answer, answer.head(now), connection.client, began))


def _header_size(request: web.BaseRequest) -> int:
    """Bytes of all of them together. Single ones, and how many they are, aiohttp looks at."""
    return sum(map(len, chain.from_iterable(request.raw_headers)))


def _decision(exchange: Exchange, now: float) -> Decision:
    """What was decided about a request for a blob."""
    cluster, route, ask, lasting = exchange.cluster, exchange.route, exchange.ask, exchange.decided
    assert cluster is not None and isinstance(route, BlobRoute)  # noqa: S101 - it was answered
    assert ask is not None and lasting is not None  # noqa: S101 - the same
    return Decision(cluster, route, ask, exchange.takes_basic, lasting, now)


def _client(house: House, listener: Address, request: web.BaseRequest, decided: bool) -> Client:
    """`decided`: nothing but its address is looked at any more, which nobody spoke for."""
    if decided and isinstance(request.protocol, FastConnection):
        return Client(request.protocol.address, "", listener)
    transport = request.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    tls = transport.get_extra_info("ssl_object") if transport is not None else None
    forwarded = ",".join(request.headers.getall("X-Forwarded-For", []))
    address = client_address(peer[0] if peer else "", forwarded, house.settings.trusted_proxies)
    host = request.headers.get("Host", "").lower()
    if transport is None or not isinstance(tls, TLSConnection):
        return Client(address, host, listener)
    names = certificate_names(transport.get_extra_info("peercert"))
    return Client(address, host, listener, names, tls.server_name)
