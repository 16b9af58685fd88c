"""Pushes: what changes an upstream, sent once, with the client's own Authorization or none.

Invariants:
- The proxy's own credential never takes part: what the client sent goes out as it is, or, where the proxy asked it for
  user and password, as a token of theirs (`auth`). A 401 goes to the client, which pushes with rights of its own.
  Nothing is learnt of anybody's rights from what an upstream says to a push.
- The upstream's own origin is all that is ever dialled: no redirect is followed, with a body or without.
- A body is asked of its client piece by piece, as the upstream takes it, and none is sent a second time. Only what has
  none is sent again, once, with what a 401 asked for.
- Only silence ends a push: of the upstream while there is something to take, or when it is to answer. Its client's
  silence is its body's to tell.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from proxy.oci.errors import code_in_body
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS, Principal
from proxy.policy.budget import retry_after
from proxy.settings import UpstreamSettings
from proxy.telemetry.events import TargetWasRefused, Tell, UpstreamAnswered
from proxy.upstream.auth import Authorizer, Scopes
from proxy.upstream.errors import (
    NETWORK_ERRORS,
    TargetRefused,
    UpstreamError,
    UpstreamFailure,
    UpstreamInvalid,
    UpstreamRefused,
    UpstreamRejected,
    error_body,
    failure_of,
)
from proxy.upstream.pools import Pools

PushMethod = Literal["GET", "POST", "PATCH", "PUT", "DELETE"]

# Seconds in which an upstream has to take a piece; stores behind it are written to meanwhile.
_PATIENCE = 120.0
# Seconds from the last byte to the answer: a large blob is put together and copied within them. Clients that want to
# wait less leave.
_ANSWER_LIMIT = 300.0


@dataclass(frozen=True, slots=True)
class Push:
    """One request: `target` is path and query on the upstream's own origin, and is sent as it is.

    `body` gives its pieces once; how long it is, where that is known, stands in `headers`. `principal` is the client,
    or anonymous; `scopes` is what a token is asked for, should it have to be one of ours.
    """

    method: PushMethod
    repository: Repository
    target: str
    principal: Principal = ANONYMOUS
    scopes: Scopes = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: AsyncIterator[bytes] | None = None


@dataclass(frozen=True, slots=True)
class PushReply:
    """An upstream's 2xx; `url` is what was asked, for what its headers say relative to it."""

    status: int
    headers: CIMultiDictProxy[str]
    url: str


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
        self._auth = auth
        self._tell = tell
        self._clock = clock

    async def send(self, push: Push) -> PushReply:
        """Send `push` and give the answer. Whether it was done is not known where this raises UpstreamFailure.

        Raises UpstreamRefused (401, 403), UpstreamRejected (other 4xx, 404 among them), UpstreamFailure (no connection,
        silence, 429, 5xx), UpstreamInvalid (a redirect) or TargetRefused (a realm that is not the upstream's).
        """
        async with self._pools.in_use():
            try:
                async with asyncio.timeout(_ANSWER_LIMIT) as deadline:
                    body = _Watched(push.body, deadline) if push.body is not None else None
                    response = await self._authorised(push, body)
                    try:
                        if 200 <= response.status < 300:
                            return PushReply(response.status, response.headers, str(response.url))
                        raise await self._error(push, response)
                    finally:
                        # Whatever is left of either body: the connection is not used again.
                        response.close()
            except TargetRefused as error:
                self._tell(TargetWasRefused(self._registry, error.why))
                raise
            except TimeoutError as error:
                self._tell(UpstreamAnswered(self._registry, "push", push.method, "timeout"))
                raise failure_of(error, self._registry) from error

    async def _authorised(self, push: Push, body: AsyncIterator[bytes] | None) -> aiohttp.ClientResponse:
        login = push.principal if push.principal.basic is not None else None
        authorization = push.principal.authorization if login is None else await self._logged_in(push)
        response = await self._answer(push, authorization, body)
        if login is None or response.status != 401:
            return response
        if body is None and (challenges := _challenges(response)):
            response.close()
            answer = await self._auth.answer(challenges, login, push.repository, authorization, push.scopes)
            response = await self._answer(push, answer, None)
        if response.status == 401:
            self._auth.refused(login, push.repository, push.scopes)
        return response

    async def _logged_in(self, push: Push) -> str | None:
        """The header that user and password of its principal bring; None where the upstream asks nobody for any.

        A body cannot wait for a 401, so it is the ping that is asked (distribution-spec, "Determining Support").
        """
        known = await self._auth.known(push.principal, push.repository, push.scopes)
        if known is not None:
            return known
        path = f"{urlsplit(self._settings.url).path}/v2/"
        ping = await self._answer(Push("GET", push.repository, path), None, None)
        ping.close()
        if ping.status != 401:
            return None
        return await self._auth.answer(_challenges(ping), push.principal, push.repository, None, push.scopes)

    async def _answer(
        self, push: Push, authorization: str | None, body: AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        headers = dict(push.headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        url = URL(f"{self._base.origin()}{push.target}", encoded=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout)
        try:
            response = await self._pools.pool("push", own=True).request(
                push.method, url, headers=headers, data=body, allow_redirects=False, timeout=timeout,
                proxy=self._settings.proxy,
            )  # fmt: skip
        except NETWORK_ERRORS as error:
            failure = failure_of(error, self._registry)
            self._tell(UpstreamAnswered(self._registry, "push", push.method, failure.reason))
            raise failure from error
        self._tell(UpstreamAnswered(self._registry, "push", push.method, str(response.status)))
        return response

    async def _error(self, push: Push, response: aiohttp.ClientResponse) -> UpstreamError:
        status = response.status
        message = f"{self._registry} answered {status} for {push.method} in {push.repository.name}"
        if status < 400:
            return UpstreamInvalid(f"{message}: a push is not redirected")
        if status in {401, 403}:
            return UpstreamRefused(status, message, self._auth.for_client(_challenges(response)))
        wait = retry_after(response.headers.get("Retry-After"), self._clock())
        if status == 429 or status >= 500:
            return UpstreamFailure("429" if status == 429 else "5xx", message, retry_after=wait)
        return UpstreamRejected(status, message, code_in_body(await error_body(response)))


def _challenges(response: aiohttp.ClientResponse) -> list[str]:
    return response.headers.getall("WWW-Authenticate", [])


class _Watched:
    """The pieces of `body`, with `deadline` at what the upstream is to do next."""

    def __init__(self, body: AsyncIterator[bytes], deadline: asyncio.Timeout) -> None:
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
        self._deadline.reschedule(self._now() + _PATIENCE)
        return piece
