"""Answers that are ready: when they may be given, what their heads say, and which requests they are for."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from proxy.cache.ask import Ask
from proxy.cache.known import Lasting
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.oci.route import BlobRoute
from proxy.policy.access import ANONYMOUS
from proxy.policy.freshness import CacheState, Verdict, lifetimes_of
from proxy.server.answers import Answer, Answers, Decision, question
from proxy.server.entrance import Entrance
from proxy.server.exchange import Repeatable
from proxy.settings import ClusterSettings, ManifestSettings, Settings
from proxy.telemetry.tallies import Tally
from tests.fakes.clock import ManualClock
from tests.fakes.proxy import make_settings

NOW = 1_800_000_000.0
BLOB = "/v2/team/app/blobs/sha256:" + "a" * 64


class Slots:
    """A stamp that holds until it is broken."""

    def __init__(self) -> None:
        self.good = True

    def holds(self) -> bool:
        return self.good


class Told:
    """A tally."""

    def __init__(self) -> None:
        self.added: list[tuple[str, float]] = []

    def add(self, client: str, seconds: float) -> None:
        self.added.append((client, seconds))


@pytest.fixture
def stamp() -> Slots:
    return Slots()


def lasting(stamp: Slots, ttl: float | None = 600.0, checked: float = NOW) -> Lasting:
    return Lasting(NOW + 300, stamp, checked, ttl)


def answer(stamp: Slots, ttl: float | None = 600.0, checked: float = NOW, now: float = NOW, **more: Any) -> Answer:
    """One of a tag that was last checked at `checked`."""
    verdict = Verdict(CacheState.HIT, 0.0, ttl)
    found = Repeatable("registry.test", verdict, lasting(stamp, ttl, checked), {"X": "y"}, b"body")
    return Answer(replace(found, **more), cast(Tally, Told()), None, now)


def fields(head: bytes) -> dict[str, str]:
    """What a head says, its first line under an empty name."""
    first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    return {"": first} | dict(line.split(": ", 1) for line in lines)


# Heads.


def test_a_head_says_what_that_of_the_first_answer_said(stamp: Slots) -> None:
    """Status, state, the registry, the headers of the content; Age, ttl and Date are those of the moment."""
    said = fields(answer(stamp).head(NOW + 2.5))
    assert said == {
        "": "HTTP/1.1 200 OK",
        "Docker-Distribution-API-Version": "registry/2.0",
        "Server": "pullthrough",
        "OCI-Namespace": "registry.test",
        "Cache-Status": "pullthrough; hit; ttl=598",
        "Age": "2",
        "X": "y",
        "Date": "Fri, 15 Jan 2027 08:00:02 GMT",
    }
    assert fields(answer(stamp, status=206).head(NOW))[""] == "HTTP/1.1 206 Partial Content"


def test_what_does_not_end_has_no_ttl(stamp: Slots) -> None:
    """A digest, a blob."""
    assert fields(answer(stamp, ttl=None).head(NOW + 5))["Cache-Status"] == "pullthrough; hit"


@pytest.mark.parametrize("name", ["Date", "Age", "Cache-Status"])
def test_a_head_changes_when_they_do(stamp: Slots, name: str) -> None:
    """Looked at every tenth of a second, it is at each the same as one that is made then: each has its own beat."""
    old, made = answer(stamp, checked=NOW - 10.7, ttl=40.3), set()
    for tenth in range(300):
        now = NOW + tenth / 10 + 0.05
        said = fields(old.head(now))
        assert said[name] == fields(answer(stamp, checked=NOW - 10.7, ttl=40.3).head(now))[name], now
        made.add(said[name])
    assert len(made) in {30, 31}


def test_a_head_is_made_as_seldom_as_it_changes(stamp: Slots) -> None:
    """About three times a second, however often it is sent."""
    found = answer(stamp, checked=NOW - 10.7, ttl=40.3)
    heads = [found.head(NOW + step / 1000) for step in range(5000)]
    assert len(set(heads)) in {15, 16}
    assert len({id(head) for head in heads}) <= 2 * 16


# When it may be given.


def test_how_long_an_answer_is_good(stamp: Slots) -> None:
    """From the moment it was found, to before its end, while what was read for it holds."""
    found = answer(stamp)
    assert [found.is_good(NOW + after) for after in (-0.1, 0, 299.9, 300, 1000)] == [False, True, True, False, False]
    stamp.good = False
    assert not found.is_good(NOW)


def test_a_clock_that_was_set_back(stamp: Slots) -> None:
    """To before its last head was made: no client is told an Age that was another's future."""
    found = answer(stamp)
    found.head(NOW + 100)
    assert found.is_good(NOW + 100)
    assert not found.is_good(NOW + 99)


def test_whoever_is_given_one_is_told_of(stamp: Slots) -> None:
    """To the tally, and to whoever wants to know of each client."""
    tally, given = Told(), list[str]()
    found = Repeatable("registry.test", Verdict(CacheState.HIT, 0.0), lasting(stamp), {}, b"")
    Answer(found, cast(Tally, tally), given.append, NOW).told("192.0.2.1", 0.25)
    Answer(found, cast(Tally, tally), None, NOW).told("192.0.2.2", 0.5)
    assert tally.added == [("192.0.2.1", 0.25), ("192.0.2.2", 0.5)]
    assert given == ["192.0.2.1"]


# The table.


@pytest.fixture
def configured(tmp_path: Path) -> Settings:
    cache = {"directory": str(tmp_path), "max_size": "1GiB", "min_free": 0, "memory": "1MiB"}
    return make_settings(tmp_path, {"registry.test": {"url": "http://127.0.0.1:1"}}, cache=cache)


@pytest.fixture
def table(configured: Settings) -> Answers:
    return Answers(configured, ManualClock(NOW))


def test_what_is_not_good_any_more_is_let_go(table: Answers, stamp: Slots) -> None:
    """At the first look: its bytes are another's."""
    table.keep("key", answer(stamp), 100)
    assert table.find("key", NOW) is not None
    stamp.good = False
    assert table.find("key", NOW) is None
    stamp.good = True
    assert table.find("key", NOW) is None
    assert (len(table._answers), table._answers.size) == (0, 0)


def test_the_table_keeps_to_its_bytes(table: Answers, stamp: Slots) -> None:
    """Keys, bodies and what an answer takes besides, all together; 3/8 of `cache.memory` for them."""
    for number in range(2000):
        table.keep(number, answer(stamp), 3000)
    assert table._answers.size <= (1 << 20) * 3 // 8
    assert 0 < len(table._answers) <= (1 << 20) * 3 // 8 // 5000


def decision(stamp: Slots, since: float = NOW) -> Decision:
    registry = Repository("registry.test", "team/app")
    ask = Ask(registry, ANONYMOUS, lifetimes_of(ManifestSettings()), "default")
    route = BlobRoute("team/app", Digest.of(b"blob"))
    return Decision(ClusterSettings(name="default"), route, ask, False, lasting(stamp, None), since)


def test_a_decision_is_for_every_range(table: Answers, stamp: Slots) -> None:
    """And for nothing else that is looked at."""
    key = (Entrance(False), "GET", BLOB, "proxy.test", None, None, None)
    made = decision(stamp)
    table.decide(key, made)
    for ranged in (("bytes=0-3", None), ("bytes=5-", '"etag"'), (None, None)):
        assert table.decision((*key[:-2], *ranged), NOW) is made
    for place, other in enumerate((Entrance(False), "HEAD", BLOB + "b", "other.test", "Bearer mine")):
        assert table.decision((*key[:place], other, *key[place + 1 :]), NOW) is None


def test_a_decision_ends_as_answers_do(table: Answers, stamp: Slots) -> None:
    """By the clock, set forward or back, and by what was read for it; then it is let go."""
    key = (Entrance(False), "GET", BLOB, "proxy.test", None, None, None)
    for now in (NOW + 300, NOW - 1):
        table.decide(key, decision(stamp))
        assert table.decision(key, now) is None
        assert len(table._decisions) == 0
    table.decide(key, decision(stamp))
    stamp.good = False
    assert table.decision(key, NOW) is None
    assert table._decisions.size == 0


def test_decisions_keep_to_their_bytes(table: Answers, stamp: Slots) -> None:
    """An eighth of `cache.memory`."""
    for number in range(2000):
        table.decide((Entrance(False), "GET", f"{BLOB}{number}", "proxy.test", None, None, None), decision(stamp))
    assert len(table._decisions) > 0
    assert table._decisions.size <= (1 << 20) // 8


# Questions.


def asked(method: str = "GET", path: str = BLOB, version: tuple[int, int] = (1, 1), **headers: str) -> Any:
    """A request with these headers, written with underscores."""
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    body = StreamReader(cast(Any, None), 2**16, loop=cast(Any, None)) if "Content_Length" in headers else EMPTY_PAYLOAD
    request = make_mocked_request(method, path, named, version=cast(Any, version), payload=body)
    if "Connection" in headers:
        # What the parser makes of it.
        request._message = request._message._replace(should_close=headers["Connection"] == "close")
    return request


async def test_what_is_looked_at() -> None:
    """Method, address, Host, Authorization and the two of ranges, besides the entrance; nothing else makes another."""
    entrance = Entrance(False)
    whole = question(entrance, asked(Host="a", Authorization="Bearer b", Range="bytes=0-3", If_Range='"c"'))
    assert whole == (entrance, "GET", BLOB, "a", "Bearer b", "bytes=0-3", '"c"')
    assert question(entrance, asked(Host="a")) == (entrance, "GET", BLOB, "a", None, None, None)
    assert question(entrance, asked(Host="a", Accept="x", User_Agent="y")) == question(entrance, asked(Host="a"))
    assert question(entrance, asked(path=BLOB + "?ns=other.test")) != question(entrance, asked())
    assert question(Entrance(False), asked()) != question(entrance, asked())


@pytest.mark.parametrize(
    ("trusted", "how"),
    [
        (False, {"method": "POST"}),
        (False, {"method": "DELETE"}),
        (False, {"Content_Length": "3"}),
        (False, {"version": (1, 0)}),
        (False, {"version": (1, 0), "Connection": "keep-alive"}),
        (False, {"Connection": "close"}),
        (True, {"X_Forwarded_For": "10.1.0.1"}),
    ],
    ids=["post", "delete", "body", "http-1.0", "http-1.0-kept", "close", "forwarded"],
)
async def test_what_is_to_be_looked_at_as_a_whole(trusted: bool, how: dict[str, Any]) -> None:
    """There is no key for it: what was answered to another one says nothing of it."""
    assert question(Entrance(trusted), asked(**how)) is None
    assert question(Entrance(trusted), asked()) is not None


async def test_whose_word_counts_for_an_address() -> None:
    """That of trusted peers only: what others say of it is not looked at."""
    assert question(Entrance(False), asked(X_Forwarded_For="10.1.0.1")) is not None
