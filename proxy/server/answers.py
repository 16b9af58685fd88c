"""Answers that are ready in memory, for those who ask again what was asked before.

Invariants:
- An answer is found by all that decided about it: the entrance of its connection, and either every byte of the request
  or all of it that is looked at. One table belongs to one configuration; a reload begins a new one.
- It is given as long as all that was read for it holds: the records by their stamp, the times by the clock. Where that
  was set back, everything is looked at anew.
- Whoever is given one is counted, logged and remembered by the tag's history as if it had been looked up.
- The table keeps to a number of bytes, keys included.
- Of blobs that are too large for it there are decisions: that who asks may have it. They are found and last as answers
  do, whatever range is asked for.
"""

import asyncio
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import web

from proxy.cache.ask import Ask
from proxy.cache.known import Lasting
from proxy.oci.route import BlobRoute
from proxy.server.entrance import Entrance, Entrances
from proxy.server.exchange import Repeatable
from proxy.server.respond import answer_headers
from proxy.settings import ClusterSettings, Settings
from proxy.storage.bounded import Bounded
from proxy.telemetry.tallies import Tally

# What an answer takes besides its body.
_OVERHEAD = 3000

_LOOKED_AT = ("Host", "Authorization", "Range", "If-Range")
# Where in a question the last two stand.
_RANGES = -2

Clock = Callable[[], float]
# All that decides about a request, where that is not looked at as a whole.
Question = tuple[Hashable, ...]


class Answer:
    """One of them. `given` is told of each client that it is given to."""

    __slots__ = ("_changes", "_given", "_head", "_repeatable", "_since", "_stamp", "_tally", "_until", "body")

    def __init__(self, repeatable: Repeatable, tally: Tally, given: Callable[[str], None] | None, now: float) -> None:
        self.body = repeatable.body
        self._tally = tally
        self._given = given
        self._repeatable = repeatable
        self._stamp = repeatable.lasting.stamp
        self._since = now
        self._until = repeatable.lasting.until
        self._head = b""
        self._changes = now

    def is_good(self, now: float) -> bool:
        """May it be given at `now`?"""
        return self._since <= now < self._until and self._stamp.holds()

    def head(self, now: float) -> bytes:
        """Its head at `now`, made when that changes: once a second for each of Date, Age and `ttl`."""
        if now >= self._changes:
            self._head, self._changes = _rendered(self._repeatable, now)
            self._since = now
        return self._head

    def told(self, client: str, seconds: float) -> None:
        """The client at this address was given it in so many seconds."""
        self._tally.add(client, seconds)
        if self._given is not None:
            self._given(client)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was found out about a request for a blob that is here, which so need not be found out again.

    `since`: when that was, in Unix seconds.
    """

    cluster: ClusterSettings
    route: BlobRoute
    ask: Ask
    takes_basic: bool
    lasting: Lasting
    since: float

    def is_good(self, now: float) -> bool:
        """Does it count at `now`?"""
        return self.since <= now < self.lasting.until and self.lasting.stamp.holds()


class Answers:
    """The table of one configuration."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.entrances = Entrances(settings.clusters, settings.trusted_proxies)
        # What it is known by to connections, which outlive it, and are not to keep all of it.
        self.name = object()
        # Requests are looked up by their bytes, too.
        self.by_bytes = settings.fast_path
        self.clock = clock
        self._answers: Bounded[Hashable, Answer] = Bounded(settings.cache.memory * 3 // 8)
        self._decisions: Bounded[Hashable, Decision] = Bounded(settings.cache.memory // 8)

    def find(self, key: Hashable, now: float) -> Answer | None:
        """What was kept under `key`, if it is good still."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        if not answer.is_good(now):
            self._answers.drop(key)
            return None
        return answer

    def keep(self, key: Hashable, answer: Answer, size: int) -> None:
        """Keep it under `key`, which takes `size` bytes."""
        self._answers.put(key, answer, size + len(answer.body) + _OVERHEAD)

    def decision(self, key: Question, now: float) -> Decision | None:
        """What was decided about requests with this key, whatever their range, if it counts still."""
        decision = self._decisions.get(key[:_RANGES])
        if decision is None or decision.is_good(now):
            return decision
        self._decisions.drop(key[:_RANGES])
        return None

    def decide(self, key: Question, decision: Decision) -> None:
        """Keep it for requests with this key."""
        self._decisions.put(key[:_RANGES], decision, size_of(key) + _OVERHEAD)


def question(entrance: Entrance, request: web.BaseRequest) -> Question | None:
    """All that is looked at of a request for a manifest or a blob; None where it is to be looked at as a whole."""
    headers, method = request.headers, request.method
    if method not in {"GET", "HEAD"} or request.can_read_body or request.version != (1, 1) or not request.keep_alive:
        return None
    if entrance.trusted and "X-Forwarded-For" in headers:
        return None
    return entrance, method, request.raw_path, *(headers.get(name) for name in _LOOKED_AT)


def size_of(key: Question) -> int:
    """Bytes that a question takes."""
    return 200 + sum(len(part) for part in key if isinstance(part, str | bytes))


def _rendered(repeatable: Repeatable, now: float) -> tuple[bytes, float]:
    """The head at `now`, and when it changes."""
    lasting = repeatable.lasting
    age = max(0.0, now - lasting.checked)
    ttl = lasting.ttl - age if lasting.ttl is not None else None
    verdict = replace(repeatable.verdict, age=age, ttl=ttl)
    headers = {**answer_headers(repeatable.registry, verdict), **repeatable.headers}
    lines = [f"{name}: {value}" for name, value in headers.items()]
    date = formatdate(now, usegmt=True)
    first = f"HTTP/1.1 {repeatable.status} {HTTPStatus(repeatable.status).phrase}"
    head = "\r\n".join([first, *lines, f"Date: {date}", "", ""]).encode()
    changes = [math.floor(now) + 1.0, lasting.checked + int(age) + 1]
    if ttl is not None and lasting.ttl is not None:
        changes.append(lasting.checked + lasting.ttl - math.ceil(ttl) + 1)
    return head, min(changes)


class Ready:
    """An answer out of the table, as aiohttp's server takes responses; it is told of when it is sent.

    No `StreamResponse`, which would make its head once more.
    """

    keep_alive = True

    def __init__(self, answer: Answer, head: bytes, client: str, began: float) -> None:
        """`began`: when its request did, by the loop's clock."""
        self._answer = answer
        self._head = head
        self._client = client
        self._began = began

    async def prepare(self, request: web.BaseRequest) -> None:
        """See aiohttp: send it."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client left")
        transport.write(self._head + self._answer.body)
        self._answer.told(self._client, asyncio.get_running_loop().time() - self._began)
        await request.writer.drain()

    async def write_eof(self) -> None:
        """See aiohttp: it is sent already."""
