"""An upstream that is configured to be offline is never asked; what is cached is served, whatever its age."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from itertools import product
from pathlib import Path

import diskcache
import pytest

from proxy.cache.drift import Drift
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS
from proxy.settings import Settings
from proxy.settings.models import UpstreamSettings
from proxy.telemetry.events import silent
from proxy.upstream.client import Call, Upstream
from proxy.upstream.errors import UpstreamOffline
from proxy.upstream.push import Push
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry

IMAGE = make_image(5000, seed=4)
TAG = "/v2/team/app/manifests/v1"
MANIFEST = f"/v2/team/app/manifests/{IMAGE.digest}"
BLOB = f"/v2/team/app/blobs/{digest_of(IMAGE.blobs[1])}"
LIST = "/v2/team/app/tags/list"
YEAR = 365 * 86400.0
MINE = "Basic " + base64.b64encode(b"me:secret").decode()

MakeSettings = Callable[..., Settings]


@pytest.fixture
async def proxy(settings: MakeSettings, registry: FakeRegistry) -> AsyncIterator[Proxy]:
    """A proxy that has the image and its list of tags, and whose upstream is taken offline then."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings()) as started:
        for path in (TAG, BLOB, LIST):
            assert (await started.get(path)).status == 200
        await started.stored(1)
        await started.application.reload(settings({"offline": True}))
        registry.seen.clear()
        yield started


async def test_what_is_cached_is_served_whatever_its_age(proxy: Proxy, registry: FakeRegistry) -> None:
    """A hit within its time; then stale without end, and it says why. Nothing is asked, and no token either."""
    assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=600"
    proxy.clock.advance(YEAR)
    for answer in (await proxy.get(TAG), await proxy.head(TAG)):
        assert answer.status == 200
        assert answer.state == f"pullthrough; hit; ttl={int(600 - YEAR)}; detail=stale-offline"
        assert "offline by configuration" in answer.headers["Warning"]
        assert answer.headers["Age"] == str(int(YEAR))
    stale = await proxy.get(LIST)
    assert (stale.status, stale.state.rpartition("; ")[2]) == (200, "detail=stale-offline")
    for path, body in ((MANIFEST, IMAGE.manifest), (BLOB, IMAGE.blobs[1])):
        answer = await proxy.get(path)
        assert (answer.status, answer.body, answer.state) == (200, body, "pullthrough; hit")
        assert (await proxy.head(path)).status == 200
    assert (await proxy.get(BLOB, Range="bytes=10-19")).body == IMAGE.blobs[1][10:20]
    assert registry.seen == []
    assert await proxy.metric('pullthrough_stale_served_total{reason="offline"') == 3


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *product(
            ("GET", "HEAD"),
            (
                "/v2/team/app/manifests/v2",
                f"/v2/team/app/manifests/{make_image(1, seed=9).digest}",
                f"/v2/team/app/blobs/{digest_of(b'nothing')}",
            ),
        ),
        ("GET", "/v2/team/other/tags/list"),
        ("GET", f"/v2/team/app/referrers/{IMAGE.digest}"),
    ],
)
async def test_what_is_not_is_a_clear_error(proxy: Proxy, registry: FakeRegistry, method: str, path: str) -> None:
    """502 UNAVAILABLE, in words that send nobody looking for an outage."""
    answer = await proxy.get(path, method)
    assert (answer.status, answer.state) == (502, "pullthrough; detail=offline")
    assert answer.headers["OCI-Namespace"] == "registry.test"
    assert "Retry-After" not in answer.headers
    if method == "GET":
        assert answer.code == "UNAVAILABLE"
        assert b"registry.test is offline by the proxy's configuration" in answer.body
    assert registry.seen == []


async def test_clients_own_rights_end_as_in_any_outage(settings: MakeSettings, registry: FakeRegistry) -> None:
    """Who had an answer is served for another hour; whoever else comes with a credential is not served at all."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings()) as proxy:
        await proxy.get(TAG, Authorization=MINE)
        await proxy.application.reload(settings({"offline": True}))
        registry.seen.clear()
        proxy.clock.advance(3899)
        assert (await proxy.get(TAG, Authorization=MINE)).status == 200
        for headers in ({}, {"Authorization": "Bearer other"}):
            refused = await proxy.get(TAG, **headers)
            assert (refused.status, refused.state) == (502, "pullthrough; detail=offline")
        proxy.clock.advance(1)
        assert (await proxy.get(TAG, Authorization=MINE)).status == 502
        assert registry.seen == []


async def test_strict_proofs_stay_strict(settings: MakeSettings, registry: FakeRegistry) -> None:
    """Nobody is served on a proof older than `proof_ttl`: then it is of no use to be offline for longer."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(manifests={"strict_proofs": True})) as proxy:
        await proxy.get(TAG)
        await proxy.application.reload(settings({"offline": True}, manifests={"strict_proofs": True}))
        assert (await proxy.get(TAG)).status == 200
        proxy.clock.advance(300)
        assert (await proxy.get(TAG)).status == 502
        assert registry.count("HEAD", "") == 0


async def test_nothing_is_pushed_to_it(settings: MakeSettings, registry: FakeRegistry) -> None:
    """A push is refused before its body is asked for, and takes nothing out of the cache."""
    registry.push("team/app", "v1", IMAGE)
    clusters = [{"name": "default", "push": "forward"}]
    async with running(settings(clusters=clusters)) as proxy:
        await proxy.get(TAG)
        await proxy.application.reload(settings({"offline": True}, clusters=clusters))
        registry.seen.clear()
        for method, path in (("PUT", TAG), ("DELETE", TAG), ("POST", "/v2/team/app/blobs/uploads/")):
            refused = await proxy.get(path, method)
            assert (refused.status, refused.code) == (502, "UNAVAILABLE")
            assert refused.state == "pullthrough; detail=offline"
        assert registry.seen == []
        assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=600"


async def test_blobs_of_metadata_only_clusters_cannot_be_had(settings: MakeSettings, registry: FakeRegistry) -> None:
    """They come from the upstream, which is not asked; manifests and heads come from here."""
    registry.push("team/app", "v1", IMAGE)
    clusters = [{"name": "default", "mode": "metadata-only"}]
    async with running(settings(clusters=clusters)) as proxy:
        for path in (TAG, BLOB):
            await proxy.get(path)
        await proxy.application.reload(settings({"offline": True}, clusters=clusters))
        registry.seen.clear()
        assert (await proxy.get(BLOB)).state == "pullthrough; detail=offline"
        assert (await proxy.get(TAG)).status == (await proxy.head(BLOB)).status == 200
        assert registry.seen == []


async def test_nothing_is_done_in_the_background(
    settings: MakeSettings, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not ahead of a tag's end, and not to find out whether it has moved."""
    due, looked_at = asyncio.Event(), asyncio.get_running_loop().create_future()
    check = Drift.check

    async def checked(drift: Drift) -> int:
        await due.wait()
        found = await check(drift)
        if not looked_at.done():
            looked_at.set_result(found)
        return found

    monkeypatch.setattr(Drift, "check", checked)
    monkeypatch.setattr("proxy.cache.drift._TICK", 0.01)
    times = {"refresh_ahead": "90%", "drift_interval": "1s"}
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(manifests=times)) as proxy:
        await proxy.get(TAG)
        await proxy.application.reload(settings({"offline": True}, manifests=times))
        registry.seen.clear()
        proxy.clock.advance(250)
        assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=350"
        handlers = proxy.application._handlers
        assert handlers is not None
        await handlers.house.history.write()
        due.set()
        assert await looked_at == 1
        assert registry.seen == []


async def test_not_even_by_mistake(registry: FakeRegistry) -> None:
    """Whatever becomes of those who decide, the two doors to the network stay shut."""
    described = UpstreamSettings.model_validate({"url": registry.url, "offline": True})
    upstream = Upstream("registry.test", described, silent, time.time)
    await upstream.start()
    repository = Repository("registry.test", "team/app")
    with pytest.raises(UpstreamOffline):
        async with upstream.request(Call("manifest", "GET", repository, ANONYMOUS, "manifests/v1")):
            pass
    with pytest.raises(UpstreamOffline):
        await upstream.pushes.send(Push("DELETE", repository, "/v2/team/app/manifests/v1"))
    await upstream.close()
    assert registry.seen == []


async def test_it_may_come_back(proxy: Proxy, registry: FakeRegistry, settings: MakeSettings) -> None:
    """With the next reload what is stale is checked again."""
    proxy.clock.advance(YEAR)
    await proxy.application.reload(settings())
    assert (await proxy.get(TAG)).status == 200
    assert [seen.method for seen in registry.seen] == ["HEAD"]


async def test_what_is_in_use_is_kept_on(proxy: Proxy, tmp_path: Path) -> None:
    """Rows end when nothing confirms them for ninety days. Offline nothing does but their use, once a day."""

    def ends() -> dict[str, float]:
        with diskcache.Cache(str(tmp_path / "cache" / "metadata")) as store:
            kinds = ("tag/", "member/", "manifest/", "proof/")
            return {key: store.get(key, expire_time=True)[1] for key in store.iterkeys() if key.startswith(kinds)}

    before = ends()
    assert all(end > time.time() + 89 * 86400 for end in before.values())
    proxy.clock.advance(601)
    for path in (TAG, MANIFEST, BLOB):
        await proxy.get(path)
    renewed = ends()
    assert all(renewed[key] > before[key] for key in before)
    await proxy.get(TAG)
    assert ends() == renewed
