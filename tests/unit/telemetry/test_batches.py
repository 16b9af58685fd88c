"""Access lines are written in batches: in order, whole, in time, and whatever standard error does."""

import asyncio
import io
import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.telemetry import batches
from proxy.telemetry.batches import BatchHandler
from proxy.telemetry.events import RequestFinished
from proxy.telemetry.lines import TextFormatter, text_access
from proxy.telemetry.logs import flush_logging, log_access, setup_logging

ROOT = Path(__file__).parents[3]
EVENT = RequestFinished(
    "192.0.2.1", "prod", "docker.io", "manifest", "GET", "library/nginx", "latest", 200, "hit", "", 1234, 0.1, 0.12345
)


class Stream(io.StringIO):
    """Standard error that keeps what it is given piece by piece; `broken`: it takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.broken: Exception | None = None
        self.written = asyncio.Event()

    def write(self, text: str) -> int:
        if self.broken is not None:
            raise self.broken
        self.pieces.append(text)
        self.written.set()
        return len(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def handler(stream: Stream) -> BatchHandler:
    made = BatchHandler(stream, text_access)
    made.setFormatter(TextFormatter())
    return made


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("pullthrough", logging.WARNING, "", 1, text, (), None)


async def test_lines_wait_for_each_other(
    handler: BatchHandler, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All those of a while are one write, which follows by itself; and so again."""
    monkeypatch.setattr(batches, "_DELAY", 0.0)
    for text in ("one\ntwo\n", "three\nfour\n"):
        stream.written.clear()
        for line in text.splitlines(keepends=True):
            handler.write_later(line)
        async with asyncio.timeout(10):
            await stream.written.wait()
        assert stream.pieces.pop(0) == text
    assert stream.pieces == []


async def test_the_timer_is_one(handler: BatchHandler, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches are full before it ends."""
    timers: list[Callable[[], None]] = []
    monkeypatch.setattr(
        asyncio.get_running_loop(), "call_later", lambda delay, call: timers.append(call), raising=False
    )
    for _ in range(1000):
        handler.write_later("x" * 99 + "\n")
    (timer,) = timers
    timer()
    assert "".join(stream.pieces) == ("x" * 99 + "\n") * 1000
    handler.write_later("next\n")
    assert len(timers) == 2


async def test_a_write_is_what_a_pipe_takes_at_once(handler: BatchHandler, stream: Stream) -> None:
    """Whole lines, as many as have room in it, counted in bytes: those of two workers never mix."""
    lines = [f"{number} {'é' * (number % 150)}\n" for number in range(500)]
    for line in lines:
        handler.write_later(line)
    handler.flush()
    assert "".join(stream.pieces) == "".join(lines)
    sizes = [len(piece.encode()) for piece in stream.pieces]
    assert max(sizes) <= select.PIPE_BUF
    assert min(sizes[:-1]) > select.PIPE_BUF - 400
    assert all(piece.endswith("\n") for piece in stream.pieces)


async def test_a_line_that_no_pipe_takes_at_once(handler: BatchHandler, stream: Stream) -> None:
    """It is written by itself."""
    handler.write_later("before\n")
    handler.write_later("x" * 10_000 + "\n")
    handler.write_later("after\n")
    handler.flush()
    assert [len(piece) for piece in stream.pieces] == [7, 10_001, 6]


async def test_other_lines_take_those_before_them_along(handler: BatchHandler, stream: Stream) -> None:
    """The order of lines is that of what happened, and others do not wait."""
    handler.write_later("one\n")
    handler.handle(record("two"))
    handler.write_later("three\n")
    assert [line.split()[-1] for line in "".join(stream.pieces).splitlines()] == ["one", "two"]
    assert len(stream.pieces) == 1


def test_without_an_event_loop_nothing_waits(handler: BatchHandler, stream: Stream) -> None:
    """Nobody would write it later."""
    handler.write_later("one\n")
    assert stream.pieces == ["one\n"]


def test_a_loop_that_has_ended_keeps_nothing_back(
    handler: BatchHandler, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer that never came to its end is not waited for."""

    async def one(line: str) -> None:
        handler.write_later(line)

    async def other(line: str) -> None:
        handler.write_later(line)
        async with asyncio.timeout(10):
            await stream.written.wait()

    asyncio.run(one("one\n"))
    handler.flush()
    stream.written = asyncio.Event()
    monkeypatch.setattr(batches, "_DELAY", 0.0)
    asyncio.run(other("two\n"))
    assert stream.pieces == ["one\n", "two\n"]


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "no space left on device"), ValueError("closed file")]
)
async def test_a_broken_stream_is_nobodys_trouble(handler: BatchHandler, stream: Stream, error: Exception) -> None:
    """What it does not take is dropped; when it takes lines again, those that come then are written."""
    stream.broken = error
    for _ in range(1000):
        handler.write_later("lost\n")
    handler.handle(record("lost"))
    handler.flush()
    stream.broken = None
    handler.write_later("kept\n")
    handler.flush()
    assert stream.pieces == ["kept\n"]


@pytest.mark.parametrize("where", ["full", "closed pipe", "none"])
def test_a_broken_standard_error(where: str) -> None:
    """A full disk, a reader that is gone, none at all: the program goes on to its end."""
    program = (
        "import logging, sys; from proxy.telemetry.logs import *; from tests.unit.telemetry.test_batches import EVENT\n"
        "setup_logging('info', 'text', True)\n"
        "for _ in range(300): log_access(EVENT); logging.getLogger('pullthrough').warning('other')\n"
        "print('went on')"
    )
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "wb") as full:
        stderr = {"full": full.fileno(), "closed pipe": writing}.get(where)
        command = [sys.executable, "-c", program]
        if stderr is None:
            command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)
    os.close(writing)
    assert ended.stdout == "went on\n"


async def test_threads_lose_nothing(handler: BatchHandler, stream: Stream) -> None:
    """Lines of other threads come in between; each is written once, and those of one thread in their order."""

    def others(thread: int) -> None:
        for number in range(300):
            handler.handle(record(f"{thread} {number}"))

    threads = [threading.Thread(target=others, args=(name,)) for name in (1, 2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for number in range(3000):
            handler.write_later(f"0 {number}\n")
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    handler.flush()
    found: dict[str, list[int]] = {"0": [], "1": [], "2": []}
    for line in "".join(stream.pieces).splitlines():
        name, place = line.split()[-2:]
        found[name].append(int(place))
    assert found == {"0": list(range(3000)), "1": list(range(300)), "2": list(range(300))}


async def test_a_line_waits_for_nobody_who_writes(handler: BatchHandler, stream: Stream) -> None:
    """Another thread that has the lock, and a reader of standard error that stands still, hold up no request."""
    assert handler.lock is not None
    held, let_go = threading.Event(), threading.Event()
    in_time: list[bool] = []

    def hold() -> None:
        assert handler.lock is not None
        with handler.lock:
            held.set()
            in_time.append(let_go.wait(10))

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    handler.write_later("one\n")
    let_go.set()
    thread.join()
    handler.flush()
    assert stream.pieces == ["one\n"]
    assert in_time == [True]


def test_the_time_is_that_of_the_line() -> None:
    """To the millisecond, however many lines one has."""
    clock = iter([1_700_000_000_000_999_999, 1_700_000_000_000_000_000, 1_700_000_000_001_000_000])
    handler = BatchHandler(Stream(), text_access, lambda: next(clock))
    assert [handler.now()[-5:] for _ in range(3)] == [".000Z", ".000Z", ".001Z"]


async def test_a_reload_writes_what_waited(capsys: pytest.CaptureFixture[str]) -> None:
    """As it was when it happened, and before all that comes."""
    setup_logging("info", "text", True)
    log_access(EVENT)
    assert capsys.readouterr().err == ""
    setup_logging("info", "json", True)
    log_access(EVENT)
    flush_logging()
    assert [line[0] for line in capsys.readouterr().err.splitlines()] == ["2", "{"]


def test_the_end_of_the_program_writes_what_waited() -> None:
    """Though nobody else did."""
    program = (
        "import asyncio; from proxy.telemetry.logs import *; from tests.unit.telemetry.test_batches import EVENT\n"
        "setup_logging('info', 'text', True)\n"
        "async def main(): [log_access(EVENT) for _ in range(50)]\n"
        "asyncio.run(main())"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stderr.count("client=192.0.2.1") == 50
