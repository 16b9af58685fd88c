"""How many workers there are, what each of them goes by, and how it obeys."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.processes import _Words, of_one, worker_count
from proxy.server import control
from proxy.server.api import ApiRequest, ApiResponse
from proxy.server.control import Channel, Message
from proxy.settings import Settings, UpstreamSettings
from proxy.sharing import StartError


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


# What the supervisor says to a worker.


class Serving:
    """What a worker answers with; `let` goes before the answer to what waits."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.heard_: list[object] = []
        self.ended = 0

    async def answer(self, request: ApiRequest) -> ApiResponse:
        try:
            if request.path == "wait":
                await self.let.wait()
        except asyncio.CancelledError:
            self.ended += 1
            raise
        return ApiResponse(200, "x" * 200_000 if request.path == "long" else request.path)

    async def reload(self, settings: object) -> list[str]:
        if settings == "bad":
            raise StartError("no such ca")
        return [f"reloaded {settings}"]

    def heard(self, news: object) -> None:
        self.heard_.append(news)


@asynccontextmanager
async def obeying() -> AsyncIterator[tuple[Channel, Serving, asyncio.Event]]:
    """The supervisor's end of a channel to a worker that obeys, what it serves with, and its end."""
    ours, theirs = socket.socketpair()
    here, there = await Channel.open(ours), await Channel.open(theirs)
    serving, stop = Serving(), asyncio.Event()
    task = asyncio.create_task(_Words(there, serving, stop).obey())  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        yield here, serving, stop
        await here.close()
        await task
    await there.close()


def ask(path: str, number: int) -> Message:
    return Message("call", ApiRequest("GET", path), number)


async def test_calls_are_answered_side_by_side() -> None:
    """One that waits holds up neither other calls nor a reload nor the end."""
    async with obeying() as (channel, serving, stop):
        for message in (ask("wait", 1), ask("a", 2), Message("news", "n"), Message("reload", "s", 3)):
            await channel.send(message)
        said = [await channel.receive() for _ in range(2)]
        assert sorted((one.number, one.name) for one in said) == [(2, "answer"), (3, "reloaded")]
        await channel.send(Message("reload", "bad", 4))
        assert await channel.receive() == Message("refused", "no such ca", 4)
        assert serving.heard_ == ["n"]
        await channel.send(Message("drain"))
        await stop.wait()
        serving.let.set()
        assert await channel.receive() == Message("answer", ApiResponse(200, "wait"), 1)


async def test_calls_end_with_the_supervisor() -> None:
    """Nobody is there to be answered."""
    async with obeying() as (channel, serving, _):
        await channel.send(ask("wait", 1))
        await channel.send(ask("a", 2))
        assert (await channel.receive()).number == 2
    assert serving.ended == 1


async def test_an_answer_that_is_too_long(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Is an error for whoever asked, and one line; the worker goes on."""
    monkeypatch.setattr(control, "_LONGEST", 100_000)
    async with obeying() as (channel, _, _):
        await channel.send(ask("long", 1))
        told = (await channel.receive()).value
        assert (told.status, list(told.body)) == (500, ["error"])
        await channel.send(ask("a", 2))
        assert (await channel.receive()).value == ApiResponse(200, "a")
    assert [record.getMessage() for record in caplog.records] == ["the answer to GET /api/v1/long is too long"]
