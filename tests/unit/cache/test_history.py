"""What tags were and who was given what: nothing is lost where several add at once, and nothing grows without end."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache import history as module
from proxy.cache.ask import Ask, Records
from proxy.cache.history import History, merged, merged_nodes
from proxy.cache.records import HistoryRecord, Node, NodesRecord, Served, history_key, nodes_key
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS
from proxy.policy.freshness import lifetimes_of
from proxy.settings import ManifestSettings
from proxy.storage.base import StorageError
from tests.conformance.memory import MemoryMetadata
from tests.fakes.clock import ManualClock

REPOSITORY = Repository("registry.test", "team/app")
KEY = history_key(REPOSITORY, "v1")
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


def ask(cluster: str = "prod", repository: Repository = REPOSITORY) -> Ask:
    return Ask(repository, ANONYMOUS, lifetimes_of(ManifestSettings()), cluster)


# What is added to what.

times = st.floats(0, 2e9)
counts = st.integers(0, 1000)
served = st.builds(
    lambda digest, at, more, clusters: Served(digest, at, at + more, sum(clusters.values()), clusters),
    st.sampled_from([f"sha256:{number}" for number in range(6)]),
    times,
    st.floats(0, 1e6),
    st.dictionaries(st.sampled_from(["prod", "edge", "lab"]), counts),
)


@given(st.lists(served), st.data())
def test_sums_are_the_same_however_the_news_are_split(news: list[Served], data: st.DataObject) -> None:
    """Added at once or piece by piece, in any order: pulls, clusters, first and last are those of all."""
    splits = data.draw(st.lists(st.integers(0, len(news)), max_size=4).map(sorted))
    shuffled = data.draw(st.permutations(news))
    record = HistoryRecord()
    for start, stop in zip([0, *splits], [*splits, len(news)], strict=True):
        record = merged(record, shuffled[start:stop])
    assert {one.digest: one for one in record.digests} == {
        one.digest: one for one in merged(HistoryRecord(), news).digests
    }
    for one in record.digests:
        mine = [each for each in news if each.digest == one.digest]
        assert one.pulls == sum(each.pulls for each in mine) == sum(one.clusters.values())
        assert (one.first, one.last) == (min(each.first for each in mine), max(each.last for each in mine))


def test_the_digests_last_seen_are_kept_and_come_first() -> None:
    """Twenty of them; one that comes back is new again, with all of its pulls."""
    record = merged(HistoryRecord(), [Served(f"sha256:{number}", number, number, 1) for number in range(25)])
    assert [one.digest for one in record.digests] == [f"sha256:{number}" for number in range(24, 4, -1)]
    record = merged(record, [Served("sha256:5", 99.0, 99.0, 2)])
    assert record.digests[0] == Served("sha256:5", 5, 99.0, 3)
    assert len(record.digests) == 20


def test_digests_that_nobody_was_served_push_out_none_that_somebody_was() -> None:
    """Whoever asks who got an old image is told, however often the tag has moved since; the last one seen is kept."""
    served = [Served(f"sha256:{number}", number, number, 1) for number in range(15)]
    record = merged(
        HistoryRecord(), [*served, *(Served(f"sha256:{number}", number, number) for number in range(15, 60))]
    )
    assert [one.digest for one in record.digests] == [
        f"sha256:{number}" for number in (*range(59, 54, -1), *range(14, -1, -1))
    ]
    record = merged(record, [Served(f"sha256:{number}", number, number, 1) for number in range(60, 80)])
    assert merged(record, [Served("sha256:99", 99, 99)]).digests[0].digest == "sha256:99"


nodes = st.dictionaries(
    st.sampled_from([f"10.0.0.{number}" for number in range(6)]),
    st.builds(lambda first, more, pulls: Node("prod", first, first + more, pulls), times, st.floats(0, 1e6), counts),
)


@given(st.lists(st.tuples(nodes, counts)), st.integers(1, 6))
def test_no_pull_is_lost_where_nodes_are_too_many(news: list[tuple[dict[str, Node], int]], most: int) -> None:
    """Those that have no place of their own are counted with the others; first and last are those of all news."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_NODES", most)
        record = NodesRecord()
        for more, others in news:
            record = merged_nodes(record, more, others)
    assert len(record.nodes) <= most
    pulls = sum(node.pulls for node in record.nodes.values()) + record.others
    assert pulls == sum(others + sum(node.pulls for node in more.values()) for more, others in news)
    for node in record.nodes.values():
        assert node.first <= node.last


def test_a_clock_that_was_set_back() -> None:
    """What is said later of an earlier time makes first earlier, and last not."""
    record = merged(HistoryRecord(), [Served("sha256:1", 100.0, 200.0, 1)])
    assert merged(record, [Served("sha256:1", 50.0, 60.0, 1)]).digests == (Served("sha256:1", 50.0, 200.0, 2),)
    seen = merged_nodes(NodesRecord({"a": Node("prod", 100.0, 200.0, 1)}), {"a": Node("prod", 50.0, 60.0, 1)})
    assert seen.nodes == {"a": Node("prod", 50.0, 200.0, 2)}


# The store.


class Store(MemoryMetadata):
    """Counts puts; where `held` it lets each wait, and where `broken` it fails."""

    def __init__(self, shelf: dict[str, tuple[bytes, float]]) -> None:
        super().__init__(shelf)
        self.puts = 0
        self.broken = False
        self.held: asyncio.Event | None = None
        self.reached = asyncio.Event()

    async def put(
        self, entries: Mapping[str, bytes], keep: float, only_while: tuple[str, bytes | None] | None = None
    ) -> bool:
        self.puts += 1
        self.reached.set()
        if self.held is not None:
            await self.held.wait()
        # Others come in between what was read and what is written.
        await asyncio.sleep(0)
        if self.broken:
            raise StorageError("no disk")
        return await super().put(entries, keep, only_while)


@pytest.fixture
def shelf() -> dict[str, tuple[bytes, float]]:
    return {}


@pytest.fixture
def store(shelf: dict[str, tuple[bytes, float]]) -> Store:
    return Store(shelf)


@pytest.fixture
async def history(store: Store) -> AsyncIterator[History]:
    made = History(Records(store, ManualClock()), ManualClock())
    yield made
    store.held = None
    await made.close()


async def read(store: Store) -> Any:
    (record,) = await History(Records(store, ManualClock()), ManualClock()).read(REPOSITORY, "v1")
    return record


async def test_processes_that_add_at_once_lose_nothing(shelf: dict[str, tuple[bytes, float]]) -> None:
    """Three of them, all writing down at the same time again and again: every pull and every node is counted."""
    several = [History(Records(Store(shelf), ManualClock()), ManualClock()) for _ in range(3)]
    for number in range(20):
        for place, one in enumerate(several):
            one.served(ask(f"c{place}"), "v1", ONE, f"10.0.{place}.{number}")
            one.served(ask(f"c{place}"), "v1", TWO if number % 2 else ONE, "10.9.9.9")
        await asyncio.gather(*(one.write() for one in several))
    (record,) = await several[0].read(REPOSITORY, "v1")
    by_digest = {one.digest: one for one in record.digests}
    assert by_digest[str(ONE)].clusters == {f"c{place}": 30 for place in range(3)}
    assert by_digest[str(TWO)].clusters == {f"c{place}": 10 for place in range(3)}
    found = await several[1].nodes(REPOSITORY, "v1", str(ONE))
    assert (len(found.nodes), found.nodes["10.9.9.9"].pulls, found.others) == (61, 30, 0)


async def test_nodes_go_with_their_digest(history: History, shelf: dict[str, tuple[bytes, float]]) -> None:
    """A tag that moves all the time leaves no more rows behind than it has digests."""
    for number in range(50):
        history.served(ask(), "v1", Digest.of(str(number).encode()), "10.0.0.1")
        await history.write()
    (record,) = await history.read(REPOSITORY, "v1")
    kept = {nodes_key(REPOSITORY, "v1", one.digest) for one in record.digests}
    assert len(kept) == 20
    assert {key for key in shelf if key.startswith("nodes/")} == kept


async def test_what_the_upstream_has_is_written_without_pulls(history: History, store: Store) -> None:
    """A digest that nobody was given yet has a time and no pull, and no nodes."""
    history.seen(REPOSITORY, "v1", str(ONE))
    (record,) = await history.read(REPOSITORY, "v1")
    now = ManualClock().now
    assert record.digests == (Served(str(ONE), now, now),)
    assert await store.get(nodes_key(REPOSITORY, "v1", str(ONE))) == [None]


async def test_whoever_reads_waits_for_what_is_being_written(history: History, store: Store) -> None:
    """What was taken out of memory and is not stored yet is not missing from an answer."""
    store.held = asyncio.Event()
    history.served(ask(), "v1", ONE, "10.0.0.1")
    writing = asyncio.create_task(history.write())
    await store.reached.wait()
    reading = asyncio.create_task(history.read(REPOSITORY, "v1"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reading.done()
    store.held.set()
    assert (await reading)[0].digests[0].pulls == 1
    await writing


async def test_a_reader_that_leaves_takes_nothing_with_it(history: History, store: Store) -> None:
    """Its question had what waited written down; that goes on without it, and the end waits for it."""
    store.held = asyncio.Event()
    history.served(ask(), "v1", ONE, "10.0.0.1")
    reading = asyncio.create_task(history.read(REPOSITORY, "v1"))
    await store.reached.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    closing = asyncio.create_task(history.close())
    await asyncio.sleep(0)
    store.held.set()
    await closing
    assert (await read(store)).digests[0].pulls == 1


async def test_a_store_in_trouble_is_not_asked_again_and_again(history: History, store: Store) -> None:
    """What cannot be written is forgotten, after one try for each tag; later news are written."""
    history.served(ask(), "v1", ONE, "10.0.0.1")
    store.broken = True
    await history.write()
    assert store.puts == 1
    store.broken = False
    history.served(ask(), "v1", ONE, "10.0.0.1")
    await history.write()
    assert (await read(store)).digests[0].pulls == 1


async def test_what_waits_is_bounded(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the most tags pulls are not counted; beyond the most nodes of a digest their pulls are, unnamed."""
    monkeypatch.setattr(module, "_MOST_PENDING", 3)
    monkeypatch.setattr(module, "_MOST_NODES", 2)
    for number in range(5):
        history.served(ask(), f"v{number}", ONE, "10.0.0.1")
    for number in range(2, 7):
        history.served(ask(), "v1", ONE, f"10.0.0.{number}")
    found = await history.read(REPOSITORY, *(f"v{number}" for number in range(5)))
    assert [sum(one.pulls for one in record.digests) for record in found] == [1, 6, 1, 0, 0]
    who = await history.nodes(REPOSITORY, "v1", str(ONE))
    assert (sorted(who.nodes), who.others) == (["10.0.0.1", "10.0.0.2"], 4)


# What may happen to a tag, to whom: a pull, a look upstream, time, a write-down.
happenings = st.lists(
    st.tuples(
        st.sampled_from(["pull", "pull", "pull", "seen", "time", "write"]),
        st.sampled_from(["v1", "v2", "v3"]),
        st.sampled_from([ONE, TWO]),
        st.sampled_from(["prod", "edge"]),
        st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", ""]),
    ),
    max_size=40,
)
Happening = tuple[str, str, Digest, str, str]
Pull = Callable[[str, str, Digest, str], None]


async def live_through(happened: list[Happening], history: History, clock: ManualClock, pull: Pull) -> None:
    """Let it all happen to `history`, to its end."""
    for what, tag, digest, cluster, client in happened:
        match what:
            case "pull":
                pull(cluster, tag, digest, client)
            case "seen":
                history.seen(REPOSITORY, tag, str(digest))
            case "time":
                clock.advance(1.5)
            case _:
                await history.write()
    await history.close()


async def written(happened: list[Happening], tallies: bool) -> dict[str, bytes]:
    """What is in the store when all of it has happened, each pull told by `served`, or by a tally that is kept."""
    shelf: dict[str, tuple[bytes, float]] = {}
    clock = ManualClock()
    history = History(Records(Store(shelf), clock), clock)
    tally = cache(lambda cluster, tag, digest: history.tally(ask(cluster), tag, digest))

    def pull(cluster: str, tag: str, digest: Digest, client: str) -> None:
        if tallies:
            tally(cluster, tag, digest)(client)
        else:
            history.served(ask(cluster), tag, digest, client)

    await live_through(happened, history, clock, pull)
    return {key: raw for key, (raw, _) in shelf.items()}


def one_by_one(happened: list[Happening]) -> dict[str, bytes]:
    """The same, by what is added to what: each pull by itself."""
    now = ManualClock().now
    records: dict[str, HistoryRecord] = {}
    nodes: dict[str, NodesRecord] = {}
    for what, tag, digest, cluster, client in happened:
        key, who = history_key(REPOSITORY, tag), nodes_key(REPOSITORY, tag, str(digest))
        if what == "time":
            now += 1.5
        elif what == "pull":
            served = Served(str(digest), now, now, 1, {cluster: 1}, now)
            records[key] = merged(records.get(key, HistoryRecord()), [served])
            nodes[who] = merged_nodes(nodes.get(who, NodesRecord()), {client: Node(cluster, now, now, 1)})
        elif what == "seen":
            records[key] = merged(records.get(key, HistoryRecord()), [Served(str(digest), now, now)])
    return {key: record.dump() for key, record in (records | nodes).items()}


def parsed(rows: dict[str, bytes]) -> dict[str, Any]:
    """Digests that were last seen in the same moment have no order, nor have clusters and nodes."""
    found = {key: json.loads(raw) for key, raw in rows.items()}
    return {
        key: {one["digest"]: one for one in row["digests"]} if "digests" in row else row for key, row in found.items()
    }


@given(happenings)
async def test_pulls_are_written_as_they_were_told(happened: list[Happening]) -> None:
    """By `served` and by tallies, over write-downs, until the end: every pull, by cluster and node, with its times."""
    wanted = one_by_one(happened)
    for tallies in (False, True):
        assert parsed(await written(happened, tallies)) == parsed(wanted)


@given(happenings)
async def test_tallies_keep_to_what_may_wait(happened: list[Happening]) -> None:
    """With more tags and nodes than may wait they write what `served` writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_NODES", 2)
        patch.setattr(module, "_MOST_PENDING", 2)
        assert await written(happened, True) == await written(happened, False)


async def test_a_tally_keeps_nothing_that_was_written(history: History) -> None:
    """Thousands of them, each with its clients, hold what waits to be written at most."""
    tally = history.tally(ask(), "v1", ONE)
    tally("10.0.0.1")
    await history.write()
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, module._News)] == []
    tally("10.0.0.1")
    assert (await history.read(REPOSITORY, "v1"))[0].digests[0].pulls == 2


@pytest.mark.parametrize(
    "row", [b"", b"{}", b"[]", b"null", b'{"digests": [{"digest": 1}]}', b'{"digests": [[]]}', b"\xff", b"[" * 5000]
)
async def test_a_damaged_row_is_as_good_as_none(history: History, store: Store, row: bytes) -> None:
    """It is written over by what comes next."""
    await store.put({KEY: row, nodes_key(REPOSITORY, "v1", str(ONE)): row}, 60)
    history.served(ask(), "v1", ONE, "10.0.0.1")
    (record,) = await history.read(REPOSITORY, "v1")
    assert [one.pulls for one in record.digests] == [1]
    assert (await history.nodes(REPOSITORY, "v1", str(ONE))).nodes["10.0.0.1"].pulls == 1


async def test_it_is_written_every_few_seconds_and_goes_on_after_whatever_happens(
    history: History, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One round that fails in a way nobody thought of is logged; the next one is made."""
    monkeypatch.setattr(module, "_INTERVAL", 0.0)
    good, failures = history._write, [RuntimeError("odd")]

    async def failing() -> None:
        if failures:
            raise failures.pop()
        await good()

    monkeypatch.setattr(history, "_write", failing)
    history.served(ask(), "v1", ONE, "10.0.0.1")
    history.start()
    async with asyncio.timeout(10):
        await store.reached.wait()
    assert "could not be written" in caplog.text
    await history.close()
    assert (await read(store)).digests[0].pulls == 1
