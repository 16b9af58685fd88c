"""What clients that know of no proxy ask a registry for besides its content: whether it is there, and for tokens.

It goes to the upstream as it came, and back; nothing of it is kept here. Where a realm may lead is judged as for the
proxy's own tokens (`challenge`, `policy.dial`).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from proxy.telemetry.events import Tell, UpstreamAnswered
from proxy.upstream.client import HEAD_LIMIT, Upstream
from proxy.upstream.errors import NETWORK_ERRORS, UpstreamFailure, UpstreamInvalid, UpstreamOffline, failure_of

# Token servers' answers have a few KiB, and so have registries' to a ping, in bytes.
_LONGEST_ANSWER = 1 << 20
_PASSED_ON = ("Content-Type", "Retry-After", "Cache-Control")


@dataclass(frozen=True, slots=True)
class LoginAnswer:
    """An answer, whatever its status. `challenge`: the one that a client may be given."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    challenge: str | None = None


async def ping(upstream: Upstream, authorization: str, limit: float, tell: Tell) -> LoginAnswer:
    """`GET /v2/` with a client's Authorization, or without.

    Raises UpstreamFailure where the upstream does not answer within `limit` seconds, or with 429 or 5xx, or is offline.
    """
    headers = {"Authorization": authorization} if authorization else {}
    url = URL(f"{upstream.settings.url}/v2/", encoded=True)
    answer = await _asked(upstream, "ping", "GET", url, headers, b"", limit, tell)
    if answer.status == 429:
        raise UpstreamFailure("429", f"{upstream.registry} answered a ping with 429", status=429)
    if answer.status >= 500:
        raise UpstreamFailure("5xx", f"{upstream.registry} answered a ping with {answer.status}", status=answer.status)
    return answer


async def token(
    upstream: Upstream, realm: str, method: str, query: str, headers: Mapping[str, str], body: bytes, tell: Tell
) -> LoginAnswer:
    """A client's own request for a token, at a `realm` that the upstream has named (`challenge_for_client`).

    Raises UpstreamFailure, UpstreamInvalid where that leads to where nothing may be asked, or UpstreamOffline.
    """
    url = URL(f"{realm}{'&' if '?' in realm else '?'}{query}" if query else realm, encoded=True)
    upstream.check_target("asks for tokens of", url)
    return await _asked(upstream, "other", method, url, headers, body, HEAD_LIMIT, tell)


async def _asked(
    upstream: Upstream,
    kind: str,
    method: str,
    url: URL,
    headers: Mapping[str, str],
    body: bytes,
    limit: float,
    tell: Tell,
) -> LoginAnswer:
    if upstream.settings.offline:
        raise UpstreamOffline(upstream.registry)
    async with upstream.pools.in_use():
        session = upstream.pools.pool("login", upstream.is_own(url))
        try:
            # A log-in is its client's to repeat, and to send elsewhere.
            async with (
                asyncio.timeout(limit),
                session.request(
                    method,
                    url,
                    headers=headers,
                    data=body or None,
                    skip_auto_headers=["Content-Type"],
                    allow_redirects=False,
                    proxy=upstream.settings.proxy,
                ) as response,
            ):
                content = await _read(upstream, response)
        except NETWORK_ERRORS as error:
            failure = failure_of(error, upstream.registry)
            tell(UpstreamAnswered(upstream.registry, kind, method, failure.reason))
            raise failure from error
    tell(UpstreamAnswered(upstream.registry, kind, method, str(response.status)))
    passed = {name: value for name in _PASSED_ON if (value := response.headers.get(name)) is not None}
    challenge = upstream.auth.for_client(response.headers.getall("WWW-Authenticate", []))
    return LoginAnswer(response.status, passed, content, challenge)


async def _read(upstream: Upstream, response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > _LONGEST_ANSWER:
            raise UpstreamInvalid(f"{upstream.registry} answered a log-in with more than {_LONGEST_ANSWER} bytes")
    return bytes(content)
