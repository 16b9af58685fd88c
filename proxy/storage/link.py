"""The way to the server that replicas share their metadata in (Valkey or Redis): is it there, and what has it told?

One connection is subscribed to what other replicas change, and pinged; all else goes by a pool. Invariants:
- The server is `up` as long as that connection answers: what was pinged is answered behind all that was told before,
  so whoever is up has heard of every change that is older than `_SILENCE`.
- Whoever meets a failure says so (`Link.ask`), and all go on without the server at once: nobody waits for a time-out of
  their own who comes later. That a single command is not answered in time is its own affair, as long as pings are, and
  the looks at the epoch. It is up again when the connection is there anew, and `arriving` has done its work; one
  process tries that, with pauses that grow, so nobody meets a server that has just come back with all they have.
- What was told in between is lost. So both turns are told: `turned` makes forget what is remembered.
- A server that has lost its memory has another epoch: that is looked at before it is up, and now and then.
"""

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import redis.asyncio as redis
from redis.asyncio.client import PubSub
from redis.exceptions import OutOfMemoryError, RedisClusterException, RedisError, ResponseError

from proxy.storage.base import StorageError
from proxy.storage.patience import Patience, moved_on
from proxy.storage.servers import Place, Server
from proxy.telemetry.events import SharedStoreFailed, SharedStoreTurned, Tell

T = TypeVar("T")

_log = logging.getLogger("pullthrough.storage")

# Seconds. A server that does not answer pings is away, whoever waits for it; one that does has longer to answer.
_PING = 0.25
_SILENCE = 1.0
_CONNECT = 1.0
_LIMIT = 5.0
_LOOK = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0
_CONNECTIONS = 32

FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)


class Away(StorageError):
    """The shared metadata store does not answer now."""


class Full(StorageError):
    """It has no room for more."""


class Link:
    """See above. `start` it in the running loop and `close` it there."""

    def __init__(self, place: Place, tell: Tell) -> None:
        self.prefix = place.prefix
        self.channel = f"{place.prefix}changes"
        # Told what comes in on the channel.
        self.heard: Callable[[bytes], object] = lambda _message: None
        # Done before the server counts as up; told whether its memory is another one than it was.
        self.arriving: Callable[[bool], Awaitable[None]] = _nothing
        self.turned: Callable[[], None] = lambda: None
        self.epoch = ""
        self._place = place
        self._server = self.connect()
        self.client = self._server.client
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        self._patience = Patience(_PING)
        self._tell = tell
        self._up = self._closing = False
        self._was_up = asyncio.Event()
        self._broken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # Why it was away last, which is logged once.
        self._why = ""
        self._watching: PubSub | None = None
        self._confirmed = 0.0
        self._pings: dict[bytes, tuple[float, asyncio.Future[None]]] = {}

    @property
    def up(self) -> bool:
        """Does the server answer, as far as is known?"""
        return self._up

    def connect(self) -> Server:
        """The server by connections that are nobody else's."""
        return Server(self._place, _CONNECT)

    async def start(self) -> None:
        """Begin to look for it, and wait for a moment. A server that is not there keeps nobody from starting."""
        self._tell(SharedStoreTurned("metadata", False))
        self._task = asyncio.create_task(self._run(), name="link to the shared metadata")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SILENCE):
                await self._was_up.wait()

    async def close(self) -> None:
        """End it."""
        self._closing = True
        self._broken.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._up = False
        self._patience.give_up()
        with contextlib.suppress(*FAILURES):
            await self._server.close()

    async def ask(self, call: Callable[[redis.Redis], Awaitable[T]], arriving: bool = False) -> T:
        """What `call` gets of the server. `arriving`: it is part of `arriving`, so it is not up yet.

        Raises Away, or Full.
        """
        if not (self._up or arriving):
            raise Away("the shared metadata store does not answer")
        if arriving:
            # Those looks judge whether it is up, so they wait for nobody.
            return await self._ask(call, arriving)
        # To wait for others of this process is not the server's silence.
        async with self._turns:
            return await self._ask(call, arriving)

    async def _ask(self, call: Callable[[redis.Redis], Awaitable[T]], arriving: bool) -> T:
        if not (self._up or arriving):
            raise Away("the shared metadata store does not answer")
        try:
            async with self._patience.limit(_LIMIT):
                return await call(self.client)
        except OutOfMemoryError as error:
            self._tell(SharedStoreFailed("metadata", "full"))
            raise Full("the shared metadata store is full") from error
        except (TimeoutError, redis.TimeoutError) as error:
            # Its connection ends with it. Whether the server is away is for pings and looks at the epoch to say.
            if self._up:
                self._tell(SharedStoreFailed("metadata", "timeout"))
            raise Away("the shared metadata store has not answered in time") from error
        except FAILURES as error:
            if "OOM" in str(error):
                # What a script meets comes with the script's words around it.
                self._tell(SharedStoreFailed("metadata", "full"))
                raise Full("the shared metadata store is full") from error
            self._lost(error)
            raise Away(f"the shared metadata store failed: {described(error)}") from error

    async def sync(self) -> None:
        """Have heard of everything that was changed before now. Raises Away."""
        if not self._up or self._watching is None:
            raise Away("the shared metadata store does not answer")
        try:
            async with self._patience.limit(_SILENCE):
                await self._ping(self._watching)
        except FAILURES as error:
            raise Away(f"the shared metadata store failed: {described(error)}") from error

    # The connection that is watched.

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        # `wait_for`, inside of the client, may miss that this is cancelled.
        while not self._closing:
            began = asyncio.get_running_loop().time()
            try:
                async with self._subscribed() as watching:
                    await self._watch(watching)
            except (*FAILURES, StorageError) as error:
                self._lost(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, replicas go on without the server
                _log.error("the link to the shared metadata store failed", exc_info=error)
                self._lost(error)
            if asyncio.get_running_loop().time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause * (0.75 + 0.5 * random.random()))  # noqa: S311 - no secret
            pause = min(2 * pause, _LONGEST_PAUSE)

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator[PubSub]:
        async with asyncio.timeout(4 * _CONNECT):
            watching = await self._server.listener()
        try:
            async with asyncio.timeout(2 * _CONNECT):
                await watching.subscribe(self.channel)
                message = await watching.get_message(timeout=_CONNECT)
                if message is None or message["type"] != "subscribe":
                    raise TimeoutError("no answer to a subscription")
            self._broken.clear()
            yield watching
        finally:
            self._watching = None
            for _, answered in self._pings.values():
                if not answered.done():
                    answered.set_exception(ConnectionError("the connection ended"))
                    # Nobody may wait for it.
                    answered.exception()
            self._pings.clear()
            with contextlib.suppress(*FAILURES):
                await watching.aclose()  # type: ignore[no-untyped-call]  # it has no types

    async def _watch(self, watching: PubSub) -> None:
        """Read, ping, and look at the epoch, until one of them fails. Raises what failed."""
        if self._closing:
            return
        self._confirmed = asyncio.get_running_loop().time()
        works = [self._read(watching), self._ping_on(watching), self._arrive(watching), self._until_broken()]
        tasks: list[asyncio.Task[None]] = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await ended(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _read(self, watching: PubSub) -> None:
        while True:
            message: Any = await watching.get_message(timeout=_SILENCE)
            if message is None:
                continue
            if message["type"] == "message":
                self.heard(message["data"])
            elif message["type"] == "pong" and (ping := self._pings.pop(message["data"], None)) is not None:
                self._confirmed = max(self._confirmed, ping[0])
                if not ping[1].done():
                    ping[1].set_result(None)

    async def _ping(self, watching: PubSub) -> None:
        loop = asyncio.get_running_loop()
        name = uuid.uuid4().hex.encode()
        self._pings[name] = loop.time(), (answered := loop.create_future())
        try:
            await watching.ping(name)
            await answered
        finally:
            self._pings.pop(name, None)

    async def _ping_on(self, watching: PubSub) -> None:
        loop = asyncio.get_running_loop()
        while True:
            name = uuid.uuid4().hex.encode()
            self._pings[name] = loop.time(), loop.create_future()
            async with asyncio.timeout(_LIMIT):
                await watching.ping(name)
            # What came while this loop was busy has not been read: that is not the server's silence.
            due, now = await self._patience.look()
            self._confirmed = moved_on(self._confirmed, due, now)
            if now - self._confirmed > _SILENCE:
                raise TimeoutError("it is silent")

    async def _arrive(self, watching: PubSub) -> None:
        await self._ping(watching)
        await self._look_at_epoch()
        self._watching = watching
        self._up = True
        self.turned()
        self._was_up.set()
        self._why = ""
        self._tell(SharedStoreTurned("metadata", True))
        _log.info("the shared metadata store answers")
        while True:
            await asyncio.sleep(_LOOK)
            await self._look_at_epoch(again=True)

    async def _look_at_epoch(self, again: bool = False) -> None:
        """Has the server the memory that it had? `again`: it is up, and nothing is to be done where it has."""
        key, mine = f"{self.prefix}epoch", uuid.uuid4().hex
        found = await self.ask(lambda client: client.get(key), arriving=True)
        if found is None:
            # A full one can be read from, and serves.
            with contextlib.suppress(Full):
                await self.ask(lambda client: client.set(key, mine, nx=True), arriving=True)
            found = await self.ask(lambda client: client.get(key), arriving=True)
        epoch = found.decode(errors="replace") if isinstance(found, bytes) else ""
        before, self.epoch = self.epoch, epoch
        if epoch != before and again:
            self.turned()
        try:
            if epoch != before or not again:
                await self.arriving(epoch != before)
        except BaseException:
            # It has not been dealt with.
            self.epoch = before
            raise

    async def _until_broken(self) -> None:
        await self._broken.wait()
        raise TimeoutError("a command failed")

    def _lost(self, error: BaseException) -> None:
        """The server has failed somebody: nobody asks it until it is there anew."""
        self._broken.set()
        # Those who wait need not find that out by themselves.
        self._patience.give_up()
        why = described(error)
        if not self._up and why == self._why:
            return
        # Told again where it is for another reason: operators may be at work.
        self._why = why
        self._tell(SharedStoreFailed("metadata", reason_of(error)))
        _log.warning("the shared metadata store is away (%s): going on from local copies", why)
        if self._up:
            self._up = False
            self.turned()
            self._tell(SharedStoreTurned("metadata", False))


async def ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel `tasks` and wait for them. Told again and again: `wait_for`, inside of the client, may miss it once."""
    while any(not task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_PING)
    # Looked at, so that nobody misses what they raised.
    await asyncio.gather(*tasks, return_exceptions=True)


def described(error: BaseException) -> str:
    """In one line, without what a URL may hold."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ResponseError | StorageError):
        return str(error).split("\n", 1)[0][:120]
    return type(error).__name__


def reason_of(error: BaseException) -> str:
    """As a label: connect, timeout, or refused where it answers with an error."""
    if isinstance(error, TimeoutError | redis.TimeoutError):
        return "timeout"
    return "refused" if isinstance(error, ResponseError) else "connect"


async def _nothing(_other: bool) -> None:
    """Nobody has anything to do."""
