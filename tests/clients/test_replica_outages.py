"""What replicas share fails, in every way that it can: clients have what they want all the same, and the right bytes;
when it is back all replicas say the same again."""

import asyncio
import dataclasses
import itertools
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.clients.netns import Namespace
from tests.clients.process import wait_for
from tests.clients.replicas import MIB, Load, Pushed, Replica, Replicas
from tests.clients.s3 import FaultyS3
from tests.clients.test_replicas import (
    SHARED_BYTES,
    SOON,
    Region,
    Watch,
    everything_came_once,
    moved,
    servers,
    uploaded,
)
from tests.clients.valkey import ValkeyServer
from tests.clients.wire import ask

CLIENTS = 24
# Seconds.
LASTS = 3.0
SLOWEST = 10.0
# What still comes, though slowly, is waited for: a head leaves within this in any case.
PATIENCE = 25.0


@pytest.fixture(scope="module")
def region(scratch: Path) -> Iterator[Region]:
    """Its servers, once for all tests."""
    with servers(scratch) as started:
        yield started


class Pulls:
    """Clients that pull without end: by turns an image that all replicas have, and one that may be cold; by tag and by
    digest. What they meet stands in `load`."""

    def __init__(self, load: Load, warm: Sequence[Pushed], cold: Sequence[Pushed]) -> None:
        self._load = load
        self._warm, self._cold = warm, cold
        self._ended = [0] * CLIENTS
        self._ends = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "Pulls":
        self._pulling = self._thread.submit(asyncio.run, self._pull_on())
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.shutdown()
        self._pulling.result()

    def go_on(self) -> None:
        """Wait until every client has ended two more pulls, one of either kind."""
        mark = list(self._ended)

        def all_did() -> bool:
            return all(now >= before + 2 for now, before in zip(self._ended, mark, strict=True))

        wait_for("two more pulls of each client", lambda: self._pulling.done() or all_did())

    async def _pull_on(self) -> None:
        async with self._load.session() as session:
            await asyncio.gather(*(self._client(session, number) for number in range(CLIENTS)))

    async def _client(self, session: Any, number: int) -> None:
        for turn in itertools.count():
            images, place = (self._cold, turn // 2) if turn % 2 else (self._warm, number + turn)
            await self._load.one(session, number, images[place % len(images)], by_digest=turn % 3 == 0)
            self._ended[number] += 1
            if self._ends.is_set():
                return
            # Nodes are busy with what they have pulled.
            await asyncio.sleep(0.1)


# The metadata store.


@dataclasses.dataclass(frozen=True)
class Outage:
    """How it begins and ends; `away`: it does not answer in between."""

    begin: Callable[[ValkeyServer, Namespace], None]
    end: Callable[[ValkeyServer, Namespace], None] = lambda _server, _network: None
    away: bool = False


OUTAGES = {
    "stopped": Outage(lambda server, _: server.stop(), lambda server, _: server.start(), away=True),
    "restarted": Outage(lambda server, _: server.restart()),
    "emptied": Outage(lambda server, _: server.flush()),
    "hung": Outage(lambda server, _: server.freeze(), lambda server, _: server.thaw(), away=True),
    "full": Outage(lambda server, _: server.fill_up(), lambda server, _: server.make_room()),
    "cut off": Outage(lambda _, network: network.cut_off(), lambda _, network: network.let_through(), away=True),
}


@pytest.fixture
def network() -> Iterator[Namespace]:
    """Where the metadata store is, behind a firewall of its own."""
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def valkey(network: Namespace, scratch: Path) -> Iterator[ValkeyServer]:
    """A metadata store for one test."""
    server = ValkeyServer(Path(tempfile.mkdtemp(dir=scratch)), host=network.address, within=network.within)
    yield server
    network.let_through()
    server.stop()


@pytest.fixture
def replicas(region: Region, valkey: ValkeyServer) -> Iterator[Replicas]:
    """Tags stay for an hour, but for those that are called `quick`, which are asked for every second."""
    manifests = {"tag_ttl": "1h", "tag_rules": [{"tags": "quick*", "ttl": "1s"}]}
    with dataclasses.replace(region, valkey=valkey).replicas(manifests=manifests) as started:
        yield started


def say_what_is_away(replicas: Replicas) -> bool:
    """Are all replicas ready, and say that the metadata store is away?"""
    answers = [ask(one.admin_port, "/readyz") for one in replicas]
    assert {answer.status for answer in answers} == {200}
    return all(b"metadata" in answer.body for answer in answers)


def give_the_same(replicas: Replicas, image: Pushed, digest: str) -> None:
    """Each replica gives this for the tag."""
    assert [one.manifest(image).digest for one in replicas] == [digest] * len(replicas.all), image.reference


def are_held(replicas: Replicas, held: Pushed) -> None:
    """It is held at this digest at all replicas, which say so."""
    give_the_same(replicas, held, held.digest)
    for one in replicas:
        assert "detail=held" in one.manifest(held).cache_status
        tags = one.api("GET", "tags?held=true")["tags"]
        assert [(tag["repository"], tag["held"]["digest"]) for tag in tags] == [(held.repository, held.digest)]


@pytest.mark.parametrize("how", OUTAGES)
def test_the_metadata_store_fails(
    region: Region, valkey: ValkeyServer, network: Namespace, replicas: Replicas, how: str
) -> None:
    """During a load of pulls: no client meets an error or waits for long. When it is back all replicas say the same:
    what was purged meanwhile is gone, what was held before is held, and changes are seen by all a second later."""
    origin, outage, number = region.origin, OUTAGES[how], list(OUTAGES).index(how)
    warm = [
        origin.push(f"warm{number}/app{one}", 200_000, 100_000, tag=tag) for one in range(3) for tag in ("v1", "quick")
    ]
    cold = [origin.push(f"cold{number}/app{one}", 200_000, 100_000) for one in range(40)]
    for image in warm:
        asyncio.run(Load(replicas.ports).pull(image, len(replicas.all)))
    held, _ = moved(origin, replicas)
    replicas[0].api("POST", "tags/hold", {"reference": f"{held.reference}@{held.digest}"})
    old, new = moved(origin, replicas)

    load = Load(replicas.ports)
    with Pulls(load, warm, cold) as pulls:
        pulls.go_on()
        outage.begin(valkey, network)
        ends = time.monotonic() + LASTS
        if outage.away:
            wait_for("all to say so", lambda: say_what_is_away(replicas), within=LASTS)
        # Where others cannot be told now, the answer says so; they are told as soon as they can be.
        assert ask(replicas[0].admin_port, f"/api/v1/tags?reference={old.reference}", "DELETE").status in {200, 503}
        wait_for("the end of the outage", lambda: time.monotonic() >= ends)
        outage.end(valkey, network)
        pulls.go_on()
    print(f"slowest: {load.slowest:.2f} {load.slowest_path}")

    assert load.errors == []
    assert load.slowest < SLOWEST
    if outage.away or how == "full":
        assert replicas.metric("pullthrough_shared_errors_total", store="metadata") > 0
    wait_for("it to be back", lambda: all(is_up(one) for one in replicas), within=10)
    back = time.monotonic()
    wait_for("a second", lambda: time.monotonic() >= back + SOON)
    give_the_same(replicas, old, new.digest)
    for image in [*warm, *cold]:
        give_the_same(replicas, image, image.digest)
    are_held(replicas, held)
    changes_are_seen(region, replicas)


def is_up(replica: Replica) -> bool:
    """Does the metadata store answer it?"""
    return replica.metric("pullthrough_shared_up", store="metadata") == 1


def changes_are_seen(region: Region, replicas: Replicas) -> None:
    """Of a tag that has moved, and is refreshed or purged at one replica, all give the new image a second later."""
    refreshed, purged = moved(region.origin, replicas), moved(region.origin, replicas)
    with Watch(replicas, refreshed[0]) as one, Watch(replicas, purged[0]) as other:
        one.until(refreshed[0].digest)
        other.until(purged[0].digest)
        replicas[1].api("POST", "tags/refresh", {"reference": refreshed[0].reference})
        replicas[2].api("DELETE", f"tags?reference={purged[0].reference}")
        changed = time.monotonic()
        assert one.others(changed, refreshed[1].digest) < SOON
        assert other.others(changed, purged[1].digest) < SOON


# The object store.

FAULTS: dict[str, Callable[[FaultyS3], object]] = {
    "503": lambda way: way.fault("503"),
    "slow to begin": lambda way: way.fault("delay", seconds=2),
    "dripping": lambda way: way.fault("drip", method="GET", path="/data/", seconds=0.01),
    "refusing": lambda way: way.refuse(),
    "other bytes": lambda way: way.fault("flip", method="GET", path="/data/"),
}
COUNTED = {"503": "shared_errors", "refusing": "shared_errors", "other bytes": "object_mismatches"}


@pytest.fixture
def way(region: Region) -> Iterator[FaultyS3]:
    """The replicas' way to the object store."""
    way = FaultyS3(region.objects)
    yield way
    way.stop()


@pytest.mark.parametrize("how", FAULTS)
def test_the_object_store_fails(region: Region, way: FaultyS3, how: str) -> None:
    """A replica without the image, whose only other place for it is an object store that fails: clients have it all the
    same, and never a wrong byte. What is cold comes as ever."""
    origin, number = region.origin, list(FAULTS).index(how)
    warm = origin.push(f"stored{number}/app", 2 * MIB, 2 * MIB + 1)
    cold = origin.push(f"unstored{number}/app", 2 * MIB)
    with region.replicas(count=2, way=way) as replicas:
        first, second = replicas
        asyncio.run(Load([first.port]).pull(warm, 4))
        wait_for("the uploads", lambda: uploaded(region, replicas, warm))
        first.stop()
        FAULTS[how](way)
        load = Load([second.port])

        async def pull_both() -> None:
            await asyncio.gather(load.pull(warm, 10), load.pull(cold, 10))

        asyncio.run(pull_both())
        print(f"slowest: {load.slowest:.2f} {load.slowest_path}")

        assert load.errors == []
        assert load.pulled == 20
        assert load.slowest < (PATIENCE if how == "dripping" else SLOWEST)
        if how in COUNTED:
            assert second.metric(f"pullthrough_{COUNTED[how]}_total", **only_of(how)) > 0


def only_of(how: str) -> dict[str, str]:
    """The labels of what is counted."""
    return {"store": "blobs"} if COUNTED[how] == "shared_errors" else {}


# A replica.


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_another_replica_takes_a_fill_over(region: Region, how: signal.Signals) -> None:
    """A replica ends, or hangs, in the middle of a blob that clients of the two others wait for: one of these fetches
    the other half, within seconds, since what had come was theirs already."""
    origin = region.origin
    image = origin.push(f"team/inherited{int(how)}", 20 * MIB)
    (*_, layer) = image.blobs
    barrier = origin.barrier(layer, 10 * MIB)
    with region.replicas(blobs=False) as replicas, ThreadPoolExecutor() as pool:
        first = Load(replicas.ports, moves=True)
        pulling = pool.submit(asyncio.run, first.pull(image, len(replicas.all)))
        wait_for("the barrier", lambda: barrier.waiting > 0)
        holder = replicas.busiest()
        others = [one for one in replicas if one is not holder]
        wait_for("all to have what has come", lambda: all(one.metric(SHARED_BYTES) >= 9 * MIB for one in others))
        holder.signal(how)
        began = time.monotonic()
        origin.do(barrier.open)
        load = Load([one.port for one in others])
        asyncio.run(load.pull(image, 6))
        print(f"seconds until the others had it: {time.monotonic() - began:.2f}")

        assert time.monotonic() - began < SLOWEST
        if how == signal.SIGSTOP:
            holder.signal(signal.SIGCONT)
        else:
            holder.kill()
        pulling.result()
        assert load.errors + first.errors == []
        everything_came_once(origin, image, at_most=1.6)


def test_a_replica_is_stopped_during_a_load(region: Region) -> None:
    """SIGTERM: it lets go what runs, and ends well; clients that go on elsewhere have the whole image."""
    origin = region.origin
    image = origin.push("team/stopped", *((5 * MIB,) * 4))
    origin.throttle(10e6)
    with region.replicas() as replicas, ThreadPoolExecutor() as pool:
        load = Load(replicas.ports, moves=True)
        pulling = pool.submit(asyncio.run, load.pull(image, 30))
        wait_for("half of it", lambda: origin.sent(*image.blobs) >= image.size / 2 or pulling.done())
        replicas.busiest().stop()
        pulling.result()

        assert load.errors == []
        assert load.pulled == 30
        everything_came_once(origin, image, at_most=1.6)
