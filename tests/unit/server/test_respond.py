"""The only place where an error becomes HTTP, and where an answer's state becomes headers."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from proxy.cache.ask import Ask
from proxy.cache.download import Uncacheable
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.reference import Repository
from proxy.oci.route import BlobRoute, ManifestRoute, ReferrersRoute, Route, TagsRoute
from proxy.policy.access import Principal
from proxy.policy.cluster import Client
from proxy.policy.freshness import CacheState, Verdict, lifetimes_of
from proxy.server.exchange import Exchange
from proxy.server.respond import cache_status, error_response, oci_error, state_headers
from proxy.server.windows import Windows
from proxy.settings import LimitSettings, ManifestSettings, parse_address
from proxy.upstream.errors import (
    UpstreamFailure,
    UpstreamInvalid,
    UpstreamMissing,
    UpstreamRefused,
    UpstreamRejected,
    WrongDigest,
)

MANIFEST = ManifestRoute("a", "latest")
DIGEST = Digest.of(b"x")


@pytest.fixture
async def exchange() -> Exchange:
    """A request for a manifest of docker.io, as far as its answer."""
    ask = Ask(Repository("docker.io", "a"), Principal("anonymous", "anonymous"), lifetimes_of(ManifestSettings()))
    request = make_mocked_request("GET", "/v2/a/manifests/latest", loop=asyncio.get_running_loop())
    client = Client(None, "proxy", parse_address("0.0.0.0:5000"))
    return Exchange(request, client, 0.0, LimitSettings(), Windows(), route=MANIFEST, ask=ask)


def test_cache_status_of_every_state() -> None:
    """The table of the design, word for word."""
    verdicts = {
        "hit; ttl=540": Verdict(CacheState.HIT, 60, 540),
        "hit": Verdict(CacheState.HIT, 60),
        "fwd=stale; fwd-status=200; ttl=600": Verdict(CacheState.REVALIDATED, 0, 600),
        "fwd=stale; detail=stale-timeout": Verdict(CacheState.STALE, 630, -30, "stale-timeout", attempted=True),
        "hit; ttl=-30; detail=stale-429": Verdict(CacheState.STALE, 630, -30, "stale-429"),
        "fwd=miss; stored": Verdict(CacheState.MISS, 0, 600),
        "fwd=miss; collapsed": Verdict(CacheState.JOINED, 0, 600),
        "fwd=bypass; detail=metadata-only": Verdict(CacheState.PASS, detail="metadata-only"),
    }
    for text, verdict in verdicts.items():
        assert cache_status(verdict) == f"pullthrough; {text}"


async def test_a_verdict_becomes_headers_and_is_learnt(exchange: Exchange) -> None:
    """Age, Cache-Status, Warning, OCI-Namespace; the state goes to the metrics too."""
    headers = state_headers(exchange, Verdict(CacheState.STALE, 630.9, -30.2, "stale-5xx", "old", attempted=False))
    assert headers["Age"] == "630"
    assert headers["Warning"] == '299 - "old"'
    assert headers["OCI-Namespace"] == "docker.io"
    assert headers["Cache-Status"] == "pullthrough; hit; ttl=-30; detail=stale-5xx"
    assert (exchange.state, exchange.detail) == (CacheState.STALE, "stale-5xx")


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (OCIError("NAME_INVALID", "x"), 400, "NAME_INVALID", {}),
        (UpstreamMissing("x"), 404, "MANIFEST_UNKNOWN", {}),
        (UpstreamRefused(401, "x", 'Basic realm="r"'), 401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="r"'}),
        (UpstreamRefused(401, "x"), 401, "UNAUTHORIZED", {}),
        (UpstreamRefused(403, "x"), 403, "DENIED", {}),
        (UpstreamRejected(400, "x", "MANIFEST_INVALID"), 400, "MANIFEST_INVALID", {}),
        (UpstreamRejected(405, "x"), 405, "UNSUPPORTED", {}),
        (UpstreamFailure("429", "x"), 429, "TOOMANYREQUESTS", {}),
        (UpstreamFailure("429", "x", retry_after=1.2), 429, "TOOMANYREQUESTS", {"Retry-After": "2"}),
        (UpstreamFailure("429", "x", retry_after=0.0), 429, "TOOMANYREQUESTS", {"Retry-After": "1"}),
        (UpstreamFailure("timeout", "x"), 504, "UNAVAILABLE", {}),
        (UpstreamFailure("connect", "x"), 502, "UNAVAILABLE", {}),
        (UpstreamFailure("5xx", "x", retry_after=5), 502, "UNAVAILABLE", {"Retry-After": "5"}),
        (UpstreamInvalid("x"), 502, "UNAVAILABLE", {}),
        (WrongDigest("x"), 502, "UNAVAILABLE", {}),
        (Uncacheable("x"), 503, "UNAVAILABLE", {}),
        (ZeroDivisionError("geheim"), 500, "UNKNOWN", {}),
        (RecursionError("geheim"), 500, "UNKNOWN", {}),
    ],
)
async def test_every_error_and_its_answer(
    exchange: Exchange, error: Exception, status: int, code: str, headers: dict[str, str]
) -> None:
    """429 stays 429, the rest of the upstream's failures is 502 or 504, and nothing of their text is told."""
    response = error_response(oci_error(error, exchange), exchange)
    assert isinstance(response.body, bytes)
    document = json.loads(response.body)
    assert (response.status, document["errors"][0]["code"]) == (status, code)
    assert response.content_type == "application/json"
    assert {name: response.headers[name] for name in headers} == headers
    assert ("Retry-After" in response.headers) == ("Retry-After" in headers)
    assert "geheim" not in document["errors"][0]["message"]
    assert response.headers["OCI-Namespace"] == "docker.io"


@pytest.mark.parametrize(
    ("route", "code"),
    [
        (MANIFEST, "MANIFEST_UNKNOWN"),
        (BlobRoute("a", DIGEST), "BLOB_UNKNOWN"),
        (TagsRoute("a"), "NAME_UNKNOWN"),
        (ReferrersRoute("a", DIGEST, ()), "MANIFEST_UNKNOWN"),
    ],
)
async def test_a_404_without_a_code_gets_its_endpoints(exchange: Exchange, route: Route, code: str) -> None:
    """What the specification names for each."""
    exchange.route = route
    assert oci_error(UpstreamMissing("x"), exchange).code == code


async def test_an_error_before_any_registry_was_chosen(exchange: Exchange) -> None:
    """No namespace, no cache state; the API's version all the same."""
    exchange.ask = exchange.route = None
    headers: Any = error_response(OCIError("DENIED", "x"), exchange).headers
    assert "OCI-Namespace" not in headers
    assert "Cache-Status" not in headers
    assert headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert error_response(OCIError("DENIED", "x")).status == 403
