"""`credentials: public`: the proxy's own credential for its rate limit, and for nothing that nobody may not read."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.content import Image, digest_of, make_image, make_index
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry, FakeStorage

IMAGE, SECRET, LATER = make_image(5000, seed=31), make_image(6000, seed=32), make_image(70, seed=33)
OWN, NOBODY = "robot", "anonymous"
TAG = "/v2/open/app/manifests/v1"

MakeHub = Callable[..., Settings]


@pytest.fixture
def hub(registry: FakeRegistry) -> FakeRegistry:
    """A repository that everybody may read, and one that only the proxy's account may."""
    registry.private = {"open/app": {"", OWN}, "shut/app": {OWN}}
    registry.passwords = {OWN: "wonder"}
    registry.push("open/app", "v1", IMAGE)
    registry.push("shut/app", "v1", SECRET)
    for image in (IMAGE, SECRET):
        registry.referrers[image.digest] = make_index(image).manifest
    return registry


@pytest.fixture
def public(settings: Callable[..., Settings], tmp_path: Path) -> MakeHub:
    """Settings with one cluster that has `credentials: public`; keywords are further keys of it."""
    (tmp_path / "password").write_text("wonder")

    def make(**cluster: Any) -> Settings:
        upstream = {"credentials": {"username": OWN, "password_file": str(tmp_path / "password")}}
        clusters = [
            {"name": "own", "match": {"hosts": ["own.test"]}, "credentials": True},
            {"name": "plain", "match": {"hosts": ["plain.test"]}},
            {"name": "default", "credentials": "public"} | cluster,
        ]
        return settings(upstream, clusters=clusters)

    return make


@pytest.fixture(params=["transparent", "metadata-only"])
async def proxy(request: pytest.FixtureRequest, hub: FakeRegistry, public: MakeHub) -> AsyncIterator[Proxy]:
    async with running(public(mode=request.param)) as started:
        yield started


def as_whom(hub: FakeRegistry, part: str = "/v2/") -> list[str]:
    """Every request by its method, what it was for and whose token it brought; those without one are not counted."""
    found = []
    for seen in hub.seen:
        token = seen.headers.get("Authorization", "").removeprefix("Bearer ")
        if part in seen.path and token:
            found.append(f"{seen.method} {seen.path.rpartition('/')[2][:12]} {token.split('-', 2)[2]}")
    return found


def everything(image: Image) -> list[str]:
    blobs = [f"blobs/{digest_of(blob)}" for blob in image.blobs]
    return ["manifests/v1", f"manifests/{image.digest}", "tags/list", f"referrers/{image.digest}", *blobs]


async def refused(proxy: Proxy, repository: str, image: Image, **headers: str) -> None:
    """Nothing of `image` is to be had from `repository`, by any method."""
    for path in everything(image):
        for method in ("GET", "HEAD"):
            answer = await proxy.get(f"/v2/{repository}/{path}", method, **headers)
            assert answer.status in {401, 404, 405}, (path, method, answer.status)
            assert not any(content in answer.body for content in (image.manifest, image.blobs[1]))


# What it costs.


async def test_a_pull_counts_as_the_proxys(proxy: Proxy, hub: FakeRegistry) -> None:
    """One HEAD as nobody, which is free, and one GET by digest with the credential; blobs and lists as nobody."""
    assert (await proxy.get(TAG)).body == IMAGE.manifest
    assert as_whom(hub) == [f"HEAD v1 {NOBODY}", f"GET {IMAGE.digest[:12]} {OWN}"]
    hub.seen.clear()
    for blob in IMAGE.blobs:
        assert (await proxy.get(f"/v2/open/app/blobs/{digest_of(blob)}")).body == blob
    assert (await proxy.get("/v2/open/app/tags/list")).status == 200
    assert (await proxy.get(f"/v2/open/app/referrers/{IMAGE.digest}")).status == 200
    assert [line.split()[2] for line in as_whom(hub)] == [NOBODY] * (len(IMAGE.blobs) + 2)
    hub.seen.clear()
    for reference in ("v1", IMAGE.digest):
        assert (await proxy.get(f"/v2/open/app/manifests/{reference}")).body == IMAGE.manifest
        assert (await proxy.head(f"/v2/open/app/manifests/{reference}")).status == 200
    assert hub.seen == []


async def test_as_containerd_asks(proxy: Proxy, hub: FakeRegistry) -> None:
    """HEAD by tag, then GET by digest: what nobody was named a moment ago is not asked for as nobody once more."""
    assert (await proxy.head(TAG)).status == 200
    assert (await proxy.get(f"/v2/open/app/manifests/{IMAGE.digest}")).body == IMAGE.manifest
    assert as_whom(hub) == [f"HEAD v1 {NOBODY}", f"GET {IMAGE.digest[:12]} {OWN}"]


async def test_a_digest_that_nobody_was_named(proxy: Proxy, hub: FakeRegistry) -> None:
    """As nobody first, then with the credential."""
    assert (await proxy.get(f"/v2/open/app/manifests/{IMAGE.digest}")).body == IMAGE.manifest
    assert as_whom(hub) == [f"HEAD {IMAGE.digest[:12]} {NOBODY}", f"GET {IMAGE.digest[:12]} {OWN}"]


async def test_a_tag_is_checked_as_nobody(proxy: Proxy, hub: FakeRegistry) -> None:
    """Only what has changed is a pull."""
    await proxy.get(TAG)
    proxy.clock.advance(601)
    hub.seen.clear()
    assert (await proxy.get(TAG)).state.startswith("pullthrough; fwd=stale; fwd-status=200")
    assert as_whom(hub) == [f"HEAD v1 {NOBODY}"]
    proxy.clock.advance(601)
    hub.push("open/app", "v1", LATER)
    hub.seen.clear()
    assert (await proxy.get(TAG)).body == LATER.manifest
    assert as_whom(hub) == [f"HEAD v1 {NOBODY}", f"GET {LATER.digest[:12]} {OWN}"]


# What it opens: nothing.


async def test_what_is_private_stays_so(proxy: Proxy, hub: FakeRegistry) -> None:
    """Cold, and warm after a cluster that may read it has; and the credential is never used for it."""
    await refused(proxy, "shut/app", SECRET)
    assert not any(OWN in line for line in as_whom(hub))
    for path in everything(SECRET):
        assert (await proxy.get(f"/v2/shut/app/{path}", Host="own.test")).status == 200
    hub.seen.clear()
    await refused(proxy, "shut/app", SECRET)
    assert not any(OWN in line for line in as_whom(hub))
    # And is not in a repository that everybody may read.
    assert (await proxy.get(TAG)).status == 200
    hub.seen.clear()
    for path in (f"manifests/{SECRET.digest}", f"blobs/{digest_of(SECRET.blobs[1])}"):
        for method in ("GET", "HEAD"):
            assert (await proxy.get(f"/v2/open/app/{path}", method)).status == 404
    assert not any(OWN in line for line in as_whom(hub))


async def test_a_manifest_that_only_the_account_sees(proxy: Proxy, hub: FakeRegistry) -> None:
    """In a repository that everybody may read too: each manifest is proved, by tag and by digest."""
    hub.push("open/app", "v2", LATER)

    def fault(request: web.BaseRequest) -> web.Response | None:
        hidden = request.path.endswith(("/v2", LATER.digest))
        return web.Response(status=404) if hidden and not request.headers["Authorization"].endswith(OWN) else None

    assert (await proxy.get(TAG)).status == 200
    hub.fault = fault
    hub.seen.clear()
    for reference in ("v2", LATER.digest):
        for method in ("GET", "HEAD"):
            assert (await proxy.get(f"/v2/open/app/manifests/{reference}", method)).status == 404
    assert not any(OWN in line for line in as_whom(hub))


async def test_a_client_of_its_own_rights_has_those(proxy: Proxy, hub: FakeRegistry) -> None:
    """It is told where to get a token, and the proxy's rights are not mixed in."""
    hub.private = {"open/app": {"", OWN, "alice"}, "shut/app": {OWN, "alice"}}
    challenge = (await proxy.get("/v2/shut/app/manifests/v1")).headers["WWW-Authenticate"]
    assert challenge.startswith(f'Bearer realm="{hub.url}/token"')
    hub.seen.clear()
    for repository, image in (("shut/app", SECRET), ("open/app", IMAGE)):
        token = f"Bearer {hub.token('alice', repository)}"
        answer = await proxy.get(f"/v2/{repository}/manifests/v1", Authorization=token)
        assert answer.body == image.manifest
    assert {line.split()[2] for line in as_whom(hub)} == {"alice"}
    await refused(proxy, "shut/app", SECRET)


async def test_a_repository_that_turns_private(proxy: Proxy, hub: FakeRegistry) -> None:
    """What is cold is refused at once, which ends the proof for what is warm; in an outage after that too."""
    await proxy.get(TAG)
    assert hub.private is not None
    hub.private["open/app"] = {OWN}
    hub.revoke_tokens()
    hub.push("open/app", "v2", LATER)
    hub.seen.clear()
    assert (await proxy.get("/v2/open/app/manifests/v2")).status == 401
    await refused(proxy, "open/app", IMAGE)
    await refused(proxy, "open/app", LATER)
    assert not any(OWN in line for line in as_whom(hub))
    await hub.stop()
    assert (await proxy.get(TAG)).status == 502


async def test_what_the_credential_is_given_is_no_proof(proxy: Proxy, hub: FakeRegistry) -> None:
    """Nobody's proof is as old as nobody's last answer, however often the credential has pulled since."""
    hub.push("open/app", "v2", LATER)
    for tag in ("v1", "v2"):
        await proxy.head(f"/v2/open/app/manifests/{tag}")
    proxy.clock.advance(299)
    hub.seen.clear()
    assert (await proxy.get(f"/v2/open/app/manifests/{IMAGE.digest}")).status == 200
    assert as_whom(hub)[-1:] == [f"GET {IMAGE.digest[:12]} {OWN}"]
    assert hub.private is not None
    hub.private["open/app"] = {OWN}
    hub.revoke_tokens()
    proxy.clock.advance(2)
    for image in (IMAGE, LATER):
        assert (await proxy.get(f"/v2/open/app/manifests/{image.digest}")).status == 401


async def test_clusters_share_what_nobody_may_have(proxy: Proxy, hub: FakeRegistry) -> None:
    """The same content, the same proofs: nothing is asked for again, nothing is opened."""
    await proxy.get(TAG)
    hub.seen.clear()
    assert (await proxy.get(TAG, Host="plain.test")).state.startswith("pullthrough; hit")
    assert hub.seen == []
    await refused(proxy, "shut/app", SECRET, Host="plain.test")


async def test_blobs_that_redirect(hub: FakeRegistry, storage: FakeStorage, public: MakeHub) -> None:
    """Signed addresses that clients are sent to were given to nobody, not to the proxy's account."""
    hub.storage = storage
    hub.push("open/app", "v1", IMAGE)
    async with running(public(mode="metadata-only")) as proxy:
        answer = await proxy.get(f"/v2/open/app/blobs/{digest_of(IMAGE.blobs[1])}")
        assert (answer.status, answer.headers["Cache-Control"]) == (307, "no-store")
    assert {line.split()[2] for line in as_whom(hub)} == {NOBODY}


# Rate limits.


def limit(hub: FakeRegistry, who: str) -> None:
    """Pulls that count as those of `who` are 429 from now on."""

    def fault(request: web.BaseRequest) -> web.Response | None:
        counts = request.headers.get("Authorization", "").endswith(f"-{who}")
        if counts and request.method == "GET" and "/manifests/" in request.path:
            return web.Response(status=429, headers={"Retry-After": "3000"})
        return None

    hub.fault = fault


async def test_nobodys_limit_is_not_the_credentials(proxy: Proxy, hub: FakeRegistry) -> None:
    """A cluster without the credential has used its up: this one pulls on."""
    limit(hub, NOBODY)
    hub.push("open/app", "v2", LATER)
    for tag, image in (("v1", IMAGE), ("v2", LATER)):
        path = f"/v2/open/app/manifests/{tag}"
        assert (await proxy.get(path, Host="plain.test")).status == 429
        assert (await proxy.get(path)).body == image.manifest


async def test_the_credentials_limit_is_obeyed(proxy: Proxy, hub: FakeRegistry) -> None:
    """429 with Retry-After, and nothing goes out while it runs; clusters without the credential go on."""
    limit(hub, OWN)
    answer = await proxy.get(TAG)
    assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
    assert int(answer.headers["Retry-After"]) > 2900
    before = len(hub.seen)
    assert (await proxy.get(f"/v2/open/app/manifests/{IMAGE.digest}")).status == 429
    assert len(hub.seen) == before
    assert (await proxy.get(TAG, Host="plain.test")).body == IMAGE.manifest
    # It is here now, and is anybody's.
    assert (await proxy.get(TAG)).body == IMAGE.manifest


async def test_what_is_left_is_the_credentials(
    proxy: Proxy, hub: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metric does not swing between the limits of two."""
    original = hub._manifest

    async def with_limit(request: web.BaseRequest, repository: str, reference: str) -> web.StreamResponse:
        response = await original(request, repository, reference)
        left = 190 if request.headers["Authorization"].endswith(OWN) else 7
        response.headers["ratelimit-remaining"] = f"{left};w=21600"
        return response

    monkeypatch.setattr(hub, "_manifest", with_limit)
    await proxy.get(TAG)
    proxy.clock.advance(601)
    await proxy.get(TAG)
    assert await proxy.metric("pullthrough_upstream_ratelimit_remaining{") == 190


# A credential that is of no use.


@pytest.mark.parametrize("why", ["missing", "wrong", "no rights"])
async def test_a_credential_that_is_of_no_use_takes_nothing_away(
    hub: FakeRegistry, public: MakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """What nobody may not be refused is pulled as nobody, and one line says why."""
    if why == "missing":
        (tmp_path / "password").unlink()
    elif why == "wrong":
        (tmp_path / "password").write_text("geheim")
    else:
        assert hub.private is not None
        hub.private["open/app"] = {""}
    caplog.set_level(logging.WARNING)
    async with running(public()) as proxy:
        assert (await proxy.get(TAG)).body == IMAGE.manifest
        hub.push("open/app", "v2", LATER)
        assert (await proxy.get("/v2/open/app/manifests/v2")).body == LATER.manifest
        await refused(proxy, "shut/app", SECRET)
    pulls = [line for line in as_whom(hub, "/open/app/manifests/") if line.startswith("GET") and NOBODY in line]
    assert pulls == [f"GET {image.digest[:12]} {NOBODY}" for image in (IMAGE, LATER)]
    assert len([line for line in caplog.messages if "without the proxy's credential" in line]) == 1
    assert "geheim" not in caplog.text


@pytest.mark.parametrize("says", ["405", "no digest"])
async def test_an_upstream_whose_head_says_nothing(hub: FakeRegistry, public: MakeHub, says: str) -> None:
    """Then nobody's word can be had by a GET only, which is the pull."""

    def fault(request: web.BaseRequest) -> web.Response | None:
        if request.method != "HEAD" or "/manifests/" not in request.path:
            return None
        return web.Response(status=405) if says == "405" else web.Response(headers={"Content-Length": "5"})

    hub.fault = fault
    async with running(public()) as proxy:
        assert (await proxy.get(TAG)).body == IMAGE.manifest
    assert not any(OWN in line for line in as_whom(hub))
