"""A tally has the effect of telling each request by itself."""

import asyncio
import gc
import io
import logging
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry import tallies as module
from proxy.telemetry.batches import BatchHandler
from proxy.telemetry.events import RequestFinished
from proxy.telemetry.lines import json_access, text_access
from proxy.telemetry.logs import flush_logging, log_access, setup_logging
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tallies import Tallies, Tally
from tests.unit.telemetry.requests import clients, requests, seconds

EVENT = RequestFinished(
    "", "prod", "docker.io", "manifest", "GET", "library/nginx", "latest", 200, "hit", "", 1234, 0.0, 0.0
)
COUNTED = 'pullthrough_request_seconds_count{cache="hit",kind="manifest"}'

# A step: which of the events, by whom and how fast; or what else happens in between.
steps = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 2), clients, seconds),
        st.sampled_from(["flush", "forget", "told", "text", "json", "off"]),
    ),
    max_size=30,
)


class Observed:
    """Metrics of their own, and a log of their own that is written as its switches were last set."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._stream = io.StringIO()
        self.switch("text")

    def switch(self, form: str) -> None:
        """What setup_logging does at a reload."""
        clock = iter(range(10**18, 10**19, 700_000))
        self.listen()
        flush_logging()
        access = json_access if form == "json" else text_access
        self._handler = BatchHandler(self._stream, access, lambda: next(clock))
        self._level = logging.CRITICAL if form == "off" else logging.INFO

    def listen(self) -> None:
        """From here on lines are written here."""
        if hasattr(self, "_handler"):
            logging.getLogger().handlers[:] = [self._handler]
            logging.getLogger("pullthrough.access").setLevel(self._level)

    def tell(self, event: RequestFinished) -> None:
        self.listen()
        self.metrics.record(event)
        log_access(event)

    @property
    def lines(self) -> list[str]:
        self._handler.flush()
        return self._stream.getvalue().split("\n")

    @property
    def samples(self) -> dict[str, float]:
        """By name and labels."""
        self.metrics.flush()
        lines = [line for line in self.metrics.render().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def same(one: dict[str, float], other: dict[str, float]) -> bool:
    """Sums of seconds may differ in their last bit, since they were added up in another order."""
    close = all(math.isclose(one[name], other.get(name, math.nan), rel_tol=1e-9) for name in one if "_sum" in name)
    exact = [{name: value for name, value in each.items() if "_sum" not in name} for each in (one, other)]
    return close and one.keys() == other.keys() and exact[0] == exact[1]


@given(st.lists(requests, min_size=3, max_size=3), steps)
def test_a_tally_is_as_good_as_telling(
    events: list[RequestFinished], steps: list[tuple[int, str, float] | str]
) -> None:
    """The same metrics and the same lines: whoever came in whatever time, whenever it was flushed, forgotten, told
    otherwise in between, or the log was switched."""
    told, tallied = Observed(), Observed()
    tallies = Tallies(tallied.metrics)
    made = [tallies.of(event) for event in events]
    for step in steps:
        match step:
            case (which, client, seconds):
                told.tell(replace(events[which], client=client, first_byte_seconds=seconds, seconds=seconds))
                tallied.listen()
                made[which].add(client, seconds)
            case "flush":
                tallies.flush()
            case "forget":
                made = [tallies.of(event) for event in events]
            case "told":
                told.tell(events[0])
                tallied.tell(events[0])
            case form:
                told.switch(form)
                tallied.switch(form)
    assert same(told.samples, tallied.samples)
    assert told.lines == tallied.lines


def test_a_tally_that_counted_nothing_shows_nothing() -> None:
    """What it is made of counts for no request."""
    metrics = Metrics()
    before = metrics.render()
    tallies = Tallies(metrics)
    tallies.of(EVENT)
    tallies.flush()
    assert metrics.render() == before


def test_a_tally_that_nobody_keeps() -> None:
    """It is counted to its end, and then gone."""
    metrics = Metrics()
    Tallies(metrics).of(EVENT).add("192.0.2.1", 0.5)
    gc.collect()
    metrics.flush()
    assert COUNTED + " 1.0" in metrics.render().decode()
    assert [one for one in gc.get_objects() if isinstance(one, Tally) and one._metrics is metrics] == []


async def test_it_is_flushed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those who read the metrics in another process."""
    monkeypatch.setattr(module, "_INTERVAL", 0.0)
    metrics = Metrics()
    tallies = Tallies(metrics)
    flushing = asyncio.create_task(tallies.flush_now_and_then())
    for count in (1, 2):
        tallies.of(EVENT).add("192.0.2.1", 0.5)
        async with asyncio.timeout(10):
            while f"{COUNTED} {count}.0" not in metrics.render().decode():
                await asyncio.sleep(0)
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)


async def test_a_reload_counts_for_tallies_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Their lines are written as all are: switched off, on, and in the other form."""
    tally = Tallies(Metrics()).of(EVENT)
    forms: list[tuple[str, bool]] = [("text", True), ("text", False), ("json", True), ("json", False), ("text", True)]
    for form, access in forms:
        setup_logging("info", form, access)  # type: ignore[arg-type]
        tally.add("192.0.2.1", 0.5)
    flush_logging()
    assert [line[0] for line in capsys.readouterr().err.splitlines()] == ["2", "{", "2"]
