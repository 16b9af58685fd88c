"""The supervisor's parts: sockets, the channel, and the life of workers that are tiny programs here."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.server import control, supervisor
from proxy.server.control import Channel, Message, MessageTooLong
from proxy.server.listener import ListenError
from proxy.server.sockets import bind_shared
from proxy.server.supervisor import Supervisor, WorkerError, pause_before
from proxy.settings import Address, Settings, UpstreamSettings

ROOT = Path(__file__).parents[3]
SETTINGS = Settings(upstreams={"a.test": UpstreamSettings(url="http://a.test", default=True)})

# Sockets.


def test_the_sockets_of_all_workers_share_a_port() -> None:
    """With port 0 the system chooses one, the same for all, and each socket listens."""
    made = bind_shared(Address("127.0.0.1", 0), 3)
    try:
        ports = {one.getsockname()[1] for sockets in made for one in sockets}
        assert [len(sockets) for sockets in made] == [1, 1, 1]
        assert len(ports) == 1
        assert 0 not in ports
        assert all(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sockets in made for one in sockets)
    finally:
        close(made)


def close(made: list[list[socket.socket]]) -> None:
    for sockets in made:
        for one in sockets:
            one.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6() -> None:
    """An IPv6 address is that alone: the same port stays free for IPv4."""
    try:
        made = bind_shared(Address("::1", 0), 2)
    except ListenError:
        pytest.skip("this machine has no IPv6 loopback")
    try:
        assert {one.family for sockets in made for one in sockets} == {socket.AF_INET6}
        assert all(one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for sockets in made for one in sockets)
    finally:
        close(made)


def test_an_address_in_use_names_itself() -> None:
    """Taken by another program, that is: one line for operators, and nothing is left open."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ListenError, match=f"127.0.0.1:{port} cannot be listened on"):
            bind_shared(Address("127.0.0.1", port), 2)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_that_does_not_exist() -> None:
    """A ListenError as well."""
    with pytest.raises(ListenError, match="cannot be listened on"):
        bind_shared(Address("no.such.host.invalid", 5000), 2)


# Pauses.


def test_who_dies_again_and_again_is_replaced_ever_later() -> None:
    """At once the first time, then with pauses that double, up to half a minute."""
    assert [pause_before(count) for count in range(6)] == [0, 0, 0.5, 1, 2, 4]
    assert pause_before(50) == 30


# What they say to each other.


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    ends = await Channel.open(one), await Channel.open(other)
    try:
        yield ends
    finally:
        for end in ends:
            await end.close()


async def test_settings_arrive_as_they_were() -> None:
    """Every value, and messages in their order; one that has no value has none."""
    async with channels() as (here, there):
        await here.send(Message("reload", SETTINGS))
        await here.send(Message("drain"))
        assert await there.receive() == Message("reload", SETTINGS)
        assert await there.receive() == Message("drain", None)
        await there.send(Message("reloaded", ["a line\nand more"]))
        assert (await here.receive()).value == ["a line\nand more"]


async def test_a_long_message() -> None:
    """Megabytes of settings are one message."""
    text = "x" * 5_000_000
    async with channels() as (here, there):
        sending = asyncio.create_task(here.send(Message("reload", text)))
        assert (await there.receive()).value == text
        await sending


async def test_the_other_end_is_gone() -> None:
    """ConnectionError for whoever waits for a word, also in the middle of one."""
    async with channels() as (here, there):
        await there.close()
        with pytest.raises(ConnectionError):
            await here.receive()
    one, other = socket.socketpair()
    end = await Channel.open(one)
    other.sendall(b"ready gA")
    other.close()
    with pytest.raises(ConnectionError):
        await end.receive()
    await end.close()


# The life of workers.

WORKER = """
import asyncio, socket, sys
from proxy.server.control import Channel, Message

async def main():
    channel = await Channel.open(socket.socket(fileno=int(sys.argv[1])))
    said = await channel.receive()
    task = said.value
    {body}

asyncio.run(main())
"""
GOOD = """
    await channel.send(Message("ready", number=said.number))
    while (message := await channel.receive()).name != "drain":
        await channel.send(Message("reloaded", [f"worker {task.worker}", "both"], message.number))
"""


class Workers:
    """A supervisor of two workers that do `body`; `ended` are those it was told of."""

    def __init__(self, tmp_path: Path, body: str) -> None:
        script = tmp_path / "worker.py"
        script.write_text(WORKER.replace("{body}", body.strip()))
        environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
        self.ended: list[int] = []
        command = (sys.executable, str(script))
        self.supervisor = Supervisor(SETTINGS, 2, [[], []], environment, self.ended.append, command)

    def pids(self) -> list[int]:
        return [worker.process.pid for _, worker in sorted(self.supervisor._workers.items())]


Make = Callable[[str], Workers]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes supervisors, and ends what they have started."""
    made: list[Workers] = []

    def one(body: str) -> Workers:
        made.append(Workers(tmp_path, body))
        return made[-1]

    yield one
    for workers in made:
        await workers.supervisor.stop(0.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_start_reload_stop(make: Make) -> None:
    """All are ready after the start; a reload has happened when all have said so; the end leaves none."""
    workers = make(GOOD)
    assert not workers.supervisor.started
    await workers.supervisor.start()
    assert (workers.supervisor.started, workers.supervisor.serving) == (True, 2)
    assert sorted(await workers.supervisor.reload(SETTINGS)) == ["both", "worker 0", "worker 1"]
    pids = workers.pids()
    await workers.supervisor.stop(5.0)
    assert workers.supervisor.serving == 0
    assert (sorted(workers.ended), len(pids)) == ([0, 1], 2)


async def test_one_that_dies_is_replaced(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """With one line that says how it ended; the other goes on."""
    workers = make(GOOD)
    await workers.supervisor.start()
    killed, other = workers.pids()
    os.kill(killed, signal.SIGKILL)
    await until(lambda: workers.ended == [0] and workers.supervisor.serving == 2)
    assert other in workers.pids()
    assert [record.getMessage() for record in caplog.records] == ["worker 0 ended (signal SIGKILL) and is replaced"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('await channel.send(Message("failed", "no disk", said.number))', "no disk"),
        ("raise SystemExit(3)", "worker [01] did not"),
    ],
)
async def test_one_that_cannot_start(make: Make, body: str, reason: str) -> None:
    """Fails the start with its own reason and leaves none; it is not tried again."""
    workers = make(body)
    with pytest.raises(WorkerError, match=reason):
        await workers.supervisor.start()
    assert sorted(workers.ended) == [0, 1]
    assert (workers.supervisor.serving, workers.supervisor.started) == (0, False)


async def test_a_reload_that_all_refuse(make: Make) -> None:
    """Is the supervisor's failure, and whoever starts later starts with the settings from before."""
    refusing = """
    await channel.send(Message("ready", number=said.number))
    while (message := await channel.receive()).name != "drain":
        await channel.send(Message("refused", f"no {task.settings.shutdown_timeout:g}", message.number))
"""
    workers = make(refusing)
    await workers.supervisor.start()
    changed = SETTINGS.model_copy(update={"shutdown_timeout": 7.0})
    with pytest.raises(WorkerError, match="no 60"):
        await workers.supervisor.reload(changed)
    os.kill(workers.pids()[0], signal.SIGKILL)
    await until(lambda: len(workers.ended) == 1 and workers.supervisor.serving == 2)
    with pytest.raises(WorkerError, match="no 60"):
        await workers.supervisor.reload(changed)


async def test_one_that_dies_at_once_is_not_replaced_in_a_loop(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer it goes on, the longer the pauses are."""
    asked: list[int] = []

    def pause(short_lives: int) -> float:
        asked.append(short_lives)
        return 0.0 if len(asked) < 8 else 60.0

    monkeypatch.setattr(supervisor, "pause_before", pause)
    workers = make('await channel.send(Message("ready", number=said.number))')
    await workers.supervisor.start()
    await until(lambda: len(asked) >= 8)
    assert max(asked) >= 3
    assert asked[:2] == [0, 0]


async def test_the_end_of_one_that_hangs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much it has not read, it holds nobody up: it is killed when its time is over, and the other ends."""
    monkeypatch.setattr(supervisor, "_RELOAD_LIMIT", 0.05)
    monkeypatch.setattr(supervisor, "_CLOSE_LIMIT", 0.05)
    workers = make(GOOD)
    await workers.supervisor.start()
    os.kill(workers.pids()[0], signal.SIGSTOP)
    # More than the pair and its buffers take.
    large = SETTINGS.model_copy(update={"trusted_proxies": ("10.0.0.0/8" * 100_000,)})
    for _ in range(3):
        with pytest.raises(WorkerError, match="does not answer"):
            await workers.supervisor.reload(large)
    async with asyncio.timeout(20):
        await workers.supervisor.stop(0.05)
    assert sorted(workers.ended) == [0, 1]


async def test_whoever_cancels_the_end_does_not_cancel_the_keepers(make: Make) -> None:
    """They still clear up, and the next `stop` waits for them."""
    workers, clearing, release = make(GOOD), threading.Event(), threading.Event()

    def slowly(number: int) -> None:
        clearing.set()
        release.wait()
        workers.ended.append(number)

    workers.supervisor._ended = slowly
    await workers.supervisor.start()
    ending = asyncio.create_task(workers.supervisor.stop(0.0))
    await asyncio.to_thread(clearing.wait)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    release.set()
    await workers.supervisor.stop(0.0)
    assert sorted(workers.ended) == [0, 1]


async def test_one_for_which_nothing_is_left_is_tried_for_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, descriptor or thread to be had at the moment is no reason to do without a worker for ever."""
    monkeypatch.setattr(supervisor, "pause_before", lambda _: 0.0)
    workers = make(GOOD)
    await workers.supervisor.start()
    spawn, failures = workers.supervisor._spawn, [RuntimeError("no thread"), OSError("no descriptor")]

    async def failing(number: int, theirs: socket.socket) -> asyncio.subprocess.Process:
        if failures:
            raise failures.pop()
        return await spawn(number, theirs)

    monkeypatch.setattr(workers.supervisor, "_spawn", failing)
    os.kill(workers.pids()[0], signal.SIGKILL)
    await until(lambda: workers.ended == [0] and workers.supervisor.serving == 2)
    assert failures == []


# Questions, and news from worker to worker.

ANSWERING = """
    await channel.send(Message("ready", number=said.number))
    async def answer(message):
        match message.value:
            case "who":
                await channel.send(Message("answer", task.worker, message.number))
            case "end":
                raise SystemExit(0)
            case "hang" if task.worker == 0:
                pass
            case "hang":
                await channel.send(Message("answer", "not hanging", message.number))
            case "tell":
                channel.post(Message("news", f"from {task.worker}"))
                await channel.send(Message("answer", "told", message.number))
            case "heard":
                await channel.send(Message("answer", list(heard), message.number))
            case ("wait", name):
                waiting[name] = message.number
            case ("let", name):
                await channel.send(Message("answer", name, waiting.pop(name)))
                await channel.send(Message("answer", "let", message.number))
    heard, waiting = [], {}
    while (message := await channel.receive()).name != "drain":
        if message.name == "news":
            heard.append(message.value)
        else:
            await answer(message)
"""


async def test_a_question_is_answered_by_one(make: Make) -> None:
    """The first one; or by all, in the order of their numbers."""
    workers = make(ANSWERING)
    await workers.supervisor.start()
    assert await workers.supervisor.ask("who", 5.0, again=False) == 0
    assert await workers.supervisor.ask_all("who", 5.0) == [0, 1]


async def test_questions_do_not_wait_for_each_other(make: Make) -> None:
    """One that takes its time holds up no other, and each has its own answer, in whatever order they come."""
    workers = make(ANSWERING)
    await workers.supervisor.start()
    slow = [asyncio.create_task(workers.supervisor.ask(("wait", name), 20.0, again=False)) for name in "abc"]
    await asyncio.sleep(0)
    for name in "cab":
        assert await workers.supervisor.ask(("let", name), 5.0, again=False) == "let"
    assert await asyncio.gather(*slow) == ["a", "b", "c"]


async def test_one_that_ends_over_a_question(make: Make) -> None:
    """The next one is asked where that does no harm; otherwise the one who asked is told at once."""
    workers = make(ANSWERING)
    await workers.supervisor.start()
    with pytest.raises(WorkerError):
        await workers.supervisor.ask("end", 20.0, again=False)
    await until(lambda: workers.ended == [0] and workers.supervisor.serving == 2)
    # Both end over it, and then there is nobody left to ask.
    with pytest.raises(WorkerError):
        await workers.supervisor.ask("end", 20.0, again=True)
    await until(lambda: sorted(workers.ended) == [0, 0, 1])


async def test_one_that_hangs_over_a_question(make: Make) -> None:
    """Its time ends and the next one answers; of all, those who answer are heard."""
    workers = make(ANSWERING)
    await workers.supervisor.start()
    assert await workers.supervisor.ask("hang", 0.2, again=True) == "not hanging"
    with pytest.raises(WorkerError, match="does not answer"):
        await workers.supervisor.ask("hang", 0.2, again=False)
    assert await workers.supervisor.ask_all("hang", 0.2) == ["not hanging"]
    assert await workers.supervisor.ask("who", 5.0, again=False) == 0


async def test_nobody_to_ask(make: Make) -> None:
    """Before the start and after the end."""
    workers = make(ANSWERING)
    for _ in range(2):
        with pytest.raises(WorkerError, match="no worker serves"):
            await workers.supervisor.ask("who", 5.0, again=True)
        assert await workers.supervisor.ask_all("who", 5.0) == []
        if not workers.supervisor.started:
            await workers.supervisor.start()
            await workers.supervisor.stop(0.0)


async def test_whoever_asked_leaves(make: Make) -> None:
    """The answer that comes afterwards is nobody's, and the next question has its own."""
    workers = make(ANSWERING)
    await workers.supervisor.start()
    leaving = asyncio.create_task(workers.supervisor.ask(("wait", "a"), 20.0, again=True))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert await workers.supervisor.ask(("let", "a"), 5.0, again=False) == "let"
    assert await workers.supervisor.ask("who", 5.0, again=False) == 0


async def test_news_go_to_all_others(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not back to where they come from; one that does not read them misses them, and holds up nobody."""
    workers = make(ANSWERING)
    await workers.supervisor.start()
    assert await workers.supervisor.ask("tell", 5.0, again=False) == "told"
    async with asyncio.timeout(20):
        while await workers.supervisor.ask_all("heard", 5.0) != [[], ["from 0"]]:
            await asyncio.sleep(0)
    monkeypatch.setattr(supervisor, "_MOST_NEWS", 0)
    assert await workers.supervisor.ask("tell", 5.0, again=False) == "told"
    assert await workers.supervisor.ask_all("heard", 5.0) == [[], ["from 0"]]


async def test_what_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other end would take it for the end of all sense; here it is an error, and the next message arrives."""
    monkeypatch.setattr(control, "_LONGEST", 100_000)
    async with channels() as (here, there):
        for size in (75_000, 1_000_000):
            with pytest.raises(MessageTooLong):
                await here.send(Message("answer", b"x" * size))
        await here.send(Message("answer", b"x" * 70_000))
        await here.send(Message("ready"))
        assert len((await there.receive()).value) == 70_000
        assert await there.receive() == Message("ready")
