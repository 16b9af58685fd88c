"""Pushes: what changes an upstream, sent once, with the client's own Authorization or none.

Invariants:
- The proxy's own credential never takes part: what the client sent goes out as it is, or, where the proxy asked it for
  user and password, as a token of theirs (`auth`). A 401 goes to the client, which pushes with rights of its own.
  Nothing is learnt of anybody's rights from what an upstream says to a push.
- The upstream's own origin is all that is ever dialled: no redirect is followed, with a body or without.
- A body that streams is asked of its client piece by piece, as the upstream takes it, and none is sent a second time.
  Only what has none, or was read whole, is sent again, once, with what a 401 asked for.
- Only silence ends a push: of the upstream while there is something to take, or when it is to answer. Its client's
  silence is its body's to tell, and no failure of the upstream.
- A push has a connection to itself, and waits for one no longer than `_TURN_LIMIT`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from proxy.oci.errors import code_in_body
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS, Principal
from proxy.policy.backoff import Reason
from proxy.policy.budget import retry_after
from proxy.settings import UpstreamSettings
from proxy.telemetry.events import TargetWasRefused, Tell, UpstreamAnswered
from proxy.upstream.auth import Authorizer, Scopes
from proxy.upstream.errors import (
    NETWORK_ERRORS,
    TargetRefused,
    UpstreamError,
    UpstreamFailure,
    UpstreamOffline,
    UpstreamRefused,
    UpstreamRejected,
    error_body,
    failure_of,
)
from proxy.upstream.pools import Pools
from proxy.upstream.slots import Slots

PushMethod = Literal["GET", "POST", "PATCH", "PUT", "DELETE"]

# Seconds in which an upstream has to take a piece; stores behind it are written to meanwhile.
_TAKE_LIMIT = 120.0
# Seconds from the last byte to the answer: a large blob is put together and copied within them. Clients that want to
# wait less leave.
_ANSWER_LIMIT = 300.0
# Seconds for which a push waits until one of those before it is done with its connection; clients try again then.
_TURN_LIMIT = 20.0
# How much of a body that was read whole is handed on at a time.
_PIECE = 256 * 1024

# What became of a push where no answer says it: the upstream cannot have done it; it may have, or may be about to.
NOT_SENT, IN_DOUBT = 0, -1


@dataclass(slots=True)
class Push:
    """One request: `target` is path and query on the upstream's own origin, and is sent as it is.

    `body`, where it streams, gives its pieces once; how long it is, where that is known, stands in `headers`.
    `principal` is the client, or anonymous; `scopes` is what a token is asked for, should it have to be one of ours.
    """

    method: PushMethod
    repository: Repository
    target: str
    principal: Principal = ANONYMOUS
    scopes: Scopes = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: AsyncIterator[bytes] | bytes | None = None
    # NOT_SENT, IN_DOUBT, or the status that answered it; true however `Pushes.send` ends.
    outcome: int = field(default=NOT_SENT, init=False)


@dataclass(frozen=True, slots=True)
class PushReply:
    """An upstream's 2xx; `url` is what was asked, for what its headers say relative to it."""

    status: int
    headers: CIMultiDictProxy[str]
    url: str


class PushesBusy(UpstreamError):
    """All the connections that this proxy has for pushes to the upstream are in use."""


class Pushes:
    """Sends pushes to one upstream."""

    def __init__(
        self,
        registry: str,
        settings: UpstreamSettings,
        pools: Pools,
        auth: Authorizer,
        tell: Tell,
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._base = URL(settings.url)
        self._pools = pools
        self._slots = Slots(settings.max_connections)
        self._auth = auth
        self._tell = tell
        self._clock = clock

    async def send(self, push: Push) -> PushReply:
        """Send `push` and give the answer. Where this raises, its `outcome` says whether it may have been done.

        Raises UpstreamRefused (401, 403), UpstreamRejected (other 4xx, 404 among them), UpstreamFailure (no connection,
        silence, 429, 5xx, offline), TargetRefused (a redirect, a realm that is not the upstream's), PushesBusy, or what
        its body raised.
        """
        if self._settings.offline:
            raise UpstreamOffline(self._registry)
        async with self._pools.in_use(), self._turn():
            try:
                async with asyncio.timeout(_ANSWER_LIMIT) as deadline:
                    response = await self._authorised(push, deadline)
                    try:
                        if 200 <= response.status < 300:
                            return PushReply(response.status, response.headers, str(response.url))
                        raise await self._error(f"{push.method} in {push.repository.name}", response)
                    finally:
                        # Whatever is left of either body: the connection is not used again.
                        response.close()
            except TargetRefused as error:
                self._tell(TargetWasRefused(self._registry, error.why))
                raise
            except TimeoutError as error:
                self._tell(UpstreamAnswered(self._registry, "push", push.method, "timeout"))
                raise failure_of(error, self._registry) from error

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A connection of those for pushes. Raises PushesBusy where none is free in time."""
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(_TURN_LIMIT):
                    await held.enter_async_context(self._slots.slot())
            except TimeoutError as error:
                raise PushesBusy(f"all connections for pushes to {self._registry} are in use") from error
            yield

    async def _authorised(self, push: Push, deadline: asyncio.Timeout) -> aiohttp.ClientResponse:
        login = push.principal if push.principal.basic is not None else None
        authorization = push.principal.authorization if login is None else await self._logged_in(push)
        response = await self._answer(push, authorization, deadline)
        if login is None or response.status != 401:
            return response
        response.close()
        challenges = _challenges(response)
        if not challenges:
            self._auth.refused(login, push.repository, push.scopes)
            return response
        # Also for a body that is gone: its client tries again, and what was asked for is there then.
        answer = await self._auth.answer(challenges, login, push.repository, authorization, push.scopes)
        if not isinstance(push.body, bytes | None):
            return response
        response = await self._answer(push, answer, deadline)
        if response.status == 401:
            self._auth.refused(login, push.repository, push.scopes)
        return response

    async def _logged_in(self, push: Push) -> str | None:
        """The header that user and password of its principal bring; None where the upstream asks nobody for any.

        A body that streams cannot wait for a 401, so it is the ping that is asked (distribution-spec, "Determining
        Support"). Raises what becomes of a ping that says neither: no body leaves without rights by mistake.
        """
        known = await self._auth.known(push.principal, push.repository, push.scopes)
        if known is not None:
            return known
        response = await self._request("other", "GET", f"{urlsplit(self._settings.url).path}/v2/")
        try:
            if 200 <= response.status < 300:
                return None
            if response.status != 401:
                raise await self._error("a ping", response)
        finally:
            response.close()
        return await self._auth.answer(_challenges(response), push.principal, push.repository, None, push.scopes)

    async def _answer(self, push: Push, authorization: str | None, deadline: asyncio.Timeout) -> aiohttp.ClientResponse:
        """Send it. Raises what its body raised, else UpstreamFailure."""
        headers, pieces = dict(push.headers), push.body
        if authorization is not None:
            headers["Authorization"] = authorization
        if isinstance(pieces, bytes):
            headers["Content-Length"] = str(len(pieces))
            pieces = _pieces(pieces)
        body = _Watched(pieces, deadline) if pieces is not None else None
        deadline.reschedule(asyncio.get_running_loop().time() + _ANSWER_LIMIT)
        push.outcome = IN_DOUBT
        try:
            response = await self._request("push", push.method, push.target, headers, body)
        except Exception as error:
            if not isinstance(error, UpstreamFailure) or error.reason == "connect":
                # It never had a connection, or its body never came to an end.
                push.outcome = NOT_SENT
            raise
        push.outcome = response.status if response.status < 500 else IN_DOUBT
        return response

    async def _request(
        self,
        kind: Literal["push", "other"],
        method: PushMethod,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: "_Watched | None" = None,
    ) -> aiohttp.ClientResponse:
        url = URL(f"{self._base.origin()}{target}", encoded=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout)
        try:
            response = await self._pools.pool("push", own=True).request(
                method, url, headers=headers, data=body, allow_redirects=False, timeout=timeout,
                proxy=self._settings.proxy,
            )  # fmt: skip
        except NETWORK_ERRORS as error:
            if body is not None and body.error is not None:
                raise body.error from error
            failure = failure_of(error, self._registry)
            self._tell(UpstreamAnswered(self._registry, kind, method, failure.reason))
            raise failure from error
        self._tell(UpstreamAnswered(self._registry, kind, method, str(response.status)))
        return response

    async def _error(self, asked: str, response: aiohttp.ClientResponse) -> UpstreamError:
        status = response.status
        message = f"{self._registry} answered {status} for {asked}"
        if status < 400:
            return TargetRefused(f"{message}: a push is not redirected", "push")
        if status in {401, 403}:
            return UpstreamRefused(status, message, self._auth.for_client(_challenges(response)))
        wait = retry_after(response.headers.get("Retry-After"), self._clock())
        if status == 429 or status >= 500:
            reason: Reason = "429" if status == 429 else "5xx"
            return UpstreamFailure(reason, message, retry_after=wait, status=status)
        return UpstreamRejected(status, message, code_in_body(await error_body(response)))


def _challenges(response: aiohttp.ClientResponse) -> list[str]:
    return response.headers.getall("WWW-Authenticate", [])


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


class _Watched:
    """The pieces of `body`, with `deadline` at what the upstream is to do next. `error`: what `body` raised."""

    def __init__(self, body: AsyncIterator[bytes], deadline: asyncio.Timeout) -> None:
        self.error: Exception | None = None
        self._body = body
        self._deadline = deadline
        self._now = asyncio.get_running_loop().time

    def __aiter__(self) -> "_Watched":
        return self

    async def __anext__(self) -> bytes:
        # What comes now is the client's to give.
        self._deadline.reschedule(None)
        try:
            piece = await anext(self._body)
        except StopAsyncIteration:
            self._deadline.reschedule(self._now() + _ANSWER_LIMIT)
            raise
        except Exception as error:
            self.error = error
            raise
        self._deadline.reschedule(self._now() + _TAKE_LIMIT)
        return piece
