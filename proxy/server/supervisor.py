"""The supervisor: worker processes that share every address, and are replaced when they die.

Invariants:
- Each worker has a listening socket of its own for each address (SO_REUSEPORT), made and kept open here: a worker that
  dies loses no queued connection, and its replacement, which has the same number, inherits the same sockets.
- Workers are spawned, not forked; they hold nothing of this process but their sockets and one end of a socket pair.
  When the supervisor is gone, however it ended, they see the pair closed and end too.
- A reload has happened when all workers that run have acknowledged it; one that starts meanwhile starts with it.
- Every worker has one keeper, a task that is owned here and has ended when `stop` returns. Keepers are never cancelled:
  their processes are killed, which ends whatever they wait for, so none can be interrupted while it clears up.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from proxy.server.control import Channel, Message
from proxy.settings import Settings

_log = logging.getLogger("pullthrough.server")

# A worker that lived shorter than this, in seconds, is not replaced at once.
_SHORT_LIFE = 10.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_START_LIMIT = 60.0
_RELOAD_LIMIT = 30.0
# What a worker may take to close after it has drained.
_CLOSE_LIMIT = 5.0
# A worker that has not taken so many bytes of news, in bytes, misses the next ones: it hangs.
_MOST_NEWS = 4 * 1024 * 1024


class WorkerError(Exception):
    """A worker process could not do what it was told. The message is one line for operators."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is to do: its number, the settings, and the descriptors of its sockets for each address."""

    worker: int
    settings: Settings
    sockets: list[list[int]]


def pause_before(short_lives: int) -> float:
    """Seconds to wait before a worker is replaced that lived shortly so many times in a row; none after the first."""
    return min(_FIRST_PAUSE * 2.0 ** (short_lives - 2), _LONGEST_PAUSE) if short_lives > 1 else 0.0


class _Worker:
    """One worker process while it lives."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.process = process
        self.channel = channel
        self._asked = 0
        self._gone = False
        self._waiting: dict[int, asyncio.Future[Message]] = {}

    async def listen(self, news: Callable[["_Worker", object], None]) -> None:
        """Take in what it says, until it says nothing any more; `news` are for the other workers."""
        try:
            while True:
                message = await self.channel.receive()
                waiting = self._waiting.get(message.number)
                if message.name == "news":
                    news(self, message.value)
                elif waiting is not None and not waiting.done():
                    # An answer that comes too late is nobody's any more.
                    waiting.set_result(message)
        except ConnectionError:
            # Whoever waits for an answer has it; why it ended its status says.
            self._gone = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_result(Message("failed", ""))

    async def told(self, message: Message, limit: float) -> Message:
        """Its answer to `message`, in `limit` seconds. Raises WorkerError where there is none, or it is a bad one."""
        if self._gone:
            raise WorkerError("")
        self._asked += 1
        number, waiting = self._asked, asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            async with asyncio.timeout(limit):
                await self.channel.send(replace(message, number=number))
                answer: Message = await waiting
        except (ConnectionError, TimeoutError):
            raise WorkerError("it does not answer") from None
        finally:
            del self._waiting[number]
        if answer.name in {"failed", "refused"}:
            raise WorkerError(str(answer.value))
        return answer


class Supervisor:
    """The workers of one program. `command` runs a worker that finds its end of the pair at the descriptor after it."""

    def __init__(
        self,
        settings: Settings,
        count: int,
        sockets: list[list[list[socket.socket]]],
        environment: dict[str, str],
        ended: Callable[[int], None],
        command: tuple[str, ...] = (sys.executable, "-m", "proxy", "worker"),
    ) -> None:
        """`sockets`: for each worker those of each address. `ended` is told the number of each that has ended."""
        self._settings = settings
        self._count = count
        self._sockets = sockets
        self._environment = environment
        self._ended = ended
        self._command = command
        self._workers: dict[int, _Worker] = {}
        self._processes: set[asyncio.subprocess.Process] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._started: list[asyncio.Future[None]] = []
        self._reloading = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._killing = False

    @property
    def started(self) -> bool:
        """Have all been ready once?"""
        return bool(self._started) and all(one.done() and one.exception() is None for one in self._started)

    @property
    def serving(self) -> int:
        """How many workers are ready."""
        return len(self._workers)

    async def start(self) -> None:
        """Start all workers. Raises WorkerError, with none left, where one of them cannot."""
        loop = asyncio.get_running_loop()
        self._started = [loop.create_future() for _ in range(self._count)]
        self._keepers = [loop.create_task(self._keep(number), name=f"worker {number}") for number in range(self._count)]
        try:
            await asyncio.gather(*self._started)
        except BaseException:
            await self.stop(0.0)
            raise

    async def reload(self, settings: Settings) -> list[str]:
        """Give all workers new settings; gives what they say of it. Raises WorkerError where one refuses.

        A worker that refused, or ended meanwhile, does not hinder the others; what starts later has the new settings.
        """
        async with self._reloading:
            before, self._settings = self._settings, settings
            told = [worker.told(Message("reload", settings), _RELOAD_LIMIT) for worker in self._workers.values()]
            answers = await asyncio.gather(*told, return_exceptions=True)
            refusals = [answer for answer in answers if isinstance(answer, WorkerError)]
            if refusals and len(refusals) == len(answers):
                # All say the same: nothing has changed.
                self._settings = before
            for refusal in refusals:
                raise refusal
            said = [line for answer in answers if isinstance(answer, Message) for line in answer.value]
            return list(dict.fromkeys(said))

    async def ask(self, question: object, limit: float, again: bool) -> Any:
        """What the first worker answers to `question`; with `again`, where it does not, the next one.

        Raises WorkerError.
        """
        error = WorkerError("no worker serves")
        for _, worker in sorted(self._workers.items()):
            try:
                return (await worker.told(Message("call", question), limit)).value
            except WorkerError as failed:
                error = failed
            if not again:
                break
        raise error

    async def ask_all(self, question: object, limit: float) -> list[Any]:
        """What the workers that answer say to `question`, in the order of their numbers."""
        told = [worker.told(Message("call", question), limit) for _, worker in sorted(self._workers.items())]
        answers = await asyncio.gather(*told, return_exceptions=True)
        return [answer.value for answer in answers if isinstance(answer, Message)]

    async def stop(self, limit: float) -> None:
        """Let running bodies end for `limit` seconds, then end all workers."""
        self._stopping.set()
        for worker in self._workers.values():
            worker.channel.post(Message("drain"))
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=limit + _CLOSE_LIMIT if limit else 0.0)
        self._killing = True
        for process in self._processes:
            _kill(process)
        if self._keepers:
            # Not gathered: whoever cancels this must not cancel them.
            await asyncio.wait(self._keepers)

    def _spread(self, source: _Worker, news: object) -> None:
        for worker in self._workers.values():
            if worker is not source and worker.channel.behind < _MOST_NEWS:
                worker.channel.post(Message("news", news))

    async def _keep(self, number: int) -> None:
        loop, short_lives = asyncio.get_running_loop(), 0
        while not await self._stops_within(pause_before(short_lives)):
            began = loop.time()
            try:
                reason = await self._live(number)
            except Exception as error:  # noqa: BLE001 - no descriptors, process or thread left: it is tried for again
                reason = f"{type(error).__name__}: {error}"
            if self._stopping.is_set():
                return
            short_lives = short_lives + 1 if loop.time() - began < _SHORT_LIFE else 0
            if not self._started[number].done():
                # The program has not started yet, so this is nothing that time would mend.
                self._started[number].set_exception(WorkerError(f"worker {number} did not start: {reason}"))
                return
            _log.error("worker %d ended (%s) and is replaced", number, reason)

    async def _stops_within(self, seconds: float) -> bool:
        """Wait so long; True where the end has come, or comes meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _live(self, number: int) -> str:
        """Run one worker to its end; gives why it ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await Channel.open(ours)
            try:
                process = await self._spawn(number, theirs)
            except BaseException:
                await channel.close()
                raise
        self._processes.add(process)
        if self._killing:
            # The others were killed while this one was made.
            _kill(process)
        worker = _Worker(process, channel)
        listening = asyncio.get_running_loop().create_task(
            worker.listen(self._spread), name=f"words of worker {number}"
        )
        reason = ""
        try:
            descriptors = [[one.fileno() for one in sockets] for sockets in self._sockets[number]]
            await worker.told(Message("start", Task(number, self._settings, descriptors)), _START_LIMIT)
            self._workers[number] = worker
            if not self._started[number].done():
                self._started[number].set_result(None)
            if self._stopping.is_set():
                # Everybody else was told while this one started.
                worker.channel.post(Message("drain"))
            await process.wait()
        except (WorkerError, ConnectionError) as error:
            reason = str(error)
        finally:
            self._workers.pop(number, None)
            _kill(process)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await worker.channel.close()
            status = await process.wait()
            self._processes.discard(process)
            await asyncio.to_thread(self._ended, number)
        return reason or _how(status)

    async def _spawn(self, number: int, theirs: socket.socket) -> asyncio.subprocess.Process:
        descriptors = [one.fileno() for sockets in self._sockets[number] for one in sockets]
        return await asyncio.create_subprocess_exec(
            *self._command,
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), *descriptors),
            env=self._environment,
        )


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        # Not by its own `kill`, which takes the status of one that has just ended from whoever waits for it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"
