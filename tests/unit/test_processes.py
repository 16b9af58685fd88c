"""How many workers there are, and what each of them goes by."""

import os

import pytest

from proxy.processes import of_one, worker_count
from proxy.settings import Settings, UpstreamSettings


def settings(workers: int | str = 1, **connections: int) -> Settings:
    upstreams = {
        f"{name}.test": UpstreamSettings(url=f"http://{name}.test", max_connections=count)
        for name, count in connections.items()
    }
    return Settings.model_validate({"workers": workers, "upstreams": upstreams})


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_a_number_is_that_many(workers: int) -> None:
    """Whatever processors there are."""
    assert worker_count(settings(workers, a=1)) == workers


@pytest.mark.parametrize(("processors", "expected"), [(1, 1), (3, 3), (200, 64)])
def test_auto_is_one_for_each_processor(monkeypatch: pytest.MonkeyPatch, processors: int, expected: int) -> None:
    """Those that this process may use, as many as a fill's map has room for."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    assert worker_count(settings("auto", a=1)) == expected


def test_connections_to_an_upstream_are_shared_out() -> None:
    """All workers together open no more than max_connections, and each may open one."""
    before = settings(4, many=64, odd=7, few=1)
    mine = of_one(before, 4)
    assert [upstream.max_connections for upstream in mine.upstreams.values()] == [16, 1, 1]
    assert [upstream.max_connections for upstream in before.upstreams.values()] == [64, 7, 1]


def test_one_of_one_has_everything() -> None:
    """Nothing else is changed either."""
    before = settings(1, a=64)
    assert of_one(before, 1) == before


def test_limits_of_the_machine_are_shared_out_and_those_of_a_client_are_not() -> None:
    """Rates and connections are one Nth for each worker, of which no client has more than half; no limit stays none."""
    document = {
        "upstreams": {"a.test": {"url": "http://a.test"}},
        "limits": {"max_connections": 10, "max_connections_per_client": 10},
        "clusters": [
            {"name": "a", "match": {"hosts": ["a"]}, "limits": {"requests_per_second": 10, "bytes_per_second": "1MiB"}},
            {"name": "b"},
        ],
    }
    mine = of_one(Settings.model_validate(document), 4)
    assert (mine.limits.max_connections, mine.limits.max_connections_per_client) == (3, 1)
    assert mine.clusters[0].limits.model_dump() == {"requests_per_second": 2.5, "bytes_per_second": 256 << 10}
    assert mine.clusters[1].limits == Settings.model_validate(document).clusters[1].limits
    document["limits"] = {"max_connections": 0}
    assert of_one(Settings.model_validate(document), 4).limits.max_connections == 0
