"""The private parts of aiohttp's server that connections rest on are there, and mean what is relied on.

Whatever fails here after aiohttp was updated: read aiohttp's web_protocol.py and base_protocol.py beside
proxy/server/connection.py and proxy/server/fast.py, whose docstrings say what they take from it and why.
"""

import ast
import asyncio
import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from proxy.server.connection import _TOO_MANY_HEADERS, Connection
from proxy.server.fast import FastConnection

ROOT = Path(__file__).parents[3]
LOOK = f"aiohttp {aiohttp.__version__} does otherwise: look at proxy/server/connection.py and proxy/server/fast.py"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
IDLE = 60.0


class Watched:
    """One connection: aiohttp's end of it, `connection`, and a client's; `seen` is what its handler was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.go = asyncio.Event()
        self.errors: list[BaseException | None] = []
        self.connection: Any = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(request.path)
        if request.path == "/slow":
            await self.go.wait()
        return web.Response(text=request.path)

    async def start(self) -> None:
        loop, watched = asyncio.get_running_loop(), self

        class Handler(RequestHandler):
            __slots__ = ()

            def handle_error(
                self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None,
                message: str | None = None,
            ) -> web.StreamResponse:  # fmt: skip
                watched.errors.append(exc)
                return web.Response(status=status)

        manager = web.Server(self.handle, access_log=None)

        options: dict[str, Any] = {"access_log": None, "max_line_size": 100, "max_field_size": 200}

        def connect() -> RequestHandler:
            self.connection = made = Handler(manager, loop=loop, keepalive_timeout=IDLE, **options)
            return made

        self._manager = manager
        self._server = await loop.create_server(connect, "127.0.0.1", 0)
        self.reader, self.writer = await asyncio.open_connection(*self._server.sockets[0].getsockname())
        await self.until(lambda: self.connection is not None and self.connection._waiter is not None)

    async def stop(self) -> None:
        self.writer.transport.abort()
        self._server.close()
        await self._manager.shutdown(1)

    async def until(self, condition: Any) -> None:
        """Wait for what is under way."""
        try:
            async with asyncio.timeout(5):
                while not condition():
                    await asyncio.sleep(0)
        except TimeoutError:
            pytest.fail(LOOK)

    def comes(self, data: bytes) -> None:
        """`data` comes in at this moment."""
        self.connection.data_received(data)

    @property
    def waits(self) -> bool:
        """What `fast` takes for: it waits for a request."""
        waiter = self.connection._waiter
        return waiter is not None and not waiter.done()


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    one = Watched()
    await one.start()
    yield one
    await one.stop()


def test_the_minor_version_is_the_pinned_one() -> None:
    """Another one is looked at by somebody before it is let in: pyproject.toml says which was."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pinned,) = [one for one in project["dependencies"] if re.match(r"aiohttp\b", one)]
    found = re.fullmatch(r"aiohttp>=(\d+)\.(\d+)\.\d+,<(\d+)\.(\d+)", pinned)
    assert found is not None, f"{pinned}: neither a lowest nor a highest minor version; {LOOK}"
    lowest, highest = (int(found[1]), int(found[2])), (int(found[3]), int(found[4]))
    installed = tuple(int(part) for part in aiohttp.__version__.split(".")[:2])
    assert lowest == installed < highest == (lowest[0], lowest[1] + 1), LOOK


async def test_it_waits_only_between_requests(watched: Watched) -> None:
    """`_waiter` is there and not done while no request is parsed or answered, and at no other time."""
    assert watched.waits, LOOK
    watched.comes(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not watched.waits, LOOK
    await watched.until(lambda: watched.seen == ["/slow"])
    assert not watched.waits, LOOK
    watched.go.set()
    await watched.reader.readuntil(b"/slow")
    await watched.until(lambda: watched.waits)


async def test_messages_and_their_count(watched: Watched) -> None:
    """`_request_count` goes up as a request is parsed, whose body is then the last of `_messages`."""
    connection = watched.connection
    watched.comes(GET[:-2])
    assert (connection._request_count, len(connection._messages)) == (0, 0), LOOK
    watched.comes(GET[-2:])
    assert (connection._request_count, len(connection._messages)) == (1, 1), LOOK
    assert connection._messages[-1][1] is EMPTY_PAYLOAD, LOOK
    await watched.until(lambda: watched.waits)
    watched.comes(GET + b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab")
    assert (connection._request_count, len(connection._messages)) == (3, 2), LOOK
    body = connection._messages[-1][1]
    assert (body is EMPTY_PAYLOAD, body.is_eof(), body.total_bytes) == (False, False, 2), LOOK
    watched.comes(b"c")
    assert (body.is_eof(), body.total_bytes, EMPTY_PAYLOAD.is_eof()) == (True, 3, True), LOOK


async def test_upgraded(watched: Watched) -> None:
    """`_upgraded` tells, as soon as it is parsed, that a request asked for another protocol."""
    watched.comes(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert watched.connection._upgraded is True, LOOK
    await watched.until(lambda: watched.waits)
    assert watched.connection._upgraded is False, LOOK


async def test_paused(watched: Watched) -> None:
    """`_paused` is true from `pause_writing` to `resume_writing`."""
    connection = watched.connection
    assert connection._paused is False, LOOK
    connection.pause_writing()
    assert connection._paused is True, LOOK
    connection.resume_writing()
    assert connection._paused is False, LOOK


@pytest.mark.parametrize("name", ["_close", "_force_close"])
async def test_closing(watched: Watched, name: str) -> None:
    """With either of them set nothing is parsed any more."""
    assert getattr(watched.connection, name) is False, LOOK
    setattr(watched.connection, name, True)
    watched.comes(GET)
    assert (watched.connection._request_count, len(watched.connection._messages)) == (0, 0), LOOK


async def test_no_further_request(watched: Watched) -> None:
    """`_close`, set while a request is answered, ends the connection after that answer."""
    watched.comes(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    watched.connection._close = True
    watched.go.set()
    ended = asyncio.create_task(watched.reader.read())
    await watched.until(ended.done)
    assert (await ended).endswith(b"/slow"), LOOK
    assert watched.seen == ["/slow"], LOOK


async def test_what_is_put_among_the_messages_is_answered(watched: Watched) -> None:
    """An `_ErrInfo` of status, exception and message there, and its waiter woken: `handle_error` answers it."""
    error = ValueError("refused")
    watched.connection._messages.append((_ErrInfo(408, error, "refused"), EMPTY_PAYLOAD))
    watched.connection._waiter.set_result(None)
    assert (await watched.reader.readline()).split()[1] == b"408", LOOK
    assert watched.errors == [error], LOOK


async def test_another_handler(watched: Watched) -> None:
    """`_request_handler` may be replaced before the first request: `start` looks at it then, and not before."""

    async def other(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=418)

    watched.connection._request_handler = other
    watched.comes(GET)
    assert (await watched.reader.readline()).split()[1] == b"418", LOOK
    assert watched.seen == [], LOOK


async def test_the_timer_of_a_rest(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes no sooner than at `_next_keepalive_close_time`, which may be put off from outside."""
    connection, loop = watched.connection, asyncio.get_running_loop()
    assert connection._keepalive_timeout == IDLE, LOOK
    now = loop.time()
    assert now < connection._next_keepalive_close_time <= now + IDLE, LOOK
    connection._next_keepalive_close_time = now + 3 * IDLE
    monkeypatch.setattr(loop, "time", lambda: now + 2 * IDLE)
    connection._process_keepalive()
    assert connection._force_close is False, LOOK
    assert connection._keepalive_handle.when() == now + 3 * IDLE, LOOK
    monkeypatch.setattr(loop, "time", lambda: now + 4 * IDLE)
    connection._process_keepalive()
    assert connection._force_close is True, LOOK


async def test_a_rest_that_has_ended(watched: Watched) -> None:
    """`keep_alive(True)` stops that timer; after the next answer it runs again."""
    connection = watched.connection
    connection.keep_alive(True)
    assert connection._keepalive_handle is None, LOOK
    watched.comes(GET)
    await watched.until(lambda: connection._keepalive_handle is not None)


class Bare:
    """A response with nothing but what `Ready` has."""

    keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    async def write_eof(self) -> None:
        """Nothing more."""


async def test_what_is_needed_of_a_response(watched: Watched) -> None:
    """`keep_alive`, `prepare` and `write_eof`, and the connection goes on (`answers.Ready`)."""

    async def bare(_: web.BaseRequest) -> Any:
        return Bare()

    watched.connection._request_handler = bare
    for _ in range(2):
        watched.comes(GET)
        assert (await watched.reader.readuntil(b"hi")).endswith(b"hi"), LOOK
        await watched.until(lambda: watched.waits)


@pytest.mark.parametrize(
    ("sent", "limit"),
    [(b"GET /" + b"a" * 500 + b" HTTP/1.1\r\n\r\n", 100), (b"GET / HTTP/1.1\r\nX: " + b"x" * 500 + b"\r\n\r\n", 200)],
    ids=["address", "header"],
)
async def test_a_line_that_is_too_long(watched: Watched, sent: bytes, limit: int) -> None:
    """`LineTooLong`, whose second argument is the limit that it broke: addresses and headers are told apart by it."""
    watched.comes(sent)
    await watched.until(lambda: watched.errors)
    (error,) = watched.errors
    assert isinstance(error, LineTooLong), LOOK
    assert error.args[1] == limit == getattr(watched.connection, "max_line_size" if limit == 100 else "max_field_size")


async def test_too_many_headers(watched: Watched) -> None:
    """An error that is known by its words alone."""
    watched.comes(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 300 + b"\r\n")
    await watched.until(lambda: watched.errors)
    (error,) = watched.errors
    assert isinstance(error, BadHttpMessage | HttpProcessingError), LOOK
    assert error.message == _TOO_MANY_HEADERS, LOOK


def private_names(file: str) -> set[str]:
    """What the class in that file uses of itself, and does not define."""
    tree = ast.parse((ROOT / "proxy" / "server" / file).read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and "Connection" in node.name]
    nodes = list(ast.walk(found))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"}
    return {name for name in used - own if name.startswith("_")}


def test_every_private_field_is_there() -> None:
    """Whatever a connection uses of itself is aiohttp's or its own; what is gone is missed only when it is met."""
    theirs = {name for base in RequestHandler.__mro__ for name in getattr(base, "__slots__", ())}
    used = private_names("connection.py") | private_names("fast.py")
    assert {"_waiter", "_paused", "_upgraded", "_messages", "_request_count", "_next_keepalive_close_time"} <= used
    assert used - theirs - {*Connection.__slots__, *FastConnection.__slots__} == set(), LOOK
