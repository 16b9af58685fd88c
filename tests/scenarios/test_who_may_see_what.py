"""One cache, several tenants: nobody is ever given what the upstream would refuse, cold or warm, in either mode."""

import base64
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.settings import Settings
from tests.fakes.acts import Act
from tests.fakes.content import digest_of, make_image, make_index, random_bytes
from tests.fakes.proxy import Answer, Proxy, running
from tests.fakes.registry import FakeRegistry, FakeStorage
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, came_in

IMAGES = {"alice/app": make_image(5000, seed=1), "bob/app": make_image(5000, seed=2), "open/app": make_image(9, seed=3)}
SHARED = random_bytes(40_000, 7)
READERS = {"alice/app": {"alice"}, "bob/app": {"bob"}, "open/app": {"", "alice", "bob"}}
PASSWORDS = {"alice": "wonder", "bob": "builder"}
REPOSITORIES = list(IMAGES)
# Everything that is anywhere, to be asked for everywhere.
MANIFESTS = [image.digest for image in IMAGES.values()]
BLOBS = [digest_of(SHARED), *(digest_of(image.blobs[1]) for image in IMAGES.values())]
CONTENT = {digest_of(blob): blob for image in IMAGES.values() for blob in image.blobs} | {digest_of(SHARED): SHARED}


@pytest.fixture
def tenants(registry: FakeRegistry) -> FakeRegistry:
    """Alice's and Bob's private repositories, which share a layer, and one that is everybody's."""
    registry.private = {repository: set(readers) for repository, readers in READERS.items()}
    registry.passwords = dict(PASSWORDS)
    for repository, image in IMAGES.items():
        registry.push(repository, "v1", image)
        registry.put(repository, "application/octet-stream", SHARED)
    return registry


def basic(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{PASSWORDS[user]}".encode()).decode()


@dataclass
class Tenants:
    """Clients of one proxy: with tokens they got from the token server, or asked for user and password by the proxy."""

    proxy: Proxy
    registry: FakeRegistry
    logs_in: bool

    async def ask(self, user: str, repository: str, rest: str, method: str = "GET", **headers: str) -> Answer:
        if user and self.logs_in:
            headers["Authorization"] = basic(user)
        elif user:
            headers["Authorization"] = f"Bearer {self.registry.token(user, repository)}"
        return await self.proxy.get(f"/v2/{repository}/{rest}", method, **headers)

    def may(self, user: str, repository: str, reference: str) -> bool:
        """What the upstream says itself."""
        digest = self.registry.tags.get((repository, reference), reference)
        assert self.registry.private is not None
        return user in self.registry.private[repository] and (repository, digest) in self.registry.members

    def everything(self) -> Iterator[tuple[str, str, str, str]]:
        for user in ("alice", "bob", ""):
            for repository in REPOSITORIES:
                for reference in ("v1", *MANIFESTS):
                    yield user, repository, "manifests", reference
                for digest in BLOBS:
                    yield user, repository, "blobs", digest

    async def hold(self) -> int:
        """Ask for everything as everybody, by every method; gives how often something was given."""
        given = 0
        for user, repository, kind, reference in self.everything():
            for method, headers in (("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=5-"})):
                answer = await self.ask(user, repository, f"{kind}/{reference}", method, **headers)
                what = (user, repository, kind, reference, method, headers, answer.status)
                if not self.may(user, repository, reference):
                    assert answer.status in {401, 404}, what
                    assert CONTENT.get(reference, b"?" * 9)[5:] not in answer.body, what
                    continue
                given += 1
                assert answer.status in {200, 206, 307}, what
                if method == "GET" and kind == "blobs" and answer.status != 307:
                    assert CONTENT[reference].endswith(answer.body), what
        return given


@pytest.fixture(params=["token", "password"])
def logs_in(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "password")


@pytest.fixture(params=["transparent", "metadata-only"])
async def clients(
    request: pytest.FixtureRequest,
    settings: Callable[..., Settings],
    tenants: FakeRegistry,
    logs_in: bool,
) -> AsyncIterator[Tenants]:
    cluster: dict[str, Any] = {"name": "default", "mode": request.param}
    if logs_in:
        cluster |= {"login": True, "allow_plain_login": True}
    async with running(settings(clusters=[cluster])) as proxy:
        yield Tenants(proxy, tenants, logs_in)


async def test_the_matrix(clients: Tenants) -> None:
    """Who, where, what, how; cold and warm; after a right has moved from Alice to Bob; and in an outage after that."""
    cold = await clients.hold()
    assert cold > 0
    assert await clients.hold() == cold
    registry = clients.registry
    assert registry.private is not None
    registry.private["alice/app"] = {"bob"}
    registry.revoke_tokens()
    clients.proxy.clock.advance(301)
    assert await clients.hold() == cold
    await registry.stop()
    refused = await clients.ask("alice", "alice/app", "manifests/v1")
    assert refused.status in {401, 502}


async def test_blobs_that_redirect(
    settings: Callable[..., Settings], tenants: FakeRegistry, storage: FakeStorage, logs_in: bool
) -> None:
    """The same where the upstream hands out signed addresses, which nobody else is given."""
    tenants.storage, storage.blobs = storage, dict(CONTENT)
    cluster = {"name": "default", "mode": "metadata-only", "login": logs_in, "allow_plain_login": logs_in}
    async with running(settings(clusters=[cluster])) as proxy:
        clients = Tenants(proxy, tenants, logs_in)
        assert await clients.hold() == await clients.hold()
        answer = await clients.ask("alice", "alice/app", f"blobs/{digest_of(SHARED)}")
        assert (answer.status, answer.headers["Cache-Control"]) == (307, "no-store")
    assert not any("Authorization" in seen.headers for seen in storage.seen)


async def test_the_upstreams_challenge_goes_to_the_client(proxy: Proxy, tenants: FakeRegistry) -> None:
    """Who sends nothing is nobody; what nobody may read is answered with where to get a token, and that is used."""
    refused = await proxy.get("/v2/alice/app/manifests/v1")
    assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
    assert refused.headers["WWW-Authenticate"] == (
        f'Bearer realm="{tenants.url}/token",service="fake",scope="repository:alice/app:pull"'
    )
    token = tenants.token("alice", "alice/app")
    answer = await proxy.get("/v2/alice/app/manifests/v1", Authorization=f"Bearer {token}")
    assert (answer.status, answer.body) == (200, IMAGES["alice/app"].manifest)


async def test_what_one_client_fetched_costs_the_next_one_a_head(proxy: Proxy, tenants: FakeRegistry) -> None:
    """Content is stored once. Another token is another principal: the upstream is asked for it, and sends no bytes."""
    path = f"/v2/alice/app/blobs/{digest_of(SHARED)}"
    for _ in range(3):
        answer = await proxy.get(path, Authorization=f"Bearer {tenants.token('alice', 'alice/app')}")
        assert answer.body == SHARED
        await proxy.stored(1)
    assert (tenants.count("GET", "/blobs/"), tenants.count("HEAD", "/blobs/")) == (1, 2)
    again = await proxy.get(path, Authorization=tenants.seen[-1].headers["Authorization"])
    assert again.state == "pullthrough; hit"
    assert tenants.count("HEAD", "/blobs/") == 2


async def test_a_token_of_another_repository(proxy: Proxy, tenants: FakeRegistry) -> None:
    """It is good where it was given for, however good it was there a moment ago."""
    token = tenants.token("alice", "open/app")
    assert (await proxy.get("/v2/open/app/manifests/v1", Authorization=f"Bearer {token}")).status == 200
    mine = tenants.token("alice", "alice/app")
    assert (await proxy.get("/v2/alice/app/manifests/v1", Authorization=f"Bearer {mine}")).status == 200
    for path in ("manifests/v1", f"manifests/{IMAGES['alice/app'].digest}", f"blobs/{digest_of(SHARED)}", "tags/list"):
        answer = await proxy.get(f"/v2/alice/app/{path}", Authorization=f"Bearer {token}")
        assert answer.status == 401


async def test_a_probe_plants_no_negative_answer(proxy: Proxy, tenants: FakeRegistry) -> None:
    """What was not there for one who asked too early, or may not ask, is there for who may, at once."""
    for headers in ({}, {"Authorization": f"Bearer {tenants.token('bob', 'alice/app')}"}):
        assert (await proxy.get("/v2/alice/app/manifests/v2", **headers)).status == 401
    early = f"Bearer {tenants.token('alice', 'alice/app')}"
    assert (await proxy.get("/v2/alice/app/manifests/v2", Authorization=early)).status == 404
    tenants.push("alice/app", "v2", make_image(3, seed=11))
    late = f"Bearer {tenants.token('alice', 'alice/app')}"
    assert (await proxy.get("/v2/alice/app/manifests/v2", Authorization=late)).status == 200


async def test_an_index_that_lists_what_is_anothers(proxy: Proxy, tenants: FakeRegistry) -> None:
    """Bob may push an index that names Alice's manifest and a manifest that names her layer: he is given neither."""
    alice = f"Bearer {tenants.token('alice', 'alice/app')}"
    victim = IMAGES["alice/app"]
    for path in ("manifests/v1", f"blobs/{digest_of(victim.blobs[1])}"):
        assert (await proxy.get(f"/v2/alice/app/{path}", Authorization=alice)).status == 200
    tenants.push("bob/app", "evil", make_index(victim))
    tenants.put("bob/app", victim.media_type, b"{}" + victim.manifest)
    bob = f"Bearer {tenants.token('bob', 'bob/app')}"
    assert (await proxy.get("/v2/bob/app/manifests/evil", Authorization=bob)).status == 200
    for path in (f"manifests/{victim.digest}", f"blobs/{digest_of(victim.blobs[1])}"):
        assert (await proxy.get(f"/v2/bob/app/{path}", Authorization=bob)).status == 404


async def test_errors_do_not_tell_what_is_cached(proxy: Proxy, tenants: FakeRegistry) -> None:
    """A blob and a manifest that others have had, and ones that nobody has, are the same to who may not read them."""
    victim = IMAGES["alice/app"]
    alice = f"Bearer {tenants.token('alice', 'alice/app')}"
    for path in ("manifests/v1", f"blobs/{digest_of(victim.blobs[1])}"):
        await proxy.get(f"/v2/alice/app/{path}", Authorization=alice)
    await proxy.stored(1)
    nobodys = digest_of(b"nobody has this")
    for repository, user in (("alice/app", "bob"), ("bob/app", "bob"), ("alice/app", ""), ("open/app", "")):
        who = {"Authorization": f"Bearer {tenants.token(user, repository)}"} if user else {}
        for kind, cached in (("manifests", victim.digest), ("blobs", digest_of(victim.blobs[1]))):
            one = await proxy.get(f"/v2/{repository}/{kind}/{cached}", **who)
            other = await proxy.get(f"/v2/{repository}/{kind}/{nobodys}", **who)
            assert (one.status, one.body) == (other.status, other.body)
            differ = {"Date"}
            assert {k: v for k, v in one.headers.items() if k not in differ} == {
                k: v for k, v in other.headers.items() if k not in differ
            }


# In an outage.


@pytest.mark.parametrize(
    ("strict", "after", "status"), [(False, 301, 200), (False, 3901, 502), (True, 299, 200), (True, 301, 502)]
)
async def test_how_long_a_proof_counts_in_an_outage(
    settings: Callable[..., Settings], tenants: FakeRegistry, strict: bool, after: float, status: int
) -> None:
    """A client's own an hour longer than `proof_ttl`; with `strict_proofs` not a second."""
    async with running(settings(manifests={"strict_proofs": strict, "tag_ttl": "2h"})) as proxy:
        alice = f"Bearer {tenants.token('alice', 'alice/app')}"
        paths = [f"/v2/alice/app/{rest}" for rest in ("manifests/v1", f"blobs/{digest_of(SHARED)}")]
        for path in paths:
            assert (await proxy.get(path, Authorization=alice)).status == 200
        await proxy.stored(1)
        await tenants.stop()
        proxy.clock.advance(after)
        for path in paths:
            assert (await proxy.get(path, Authorization=alice)).status == status
            assert (await proxy.get(path, Authorization="Bearer guessed")).status == 502


# Logging in.


async def test_clients_of_a_prefix_are_asked_for_user_and_password(
    settings: Callable[..., Settings], tenants: FakeRegistry
) -> None:
    """They know the repository by another name than the token server: a token of their own would be of no use."""
    async with running(settings(clusters=[{"name": "default", "allow_plain_login": True}])) as proxy:
        path = "/v2/registry.test/alice/app/manifests/v1"
        refused = await proxy.get(path)
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (
            401, 'Basic realm="pullthrough", charset="UTF-8"',
        )  # fmt: skip
        assert (await proxy.get(path, Authorization=basic("alice"))).status == 200
        assert (await proxy.get(path, Authorization=basic("bob"))).status == 401
        wrong = "Basic " + base64.b64encode(b"alice:guess").decode()
        assert (await proxy.get(path, Authorization=wrong)).headers["WWW-Authenticate"].startswith("Basic")
        assert "Bearer" in (await proxy.get("/v2/alice/app/manifests/v1")).headers["WWW-Authenticate"]


async def test_nobody_is_asked_in_the_open(settings: Callable[..., Settings], tenants: FakeRegistry) -> None:
    """Without TLS, and unless it is allowed, the upstream's own challenge goes out and nothing is exchanged."""
    async with running(settings(clusters=[{"name": "default", "login": True}])) as proxy:
        assert (await proxy.get("/v2/")).status == 200
        path = "/v2/registry.test/alice/app/manifests/v1"
        assert "Bearer" in (await proxy.get(path)).headers["WWW-Authenticate"]
        asked = tenants.count("GET", "/token")
        assert (await proxy.get(path, Authorization=basic("alice"))).status == 401
        assert tenants.count("GET", "/token") == asked


async def test_the_ping_of_a_cluster_that_logs_in(settings: Callable[..., Settings], tenants: FakeRegistry) -> None:
    """401 with Basic to who sends nothing, 200 to who does: Docker's older store and podman ask only there."""
    cluster = {"name": "default", "login": True, "allow_plain_login": True}
    async with running(settings(clusters=[cluster])) as proxy:
        for headers in ({}, {"Authorization": "Basic Og=="}):
            ping = await proxy.get("/v2/", **headers)
            assert (ping.status, ping.code) == (401, "UNAUTHORIZED")
            assert ping.headers["WWW-Authenticate"].startswith("Basic")
        assert (await proxy.get("/v2/", Authorization=basic("alice"))).status == 200
        # Proves nothing.
        assert (await proxy.get("/v2/", Authorization="Bearer x")).status == 200


async def test_one_login_costs_one_token(settings: Callable[..., Settings], tenants: FakeRegistry) -> None:
    """However many requests of an image there are."""
    cluster = {"name": "default", "login": True, "allow_plain_login": True}
    async with running(settings(clusters=[cluster])) as proxy:
        clients = Tenants(proxy, tenants, logs_in=True)
        for rest in ("manifests/v1", *(f"blobs/{digest_of(blob)}" for blob in IMAGES["alice/app"].blobs)):
            assert (await clients.ask("alice", "alice/app", rest)).status == 200
        assert tenants.count("GET", "/token") == 1


async def test_a_registry_that_wants_basic_itself(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """User and password go to it as they are, whether the proxy asked for them or not."""
    registry.private, registry.passwords, registry.basic = {"alice/app": {"alice"}}, dict(PASSWORDS), True
    registry.push("alice/app", "v1", IMAGES["alice/app"])
    for login in (False, True):
        cluster = {"name": "default", "login": login, "allow_plain_login": True}
        async with running(settings(clusters=[cluster])) as proxy:
            path = "/v2/alice/app/manifests/v1"
            assert (await proxy.get(path, Authorization=basic("alice"))).status == 200
            for headers in ({}, {"Authorization": basic("bob")}):
                assert (await proxy.get(path, **headers)).headers["WWW-Authenticate"].startswith("Basic")


# Fills.


async def test_a_fill_goes_on_with_the_rights_of_another_reader(proxy: Proxy, tenants: FakeRegistry) -> None:
    """The token it began with ends, its client has left: the upstream is asked with that of a reader who is there."""
    large = random_bytes(2 * MIB, 12)
    path = f"/v2/alice/app/blobs/{tenants.put('alice/app', 'application/octet-stream', large)}"
    gate = Gate(MIB)
    tenants.script = [Act(gate=gate, fin_at=MIB)]
    first = tenants.token("alice", "alice/app")
    async with proxy.session.get(proxy.url + path, headers={"Authorization": f"Bearer {first}"}) as began:
        assert began.status == 200
        await gate.reached.wait()
        second = tenants.token("alice", "alice/app")
        async with proxy.session.get(proxy.url + path, headers={"Authorization": f"Bearer {second}"}) as goes_on:
            assert goes_on.status == 200
            tenants.revoke(first)
            began.close()
            gate.open()
            assert await goes_on.read() == large
    assert tenants.record.sent_twice(digest_of(large)) == []


async def test_a_fill_with_nobodys_rights_left_waits_for_the_next(proxy: Proxy, tenants: FakeRegistry) -> None:
    """Its token has ended and nobody else is there: what arrived stays, and the next one who may goes on with it."""
    large = random_bytes(2 * MIB, 13)
    path = f"/v2/alice/app/blobs/{tenants.put('alice/app', 'application/octet-stream', large)}"
    gate = Gate(MIB)
    tenants.script = [Act(gate=gate, fin_at=MIB)]
    token = tenants.token("alice", "alice/app")
    async with proxy.session.get(proxy.url + path, headers={"Authorization": f"Bearer {token}"}) as began:
        assert began.status == 200
        await gate.reached.wait()
        await came_in(proxy, MIB)
        tenants.revoke(token)
    gate.open()
    async with proxy.session.get(proxy.admin_url + "/metrics"):
        pass
    await no_fill(proxy)
    late = tenants.token("alice", "alice/app")
    answer = await proxy.get(path, Authorization=f"Bearer {late}")
    assert (answer.status, answer.body) == (200, large)
    assert tenants.record.sent_twice(digest_of(large)) == []


async def no_fill(proxy: Proxy) -> None:
    while await proxy.metric("pullthrough_fills_active"):
        pass
