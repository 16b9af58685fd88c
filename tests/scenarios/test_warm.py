"""Images that are brought into the cache before anybody asks for them."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from proxy.oci.manifest import OCI_INDEX
from proxy.settings import Settings
from tests.fakes.acts import Act
from tests.fakes.clock import LoopClock
from tests.fakes.content import Image, digest_of, make_image, random_bytes
from tests.fakes.crash import copy_as_killed
from tests.fakes.proxy import Proxy, running
from tests.fakes.reader import Reader
from tests.fakes.registry import WINDOW, FakeRegistry, error
from tests.fakes.server import Gate
from tests.scenarios.fills import KIB, MIB, until
from tests.scenarios.warming import NAME, api, asked, begin, ended, in_file, job, settled, warm

MakeSettings = Callable[..., Settings]


@pytest.fixture(autouse=True)
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that waits for an upstream sees at once that a test has set the clock forward."""
    monkeypatch.setattr("proxy.cache.warm_run._LOOK", 0.005)


def push_index(registry: FakeRegistry, tag: str, **platforms: Image) -> str:
    """An index of images by platform, written `linux_amd64`; gives its digest."""
    for image in platforms.values():
        registry.push("team/app", f"{tag}-child", image)
    listed = [
        {
            "mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest),
            "platform": dict(zip(("os", "architecture", "variant"), name.split("_"), strict=False)),
        }
        for name, image in platforms.items()
    ]  # fmt: skip
    document = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
    registry.push("team/app", tag, Image(document, (), OCI_INDEX))
    return digest_of(document)


async def test_a_cold_image(proxy: Proxy, registry: FakeRegistry) -> None:
    """Each manifest and each blob is asked for once; the job says what came; clients need no registry then."""
    amd64, arm64 = make_image(300_000, 2 * MIB, seed=1), make_image(5, seed=2)
    s390x = make_image(7, seed=3)
    index = push_index(registry, "v1", linux_amd64=amd64, linux_arm64_v8=arm64, linux_s390x=s390x)

    found = await warm(proxy, f"{NAME}:v1")

    assert (found["state"], found["done"], found["failed"]) == ("done", 1, 0)
    size = sum(len(blob) for image in (amd64, arm64) for blob in image.blobs)
    assert found["bytes"] == {"done": size, "total": size}
    (item,) = found["items"]
    assert (item["digest"], item["manifests"], item["blobs"]) == (index, 3, {"done": 5, "total": 5})
    assert (item["bytes"]["present"], item["note"], item["error"]) == (0, None, None)
    wanted = [index, amd64.digest, arm64.digest, *(digest_of(blob) for image in (amd64, arm64) for blob in image.blobs)]
    gets = [what for method, what in asked(registry) if method == "GET"]
    assert sorted(gets) == sorted(["v1" if what == index else what for what in wanted])
    await registry.stop()
    for what in wanted:
        kind = "manifests" if what in wanted[:3] else "blobs"
        assert (await proxy.get(f"/v2/team/app/{kind}/{what}")).status == 200
    assert (await proxy.get("/v2/team/app/manifests/v1")).headers["Docker-Content-Digest"] == index


async def test_a_second_job_asks_for_nothing(proxy: Proxy, registry: FakeRegistry) -> None:
    """What is here and known to be the cluster's is not asked for; later one HEAD each renews that, and no GET."""
    image = make_image(1000, 2000)
    registry.push("team/app", "v1", image)
    await warm(proxy, f"{NAME}:v1")
    registry.seen.clear()

    found = await warm(proxy, f"{NAME}:v1")
    assert (found["state"], asked(registry)) == ("done", [])
    assert found["items"][0]["bytes"]["present"] == found["bytes"]["total"] == sum(map(len, image.blobs))

    proxy.clock.advance(3600)
    assert (await warm(proxy, f"{NAME}:v1"))["state"] == "done"
    assert {method for method, _ in asked(registry)} == {"HEAD"}


@pytest.mark.parametrize(
    ("platforms", "children", "note"),
    [
        ([], ["linux_amd64", "linux_arm64_v8"], None),
        (["linux/arm64"], ["linux_arm64_v8"], None),
        (["linux/amd64", "linux/riscv64"], ["linux_amd64"], "it is not there for linux/riscv64"),
        (["all"], ["linux_amd64", "linux_arm64_v8", "linux_s390x"], None),
    ],
)
async def test_platforms(
    proxy: Proxy, registry: FakeRegistry, platforms: list[str], children: list[str], note: str | None
) -> None:
    """Those that were asked for, and without a word the two that nodes are; what an image has not got is said."""
    images = {
        "linux_amd64": make_image(1, seed=1),
        "linux_arm64_v8": make_image(2, seed=2),
        "linux_s390x": make_image(3),
    }
    push_index(registry, "v1", **images)
    found = await warm(proxy, f"{NAME}:v1", platforms=platforms)
    assert (found["state"], found["items"][0]["note"]) == ("done", note)
    gets = {what for method, what in asked(registry, "/manifests/sha256:") if method == "GET"}
    assert gets == {images[child].digest for child in children}


async def test_an_image_for_none_of_the_platforms(proxy: Proxy, registry: FakeRegistry) -> None:
    """Fails, and says what there is."""
    push_index(registry, "v1", linux_amd64=make_image(1), windows_amd64=make_image(2, seed=1))
    found = await warm(proxy, f"{NAME}:v1", platforms=["linux/s390x"])
    error = "it is not there for linux/s390x: it is for linux/amd64, windows/amd64"
    assert (found["state"], found["items"][0]["error"]) == ("failed", error)


async def test_every_reference_stands_for_itself(proxy: Proxy, registry: FakeRegistry) -> None:
    """What cannot be had has one line of why; the rest comes, however it is named."""
    registry.push("team/app", "v1", make_image(10))
    registry.push("team/other", "latest", other := make_image(20, seed=1))
    references = [
        f"{NAME}:v1", f"{NAME}:gone", "elsewhere.test/a:b", "registry.test/team/other", f"{NAME}:v1:2",
        f"registry.test/team/other@{other.digest}",
    ]  # fmt: skip
    found = await warm(proxy, *references)
    assert (found["state"], found["done"], found["failed"]) == ("failed", 3, 3)
    states = {item["reference"]: (item["state"], bool(item["error"])) for item in found["items"]}
    assert [states[one] for one in references] == [
        ("done", False), ("failed", True), ("failed", True), ("done", False), ("failed", True), ("done", False),
    ]  # fmt: skip
    assert found["items"][2]["error"] == "the registry elsewhere.test is not configured on this proxy"


async def test_what_is_listed_twice_comes_once(proxy: Proxy, registry: FakeRegistry) -> None:
    """Layers that images have in common are fetched once; for a further repository a HEAD is asked besides."""
    one = make_image(400_000, seed=5)
    registry.push("team/app", "v1", one)
    registry.push("team/app", "v2", one)
    registry.push("team/other", "v1", one)
    found = await warm(proxy, f"{NAME}:v1", f"{NAME}:v2", "registry.test/team/other:v1", concurrency=8)
    assert found["state"] == "done"
    for blob in one.blobs:
        assert asked(registry, "/blobs/").count(("GET", digest_of(blob))) == 1


async def test_artifacts_foreign_layers_and_nested_indexes(proxy: Proxy, registry: FakeRegistry) -> None:
    """Nested indexes are walked; layers that live elsewhere by their nature are left there; nothing is taken twice."""
    image = make_image(50)
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "size": 9,
        "digest": digest_of(b"elsewhere"), "urls": ["https://elsewhere.test/layer"],
    }  # fmt: skip
    document = json.loads(image.manifest)
    document["layers"].append(foreign)
    manifest = Image(json.dumps(document).encode(), image.blobs)
    registry.push("team/app", "child", manifest)
    child = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": len(manifest.manifest)}
    inner = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child, child]}).encode()
    registry.put("team/app", OCI_INDEX, inner)
    nested = {"mediaType": OCI_INDEX, "digest": digest_of(inner), "size": len(inner)}
    outer = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [nested, child]}).encode()
    registry.push("team/app", "v1", Image(outer, (), OCI_INDEX))

    found = await warm(proxy, f"{NAME}:v1")

    assert (found["state"], found["items"][0]["manifests"]) == ("done", 3)
    assert len(asked(registry, "/manifests/")) == 3
    assert len(asked(registry, "/blobs/")) == len(image.blobs)


async def test_indexes_without_end(proxy: Proxy, registry: FakeRegistry) -> None:
    """An index that is nested deeper than any that is meant ends the reference, not the proxy."""
    listed: dict[str, object] = {"mediaType": "x", "digest": digest_of(b"x"), "size": 1}
    for _ in range(8):
        document = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed]}).encode()
        registry.put("team/app", OCI_INDEX, document)
        listed = {"mediaType": OCI_INDEX, "digest": digest_of(document), "size": len(document)}
    registry.push("team/app", "deep", Image(document, (), OCI_INDEX))
    found = await warm(proxy, f"{NAME}:deep")
    assert found["items"][0]["error"] == "its indexes are nested more than 4 deep"
    assert len(asked(registry)) == 5


async def test_sizes_that_nothing_has(proxy: Proxy, registry: FakeRegistry) -> None:
    """A number that is too long to be counted with ends the reference, and gets to nobody who would print it."""
    layer = {"mediaType": "x", "digest": digest_of(b"x"), "size": 10**400}
    document = json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()
    registry.push("team/app", "v1", Image(document, ()))
    found = await warm(proxy, f"{NAME}:v1")
    assert (found["state"], found["bytes"]["total"]) == ("failed", 0)
    assert found["items"][0]["error"] == "it lists a size that nothing can have"


async def test_rights_are_those_of_the_cluster(settings: MakeSettings, registry: FakeRegistry) -> None:
    """A job asks as its cluster: what that may not have, by upstreams, repositories or mode, it does not get."""
    registry.push("team/app", "v1", make_image(10))
    clusters = [
        {"name": "far", "mode": "metadata-only"},
        {"name": "near", "repositories": ["registry.test/team/app"]},
        {"name": "none", "upstreams": []},
    ]
    async with running(settings(clusters=clusters)) as proxy:
        assert (await warm(proxy, f"{NAME}:v1"))["cluster"] == "near"
        found = await warm(proxy, "registry.test/team/other:v1", cluster="near")
        assert found["items"][0]["error"] == "the repository is not served to this cluster"
        found = await warm(proxy, f"{NAME}:v1", cluster="none")
        assert found["items"][0]["error"] == "the registry registry.test is not served to the cluster none"
        assert (await api(proxy, "POST", "warm", {"references": ["x"], "cluster": "far"}))[0] == 409
        assert (await api(proxy, "POST", "warm", {"references": ["x"], "cluster": "nobody"}))[0] == 400


async def test_private_images_with_the_proxys_own_credential(
    settings: MakeSettings, registry: FakeRegistry, tmp_path: Path
) -> None:
    """Where the cluster has it; elsewhere they are refused, with a line that says whose rights were not enough."""
    (tmp_path / "password").write_text("secret")
    registry.private, registry.passwords = {"team/app": {"me"}}, {"me": "secret"}
    registry.push("team/app", "v1", make_image(10))
    upstream = {"credentials": {"username": "me", "password_file": str(tmp_path / "password")}}
    clusters = [{"name": "public"}, {"name": "own", "credentials": True}]
    async with running(settings(upstream, clusters=clusters)) as proxy:
        found = await warm(proxy, f"{NAME}:v1")
        assert found["state"] == "failed"
        assert found["items"][0]["error"].endswith("the cluster's rights do not reach so far")
        assert (await warm(proxy, f"{NAME}:v1", cluster="own"))["state"] == "done"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "the body"),
        ({}, "references"),
        ({"references": []}, "references"),
        ({"references": ["a"] * 1001}, "references"),
        ({"references": [""]}, "references"),
        ({"references": ["a\nb"]}, "references"),
        ({"references": ["a"], "platforms": ["linux"]}, "platforms: not a platform"),
        ({"references": ["a"], "bandwidth": 10}, "bandwidth"),
        ({"references": ["a"], "concurrency": 0}, "concurrency"),
        ({"references": ["a"], "speed": 1}, "speed"),
    ],
)
async def test_what_is_no_job(proxy: Proxy, body: object, said: str) -> None:
    """Is refused, with the name of what is wrong; nothing is begun."""
    status, answer = await api(proxy, "POST", "warm", body)
    assert (status, answer["error"].startswith(said)) == (400, True), answer
    assert await api(proxy, "GET", "warm") == (200, {"jobs": []})


async def test_jobs_are_listed_and_forgotten(proxy: Proxy, registry: FakeRegistry) -> None:
    """The latest first; also in the overview; one that nobody knows is 404."""
    registry.push("team/app", "v1", make_image(1))
    ids = []
    for tag in ("v1", "v2"):
        ids.append((await warm(proxy, f"{NAME}:{tag}"))["id"])
        proxy.clock.advance(1)
    _, listed = await api(proxy, "GET", "warm")
    assert [(one["id"], one["state"]) for one in listed["jobs"]] == [(ids[1], "failed"), (ids[0], "done")]
    assert "items" not in listed["jobs"][0]
    _, stats = await api(proxy, "GET", "stats")
    assert stats["warm"] == listed["jobs"]
    assert (await api(proxy, "GET", "warm/nobody"))[0] == 404
    assert (await api(proxy, "DELETE", "warm/nobody"))[0] == 404


async def test_more_jobs_than_run_at_a_time(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is queued, the oldest goes first; one that is stopped before its turn has asked for nothing."""
    monkeypatch.setattr("proxy.cache.warm._RUNNING", 1)
    for number in range(3):
        registry.push("team/app", f"v{number}", make_image(100, seed=number + 1))
    gate = Gate(0)
    registry.script = lambda _: Act(gate=gate)
    jobs = []
    for number in range(3):
        jobs.append(await begin(proxy, f"{NAME}:v{number}"))
        proxy.clock.advance(1)
    await gate.reached.wait()
    assert [(await job(proxy, one))["state"] for one in jobs] == ["running", "queued", "queued"]
    assert (await api(proxy, "DELETE", f"warm/{jobs[1]}"))[1]["state"] == "stopped"
    gate.open()
    assert [(await ended(proxy, one))["state"] for one in jobs] == ["done", "stopped", "done"]
    assert "/v2/team/app/manifests/v1" not in {seen.path for seen in registry.seen}


async def test_no_more_jobs_than_are_kept(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest that has ended makes room; where none has, another one is refused."""
    monkeypatch.setattr("proxy.cache.warm.MOST_JOBS", 2)
    registry.push("team/app", "v1", make_image(100))
    first = (await warm(proxy, f"{NAME}:v1"))["id"]
    gate = Gate(0)
    registry.script = lambda _: Act(gate=gate)
    proxy.clock.advance(1)
    registry.push("team/app", "v2", make_image(100, seed=1))
    await begin(proxy, f"{NAME}:v2")
    await begin(proxy, f"{NAME}:v2")
    assert (await api(proxy, "GET", f"warm/{first}"))[0] == 404
    status, answer = await api(proxy, "POST", "warm", {"references": [f"{NAME}:v2"]})
    assert (status, answer["error"]) == (429, "2 jobs have not ended yet")
    gate.open()


async def test_a_blob_that_is_gone_takes_no_room(
    settings: MakeSettings, registry: FakeRegistry, tmp_path: Path
) -> None:
    """What could not be had is not counted against what comes after it."""
    registry.push("team/app", "gone", gone := make_image(700 * KIB, seed=1))
    registry.members.discard(("team/app", digest_of(gone.blobs[1])))
    registry.push("team/app", "v1", make_image(700 * KIB, seed=2))
    cache = {"directory": str(tmp_path / "cache"), "max_size": "1MiB", "min_free": 0}
    async with running(settings(cache=cache)) as proxy:
        found = await warm(proxy, f"{NAME}:gone", f"{NAME}:v1", concurrency=1)
        assert [item["state"] for item in found["items"]] == ["failed", "done"]


# An upstream that fails.


async def test_pulls_that_are_kept_for_clients(proxy: Proxy, registry: FakeRegistry) -> None:
    """A job waits while no more is left than the reserve, and goes on with the next window; what is here costs none."""
    here, cold = make_image(10, seed=11), make_image(10, seed=12)
    registry.push("team/app", "here", here)
    registry.push("team/app", "cold", cold)
    registry.limits = {"": 20}
    await proxy.get("/v2/team/app/manifests/here")
    registry.pulled[""] = 18
    proxy.clock.advance(601)
    assert (await warm(proxy, f"{NAME}:here"))["state"] == "done"

    named = await begin(proxy, f"{NAME}:cold")
    while (note := (await job(proxy, named))["items"][0]["note"]) is None:
        await asyncio.sleep(0)
    assert "kept for clients" in note
    assert ("GET", "cold") not in asked(registry)
    assert (await proxy.get("/v2/team/app/manifests/cold", "HEAD")).status == 200
    registry.pulled[""] = 0
    proxy.clock.advance(WINDOW + 1)
    assert (await ended(proxy, named))["state"] == "done"


async def test_a_429_in_the_middle(proxy: Proxy, registry: FakeRegistry) -> None:
    """The job waits as long as Retry-After says, tells what for, and goes on; nothing that had come is asked again."""
    image = make_image(1000, 2000)
    registry.push("team/app", "v1", image)
    registry.script = [Act(status=429, headers={"Retry-After": "30"})]
    named = await begin(proxy, f"{NAME}:v1", concurrency=1)
    while (item := (await job(proxy, named))["items"][0])["note"] is None:
        await asyncio.sleep(0)
    assert item["note"].endswith("it is tried again in 30 s")
    assert len(asked(registry, "/blobs/")) == 1

    proxy.clock.advance(31)

    found = await ended(proxy, named)
    assert (found["state"], found["items"][0]["note"]) == ("done", None)
    assert len(asked(registry, "/blobs/")) == 1 + len(image.blobs)


async def test_an_outage_that_ends(proxy: Proxy, registry: FakeRegistry) -> None:
    """Failures are tried again with growing pauses, and the job is done once the registry is back."""
    registry.push("team/app", "v1", make_image(10))
    registry.fault = lambda _: web.Response(status=503)
    named = await begin(proxy, f"{NAME}:v1")
    async with asyncio.timeout(20):
        while len(registry.seen) < 5:
            proxy.clock.advance(30)
            await asyncio.sleep(0.01)
    registry.fault = None
    async with asyncio.timeout(20):
        while (found := await job(proxy, named))["ended"] is None:
            proxy.clock.advance(30)
            await asyncio.sleep(0.01)
    assert found["state"] == "done"


async def test_an_outage_that_does_not_end(proxy: Proxy, registry: FakeRegistry) -> None:
    """After an hour the reference fails, and what else was to be asked of that registry then waits no more either."""
    registry.fault = lambda _: web.Response(status=503)
    named = await begin(proxy, *(f"{NAME}:{number}" for number in range(20)), concurrency=1)
    async with asyncio.timeout(20):
        while (found := await job(proxy, named))["ended"] is None:
            proxy.clock.advance(130)
            await asyncio.sleep(0.01)
    assert (found["state"], found["failed"]) == ("failed", 20)
    assert "503" in found["items"][0]["error"]


async def test_a_stale_tag_is_not_warm(proxy: Proxy, registry: FakeRegistry) -> None:
    """Clients are served it while the upstream fails; the job waits for what is there now."""
    registry.push("team/app", "v1", make_image(10))
    await warm(proxy, f"{NAME}:v1")
    proxy.clock.advance(1200)
    registry.fault = lambda _: error(503, "UNAVAILABLE")
    registry.push("team/app", "v1", moved := make_image(20, seed=9))
    named = await begin(proxy, f"{NAME}:v1")
    while not (await job(proxy, named))["items"][0]["note"]:
        await asyncio.sleep(0)
    registry.fault = None
    async with asyncio.timeout(20):
        while (found := await job(proxy, named))["ended"] is None:
            proxy.clock.advance(130)
            await asyncio.sleep(0.01)
    assert found["items"][0]["digest"] == moved.digest


async def test_the_reserve_of_pulls(proxy: Proxy, registry: FakeRegistry) -> None:
    """A tag that is cached, and kept back because pulls are short, is warmed as it is served, and the job says so."""
    registry.limits = {"": 20}
    registry.push("team/app", "v1", old := make_image(10, seed=1))
    await warm(proxy, f"{NAME}:v1")
    registry.push("team/app", "v1", make_image(20, seed=2))
    registry.push("team/app", "v2", make_image(30, seed=3))
    registry.pulled[""] = 18
    proxy.clock.advance(700)
    found = await warm(proxy, f"{NAME}:v1", f"{NAME}:v2")
    assert [item["state"] for item in found["items"]] == ["done", "done"]
    assert found["items"][0]["digest"] == old.digest
    assert "kept for images that are not cached" in found["items"][0]["note"]
    assert registry.pulled[""] == 19


# Room.


async def test_what_is_larger_than_the_cache(settings: MakeSettings, registry: FakeRegistry, tmp_path: Path) -> None:
    """A blob that can never fit fails its reference with the reason; what fits is warmed."""
    registry.push("team/app", "large", make_image(2 * MIB, seed=1))
    registry.push("team/app", "small", make_image(1000, seed=2))
    cache = {"directory": str(tmp_path / "cache"), "max_size": "1MiB", "min_free": 0}
    async with running(settings(cache=cache)) as proxy:
        found = await warm(proxy, f"{NAME}:large", f"{NAME}:small", concurrency=1)
        assert [item["state"] for item in found["items"]] == ["failed", "done"]
        assert found["items"][0]["error"].startswith("no room: a blob of 2097152 bytes does not fit beside")


async def test_a_job_that_is_larger_than_the_cache(
    settings: MakeSettings, registry: FakeRegistry, tmp_path: Path
) -> None:
    """Drops nothing of its own: what does not fit beside it fails, and the job says that it is too large."""
    images = [make_image(400 * KIB, seed=number) for number in range(1, 5)]
    for number, image in enumerate(images):
        registry.push("team/app", f"v{number}", image)
    cache = {"directory": str(tmp_path / "cache"), "max_size": "1MiB", "min_free": 0}
    async with running(settings(cache=cache)) as proxy:
        found = await warm(proxy, *(f"{NAME}:v{number}" for number in range(4)), concurrency=1)
        assert [item["state"] for item in found["items"]] == ["done", "done", "failed", "failed"]
        assert found["note"] == "this job is larger than the cache, which holds 1048576 bytes (cache.max_size)"
        assert await proxy.metric("pullthrough_evictions_total") == 0
        for image in images[:2]:
            assert (await proxy.get(f"/v2/team/app/blobs/{digest_of(image.blobs[1])}")).state == "pullthrough; hit"


async def test_what_others_pushed_out_is_said(settings: MakeSettings, registry: FakeRegistry, tmp_path: Path) -> None:
    """An image that was warmed, and evicted for what clients wanted before the job had ended, is not called done."""
    registry.push("team/app", "v1", make_image(600 * KIB, seed=1))
    registry.push("team/app", "v2", second := make_image(10, seed=2))
    other = registry.put("team/app", "application/octet-stream", random_bytes(700 * KIB, 5))
    gate = Gate(0)
    last = digest_of(second.blobs[1])
    registry.script = lambda asked: Act(head_gate=gate) if asked.digest == last else None
    cache = {"directory": str(tmp_path / "cache"), "max_size": "1MiB", "min_free": 0}
    async with running(settings(cache=cache)) as proxy:
        named = await begin(proxy, f"{NAME}:v1", f"{NAME}:v2", concurrency=1)
        await gate.reached.wait()
        assert (await proxy.get(f"/v2/team/app/blobs/{other}")).status == 200
        gate.open()
        found = await ended(proxy, named)
    assert [item["state"] for item in found["items"]] == ["failed", "done"]
    assert "evicted again" in found["items"][0]["error"]


async def test_a_blob_without_a_length(proxy: Proxy, registry: FakeRegistry) -> None:
    """Cannot be kept, so the reference fails and says so."""
    registry.push("team/app", "v1", make_image(10))
    registry.blob_length = False
    found = await warm(proxy, f"{NAME}:v1")
    assert (found["state"], "does not say how long" in found["items"][0]["error"]) == ("failed", True)


# Speed, and how many at a time.


async def test_no_more_blobs_at_a_time_than_asked_for(proxy: Proxy, registry: FakeRegistry) -> None:
    """However many references and layers there are."""
    for number in range(4):
        registry.push("team/app", f"v{number}", make_image(1000, 1000, 1000, seed=number + 1))
    gate = Gate(0)
    registry.script = lambda _: Act(gate=gate)
    named = await begin(proxy, *(f"{NAME}:v{number}" for number in range(4)), concurrency=3)
    await until(lambda: gate.waiting == 3)
    for _ in range(200):
        await asyncio.sleep(0)
    assert registry.record.most_open == 3
    gate.open()
    assert (await ended(proxy, named))["state"] == "done"
    assert registry.record.most_open == 3


async def test_bandwidth(proxy: Proxy, registry: FakeRegistry, timers: LoopClock) -> None:
    """All blobs of a job together come as fast as it says and no faster; the rest of the time it waits."""
    image = make_image(9 * MIB, 9 * MIB, 6 * MIB)
    registry.push("team/app", "v1", image)
    named = await begin(proxy, f"{NAME}:v1", bandwidth=2 * MIB)
    # What comes at once is what the connections hold, which is waited for afterwards.
    before = first = await settled(proxy)
    assert first < 6 * MIB
    for _ in range(4):
        await timers.advance(2.0)
        now = await settled(proxy)
        assert now - before < 6 * MIB
        before = now
    assert 11 * MIB < before < 20 * MIB
    await timers.advance(20.0)
    assert (await ended(proxy, named))["state"] == "done"


async def test_a_reader_lifts_the_speed(proxy: Proxy, registry: FakeRegistry, timers: LoopClock) -> None:
    """A client that wants a blob on its way has it at full speed; what nobody waits for goes on as slowly as before."""
    image = make_image(3 * MIB, 3 * MIB)
    registry.push("team/app", "v1", image)
    named = await begin(proxy, f"{NAME}:v1", bandwidth=64 * KIB)
    await settled(proxy)
    body = (await proxy.get(f"/v2/team/app/blobs/{digest_of(image.blobs[1])}")).body
    assert body == image.blobs[1]
    assert (await job(proxy, named))["bytes"]["done"] < 5 * MIB
    assert registry.record.times_sent(digest_of(image.blobs[1])) == [(0, 3 * MIB, 1)]
    reader = await Reader.open(proxy, f"/v2/team/app/blobs/{digest_of(image.blobs[2])}")
    assert await reader.rest() == image.blobs[2]
    # What had come before anybody waited is still waited for.
    await timers.advance(60.0)
    assert (await ended(proxy, named))["state"] == "done"


async def test_a_job_without_a_limit_does_not_keep_to_that_of_another(
    proxy: Proxy, registry: FakeRegistry, timers: LoopClock
) -> None:
    """Whoever finds a job too slow begins another: what both want comes at full speed, and once."""
    image = make_image(3 * MIB)
    registry.push("team/app", "v1", image)
    slow = await begin(proxy, f"{NAME}:v1", bandwidth=64 * KIB)
    await settled(proxy)
    assert (await job(proxy, slow))["state"] == "running"
    assert (await warm(proxy, f"{NAME}:v1"))["state"] == "done"
    assert registry.record.times_sent(digest_of(image.blobs[1])) == [(0, 3 * MIB, 1)]
    await timers.advance(60.0)
    assert (await ended(proxy, slow))["state"] == "done"


async def test_a_slow_fill_gives_its_turn_away(
    settings: MakeSettings, registry: FakeRegistry, timers: LoopClock
) -> None:
    """A job that is held back does not keep the only connection to the upstream from a client that waits."""
    registry.push("team/app", "v1", make_image(3 * MIB))
    wanted = registry.put("team/app", "application/octet-stream", random_bytes(1000, 77))
    async with running(settings({"max_connections": 1})) as proxy:
        named = await begin(proxy, f"{NAME}:v1", bandwidth=64 * KIB)
        await settled(proxy)
        asking = asyncio.create_task(proxy.get(f"/v2/team/app/blobs/{wanted}"))
        async with asyncio.timeout(10):
            while not asking.done():
                await timers.advance(1.0)
                await asyncio.sleep(0.01)
        assert (await asking).status == 200
        assert (await job(proxy, named))["state"] == "running"


# Stopped, killed, gone on with.


async def test_stopped(proxy: Proxy, registry: FakeRegistry) -> None:
    """Nothing more is asked for, what only the job wanted ends at once, and what had come is not asked for again."""
    image = make_image(3 * MIB, seed=4)
    registry.push("team/app", "v1", image)
    layer = digest_of(image.blobs[1])
    gate = Gate(MIB)
    registry.script = lambda asked: Act(gate=gate) if asked.digest == layer else None
    named = await begin(proxy, f"{NAME}:v1", f"{NAME}:v1@{image.digest}", concurrency=1)
    await gate.reached.wait()
    while await in_file(proxy, layer) < MIB:
        await asyncio.sleep(0)

    status, stopped = await api(proxy, "DELETE", f"warm/{named}")

    assert (status, stopped["state"]) == (200, "stopped")
    assert [item["state"] for item in stopped["items"]] == ["stopped", "stopped"]
    assert await proxy.metric("pullthrough_fills_active") == 0
    assert (await api(proxy, "DELETE", f"warm/{named}"))[1]["state"] == "stopped"
    gate.open()
    registry.script = None
    assert (await proxy.get(f"/v2/team/app/blobs/{layer}")).body == image.blobs[1]
    (sent, *_) = registry.record.times_sent(layer)
    assert sent == (0, 3 * MIB, 1)


async def test_stopped_with_a_layer_that_images_have_in_common(proxy: Proxy, registry: FakeRegistry) -> None:
    """The last of them that wants it ends it, whichever began it: nothing goes on for a job that was stopped."""
    image = make_image(3 * MIB, seed=4)
    registry.push("team/app", "v1", image)
    registry.push("team/app", "v2", image)
    layer = digest_of(image.blobs[1])
    gate = Gate(MIB)
    registry.script = lambda asked: Act(gate=gate) if asked.digest == layer else None
    named = await begin(proxy, f"{NAME}:v1", f"{NAME}:v2")
    await gate.reached.wait()
    while [fill["readers"] for fill in (await api(proxy, "GET", "stats"))[1]["fills"]] != [2]:
        await asyncio.sleep(0)
    assert (await api(proxy, "DELETE", f"warm/{named}"))[1]["state"] == "stopped"
    assert await proxy.metric("pullthrough_fills_active") == 0


async def test_stopped_while_a_client_reads(proxy: Proxy, registry: FakeRegistry) -> None:
    """The client's body goes on to its end."""
    image = make_image(3 * MIB, seed=4)
    registry.push("team/app", "v1", image)
    gate = Gate(MIB)
    layer = digest_of(image.blobs[1])
    registry.script = lambda asked: Act(gate=gate) if asked.digest == layer else None
    named = await begin(proxy, f"{NAME}:v1")
    await gate.reached.wait()
    reader = await Reader.open(proxy, f"/v2/team/app/blobs/{layer}")
    await api(proxy, "DELETE", f"warm/{named}")
    gate.open()
    assert await reader.rest() == image.blobs[1]


async def test_killed_between_two_blobs(
    settings: MakeSettings, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start goes on with the job: what had come is not asked for again, and no reference that had ended."""
    monkeypatch.setattr("proxy.cache.warm._WRITE_EVERY", 0.01)
    first, second = make_image(1000, seed=1), make_image(2000, 3000, seed=2)
    registry.push("team/app", "v1", first)
    registry.push("team/app", "v2", second)
    gate, last = Gate(0), digest_of(second.blobs[2])
    registry.script = lambda asked: Act(head_gate=gate) if asked.digest == last else None
    async with running(settings()) as proxy:
        named = await begin(proxy, f"{NAME}:v1", f"{NAME}:v2", concurrency=1)
        await gate.reached.wait()
        await proxy.stored(4)
        while (await job(proxy, named))["items"][1]["blobs"]["done"] < 2:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        copy_as_killed(tmp_path / "cache", tmp_path / "killed")
    gate.open()
    registry.script = None
    registry.seen.clear()

    cache = {"directory": str(tmp_path / "killed"), "max_size": "1GiB", "min_free": 0}
    async with running(settings(cache=cache)) as proxy:
        found = await ended(proxy, named)
        assert (found["state"], found["done"]) == ("done", 2)
    assert [what for method, what in asked(registry) if method == "GET"] == [last]


async def test_killed_in_a_job_that_is_larger_than_the_cache(
    settings: MakeSettings, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had brought before counts after the next start as well: the rest does not push it out."""
    monkeypatch.setattr("proxy.cache.warm._WRITE_EVERY", 0.01)
    images = [make_image(400 * KIB, seed=number) for number in range(1, 5)]
    for number, image in enumerate(images):
        registry.push("team/app", f"v{number}", image)
    gate, third = Gate(0), digest_of(images[2].blobs[0])
    registry.script = lambda asked: Act(head_gate=gate) if asked.digest == third else None
    cache = {"directory": str(tmp_path / "cache"), "max_size": "1MiB", "min_free": 0}
    async with running(settings(cache=cache)) as proxy:
        named = await begin(proxy, *(f"{NAME}:v{number}" for number in range(4)), concurrency=1)
        await gate.reached.wait()
        await asyncio.sleep(0.1)
        copy_as_killed(tmp_path / "cache", tmp_path / "killed")
    gate.open()
    async with running(settings(cache=cache | {"directory": str(tmp_path / "killed")})) as proxy:
        found = await ended(proxy, named)
        assert [item["state"] for item in found["items"]] == ["done", "done", "failed", "failed"]
        assert await proxy.metric("pullthrough_evictions_total") == 0


async def test_a_restart(settings: MakeSettings, registry: FakeRegistry) -> None:
    """A job that ran when the proxy ended is gone on with, at the missing byte; one that was stopped is not."""
    image = make_image(3 * MIB, seed=4)
    registry.push("team/app", "v1", image)
    gate, layer = Gate(MIB), digest_of(image.blobs[1])
    registry.script = lambda asked: Act(gate=gate) if asked.digest == layer else None
    async with running(settings()) as proxy:
        named = await begin(proxy, f"{NAME}:v1")
        await gate.reached.wait()
        while await in_file(proxy, layer) < MIB:
            await asyncio.sleep(0)
    registry.script = None
    gate.open()
    async with running(settings()) as proxy:
        found = await ended(proxy, named)
        assert found["state"] == "done"
        assert registry.record.times_sent(layer) == [(0, 3 * MIB, 1)]
    registry.seen.clear()
    async with running(settings()) as proxy:
        assert (await job(proxy, named))["state"] == "done"
        assert asked(registry) == []
