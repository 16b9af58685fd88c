"""Clusters told apart by client certificate: only what was verified counts, and only where it is asked for."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.settings import Settings
from tests.fakes.authority import Authority, Pair, tls_listener
from tests.fakes.content import make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry

IMAGE = make_image(10, seed=72)
TAG = "/v2/team/app/manifests/v1"
REFUSED = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)

PROD = {"name": "prod", "match": {"certificates": ["prod", "*.prod.internal", "spiffe://prod.internal/*"]}}
OTHERS = {"name": "others", "upstreams": []}

Start = Callable[..., Any]


@pytest.fixture
def start(settings: Callable[..., Settings], server_pair: Pair, authority: Authority, registry: FakeRegistry) -> Start:
    """Starts a proxy that asks for certificates; only the cluster prod is served the registry."""
    registry.push("team/app", "v1", IMAGE)

    def make(client: ssl.SSLContext, clusters: tuple[Any, ...] = (PROD, OTHERS), **tls: Any) -> Any:
        listen = tls_listener(server_pair, client_ca=str(authority.ca), **tls)
        return running(settings(listen=listen, clusters=list(clusters)), tls=client)

    return make


async def is_prod(proxy: Proxy) -> bool:
    """Is the client in prod? The others get 404, since they may use no registry."""
    status = (await proxy.get(TAG)).status
    assert status in {200, 404}
    return status == 200


@pytest.mark.parametrize(
    ("subject", "alternatives", "fits"),
    [
        ("/CN=prod", "", True),
        ("/O=system:nodes/CN=Prod", "", True),
        ("/CN=dev", "", False),
        ("/CN=node7", "DNS:node7.prod.internal", True),
        ("/CN=node7", "DNS:x.dev.internal,DNS:NODE7.prod.internal", True),
        ("/CN=x", "URI:spiffe://prod.internal/ns/a/sa/b", True),
        ("/CN=x", "URI:spiffe://dev.internal/spiffe://prod.internal/a", False),
        # The common name is not looked at where there are other names, which an authority may have limited.
        ("/CN=prod", "DNS:node1.dev.internal", False),
        ("/CN=prod", "URI:spiffe://dev.internal/a", False),
        ("/CN=prod", "IP:10.0.0.1", True),
        ("/CN=dev", "email:prod", False),
        ("/O=prod", "", False),
        ("/CN=prod/CN=dev", "", False),
    ],
)
async def test_names(start: Start, authority: Authority, subject: str, alternatives: str, fits: bool) -> None:
    """DNS names and URIs of the SAN; the common name where it has neither; shell patterns."""
    async with start(authority.client(authority.issue(subject, alternatives))) as proxy:
        assert await is_prod(proxy) is fits


async def test_required(start: Start, authority: Authority) -> None:
    """As it comes, a client without a certificate does not get as far as a request."""
    async with start(authority.client()) as proxy:
        with pytest.raises(aiohttp.ClientOSError, match="CERTIFICATE_REQUIRED"):
            await proxy.get("/v2/")


async def test_optional(start: Start, authority: Authority) -> None:
    """With `client_auth: optional` it is served by the clusters that do not go by certificates, or by none."""
    async with start(authority.client(), client_auth="optional") as proxy:
        assert not await is_prod(proxy)
    async with start(authority.client(authority.issue("/CN=prod")), client_auth="optional") as proxy:
        assert await is_prod(proxy)
    async with start(authority.client(), clusters=(PROD,), client_auth="optional") as proxy:
        answer = await proxy.get(TAG)
        assert (answer.status, answer.code) == (403, "DENIED")


@pytest.mark.parametrize("client_auth", ["required", "optional"])
@pytest.mark.parametrize("kind", ["foreign", "self-signed", "expired", "of a server"])
async def test_certificates_that_are_no_good(
    start: Start, authority: Authority, tmp_path: Path, kind: str, client_auth: str
) -> None:
    """Of another authority, of itself, expired, or made for servers: no connection, wherever they are asked for."""
    other = Authority(tmp_path, "prod")
    pair = {
        "foreign": lambda: other.issue("/CN=prod"),
        "self-signed": lambda: Pair(other.ca, other.ca.with_suffix(".key")),
        "expired": lambda: authority.issue("/CN=prod", days=-1),
        "of a server": lambda: authority.issue("/CN=prod", usage="serverAuth"),
    }[kind]()
    async with start(authority.client(pair), client_auth=client_auth) as proxy:
        with pytest.raises(REFUSED):
            await proxy.get("/v2/")


async def test_a_listener_that_does_not_ask(
    settings: Callable[..., Settings], server_pair: Pair, authority: Authority, registry: FakeRegistry
) -> None:
    """The same certificate is worth nothing at a listener without `client_ca`, with TLS or without."""
    registry.push("team/app", "v1", IMAGE)
    asking = tls_listener(server_pair, client_ca=str(authority.ca))
    listen = [
        *tls_listener(server_pair),
        {"address": "127.0.0.2:0"},
        {"address": "127.0.0.3:0"} | {"tls": asking[0]["tls"]},
    ]
    client = authority.client(authority.issue("/CN=prod"))
    async with running(settings(listen=listen, clusters=[PROD, OTHERS]), tls=client) as proxy:
        assert not await is_prod(proxy)
        places = proxy.application.listeners
        async with proxy.session.get(f"http://{places[1].address}{TAG}") as answer:
            assert answer.status == 404
        trusting = authority.client(authority.issue("/CN=prod"))
        trusting.check_hostname = False
        async with proxy.session.get(f"https://{places[2].address}{TAG}", ssl=trusting) as answer:
            assert answer.status == 200


async def test_no_session_is_resumed(start: Start, authority: Authority) -> None:
    """Each connection is verified anew; TLS 1.2, which resumes by ID, is not spoken where clients are verified."""
    client = authority.client(authority.issue("/CN=prod"))
    async with start(client) as proxy:
        port = proxy.application.listeners[0].address.port
        session, reused = await asyncio.to_thread(_connect, port, client, None)
        for _ in range(2):
            session, reused = await asyncio.to_thread(_connect, port, client, session)
            assert not reused
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await asyncio.to_thread(_connect, port, client, None)


def _connect(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool | None]:
    """A ping over a connection that would resume `session`; gives the next one, and whether it did."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as tls:
            tls.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert tls.recv(12) == b"HTTP/1.1 200"
            return tls.session, tls.session_reused


async def test_an_authority_in_between(
    settings: Callable[..., Settings], server_pair: Pair, authority: Authority, registry: FakeRegistry, tmp_path: Path
) -> None:
    """`client_ca` may be an intermediate authority alone: its clients are let in, those of its root are not."""
    registry.push("team/app", "v1", IMAGE)
    between = Authority(tmp_path, "between", above=authority)
    listen = tls_listener(server_pair, client_ca=str(between.ca))
    make = settings(listen=listen, clusters=[PROD, OTHERS])
    async with running(make, tls=authority.client(between.issue("/CN=prod"))) as proxy:
        assert await is_prod(proxy)
        with pytest.raises(REFUSED):
            async with proxy.session.get(proxy.url + TAG, ssl=authority.client(authority.issue("/CN=prod"))):
                pass
