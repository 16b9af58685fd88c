"""Several replicas, one cache: one upstream copy of an image, a death in the middle, changes that all of them see."""

import asyncio
import contextlib
import hashlib
import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.process import wait_for
from tests.clients.proxy_process import REGISTRY
from tests.clients.replicas import MIB, CountingOrigin, Load, Pushed, Replica, Replicas
from tests.clients.s3 import ACCESS, SECRET, FaultyS3, S3Server
from tests.clients.valkey import ValkeyServer
from tests.clients.wire import ask

CLIENTS = 60
BIG = (50_000_000,) * 4
# Room for manifests, which `upstream_bytes_total` counts as well.
MANIFESTS = 64 * 1024
# Seconds: how soon a change is in force everywhere.
SOON = 1.0
KEYS = {"access_key_id": ACCESS, "secret_access_key": SECRET}
UPSTREAM_BYTES, SHARED_BYTES = "pullthrough_upstream_bytes_total", "pullthrough_shared_bytes_total"


@dataclass
class Region:
    """An upstream, and what replicas share: each set of them has keys and objects of its own there."""

    origin: CountingOrigin
    valkey: ValkeyServer
    objects: S3Server
    scratch: Path

    @contextlib.contextmanager
    def replicas(
        self, count: int = 3, metadata: bool = True, blobs: bool = True, way: FaultyS3 | None = None, **more: Any
    ) -> Iterator[Replicas]:
        """Replicas that are gone afterwards; of those that were of no use to a test the logs' ends are shown.

        `way` is theirs to the object store; the upstream is as fast as it can be when they are gone.
        """
        with tempfile.TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True) as directory:
            prefix = Path(directory).name
            shared = {
                "metadata": self.valkey.url(prefix) if metadata else None,
                "blobs": (way or self.objects).url(prefix, **KEYS) if blobs else None,
            }
            with Replicas(Path(directory) / "replicas", self.origin, shared, count, **more) as replicas:
                try:
                    yield replicas
                except BaseException:
                    for number, one in enumerate(replicas):
                        print(f"--- replica {number}\n" + "\n".join(notable(one)[-40:]))
                    raise
                finally:
                    self.origin.throttle(0)


def notable(replica: Replica) -> list[str]:
    """The lines of its log that are not of requests which went well."""
    return [line for line in replica.log().splitlines() if not ("pullthrough.access" in line and '" 20' in line)]


@contextlib.contextmanager
def servers(scratch: Path) -> Iterator[Region]:
    """A region without replicas."""
    with contextlib.ExitStack() as stack:
        origin = CountingOrigin()
        stack.callback(origin.stop)
        directory = Path(tempfile.mkdtemp(dir=scratch))
        valkey = ValkeyServer(directory / "valkey")
        stack.callback(valkey.stop)
        objects = S3Server(directory)
        stack.callback(objects.stop)
        yield Region(origin, valkey, objects, scratch)


@pytest.fixture(scope="module")
def region(scratch: Path) -> Iterator[Region]:
    """Its servers, once for all tests."""
    with servers(scratch) as started:
        yield started


def everything_came_once(origin: CountingOrigin, image: Pushed, at_most: float = 1.01) -> None:
    """The upstream has sent each byte of the image, and hardly one twice; its manifest once."""
    times = origin.sent(*image.blobs) / image.size
    print(f"sent {times:.3f} times by the upstream")
    assert 1 <= times <= at_most
    assert origin.manifest_gets(image) == 1


# One cold image.


@pytest.mark.parametrize("blobs", [True, False], ids=["metadata and blobs", "metadata only"])
def test_sixty_clients_of_three_replicas_cost_one_download(region: Region, blobs: bool) -> None:
    """60 clients spread over three replicas pull a cold image of 200 MB: the upstream sends each of its bytes once, and
    its manifest once. Every client has all of it, and no body is cut."""
    origin = region.origin
    image = origin.push(f"team/cold{int(blobs)}", *BIG)
    with region.replicas(blobs=blobs) as replicas:
        load = Load(replicas.ports)
        asyncio.run(load.pull(image, CLIENTS))

        assert load.errors == []
        assert load.pulled == CLIENTS
        everything_came_once(origin, image)
        upstream, others = replicas.metric(UPSTREAM_BYTES, registry=REGISTRY), replicas.metric(SHARED_BYTES)
        assert upstream <= 1.01 * image.size + MANIFESTS
        # Each of the three has all of it on its disk.
        assert upstream + others >= len(replicas.all) * image.size
        if not blobs:
            assert replicas.metric(SHARED_BYTES, source="object") == 0


@pytest.mark.parametrize("blobs", [True, False], ids=["metadata and blobs", "metadata only"])
def test_the_holder_of_the_lease_is_killed_at_half(region: Region, blobs: bool) -> None:
    """The same, and when half of the bytes have come the replica that fetches most of them is killed: its clients go on
    at the others, and all have the image. What was lost with it is fetched again, and no more."""
    origin = region.origin
    image = origin.push(f"team/killed{int(blobs)}", *BIG)
    origin.throttle(40e6)
    with region.replicas(blobs=blobs) as replicas, ThreadPoolExecutor() as pool:
        load = Load(replicas.ports, moves=True)
        pulling = pool.submit(asyncio.run, load.pull(image, CLIENTS))
        wait_for("half of it", lambda: origin.sent(*image.blobs) >= image.size / 2 or pulling.done(), within=60)
        replicas.busiest().kill()
        pulling.result()

        assert load.errors == []
        assert load.pulled == CLIENTS
        everything_came_once(origin, image, at_most=1.6)


# Changes.


class Watch:
    """Clients that ask all replicas for a tag, again and again, so that all of them have it in memory."""

    def __init__(self, replicas: Replicas, image: Pushed) -> None:
        self._image = image
        self._ends = threading.Event()
        # When it was asked, which replica, the digest, and whether that is said to be held.
        self._answers: list[tuple[float, int, str, bool]] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(number, one), daemon=True) for number, one in enumerate(replicas)
        ]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def until(self, digest: str, held: bool = False) -> None:
        """Wait until every replica gives this, time after time."""
        mark = len(self._answers)
        numbers = range(len(self._threads))

        def all_give() -> bool:
            given = self._answers[mark:]
            lately = [[rest for _, one, *rest in given if one == number][-5:] for number in numbers]
            return all(answers == [[digest, held]] * 5 for answers in lately)

        wait_for(f"{digest} of all replicas, held: {held}", all_give, within=10)

    def others(self, since: float, digest: str, held: bool = False) -> float:
        """How long after `since` somebody began to ask and was given anything else, in seconds; 0 for never.

        Looks on for a while, since what came too late may still come.
        """
        wait_for("what comes late", lambda: time.monotonic() > since + 2 * SOON)
        wrong = [began for began, _, *given in list(self._answers) if began >= since and given != [digest, held]]
        return max(wrong, default=since) - since

    def _ask(self, number: int, replica: Replica) -> None:
        while not self._ends.wait(0.002):
            began = time.monotonic()
            answer = replica.manifest(self._image)
            digest = answer.digest if answer.status == 200 else str(answer.status)
            self._answers.append((began, number, digest, "detail=held" in answer.cache_status))


@pytest.fixture(scope="module")
def three(region: Region) -> Iterator[Replicas]:
    """Replicas whose tags stay for an hour, and through which is pushed."""
    with region.replicas(manifests={"tag_ttl": "1h"}, clusters=[{"name": "default", "push": "forward"}]) as replicas:
        yield replicas


_NAMES = itertools.count()


def moved(origin: CountingOrigin, replicas: Replicas) -> tuple[Pushed, Pushed]:
    """An image that all replicas have, and the one that its tag names upstream since."""
    repository = f"team/moved{next(_NAMES)}"
    old = origin.push(repository, 1000)
    for replica in replicas:
        assert replica.manifest(old).digest == old.digest
    return old, origin.push(repository, 1000)


@pytest.mark.parametrize("change", ["purge", "refresh"])
def test_a_tag_is_purged_or_refreshed_at_one_replica(region: Region, three: Replicas, change: str) -> None:
    """A second later no replica gives the old image any more, though each had it in memory.

    A purge costs one pull, and for each replica another one at most: whoever asks in the moment between the record's
    end and the repository's new generation finds nothing, and what it brings counts no more.
    """
    old, new = moved(region.origin, three)
    pulls = region.origin.manifest_gets(new)
    with Watch(three, old) as watch:
        watch.until(old.digest)
        if change == "purge":
            three[0].api("DELETE", f"tags?reference={old.reference}")
        else:
            three[0].api("POST", "tags/refresh", {"reference": old.reference})
        late = watch.others(time.monotonic(), new.digest)
        print(f"seconds: {late:.3f}")

        assert late < SOON
        watch.until(new.digest)
    # A refresh asks by itself, beside the client that comes at that moment.
    assert region.origin.manifest_gets(new) - pulls <= (1 + len(list(three)) if change == "purge" else 2)


def test_a_tag_is_held_and_released(region: Region, three: Replicas) -> None:
    """What one replica is told to hold all hold a second later, and let go when another one is told to."""
    old, new = moved(region.origin, three)
    three[0].api("POST", "tags/refresh", {"reference": old.reference})
    with Watch(three, old) as watch:
        watch.until(new.digest)
        three[1].api("POST", "tags/hold", {"reference": f"{old.reference}@{old.digest}"})
        late = watch.others(time.monotonic(), old.digest, held=True)
        print(f"seconds until held: {late:.3f}")
        assert late < SOON
        for replica in three:
            (tag,) = replica.api("GET", f"tags?reference={old.reference}")["tags"]
            assert tag["held"] is not None

        three[2].api("POST", "tags/release", {"reference": old.reference})
        three[0].api("POST", "tags/refresh", {"reference": old.reference})
        late = watch.others(time.monotonic(), new.digest)
        print(f"seconds until released: {late:.3f}")
        assert late < SOON


def test_a_push_through_one_replica(region: Region, three: Replicas) -> None:
    """What is pushed through one replica is what all give a second later."""
    origin = region.origin
    old, new = moved(origin, three)
    with Watch(three, old) as watch:
        watch.until(old.digest)
        path = f"/v2/{REGISTRY}/{old.repository}/manifests/{old.tag}"
        headers = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        answer = ask(three[0].port, path, "PUT", body=origin.content(new.digest), headers=headers)
        pushed = time.monotonic()
        assert answer.status == 201
        late = watch.others(pushed, new.digest)
        print(f"seconds: {late:.3f}")
        assert late < SOON


def test_a_blob_is_removed_at_one_replica(region: Region, three: Replicas) -> None:
    """It is gone from every disk, and from the object store, when the answer comes; when somebody wants it, it comes
    from the upstream again, once."""
    origin = region.origin
    image = origin.push("team/removed", MIB)
    (*_, layer) = image.blobs
    load = Load(three.ports)
    asyncio.run(load.pull(image, 6))
    files = [replica.blob_file(layer) for replica in three]
    # Whoever uploads it reads it, and what is read cannot be removed.
    uploads = len(three.all) * len(image.blobs)
    wait_for("all uploads", lambda: three.metric("pullthrough_object_uploads_total") == uploads)
    assert objects_of(region, three, layer)

    three[1].api("DELETE", f"blobs/{layer}")

    assert [file.exists() for file in files] == [False] * 3
    assert objects_of(region, three, layer) == []
    sent = origin.sent(layer)
    asyncio.run(load.pull(image, 6))
    assert load.errors == []
    assert origin.sent(layer) - sent == len(origin.content(layer))


# The object store.


def objects_of(region: Region, replicas: Replicas, digest: str) -> list[Path]:
    """The files of a blob's bytes in the object store."""
    prefix = replicas[0].directory.parents[1].name
    root = region.objects.bucket / prefix / "data"
    return [file for file in root.rglob("*") if file.is_file() and digest.partition(":")[2] in file.parts]


def uploaded(region: Region, replicas: Replicas, image: Pushed) -> bool:
    """Is all of it there, as far as the replicas know?"""
    there = replicas.metric("pullthrough_object_uploads_total", outcome="stored")
    return there >= len(image.blobs) and all(objects_of(region, replicas, digest) for digest in image.blobs)


def test_a_replica_with_an_empty_disk_joins(region: Region) -> None:
    """All others are gone, and the upstream is asked for no blob: a warm image comes from the object store."""
    origin = region.origin
    image = origin.push("team/joined", 3 * MIB, 300_000, 10)
    with region.replicas() as replicas:
        first, second, third = replicas
        asyncio.run(Load([first.port, second.port]).pull(image, 4))
        wait_for("the uploads", lambda: uploaded(region, replicas, image))
        for one in replicas:
            one.stop()
        third.empty()
        third.start()
        mark = origin.blob_requests(*image.blobs)
        load = Load([third.port])
        asyncio.run(load.pull(image, 20))

        assert load.errors == []
        assert load.pulled == 20
        assert origin.blob_requests(*image.blobs) == mark
        assert third.metric(SHARED_BYTES, source="object") >= image.size
        assert origin.manifest_gets(image) == 1


def test_a_replica_with_an_empty_disk_asks_the_others(region: Region) -> None:
    """Without an object store a warm image comes from another replica, and the upstream is asked for no blob."""
    origin = region.origin
    image = origin.push("team/given", 3 * MIB, 300_000, 10)
    with region.replicas(count=2, blobs=False) as replicas:
        first, second = replicas
        asyncio.run(Load([first.port]).pull(image, 4))
        mark = origin.blob_requests(*image.blobs)
        load = Load([second.port])
        asyncio.run(load.pull(image, 20))

        assert load.errors == []
        assert origin.blob_requests(*image.blobs) == mark
        assert second.metric(SHARED_BYTES, source="replica") >= image.size


def test_two_replicas_upload_the_same_blob(region: Region) -> None:
    """Two that share no metadata fill the same blob at once, and upload it: one object, with the right bytes."""
    origin = region.origin
    image = origin.push("team/twice", 20 * MIB)
    (*_, layer) = image.blobs
    barrier = origin.barrier(layer, 10 * MIB)
    with region.replicas(count=2, metadata=False) as replicas, ThreadPoolExecutor() as pool:
        load = Load(replicas.ports)
        pulling = pool.submit(asyncio.run, load.pull(image, 4))
        wait_for("both at the barrier", lambda: barrier.waiting >= 2)
        origin.do(barrier.open)
        pulling.result()
        assert load.errors == []
        done = 2 * len(image.blobs)
        wait_for("both uploads", lambda: replicas.metric("pullthrough_object_uploads_total") >= done)

        assert replicas.metric("pullthrough_object_uploads_total", outcome="failed") == 0
        for digest in image.blobs:
            (data,) = objects_of(region, replicas, digest)
            assert f"sha256:{hashlib.sha256(data.read_bytes()).hexdigest()}" == digest
