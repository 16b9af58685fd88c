"""CONNECT at a listener that is told of by HTTPS_PROXY: a registry is answered here, as in its own name."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.settings import Settings
from tests.fakes.authority import Authority, Pair
from tests.fakes.content import digest_of, make_image
from tests.fakes.nodes import ALIAS, NAME, Node, Signer, connect, real_clock
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.raw import Raw
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import until

IMAGE, OTHER = make_image(3000, seed=84), make_image(20, seed=85)
TAG = "/v2/team/app/manifests/v1"
GET = f"GET {TAG} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
PORTED = "ported.test:8443"

MakeSettings = Callable[..., Settings]


@pytest.fixture
def trust(signer: Signer) -> ssl.SSLContext:
    """What nodes go by."""
    return signer.trust()


@pytest.fixture
def by_connect(settings: MakeSettings, signer: Signer) -> MakeSettings:
    """Settings with a listener that takes CONNECT, and an ordinary one."""
    listen = [signer.listener(connect=True, tunnel=["*"]), {"address": "127.0.0.1:0"}]

    def make(**more: object) -> Settings:
        return settings({"aliases": [ALIAS, PORTED]}, **({"listen": listen} | more))

    return make


@pytest.fixture
async def proxy(by_connect: MakeSettings, registry: FakeRegistry) -> AsyncIterator[Proxy]:
    """One of these, whose registry has the image."""
    registry.push("team/app", "v1", IMAGE)
    async with running(by_connect(), real_clock()) as started:
        yield started


def two(directory: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry, **more: object) -> Settings:
    """Settings with two registries, the first one the default."""
    registry.push("team/app", "v1", IMAGE)
    other.push("team/app", "v1", OTHER)
    upstreams = {NAME: {"url": registry.url}, "other.test": {"url": other.url}}
    return make_settings(directory / "cache", upstreams, listen=[signer.listener(connect=True)], **more)


def connections(proxy: Proxy) -> int:
    return len(proxy.application._gate)


# Registries.


@pytest.mark.parametrize("target", [f"{NAME}:443", f"{ALIAS}:443", "Registry.TEST:443", f"{NAME}.:443", PORTED])
async def test_a_pull(proxy: Proxy, registry: FakeRegistry, signer: Signer, target: str) -> None:
    """By its name or an alias, with port 443 or its own; the second node's blobs come from here."""
    for _ in range(2):
        node = await Node.by_connect(proxy, signer.trust(any_name=target.endswith(".:443")), target)
        assert await node.ask(TAG) == 200
        assert node.body == IMAGE.manifest
        for blob in IMAGE.blobs:
            assert await node.ask(f"/v2/team/app/blobs/{digest_of(blob)}") == 200
            assert node.body == blob
        node.leave()
        await proxy.stored(len(IMAGE.blobs))
    assert registry.count("GET", "/blobs/") == len(IMAGE.blobs)
    assert await proxy.metric('pullthrough_requests_total{cache="hit",cluster="default",kind="blob"') == 2
    # What is answered here is counted as what it asks for.
    assert await proxy.metric('pullthrough_requests_total{cache="pass"') == 0


async def test_it_means_whom_it_asked_for(
    tmp_path: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """By CONNECT, whatever TLS is asked for afterwards, where its Host names no registry; the Host goes first."""
    async with running(two(tmp_path, signer, registry, other), real_clock()) as proxy:
        node = await Node.by_connect(proxy, signer.trust(any_name=True), "other.test:443", NAME)
        assert node._writer.get_extra_info("peercert")["subjectAltName"] == (("DNS", "other.test"),)
        for host, image in (("x.test", OTHER), ("other.test", OTHER), (NAME, IMAGE)):
            assert await node.ask(TAG, Host=host) == 200
            assert node.body == image.manifest
        node.leave()


async def test_byte_by_byte(proxy: Proxy, trust: ssl.SSLContext) -> None:
    """It may come in as many pieces as its client likes."""
    client = await Raw.connect(proxy)
    for byte in connect(f"{NAME}:443"):
        await _alone(proxy, client, bytes([byte]))
    assert await client.answer() == 200
    assert client.headers == {}
    await client._writer.start_tls(trust, server_hostname=NAME)
    await client.send(GET)
    assert await client.answer() == 200
    assert client.body == IMAGE.manifest
    client.leave()


async def _alone(proxy: Proxy, client: Raw, data: bytes) -> None:
    """Send it, and have the proxy read it before anything else comes."""
    await client.send(data)
    # The loop looks at all of its sockets in each of its turns.
    for _ in range(3):
        await asyncio.sleep(0)


async def test_http_1_0(proxy: Proxy, trust: ssl.SSLContext) -> None:
    """Is good enough."""
    client = await Raw.connect(proxy, connect(f"{NAME}:443", "HTTP/1.0"))
    assert await client.answer() == 200
    client.leave()


async def test_what_its_cluster_may_not_have(
    tmp_path: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Is 404 inside, and its registry hears nothing."""
    clusters = [{"name": "few", "upstreams": [NAME]}]
    async with running(two(tmp_path, signer, registry, other, clusters=clusters), real_clock()) as proxy:
        node = await Node.by_connect(proxy, trust, "other.test:443")
        assert await node.ask(TAG) == 404
        assert node.code == "NAME_UNKNOWN"
        assert not other.seen
        node.leave()


async def test_clusters_by_host(by_connect: MakeSettings, registry: FakeRegistry, trust: ssl.SSLContext) -> None:
    """The name that CONNECT has is its Host, without a port, too: who fits no cluster is refused at once."""
    registry.push("team/app", "v1", IMAGE)
    clusters = [{"name": "mirrored", "match": {"hosts": [ALIAS]}}]
    async with running(by_connect(clusters=clusters), real_clock()) as proxy:
        node = await Node.by_connect(proxy, trust, f"{ALIAS}:443")
        assert await node.ask(TAG) == 200
        node.leave()
        await until(lambda: connections(proxy) == 0)
        assert await proxy.metric('pullthrough_requests_total{cache="miss",cluster="mirrored"') == 1
        client = await Raw.connect(proxy, connect(f"{NAME}:443"))
        assert await client.answer() == 403
        assert client.code == "DENIED"
        assert await client.end() == b""


async def test_a_reload(
    tmp_path: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Another registry is answered for when it is over."""
    both = two(tmp_path, signer, registry, other)
    one = both.model_copy(update={"upstreams": {NAME: both.upstreams[NAME]}})
    async with running(one, real_clock()) as proxy:
        client = await Raw.connect(proxy, connect("other.test:443"))
        assert await client.answer() == 403
        client.leave()
        assert await proxy.application.reload(both) == []
        node = await Node.by_connect(proxy, trust, "other.test:443")
        assert await node.ask(TAG) == 200
        assert node.body == OTHER.manifest
        node.leave()


# Handshakes.


@pytest.mark.parametrize("how", ["noise", "plain HTTP", "leaves", "resets"])
async def test_a_handshake_that_fails(proxy: Proxy, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """After the 200: the connection is closed, nothing stays of it, and no line above debug is written."""
    client = await Raw.connect(proxy, connect(f"{NAME}:443"))
    assert await client.answer() == 200
    if how == "leaves":
        client.leave()
    elif how == "resets":
        await client.reset()
    else:
        await client.send(GET if how == "plain HTTP" else bytes(range(256)))
        assert not (await client.end()).startswith(b"HTTP")
    await until(lambda: connections(proxy) == 0)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_a_node_that_does_not_trust_it(proxy: Proxy, trust: ssl.SSLContext) -> None:
    """It ends the handshake itself; the next one is served."""
    with pytest.raises(ssl.SSLCertVerificationError):
        await Node.by_connect(proxy, ssl.create_default_context())
    await until(lambda: connections(proxy) == 0)
    node = await Node.by_connect(proxy, trust)
    assert await node.ask(TAG) == 200
    node.leave()


# An HTTPS proxy.


async def test_over_tls(
    settings: MakeSettings, signer: Signer, registry: FakeRegistry, server_pair: Pair, authority: Authority
) -> None:
    """Its own certificate outside, the registry's inside; what is no CONNECT is answered as on any listener."""
    registry.push("team/app", "v1", IMAGE)
    tls = {"certificate": str(server_pair.certificate), "key": str(server_pair.key)}
    listen = [signer.listener(connect=True, tls=tls)]
    async with running(settings(listen=listen), real_clock()) as proxy:
        client = await Raw.connect(proxy, connect(f"{NAME}:443"), tls=authority.client())
        assert await client.answer() == 200
        await client._writer.start_tls(signer.trust(), server_hostname=NAME)
        for blob in IMAGE.blobs:
            await client.send(f"GET /v2/team/app/blobs/{digest_of(blob)} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert await client.answer() == 200
            assert client.body == blob
        client.leave()
        plain = await Raw.connect(proxy, GET, tls=authority.client())
        assert await plain.answer() == 200
        assert plain.body == IMAGE.manifest
        plain.leave()
        noise = await Raw.connect(proxy, connect(f"{NAME}:443"), tls=authority.client())
        assert await noise.answer() == 200
        await noise.send(bytes(range(256)))
        await noise.end()
        refused = await Raw.connect(proxy, connect("unlisted.test:443"), tls=authority.client())
        assert await refused.answer() == 403
        assert refused.code == "DENIED"
        refused.leave()
        await until(lambda: connections(proxy) == 0)
