"""Nodes that ask for a registry in its own name: what they get is the registry's, and cached as for all others."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings import Settings
from proxy.telemetry.events import RequestFinished
from tests.fakes.content import digest_of, make_image
from tests.fakes.nodes import ALIAS, NAME, Node, Signer, login, real_clock
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import until
from tests.scenarios.repeats import Counts

IMAGE, OTHER = make_image(3000, 400_000, seed=81), make_image(20, seed=82)
TAG = "/v2/team/app/manifests/v1"

MakeSettings = Callable[..., Settings]
REFUSED = 'pullthrough_client_refusals_total{reason="server-name"}'


@pytest.fixture
def trust(signer: Signer) -> ssl.SSLContext:
    """What nodes go by."""
    return signer.trust()


@pytest.fixture
def by_name(settings: MakeSettings, signer: Signer) -> MakeSettings:
    """Settings with one listener, that answers in the registry's name and its alias."""

    def make(**more: object) -> Settings:
        return settings({"aliases": [ALIAS]}, **({"listen": [signer.listener()]} | more))

    return make


def two(directory: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry, **more: object) -> Settings:
    """Settings with two registries, the first one the default."""
    upstreams = {NAME: {"url": registry.url}, "other.test": {"url": other.url}}
    return make_settings(directory / "cache", upstreams, **({"listen": [signer.listener()]} | more))


async def pull(node: Node) -> None:
    """As Docker does without a log-in: by tag, then everything by digest."""
    assert await node.ask(TAG, "HEAD") == 200
    assert node.headers["docker-content-digest"] == IMAGE.digest
    assert await node.ask(f"/v2/team/app/manifests/{IMAGE.digest}") == 200
    assert node.body == IMAGE.manifest
    for blob in IMAGE.blobs:
        assert await node.ask(f"/v2/team/app/blobs/{digest_of(blob)}") == 200
        assert node.body == blob


@pytest.mark.parametrize("names", [(NAME, NAME), (ALIAS, NAME), ("Registry.Test", ALIAS)])
async def test_a_pull(
    by_name: MakeSettings, registry: FakeRegistry, trust: ssl.SSLContext, names: tuple[str, str]
) -> None:
    """Each blob is asked of the registry once, whatever name the first and the second node know it by."""
    registry.push("team/app", "v1", IMAGE)
    async with running(by_name(), real_clock()) as proxy:
        for name in names:
            node = await Node.by_name(proxy, trust, name)
            await pull(node)
            node.leave()
            await proxy.stored(len(IMAGE.blobs))
        assert registry.count("GET", "/blobs/") == len(IMAGE.blobs)
        assert registry.count("GET", "/manifests/") == 1
        for blob in IMAGE.blobs:
            assert registry.record.times_sent(digest_of(blob)) == [(0, len(blob), 1)]


async def test_its_certificate_is_for_that_name(by_name: MakeSettings, trust: ssl.SSLContext) -> None:
    """And for no other, so nobody can be sent from one registry to another unseen."""
    async with running(by_name(), real_clock()) as proxy:
        for name in (NAME, ALIAS):
            node = await Node.by_name(proxy, trust, name)
            certificate = node._writer.get_extra_info("peercert")
            assert certificate["subjectAltName"] == (("DNS", name),)
            node.leave()


async def test_the_host_says_which_registry(
    tmp_path: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """With a port or without; where it names none, the name that TLS was asked for does; also on one connection."""
    registry.push("team/app", "v1", IMAGE)
    other.push("team/app", "v1", OTHER)
    async with running(two(tmp_path, signer, registry, other), real_clock()) as proxy:
        node = await Node.by_name(proxy, trust, "other.test")
        for host, image in (
            ("other.test", OTHER), ("other.test:443", OTHER), ("x.test", OTHER), (NAME, IMAGE), (f"{NAME}:443", IMAGE),
        ):  # fmt: skip
            assert await node.ask(TAG, Host=host) == 200
            assert node.body == image.manifest
        node.leave()


async def test_unknown_names(by_name: MakeSettings, registry: FakeRegistry, signer: Signer) -> None:
    """They are refused in the handshake, with an alert that says so, and so is none at all; each is counted, and
    another client is served meanwhile on the connection it has. The registry hears nothing of them."""
    registry.push("team/app", "v1", IMAGE)
    trust = signer.trust(any_name=True)
    async with running(by_name(), real_clock()) as proxy:
        served = await Node.by_name(proxy, trust)
        assert await served.ask(TAG) == 200
        seen = len(registry.seen)
        for count, name in enumerate(("registry.test.evil", "sub.registry.test", "test", ""), 1):
            with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
                await Node.by_name(proxy, trust, name)
            assert await served.ask(TAG) == 200
            assert await proxy.metric(REFUSED) == count
        assert len(registry.seen) == seen
        await until(lambda: len(proxy.application._gate) == 1)
        served.leave()


async def test_many_unknown_names_at_once(by_name: MakeSettings, registry: FakeRegistry, trust: ssl.SSLContext) -> None:
    """Nothing is kept of any of them, and certificates are made for none."""
    registry.push("team/app", "v1", IMAGE)
    async with running(by_name(), real_clock()) as proxy:
        tasks = [asyncio.create_task(Node.by_name(proxy, trust, f"n{number}.test")) for number in range(50)]
        node = await Node.by_name(proxy, trust)
        assert await node.ask(TAG) == 200
        failed = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, ssl.SSLError) for error in failed)
        assert await proxy.metric(REFUSED) == len(tasks)
        await until(lambda: len(proxy.application._gate) == 1)
        node.leave()


async def test_a_name_with_another_port(
    tmp_path: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Is that registry's, or nobody's: never is the default's image given in another registry's name."""
    registry.push("team/app", "v1", IMAGE)
    other.push("team/app", "v1", OTHER)
    upstreams = {NAME: {"url": registry.url}, "ported.test:8443": {"url": other.url}}
    configured = make_settings(tmp_path / "cache", upstreams, listen=[signer.listener()])
    async with running(configured, real_clock()) as proxy:
        node = await Node.by_name(proxy, trust, "ported.test")
        answers = [(await node.ask(TAG, Host=host), node.body) for host in ("ported.test:8443", "ported.test")]
        node.leave()
    assert answers[0] == (200, OTHER.manifest)
    assert answers[1][0] == 404 or answers[1] == (200, OTHER.manifest)
    assert not registry.seen


# Whose clients they are.


async def test_clusters_by_host(
    by_name: MakeSettings, registry: FakeRegistry, trust: ssl.SSLContext, finished: list[RequestFinished]
) -> None:
    """Metrics and the access record say cluster and registry; the latter by its own name, not by its alias."""
    registry.push("team/app", "v1", IMAGE)
    clusters = [{"name": "mirrored", "match": {"hosts": [ALIAS]}}, {"name": "rest"}]
    async with running(by_name(clusters=clusters), real_clock()) as proxy:
        for name in (ALIAS, NAME):
            node = await Node.by_name(proxy, trust, name)
            assert await node.ask(TAG) == 200
            node.leave()
        labels = f'kind="manifest",method="GET",registry="{NAME}",status="200"}}'
        for cluster, cache in (("mirrored", "miss"), ("rest", "hit")):
            name = f'pullthrough_requests_total{{cache="{cache}",cluster="{cluster}",{labels}'
            assert await proxy.metric(name) == 1
        told = [(one.cluster, one.registry, one.repository, one.reference, one.client) for one in finished]
        assert told == [(name, NAME, "team/app", "v1", "127.0.0.1") for name in ("mirrored", "rest")]


async def test_clusters_by_listener(
    tmp_path: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """What a cluster may not have is 404, and is not asked of its registry; the other listener's clients get it."""
    registry.push("team/app", "v1", IMAGE)
    other.push("team/app", "v1", OTHER)
    clusters = [
        {"name": "few", "match": {"listeners": ["127.0.0.2:0"]}, "upstreams": [NAME]},
        {"name": "all", "match": {"listeners": ["127.0.0.1:0"]}},
    ]
    listen = [signer.listener(), signer.listener("127.0.0.2:0")]
    configured = two(tmp_path, signer, registry, other, listen=listen, clusters=clusters)
    async with running(configured, real_clock()) as proxy:
        few = await Node.by_name(proxy, trust, "other.test", listener=1)
        assert await few.ask(TAG) == 404
        assert few.code == "NAME_UNKNOWN"
        assert await few.ask(TAG, Host=NAME) == 200
        assert not other.seen
        many = await Node.by_name(proxy, trust, "other.test")
        assert await many.ask(TAG) == 200
        few.leave()
        many.leave()


async def test_a_client_of_no_cluster(by_name: MakeSettings, registry: FakeRegistry, trust: ssl.SSLContext) -> None:
    """403, whatever it asks for, and the registry hears nothing."""
    clusters = [{"name": "far", "match": {"networks": ["10.0.0.0/8"]}}]
    async with running(by_name(clusters=clusters), real_clock()) as proxy:
        node = await Node.by_name(proxy, trust)
        for path in ("/v2/", TAG, "/token"):
            assert await node.ask(path) == 403
            assert node.code == "DENIED"
        assert not registry.seen
        node.leave()


# What is as usual.


async def test_a_reload(
    tmp_path: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Another upstream's name is known when it is over; one that is gone is refused again."""
    other.push("team/app", "v1", OTHER)
    both = two(tmp_path, signer, registry, other)
    one = make_settings(tmp_path / "cache", {NAME: {"url": registry.url}}, listen=[signer.listener()])
    async with running(one, real_clock()) as proxy:
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await Node.by_name(proxy, trust, "other.test")
        assert await proxy.application.reload(both) == []
        node = await Node.by_name(proxy, trust, "other.test")
        assert await node.ask(TAG) == 200
        assert node.body == OTHER.manifest
        assert await proxy.application.reload(one) == []
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await Node.by_name(proxy, trust, "other.test")
        node.leave()


async def test_a_registry_that_is_gone_is_no_other_one(
    tmp_path: Path, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """Who asks in its name, on a connection of before, gets 404: neither the default's content nor that of a registry
    which the path or `ns` names; and what was sent along goes nowhere. No handshake in its name comes about, also
    where no certificates can be made anew."""
    signer = await asyncio.to_thread(Signer.made_in, tmp_path)
    trust = signer.trust()
    other.push("team/app", "v1", OTHER)
    upstreams: dict[str, dict[str, object]] = {
        NAME: {"url": other.url, "default": True},
        "other.test": {"url": registry.url},
    }
    both = make_settings(tmp_path / "cache", upstreams, listen=[signer.listener()])
    left = make_settings(tmp_path / "cache", {NAME: upstreams[NAME]}, listen=[signer.listener()])
    async with running(both, real_clock()) as proxy:
        node = await Node.by_name(proxy, trust, "other.test")
        assert await node.ask("/v2/") == 200
        await asyncio.to_thread(signer.key.write_text, "no key")
        assert await proxy.application.reload(left) == []
        other.seen.clear()
        for path in (TAG, f"{TAG}?ns={NAME}", f"/v2/{NAME}/team/app/manifests/v1"):
            assert await node.ask(path, Authorization=login()) == 404
        assert not other.seen
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await Node.by_name(proxy, trust, "other.test")
        node.leave()


async def test_pushes_are_denied(by_name: MakeSettings, registry: FakeRegistry, trust: ssl.SSLContext) -> None:
    """405, and nothing of it reaches the registry."""
    async with running(by_name(), real_clock()) as proxy:
        for method, path in (("POST", "/v2/team/app/blobs/uploads/"), ("PUT", TAG), ("DELETE", TAG)):
            node = await Node.by_name(proxy, trust)
            assert await node.ask(path, method) == 405
            assert node.code == "UNSUPPORTED"
            node.leave()
        assert not registry.seen


async def test_repeated_manifests_are_answered_by_their_bytes(
    tmp_path: Path, signer: Signer, registry: FakeRegistry, other: FakeRegistry, trust: ssl.SSLContext, counts: Counts
) -> None:
    """In one registry's name; the same bytes in another's name are that one's, since their Host names neither."""
    registry.push("team/app", "v1", IMAGE)
    other.push("team/app", "v1", OTHER)
    async with running(two(tmp_path, signer, registry, other), real_clock()) as proxy:
        for name, image in ((NAME, IMAGE), ("other.test", OTHER)):
            node = await Node.by_name(proxy, trust, name)
            node.host = "x.test"
            for number in range(5):
                await _rests(proxy)
                before = len(counts.handled)
                assert await node.ask(TAG) == 200
                assert node.body == image.manifest
                assert len(counts.handled) - before == (number < 2)
            node.leave()
            await until(lambda: not proxy.connections)
        assert (len(registry.seen), len(other.seen)) == (1, 1)


async def _rests(proxy: Proxy) -> None:
    """Wait until the only connection waits for a request."""
    await until(lambda: len(proxy.connections) == 1)
    (connection,) = proxy.connections
    await until(lambda: connection._waiter is not None and not connection._waiter.done())
