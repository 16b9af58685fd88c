"""What an upstream can do instead of answering. aiohttp's and asyncio's exceptions end at this room's door."""

import asyncio
import errno
import ssl

import aiohttp

from proxy.policy.backoff import Reason
from proxy.policy.dial import Reason as WhyRefused
from proxy.policy.dial import Zone

_ERROR_BODY_LIMIT = 64 * 1024


class UpstreamError(Exception):
    """Any answer of an upstream that is not what was asked for. The message is for operators and holds no secret.

    `status`: what it answered with, where it answered.
    """

    status: int | None = None


class UpstreamFailure(UpstreamError):
    """The upstream cannot be relied on now: a stale answer is better than none.

    `retry_after` in seconds; `at_token_server`: it was the token server that failed.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after: float | None = None,
        at_token_server: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.at_token_server = at_token_server


class LeftAlone(UpstreamFailure):
    """The upstream was not asked, since it failed a moment ago."""


class UpstreamOffline(LeftAlone):
    """The upstream is not to be asked at all: it is `offline` in the configuration."""

    def __init__(self, registry: str) -> None:
        super().__init__("offline", f"{registry} is configured to be offline")


class UpstreamInvalid(UpstreamFailure):
    """The upstream answered what no registry may answer (HTML, wrong bytes, a forbidden redirect): as good as a 5xx."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__("5xx", message, status=status)


class TargetRefused(UpstreamInvalid):
    """The upstream redirects to, or names a token realm at, what it may not lead to (`policy.dial`)."""

    def __init__(self, message: str, why: WhyRefused) -> None:
        super().__init__(message)
        self.why = why


class AddressRefused(OSError):
    """No socket is made for an address of this zone, which was told. An OSError, so that other addresses are tried."""

    def __init__(self, zone: Zone) -> None:
        # One text for all zones: where every address is refused, the connector raises the first of these as it is.
        super().__init__(errno.EACCES, "the address is refused")
        self.zone = zone


class WrongDigest(UpstreamInvalid):
    """The bytes are not what their digest names."""


class UpstreamRefused(UpstreamError):
    """401 or 403: this principal may not. `challenge` is a WWW-Authenticate that may be handed to the client."""

    def __init__(self, status: int, message: str, challenge: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.challenge = challenge


class UpstreamMissing(UpstreamError):
    """404."""

    status = 404


class UpstreamRejected(UpstreamError):
    """Another 4xx: the upstream does not take this request."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class RangeRefused(UpstreamRejected):
    """416: the range starts past the end. `content_range` is the upstream's, `bytes */SIZE`."""

    def __init__(self, message: str, content_range: str | None) -> None:
        super().__init__(416, message, "RANGE_INVALID")
        self.content_range = content_range


def refused_zone(error: BaseException) -> Zone | None:
    """The zone of the address that was refused, where that is what a network exception means."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return cause.zone if isinstance(cause, AddressRefused) else None


def failure_of(error: BaseException, registry: str) -> UpstreamFailure:
    """The failure that a network exception means.

    `TimeoutError` is an `OSError` since Python 3.11, so the order matters.
    """
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamFailure("connect", f"{registry} could not be connected to in time")
    if isinstance(error, asyncio.TimeoutError):
        return UpstreamFailure("timeout", f"{registry} did not answer in time")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
        return UpstreamFailure("connect", f"{registry} has no certificate we trust: {error}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return UpstreamFailure("connect", f"{registry} could not be connected to: {error.strerror or error}")
    if isinstance(error, aiohttp.ClientPayloadError):
        # It could be connected to, so this speaks of what was asked for, not of the whole upstream.
        return UpstreamFailure("5xx", f"{registry} broke its answer off")
    if isinstance(error, aiohttp.ClientConnectionError | ConnectionError | OSError):
        # It could be connected to, so this speaks of what was asked for.
        return UpstreamFailure("5xx", f"{registry} broke the connection off")
    return UpstreamInvalid(f"{registry} answered something that is not HTTP: {type(error).__name__}")


# ValueError: a host that cannot be encoded, a header that cannot be sent.
NETWORK_ERRORS: tuple[type[BaseException], ...] = (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError)


async def error_body(response: aiohttp.ClientResponse) -> bytes:
    """The body of an error or a token answer, as far as it is worth reading; empty where it breaks off."""
    body = bytearray()
    try:
        while len(body) < _ERROR_BODY_LIMIT and (piece := await response.content.readany()):
            body += piece
    except NETWORK_ERRORS:
        return b""
    return bytes(body)
