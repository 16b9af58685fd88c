"""Whatever readers, an upstream and ends of the process do to a fill, in whatever order: the invariants hold.

The upstream has one blob, or sends other bytes under its name. Readers come at any range, stall, go on and leave. What
each of them is given is compared with the blob, and every byte that the upstream sends is counted.

PULLTHROUGH_FILL_EXAMPLES=1000 looks at that many random histories instead of the few, always the same, of every run.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.fakes.acts import Act, BlobRequest
from tests.fakes.clock import ManualClock
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.crash import copy_as_killed
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import KIB, MIB, no_fill_runs, put

# More than the first range, and no multiple of anything.
BLOB = random_bytes(5 * MIB + 77_777, 950)
SIZE = len(BLOB)
DIGEST = digest_of(BLOB)
WRONG = bytes(byte ^ 255 for byte in BLOB)
OTHER = random_bytes(4 * MIB, 951)
# Room for one of the two.
MAX_SIZE = 8 * MIB
# Beyond every back-off and `negative_ttl`.
LONG = 600.0

# What may become of a request, given its first byte and how many bytes after that it happens.
FAULTS: dict[str, Callable[[int, int], Act]] = {
    "fin": lambda start, count: Act(fin_at=start + count),
    "rst": lambda start, count: Act(rst_at=start + count),
    "stall": lambda start, count: Act(stall_at=start + count),
    "short": lambda start, count: Act(most=count),
    "gate": lambda start, count: Act(gate=Gate(start + count)),
    "5xx": lambda start, count: Act(status=503),
    "drop": lambda start, count: Act(drop=True),
    "whole": lambda start, count: Act(whole=True),
    "wrong": lambda start, count: Act(body=WRONG),
}
# After these, each with progress, every body still completes.
HARMLESS = {"fin", "short"}

Part = tuple[int | None, int | None]
Fault = tuple[str, int]

offsets = st.integers(0, SIZE - 1) | st.sampled_from([0, 1, MIB, 4 * MIB - 1, 4 * MIB, 5 * MIB, SIZE - 1])
lengths = st.none() | st.integers(1, 2 * MIB)
# The start and the length of a range; without a start it is all of the blob, without a length the rest.
parts = st.just((None, None)) | st.tuples(offsets, lengths)
counts = st.integers(1, 3 * MIB) | st.sampled_from([1, 256 * KIB, MIB])
faults = st.tuples(st.sampled_from(sorted(FAULTS)), counts)
turns = st.sampled_from([10, 100, 300])


@dataclass
class Client:
    """A reader, and the task that reads as long as `reading` is set."""

    reader: Reader
    stop: int
    whole: bool
    # It came in the life of the present fill.
    counts: bool = True
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def had(self) -> tuple[int, int]:
        """What of the blob it was given."""
        reader = self.reader
        return (reader.start, reader.position) if reader.status in {200, 206} else (0, 0)

    async def run(self) -> None:
        try:
            await self.reader.head()
            while not self.reader.end:
                await self.reading.wait()
                await self.reader.read(64 * KIB)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.reader.end = self.reader.end or "fin"
        finally:
            self.reader.leave()


class World:
    """The fakes, the proxy, and what has been seen."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runs = 0
        self.clock = ManualClock()
        self.registry = FakeRegistry(script=self._script)
        self.clients: list[Client] = []
        self.faults: list[Fault] = []
        self.gates: list[Gate] = []
        # Since all was well the last time: something happened that may cut bodies; wrong bytes were sent.
        self.harmed = False
        self.lied = False
        self._mismatches = 0.0
        # Somebody was served past the cache in the life of the present fill, for want of room.
        self.passed = False
        # Where the life of the present fill begins among the requests, and what readers have had of it.
        self.life = 0
        self._had: list[tuple[int, int]] = []
        self._had_before: list[tuple[int, int]] = []
        self._stop = asyncio.Event()
        self._proxy_task: asyncio.Task[None] | None = None
        self.proxy: Proxy

    async def begin(self) -> None:
        await self.registry.start()
        self.path = put(self.registry, BLOB)
        self.other = put(self.registry, OTHER, "team/other")
        await self._start()

    async def end(self) -> None:
        await self._leave_all()
        self.open_gates()
        await self._end_proxy()
        await self.registry.stop()

    # What rules do.

    async def come(self, start: int | None, length: int | None) -> None:
        stop = SIZE if start is None or length is None else min(SIZE, start + length)
        reader = await Reader.send(self.proxy, self.path, start, None if length is None else stop)
        client = Client(reader, stop, whole=start is None)
        client.reading.set()
        client.task = asyncio.create_task(client.run())
        self.clients.append(client)
        await self.go_on(20)

    async def stuck(self, part: Part, count: int) -> None:
        """A reader has come, and what it waits for is stuck or it has all."""
        self.open_gates()
        self.faults = [("gate", count)]
        await self.come(*part)
        client = self.clients[-1]
        assert client.task is not None
        while not client.task.done() and not any(gate.waiting for gate in self.gates):
            await asyncio.sleep(0)
        await self.go_on(100)

    async def until_done(self) -> None:
        """The reader that came last has its body, or all it will be given of it."""
        task = self.clients[-1].task
        assert task is not None
        await task

    async def leave(self, client: Client) -> None:
        self._check(client)
        self.clients.remove(client)
        assert client.task is not None
        client.task.cancel()
        await asyncio.gather(client.task, return_exceptions=True)

    async def go_on(self, turns: int) -> None:
        """Let everything that can happen do so for a while."""
        for _ in range(turns):
            await asyncio.sleep(0)

    def open_gates(self) -> None:
        for gate in self.gates:
            gate.open()
        self.gates.clear()

    async def fetch_other(self) -> None:
        """Another blob that needs the room: it is served, kept or not."""
        running = await self._fills()
        answer = await self.proxy.get(self.other)
        if answer.status == 504:
            # A busy machine is slower than the short patience of this upstream: that is an outage like any other, which
            # is over after its back-off.
            self.clock.advance(LONG)
            answer = await self.proxy.get(self.other)
        # Only what is published can give way to what is wanted next.
        while await self._fills() > running:
            await asyncio.sleep(0)
        assert self.harmed or answer.status == 200, answer.state
        assert answer.status != 200 or answer.body == OTHER
        assert await self.proxy.metric("pullthrough_cache_bytes") <= MAX_SIZE
        # The blob may have been evicted, and a fill that was left behind dropped.
        self.life, self._had, self._had_before = len(self.registry.record.requests), [], []
        for client in self.clients:
            client.counts = False
        self.passed = False

    async def restart(self, kill: bool) -> None:
        """End the proxy, in order or as `kill -9` does, and start another on what it left."""
        self.harmed = True
        if kill:
            target = self._directory / f"run-{self._runs + 1}"
            copy_as_killed(self._directory / f"run-{self._runs}", target)
            self._runs += 1
        # A process that was killed gives out nothing after that moment; the one that was copied does.
        had = self._had + [one.had for one in self.clients if one.counts and not self._went_past(one.reader)]
        await self._end_proxy()
        for client in list(self.clients):
            client.reading.set()
            await asyncio.gather(client.task or asyncio.sleep(0))
            await self.leave(client)
        # What was on its way is lost with the process; what readers had must not come again.
        self.life, self._had_before = len(self.registry.record.requests), had
        self._had = list(had)
        await self._start()

    async def settle(self) -> None:
        """All is well again: everybody has what is right, and the account is made."""
        self.faults.clear()
        self.open_gates()
        for client in self.clients:
            client.reading.set()
        for client in list(self.clients):
            assert client.task is not None
            await client.task
            if not self.harmed and not self._went_past(client.reader):
                assert (client.reader.status, client.reader.end) == (200 if client.whole else 206, "whole")
            await self.leave(client)
        await no_fill_runs(self.proxy)
        assert self.twice() == []
        self.clock.advance(LONG)
        await self._completes()
        mismatches = await self.proxy.metric("pullthrough_digest_mismatches_total")
        if not self.lied:
            assert mismatches == self._mismatches
            await no_fill_runs(self.proxy)
            assert self.twice() == []
        self.harmed = self.lied = False
        self._mismatches = mismatches
        await self.fetch_other()

    def twice(self) -> list[str]:
        """What was sent twice in this life; what was on its way when its asker ended the connection is left out."""
        record = self.registry.record
        if self.lied or self.passed:
            return []
        requests = [request for request in record.of(DIGEST) if request.number >= self.life]
        dropped = {str(request.number) for request in requests if request.dropped}
        found = [pair for pair in record.sent_twice(DIGEST, self.life) if pair.partition(":")[0] not in dropped]
        again = [
            f"{request.number}: {request.sent}, of which a reader had {had} before the restart"
            for request in requests
            for had in self._had_before
            if request.status == 206 and max(had[0], request.sent_from) < min(had[1], request.sent_to)
        ]
        return found + again

    # How.

    def _script(self, request: BlobRequest) -> Act:
        if request.digest != DIGEST or not self.faults:
            return Act()
        kind, count = self.faults.pop(0)
        self.lied |= kind == "wrong"
        self.harmed |= kind not in HARMLESS
        act = FAULTS[kind](request.start, count)
        if act.gate is not None:
            self.gates.append(act.gate)
        return act

    def _check(self, client: Client) -> None:
        reader = client.reader
        if self._went_past(reader) and reader.status == 200:
            # As the upstream ignored the range, so does who streams its answer.
            client.whole, client.stop, reader.start = True, SIZE, 0
        elif self._went_past(reader) and reader.status == 206:
            # And where it sent less than it was asked for, that is what there is.
            assert reader.start + reader.size <= client.stop
            client.stop = reader.start + reader.size
        if reader.status not in {200, 206}:
            assert reader.status in {0, 502, 504}
            assert self.harmed or reader.status == 0
            return
        assert reader.status == (200 if client.whole else 206)
        assert reader.size == client.stop - reader.start
        right = BLOB[reader.start : reader.position]
        if client.counts and not self._went_past(reader):
            self._had.append(client.had)
        if not self.lied or (reader.start == 0 and len(reader.received) == SIZE):
            # Compared first: nobody wants to read the difference.
            same = reader.received == right
            assert same, f"{len(right)} bytes from {reader.start} on, answered with {reader.headers}"
        else:
            assert of_one_or_the_other(bytes(reader.received), right)

    def _went_past(self, reader: Reader) -> bool:
        # Of one that has no head it is not known.
        past = not reader.headers or "bypass" in reader.headers.get("cache-status", "")
        self.passed |= past
        return past

    async def _completes(self) -> None:
        """A request for all of it succeeds; where wrong bytes were sent, a few may be needed."""
        for _ in range(3 if self.lied else 1):
            reader = await Reader.open(self.proxy, self.path)
            await reader.rest()
            # Nobody reads what is there, so that there is room.
            assert not self._went_past(reader)
            self.clock.advance(LONG)
            if reader.end == "whole":
                break
        assert (reader.status, reader.end) == (200, "whole")
        assert reader.received == BLOB

    async def _fills(self) -> float:
        return await self.proxy.metric("pullthrough_fills_active")

    async def _leave_all(self) -> None:
        for client in list(self.clients):
            await self.leave(client)

    async def _start(self) -> None:
        cache = {
            "directory": str(self._directory / f"run-{self._runs}"),
            "max_size": f"{MAX_SIZE // MIB}MiB",
            "min_free": 0,
        }
        upstream = {"url": self.registry.url, "connect_timeout": "1s", "read_timeout": "600ms"}
        configured = make_settings(Path(), {"registry.test": upstream}, cache=cache)
        started = asyncio.Event()
        self._mismatches = 0.0
        self._stop.clear()

        async def live() -> None:
            async with running(configured, self.clock) as self.proxy:
                started.set()
                await self._stop.wait()

        self._proxy_task = asyncio.create_task(live())
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({waiting, self._proxy_task}, return_when=asyncio.FIRST_COMPLETED)
        if not started.is_set():
            await self._proxy_task

    async def _end_proxy(self) -> None:
        self._stop.set()
        assert self._proxy_task is not None
        await self._proxy_task


def of_one_or_the_other(received: bytes, right: bytes) -> bool:
    """Is every byte the blob's, or the one that the wrong blob has there?"""
    difference = int.from_bytes(received) ^ int.from_bytes(right)
    return not difference.to_bytes(len(right)).translate(None, b"\x00\xff")


class FillMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory()
        self._patch = pytest.MonkeyPatch()
        # Readers have come since all was well.
        self.dirty = False
        self._patch.setattr("proxy.cache.download._FIRST_PAUSE", 0.001)
        self.world = World(Path(self._folder.name))
        self._do(self.world.begin())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        async def within() -> None:
            async with asyncio.timeout(60):
                await work

        self._runner.run(within())

    # Several rules for the same: what is chosen from is rules, and most should be readers and what they meet.

    @rule(parts=st.lists(parts, min_size=1, max_size=4), faults=st.lists(faults, max_size=3))
    def readers_come(self, parts: list[Part], faults: list[Fault]) -> None:
        """Some want all, or a part, and the next requests upstream meet this and that."""
        self.dirty = True
        self.world.faults.extend(faults)
        for part in parts:
            self._do(self.world.come(*part))

    @rule(part=parts, fault=faults)
    def reader_meets_a_fault(self, part: Part, fault: Fault) -> None:
        """One reader, and one thing that happens."""
        self.readers_come([part], [fault])

    @rule(fault=faults, turns=turns)
    def reader_of_all_meets_a_fault(self, fault: Fault, turns: int) -> None:
        """One that wants all of it, as most do."""
        self.readers_come([(None, None)], [fault])
        self._do(self.world.go_on(turns))

    @rule(part=parts, count=counts, kill=st.booleans())
    def the_proxy_ends_in_the_middle_of_a_fill(self, part: Part, count: int, kill: bool) -> None:
        """Its upstream is stuck after so many bytes, and a reader has some of them."""
        self.dirty = True
        self._do(self.world.stuck(part, count))
        self._do(self.world.restart(kill))

    @rule(part=parts, count=counts)
    def the_upstream_goes_down_in_the_middle_of_a_fill(self, part: Part, count: int) -> None:
        """It breaks off after so many bytes and fails for longer than anybody tries."""
        self.world.faults = [("fin", count), *[("5xx", 0)] * 12]
        self.readers_come([part], [])
        self._do(self.world.until_done())
        self.world.faults.clear()

    @precondition(lambda self: self.world.clients)
    @rule(place=st.integers(0, 9), leaves=st.booleans())
    def reader_stalls_goes_on_or_leaves(self, place: int, leaves: bool) -> None:
        """One of those that are there, wherever its body is."""
        client = self.world.clients[place % len(self.world.clients)]
        if leaves:
            self._do(self.world.leave(client))
        elif client.reading.is_set():
            client.reading.clear()
        else:
            client.reading.set()

    @precondition(lambda self: self.dirty)
    @rule(turns=turns, seconds=st.sampled_from([0.0, 5.0, 11.0, 400.0]), opened=st.booleans())
    def time_passes(self, turns: int, seconds: float, opened: bool) -> None:
        """On the loop; on the clock, where proofs, back-offs and `negative_ttl` end; and for what was stuck."""
        if opened:
            self.world.open_gates()
        self._do(self.world.go_on(turns))
        self.world.clock.advance(seconds)

    @precondition(lambda self: self.dirty)
    @rule()
    def another_blob_needs_the_room(self) -> None:
        """And gets it, or goes past the cache."""
        self._do(self.world.fetch_other())

    @precondition(lambda self: self.dirty)
    @rule(kill=st.booleans())
    def the_proxy_starts_anew(self, kill: bool) -> None:
        """After an end in order, or an abrupt one."""
        self._do(self.world.restart(kill))

    @precondition(lambda self: self.dirty)
    @rule()
    def all_is_well(self) -> None:
        """And everything that was promised can be asked for."""
        self.dirty = False
        self._do(self.world.settle())

    def teardown(self) -> None:
        try:
            self._do(self.world.settle())
        finally:
            self._do(self.world.end())
            self._runner.close()
            self._patch.undo()
            self._folder.cleanup()


def test_any_history_of_a_fill() -> None:
    """See the module's first lines."""
    examples = int(os.environ.get("PULLTHROUGH_FILL_EXAMPLES", "0"))
    profile = settings(
        max_examples=examples or 15,
        stateful_step_count=40 if examples else 20,
        derandomize=not examples,
        deadline=None,
        database=None,
        # What threads and sockets do is not the same twice, so that there is little to shrink.
        phases=[Phase.generate],
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(FillMachine, settings=profile)
