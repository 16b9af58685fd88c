"""Bearer tokens, Basic, and where an Authorization may go."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry, FakeStorage

IMAGE = make_image(5000, 20, seed=5)
TAG = "/v2/team/app/manifests/v1"


@pytest.fixture
def bearer(registry: FakeRegistry) -> FakeRegistry:
    """The registry wants tokens; anonymous may read `team/app`, alice `team/secret` too."""
    registry.private = {"team/app": {"", "alice"}, "team/secret": {"alice"}}
    registry.passwords = {"alice": "wonder"}
    registry.push("team/app", "v1", IMAGE)
    registry.push("team/secret", "v1", IMAGE)
    return registry


def with_credentials(directory: Path, **cluster: Any) -> dict[str, Any]:
    (directory / "password").write_text("wonder\n")
    return {
        "upstream": {"credentials": {"username": "alice", "password_file": str(directory / "password")}},
        "clusters": [{"name": "default", "credentials": True} | cluster],
    }


async def pull(proxy: Proxy, repository: str = "team/app") -> None:
    assert (await proxy.get(f"/v2/{repository}/manifests/v1")).body == IMAGE.manifest
    for blob in IMAGE.blobs:
        assert (await proxy.get(f"/v2/{repository}/blobs/{digest_of(blob)}")).body == blob


async def test_one_token_serves_many_pulls(proxy: Proxy, bearer: FakeRegistry) -> None:
    """An image's manifest and blobs, asked for at once and after another, cost one token request."""
    await asyncio.gather(*(pull(proxy) for _ in range(4)))
    await pull(proxy)
    assert bearer.count("GET", "/token") == 1


async def test_a_token_that_ends_is_renewed_before(proxy: Proxy, bearer: FakeRegistry) -> None:
    """When a token's life is over the next one is there without the upstream having said 401 again."""
    await pull(proxy)
    proxy.clock.advance(290)
    bearer.push("team/app", "v2", make_image(3, seed=6))
    assert (await proxy.get("/v2/team/app/manifests/v2")).status == 200
    assert bearer.count("GET", "/token") == 2
    assert sum("Authorization" not in seen.headers for seen in bearer.seen if "/v2/" in seen.path) == 1


async def test_a_token_that_is_refused_is_renewed_unnoticed(proxy: Proxy, bearer: FakeRegistry) -> None:
    """A token that the upstream ended early is replaced; the client sees 200."""
    await pull(proxy)
    bearer.revoke_tokens()
    bearer.push("team/app", "v2", make_image(3, seed=6))
    assert (await proxy.get("/v2/team/app/manifests/v2")).status == 200
    assert bearer.count("GET", "/token") == 2


async def test_authorization_never_reaches_another_host(
    settings: Callable[..., Settings], bearer: FakeRegistry, storage: FakeStorage
) -> None:
    """Blobs that redirect to another host are fetched there without Authorization, their signed query untouched."""
    bearer.storage = storage
    bearer.push("team/app", "v1", IMAGE)
    async with running(settings()) as proxy:
        await pull(proxy)
    assert storage.count("GET", "/") == len(IMAGE.blobs)
    assert all("Authorization" not in seen.headers for seen in storage.seen)
    assert {seen.query for seen in storage.seen} == {"X-Signature=a%2Fb"}


async def test_what_anonymous_may_not_read_gets_the_upstreams_challenge(proxy: Proxy, bearer: FakeRegistry) -> None:
    """A private repository is 401 with the upstream's own challenge, so that credentials go to its token server."""
    answer = await proxy.get("/v2/team/secret/manifests/v1")
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    challenge = answer.headers["WWW-Authenticate"]
    assert challenge == f'Bearer realm="{bearer.url}/token",service="fake",scope="repository:team/secret:pull"'


async def test_a_foreign_realm_is_not_asked(settings: Callable[..., Settings], bearer: FakeRegistry) -> None:
    """A realm that is neither the upstream's own host nor in token_realms gets nothing, and no client is sent there."""
    trap = FakeRegistry()
    await trap.start()
    bearer.realm = f"{trap.url}/token"
    async with running(settings()) as proxy:
        answer = await proxy.get(TAG)
        assert answer.status == 502
        assert "WWW-Authenticate" not in answer.headers
    assert not trap.seen
    await trap.stop()


async def test_a_named_realm_is_asked(settings: Callable[..., Settings], bearer: FakeRegistry) -> None:
    """A realm that stands in token_realms is asked."""
    other = FakeRegistry(private=bearer.private, passwords=bearer.passwords, _tokens=bearer._tokens)
    await other.start()
    bearer.realm = f"{other.url}/token"
    async with running(settings({"token_realms": [other.url.removeprefix("http://")]})) as proxy:
        await pull(proxy)
    assert other.count("GET", "/token") == 1
    await other.stop()


async def test_the_proxys_own_credential_opens_what_it_may_read(
    settings: Callable[..., Settings], bearer: FakeRegistry, tmp_path: Path
) -> None:
    """A cluster with `credentials: true` reads private images with the proxy's credential."""
    async with running(settings(**with_credentials(tmp_path))) as proxy:
        await pull(proxy, "team/secret")


async def test_another_cluster_is_not_given_what_the_credential_opened(
    settings: Callable[..., Settings], bearer: FakeRegistry, tmp_path: Path
) -> None:
    """A private image in the cache is refused to a cluster that may not use the credential."""
    more = with_credentials(tmp_path, match={"hosts": ["trusted.test"]})
    more["clusters"].append({"name": "others"})
    async with running(settings(**more)) as proxy:
        path = "/v2/team/secret/manifests/v1"
        blob = f"/v2/team/secret/blobs/{digest_of(IMAGE.blobs[1])}"
        for what in (path, blob, f"/v2/team/secret/manifests/{IMAGE.digest}"):
            assert (await proxy.get(what, Host="trusted.test")).status == 200
            assert (await proxy.get(what)).status == 401
            assert (await proxy.head(what)).status == 401


async def test_basic(settings: Callable[..., Settings], bearer: FakeRegistry, tmp_path: Path) -> None:
    """A registry that wants Basic gets it after its first challenge, and unasked from then on."""
    bearer.basic = True
    async with running(settings(**with_credentials(tmp_path))) as proxy:
        await pull(proxy, "team/secret")
    assert sum("Authorization" not in seen.headers for seen in bearer.seen) == 1


async def test_a_rotated_password_file_is_read_again(
    settings: Callable[..., Settings], bearer: FakeRegistry, tmp_path: Path
) -> None:
    """When the mounted secret and the registry's password change, the next token is got with the new one."""
    async with running(settings(**with_credentials(tmp_path))) as proxy:
        await pull(proxy, "team/secret")
        bearer.passwords = {"alice": "new"}
        bearer.revoke_tokens()
        (tmp_path / "password").write_text("new")
        proxy.clock.advance(301)
        await pull(proxy, "team/secret")
