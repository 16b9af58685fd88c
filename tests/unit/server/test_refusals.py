"""Refusals are counted one by one and logged now and then."""

import logging

import pytest

from proxy.server.refusals import Refusals
from proxy.telemetry.events import ClientRefused, Event
from tests.fakes.clock import ManualClock


def test_each_is_counted_and_a_flood_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """For each reason by itself; the next line says how many there were."""
    told: list[Event] = []
    clock = ManualClock()
    refusals = Refusals(told.append, clock)
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            refusals.add("connections", f"192.0.2.{number}")
        refusals.add("body-size", "192.0.2.200")
        clock.advance(61)
        refusals.add("connections", "192.0.2.201")
    assert told.count(ClientRefused("connections")) == 101
    assert [record.getMessage() for record in caplog.records] == [
        "clients refused: connections, 1 since the last such line, now 192.0.2.0",
        "clients refused: body-size, 1 since the last such line, now 192.0.2.200",
        "clients refused: connections, 100 since the last such line, now 192.0.2.201",
    ]
