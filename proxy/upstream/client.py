"""One request to one upstream: its connections, its token, its redirects.

Invariants:
- Redirects are followed by hand; Authorization goes to the upstream's own origin only, never from https to http, and
  not to what another host led back to.
- Where redirects and token realms lead is judged by `policy.dial`: before a name is looked up here, and by the address
  where connections are made (`pools`). What is refused is told where that is seen, and once (`TargetWasRefused`).
- Manifests, lists and tokens have connections of their own, so that blobs cannot starve them.
- Every request is told once (`UpstreamAnswered`); network exceptions leave this room as `UpstreamError`s.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from proxy.oci.reference import Repository
from proxy.policy.access import Principal
from proxy.policy.budget import retry_after, speaks_of_pulls
from proxy.policy.dial import Reason as WhyRefused
from proxy.policy.dial import target_refusal
from proxy.settings import UpstreamSettings
from proxy.telemetry.events import TargetWasRefused, Tell, UpstreamAnswered, UpstreamBytes
from proxy.upstream.auth import Authorizer, TokenRequest
from proxy.upstream.budgets import Budgets
from proxy.upstream.credentials import credential_source
from proxy.upstream.errors import (
    NETWORK_ERRORS,
    RangeRefused,
    TargetRefused,
    UpstreamError,
    UpstreamFailure,
    UpstreamInvalid,
    UpstreamMissing,
    UpstreamOffline,
    UpstreamRefused,
    UpstreamRejected,
    error_body,
    failure_of,
    refused_zone,
)
from proxy.upstream.pools import Pool, Pools
from proxy.upstream.push import Pushes
from proxy.upstream.slots import Slots

Kind = Literal["manifest", "blob", "tags", "referrers", "other"]

# A head always reaches the client within 25 s (containerd gives up at 30); this leaves time to say so.
HEAD_LIMIT = 24.0
_MOST_REDIRECTS = 6
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LONGEST_HOST = 253
# What of an upstream's settings others act upon.
_NOT_OURS = {"default", "manifests", "cache_share", "pull_reserve"}


@dataclass(frozen=True, slots=True)
class Call:
    """One request: `path` starts after `/v2/<name>/` and is sent as it is."""

    kind: Kind
    method: Literal["GET", "HEAD"]
    repository: Repository
    principal: Principal
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Sequence[tuple[str, str]] = ()
    # False: a redirect to another origin is given back instead of followed (metadata-only clusters pass it on).
    follow: bool = True
    # Whole blobs have connections of their own, so that nothing small waits for them.
    pool: Pool = "metadata"
    # Where an earlier reply to the same call was redirected (`Reply.address`): asked at once, without Authorization.
    address: str | None = None


class Reply:
    """An upstream's 2xx, or its redirect where the call did not want it followed. Valid inside `request` only."""

    def __init__(
        self,
        registry: str,
        response: aiohttp.ClientResponse,
        tell: Tell,
        location: str | None = None,
        address: str | None = None,
    ) -> None:
        self.status = response.status
        self.headers: CIMultiDictProxy[str] = response.headers
        self.location = location
        # Where redirects led, if that was another origin; a signed address, so it is never told to anyone.
        self.address = address
        self._registry = registry
        self._response = response
        self._tell = tell

    @property
    def content_length(self) -> int | None:
        """The body's length in bytes, where the upstream says it and no coding makes it another's."""
        if self.headers.get("Content-Encoding", "identity").lower() != "identity":
            return None
        return self._response.content_length

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises UpstreamInvalid where it has more than `limit` bytes, else UpstreamFailure."""
        pieces, size = [], 0
        async for piece in self.pieces():
            size += len(piece)
            if size > limit:
                raise UpstreamInvalid(f"{self._registry} answered with more than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives, to the last byte of it. Raises UpstreamFailure where it breaks off."""
        try:
            async for piece in self._response.content.iter_any():
                self._tell(UpstreamBytes(self._registry, len(piece)))
                yield piece
        except NETWORK_ERRORS as error:
            if rest := _unread(self._response.content):
                self._tell(UpstreamBytes(self._registry, len(rest)))
                yield rest
            raise failure_of(error, self._registry) from error


class Upstream:
    """One registry's upstream. `start` it in the running loop and `close` it there."""

    def __init__(
        self,
        registry: str,
        settings: UpstreamSettings,
        tell: Tell,
        clock: Callable[[], float],
        head_limit: float = HEAD_LIMIT,
        budgets: Budgets | None = None,
    ) -> None:
        """`budgets`: who is told what its answers say of rate limits."""
        self.registry = registry
        self.settings = settings
        self._base = URL(settings.url)
        self._tell = tell
        self._clock = clock
        self._head_limit = head_limit
        self._budgets = budgets or Budgets(clock)
        self.pools = Pools(registry, settings, tell)
        # Whose turn it is to take blobs from here; taken by whoever asks for one, before the request.
        self.slots = Slots(settings.max_connections)
        # What tells its bytes from another's, in 16 bytes.
        self.source = hashlib.sha256(f"{registry}\0{settings.url}".encode()).digest()[:16]
        self.parallel = settings.parallel
        self.credential = credential_source(registry, settings, clock)
        self.auth = Authorizer(
            registry, settings.url, settings.token_realms, self.credential, self._ask_token_server, clock
        )
        # What changes an upstream goes another way: see there.
        self.pushes = Pushes(registry, settings, self.pools, self.auth, tell, clock)

    async def start(self) -> None:
        """Get ready; no connection is opened. Raises OSError or ssl.SSLError where the `ca` file cannot be used."""
        await self.pools.start()

    async def close(self) -> None:
        """End all connections."""
        await self.pools.close()

    def is_like(self, other: "Upstream") -> bool:
        """Would requests to `other` go the same way with the same credential? Both are started."""
        ours, theirs = (one.settings.model_dump(exclude=_NOT_OURS) for one in (self, other))
        # The file may be another one under the same name.
        return ours == theirs and self.pools.ca == other.pools.ca

    @asynccontextmanager
    async def request(self, call: Call) -> AsyncIterator[Reply]:
        """Send `call` and give its reply; leaving the context ends the connection if the body was not read.

        Raises UpstreamRefused (401, 403), UpstreamMissing (404), UpstreamRejected (other 4xx), UpstreamFailure (no
        connection, no head in time, 429, 5xx), UpstreamInvalid, or UpstreamOffline.
        """
        if self.settings.offline:
            raise UpstreamOffline(self.registry)
        async with self.pools.in_use():
            try:
                async with asyncio.timeout(self._head_limit):
                    reply, response = await self._authorised(call)
            except TargetRefused as error:
                self._tell(TargetWasRefused(self.registry, error.why))
                raise
            except NETWORK_ERRORS as error:
                # Only the head limit gets here: what the network raises was told and translated where it was met.
                raise failure_of(error, self.registry) from error
            try:
                yield reply
            finally:
                # Back to the pool, or closed where the body was not read to its end.
                response.release()

    async def _authorised(self, call: Call) -> tuple[Reply, aiohttp.ClientResponse]:
        """The call with a token: the one that is known, and where the upstream wants another, one fresh attempt."""
        sent = await self.auth.known(call.principal, call.repository)
        response = await self._follow(call, sent)
        if response.status == 401 and self.is_own(response.url):
            challenges = response.headers.getall("WWW-Authenticate", [])
            response.release()
            sent = await self.auth.answer(challenges, call.principal, call.repository, sent)
            response = await self._follow(call, sent)
        elif response.status == 403 and self.is_own(response.url):
            other = await self.auth.after_denial(call.principal, call.repository, sent)
            if other is not None:
                response.release()
                response = await self._follow(call, other)
        try:
            return await self._reply(call, response), response
        except BaseException:
            response.release()
            raise

    async def _reply(self, call: Call, response: aiohttp.ClientResponse) -> Reply:
        if response.status in _REDIRECTS:
            location = str(self._target(response))
            return Reply(self.registry, response, self._tell, location)
        if response.status < 300:
            address = None if self.is_own(response.url) else str(response.url)
            return Reply(self.registry, response, self._tell, address=address)
        raise await self._error(call, response)

    async def _follow(self, call: Call, authorization: str | None) -> aiohttp.ClientResponse:
        """Send, and follow redirects: with Authorization on the upstream's own origin, without it anywhere else."""
        url = self._url(call) if call.address is None else URL(call.address, encoded=True)
        for _ in range(_MOST_REDIRECTS):
            if not self.is_own(url):
                # Nor with it again where that leads back: what is asked for there then is not the upstream's choice.
                authorization = None
            response = await self._send(call, url, authorization)
            if response.status not in _REDIRECTS:
                return response
            try:
                url = self._target(response)
                if not call.follow and not self.is_own(url):
                    return response
            except BaseException:
                response.release()
                raise
            response.release()
        raise UpstreamInvalid(f"{self.registry} redirects without end")

    async def _send(self, call: Call, url: URL, authorization: str | None) -> aiohttp.ClientResponse:
        headers = dict(call.headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        session = self.pools.pool(call.pool, self.is_own(url))
        try:
            response = await session.request(
                call.method, url, headers=headers, allow_redirects=False, proxy=self.settings.proxy
            )
        except NETWORK_ERRORS as error:
            if (zone := refused_zone(error)) is not None and not self.is_own(url):
                raise UpstreamInvalid(self._refusal("redirects to", url, zone)) from error
            failure = failure_of(error, self.registry)
            self._tell(UpstreamAnswered(self.registry, call.kind, call.method, failure.reason))
            if not self.is_own(url):
                # The host of a redirect says nothing about the registry itself.
                failure = UpstreamFailure("5xx", f"{failure}, at the address it redirected to")
            raise failure from error
        except asyncio.CancelledError:
            # The head limit, or the end of the program; the first is the upstream's doing and is to be seen.
            self._tell(UpstreamAnswered(self.registry, call.kind, call.method, "timeout"))
            raise
        self._tell(UpstreamAnswered(self.registry, call.kind, call.method, str(response.status)))
        if self.is_own(url):
            self._budgets.read(self.registry, call.principal, response.headers)
        return response

    def is_own(self, url: URL) -> bool:
        """Is it of the upstream's own origin?"""
        return url.origin() == self._base.origin()

    def _url(self, call: Call) -> URL:
        url = URL(f"{self._base}/v2/{call.repository.name}/{call.path}", encoded=True)
        return url.with_query(call.query) if call.query else url

    def _target(self, response: aiohttp.ClientResponse) -> URL:
        """Where a redirect leads. Raises UpstreamInvalid for what may not be followed."""
        location = response.headers.get("Location", "")
        try:
            # Signed URLs are signed as they are written: nothing is encoded again.
            target = response.url.join(URL(location, encoded=True))
            good = bool(location) and target.scheme in {"http", "https"} and bool(target.raw_host)
            # As it would be sent; other spellings of a host are for those who look at it, not for the wire.
            good = good and target.raw_authority.isascii() and "@" not in target.raw_authority
        except ValueError:
            good = False
        if not good:
            raise TargetRefused(f"{self.registry} redirects to something that is not a web address", "url")
        if response.url.scheme == "https" and target.scheme != "https":
            raise TargetRefused(f"{self.registry} redirects from https to http", "scheme")
        self.check_target("redirects to", target)
        return target

    def check_target(self, verb: str, url: URL) -> None:
        """Raise TargetRefused for what the upstream may not lead to, as far as that is seen before a connection."""
        if self.is_own(url):
            return
        why = target_refusal(url.raw_host or "", url.port or 0, self._base.port or 0, self.pools.reach)
        if why is not None:
            raise TargetRefused(self._refusal(verb, url, why), why)

    def _refusal(self, verb: str, url: URL, why: WhyRefused) -> str:
        # The host says what to look for; everything behind it may be a signature.
        where = f"{(url.raw_host or '')[:_LONGEST_HOST]!r} port {url.port}"
        return f"{self.registry} {verb} {where}, where it may not lead ({why})"

    async def _error(self, call: Call, response: aiohttp.ClientResponse) -> UpstreamError:
        status = response.status
        message = f"{self.registry} answered {status} for {call.kind} {call.repository.name}"
        if status in {401, 403} and not self.is_own(response.url):
            # A signed address that is over, or a store that is set up wrong: nothing about the principal's rights.
            return UpstreamInvalid(f"{message}, at the address it redirected to", status)
        if status in {401, 403}:
            if status == 401:
                # A 403 says that the credential is known, and not for this.
                self.auth.refused(call.principal, call.repository)
            challenge = self.auth.for_client(response.headers.getall("WWW-Authenticate", []))
            return UpstreamRefused(status, message, challenge)
        wait = retry_after(response.headers.get("Retry-After"), self._clock()) if self.is_own(response.url) else None
        if status == 429 and self.is_own(response.url):
            return UpstreamFailure("429", message, retry_after=wait, status=status)
        if status >= 500 or status < 400 or status == 429:
            return UpstreamFailure("5xx", message, retry_after=wait, status=status)
        if status == 404:
            return UpstreamMissing(message)
        if status == 416:
            return RangeRefused(message, response.headers.get("Content-Range"))
        # Without the upstream's code: for what is cached it is a HEAD that is refused, which has none, and the
        # difference would tell that it is here.
        return UpstreamRejected(status, message)

    async def _ask_token_server(self, request: TokenRequest) -> dict[str, object]:
        """Ask for a token; no redirect is followed. Raises UpstreamRefused or UpstreamFailure."""
        credential, realm = request.credential, URL(request.realm)
        self.check_target("asks for tokens of", realm)
        session = self.pools.pool("metadata", self.is_own(realm))
        try:
            if credential is not None and credential.identity_token:
                # The form has one field for all scopes (distribution's OAuth2 specification), the query one for each.
                form = dict(request.parameters) | {
                    "scope": " ".join(value for name, value in request.parameters if name == "scope"),
                    "grant_type": "refresh_token", "refresh_token": credential.secret, "client_id": "pullthrough",
                }  # fmt: skip
                sending = session.post(realm, data=form, allow_redirects=False, proxy=self.settings.proxy)
            else:
                url = realm.update_query(list(request.parameters))
                headers = {"Authorization": credential.basic} if credential is not None else {}
                sending = session.get(url, headers=headers, allow_redirects=False, proxy=self.settings.proxy)
            async with sending as response:
                self._tell(UpstreamAnswered(self.registry, "other", response.method, str(response.status)))
                if speaks_of_pulls(response.headers):
                    self._budgets.read(self.registry, request.principal, response.headers)
                return await self._token_answer(response)
        except NETWORK_ERRORS as error:
            if (zone := refused_zone(error)) is not None and not self.is_own(realm):
                raise UpstreamInvalid(self._refusal("asks for tokens of", realm, zone)) from error
            failure = failure_of(error, self.registry)
            self._tell(UpstreamAnswered(self.registry, "other", "GET", failure.reason))
            raise UpstreamFailure(failure.reason, f"the token server of {failure}", at_token_server=True) from error

    async def _token_answer(self, response: aiohttp.ClientResponse) -> dict[str, object]:
        message = f"the token server of {self.registry} answered {response.status}"
        if response.status in {400, 401, 403, 404}:
            raise UpstreamRefused(401, message)
        if response.status != 200:
            wait = retry_after(response.headers.get("Retry-After"), self._clock())
            reason: Literal["429", "5xx"] = "429" if response.status == 429 else "5xx"
            raise UpstreamFailure(reason, message, retry_after=wait, at_token_server=True)
        try:
            answer = json.loads(await error_body(response))
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise UpstreamFailure("5xx", f"{message} with something that is not JSON", at_token_server=True)
        return answer


def _unread(stream: aiohttp.StreamReader) -> bytes:
    """What arrived before the connection broke. The stream itself raises before it hands that over, every time."""
    return b"".join(stream._buffer)[stream._buffer_offset :]
