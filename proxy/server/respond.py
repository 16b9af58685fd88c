"""The only place where an error becomes HTTP, and where an answer's state becomes headers."""

import logging
import math

from aiohttp import web

from proxy.cache.download import Uncacheable
from proxy.cache.missing import KnownMissing
from proxy.oci.errors import OCIError, error_body
from proxy.policy.freshness import CacheState, Verdict
from proxy.server.exchange import Exchange
from proxy.upstream.errors import (
    LeftAlone,
    RangeRefused,
    UpstreamError,
    UpstreamFailure,
    UpstreamMissing,
    UpstreamOffline,
    UpstreamRefused,
    UpstreamRejected,
)

_log = logging.getLogger("pullthrough.server")

_UNKNOWN_CODE = {
    "manifest": "MANIFEST_UNKNOWN",
    "blob": "BLOB_UNKNOWN",
    "tags": "NAME_UNKNOWN",
    "referrers": "MANIFEST_UNKNOWN",
}
BASIC_CHALLENGE = 'Basic realm="pullthrough", charset="UTF-8"'
# Clients of the v1 protocol's days look for the first; the second would otherwise name libraries and their versions.
EVERY_ANSWER = {"Docker-Distribution-API-Version": "registry/2.0", "Server": "pullthrough"}


def error_response(error: OCIError, exchange: Exchange | None = None) -> web.Response:
    """An error as the specification wants it."""
    headers = EVERY_ANSWER | error.headers
    if exchange is not None:
        headers = common_headers(exchange) | headers
        if exchange.ask is not None:
            headers |= _error_headers(exchange)
    body = error_body(error.code, error.message)
    return web.Response(status=error.status, body=body, content_type="application/json", headers=headers)


def oci_error(error: Exception, exchange: Exchange) -> OCIError:
    """What a client is told of `error`. Upstreams' own words stay here; operators get one line of what failed."""
    if isinstance(error, OCIError):
        return error
    _learn(error, exchange)
    if isinstance(error, UpstreamError):
        return _upstream_error(error, exchange)
    if isinstance(error, Uncacheable):
        return OCIError("UNAVAILABLE", "the proxy cannot serve this now")
    if isinstance(error, TimeoutError):
        return OCIError("UNAVAILABLE", "the registry did not answer in time", status=504)
    _log.error("request %s failed", exchange.request.rel_url.raw_path, exc_info=error)
    return OCIError("UNKNOWN", "the proxy failed to answer this request")


def _learn(error: Exception, exchange: Exchange) -> None:
    """Let the exchange know how `error` came about, for its headers, its metrics and its log line.

    What the cache has is none of the business of those who may not see it, so it is a miss in any case.
    """
    exchange.verdict = None
    if isinstance(error, KnownMissing):
        exchange.verdict = Verdict(CacheState.HIT, error.age, error.left, "negative")
        exchange.state, exchange.detail = CacheState.HIT, "negative"
        return
    if isinstance(error, UpstreamError | TimeoutError):
        exchange.asked = not isinstance(error, LeftAlone)
        if not exchange.passing:
            exchange.state = CacheState.MISS
    if isinstance(error, UpstreamError):
        exchange.fwd_status = error.status
    if isinstance(error, UpstreamOffline):
        exchange.detail = "offline"
    elif isinstance(error, LeftAlone):
        exchange.detail = f"left-alone-{error.reason}"
    elif isinstance(error, UpstreamFailure):
        exchange.detail = f"upstream-{error.reason}"
    elif isinstance(error, TimeoutError):
        exchange.detail = "upstream-timeout"
    elif isinstance(error, Uncacheable):
        exchange.detail = "cache-trouble"


def _upstream_error(error: UpstreamError, exchange: Exchange) -> OCIError:
    registry = exchange.registry or "the upstream"
    kind = exchange.route.kind if exchange.route is not None else "manifest"
    if isinstance(error, UpstreamRefused):
        if error.status != 401:
            return OCIError("DENIED", f"{registry} does not give this to the one who asks")
        challenge = BASIC_CHALLENGE if exchange.takes_basic else error.challenge
        headers = {"WWW-Authenticate": challenge} if challenge else {}
        return OCIError("UNAUTHORIZED", f"{registry} does not give this to the one who asks", headers=headers)
    if isinstance(error, UpstreamMissing):
        # Not the upstream's own code: what is here already is asked for by HEAD, which has none, and the difference
        # would tell what others have had.
        return OCIError(_UNKNOWN_CODE.get(kind, "NAME_UNKNOWN"), f"{registry} does not have it")
    if isinstance(error, RangeRefused):
        whole = {"Content-Range": error.content_range} if error.content_range else {}
        return OCIError("RANGE_INVALID", "the range starts past the end", headers=whole)
    if isinstance(error, UpstreamRejected):
        return OCIError(error.code or "UNSUPPORTED", f"{registry} refused the request", status=error.status)
    if isinstance(error, UpstreamFailure):
        return _failure(error, registry, kind)
    return OCIError("UNKNOWN", f"{registry} could not be asked", status=502)


def _failure(error: UpstreamFailure, registry: str, kind: str) -> OCIError:
    if isinstance(error, UpstreamOffline):
        rest = "nothing can be pushed to it" if kind == "push" else "and this is not cached for the one who asks"
        return OCIError("UNAVAILABLE", f"{registry} is offline by the proxy's configuration; {rest}", status=502)
    wait = {"Retry-After": str(max(1, math.ceil(error.retry_after)))} if error.retry_after is not None else {}
    if error.reason == "429":
        return OCIError("TOOMANYREQUESTS", f"{registry} limits requests at present", headers=wait)
    if error.reason == "timeout":
        return OCIError("UNAVAILABLE", f"{registry} did not answer in time", status=504, headers=wait)
    return OCIError("UNAVAILABLE", f"{registry} cannot be used at present", status=502, headers=wait)


def common_headers(exchange: Exchange) -> dict[str, str]:
    """What every answer about a registry carries (distribution-spec, "Registry proxying")."""
    return _common(exchange.registry)


def _common(registry: str) -> dict[str, str]:
    return {**EVERY_ANSWER, "OCI-Namespace": registry} if registry else dict(EVERY_ANSWER)


def state_headers(exchange: Exchange, verdict: Verdict) -> dict[str, str]:
    """See `answer_headers`; the exchange learns the state for its metrics and log line."""
    exchange.state, exchange.verdict = verdict.state, verdict
    exchange.detail = verdict.detail or ""
    return answer_headers(exchange.registry, verdict)


def answer_headers(registry: str, verdict: Verdict) -> dict[str, str]:
    """`Age`, `Cache-Status` and `Warning` of an answer, and what every answer about a registry carries."""
    headers = {**_common(registry), "Cache-Status": cache_status(verdict)}
    if verdict.age is not None:
        headers["Age"] = str(int(verdict.age))
    if verdict.warning is not None:
        headers["Warning"] = f'299 - "{verdict.warning}"'
    return headers


def _error_headers(exchange: Exchange) -> dict[str, str]:
    """The Cache-Status of an error, and its Age where it was remembered. Nothing was stored.

    One that the upstream was not asked about has neither `hit` nor `fwd` (RFC 9211, section 2: all of it is optional).
    """
    if (verdict := exchange.verdict) is not None:
        age = {"Age": str(int(verdict.age))} if verdict.age is not None else {}
        return {"Cache-Status": cache_status(verdict)} | age
    parts = ["pullthrough"]
    if exchange.asked:
        parts.append("fwd=miss" if exchange.state is CacheState.MISS else "fwd=bypass")
        parts += [f"fwd-status={exchange.fwd_status}"] if exchange.fwd_status is not None else []
    return {"Cache-Status": "; ".join([*parts, *([f"detail={exchange.detail}"] if exchange.detail else [])])}


def cache_status(verdict: Verdict) -> str:
    """The Cache-Status of RFC 9211, named `pullthrough`."""
    ttl = [f"ttl={math.ceil(verdict.ttl)}"] if verdict.ttl is not None else []
    detail = [f"detail={verdict.detail}"] if verdict.detail else []
    match verdict.state:
        case CacheState.HIT:
            parts = ["hit", *ttl, *detail]
        case CacheState.REVALIDATED:
            parts = ["fwd=stale", "fwd-status=200", *ttl]
        case CacheState.STALE:
            parts = ["fwd=stale", *detail] if verdict.attempted else ["hit", *ttl, *detail]
        case CacheState.MISS:
            parts = ["fwd=miss", "stored"]
        case CacheState.JOINED:
            parts = ["fwd=miss", "collapsed"]
        case CacheState.PASS:
            parts = ["fwd=bypass", *detail]
    return "; ".join(["pullthrough", *parts])
