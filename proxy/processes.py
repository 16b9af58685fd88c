"""Several worker processes: what the supervisor composes, and what each worker does.

The supervisor locks and mends the cache directory, binds the sockets, answers the admin listener and sweeps; workers
serve. `proxy.app` is what one process is, alone or as a worker.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from proxy.app import (
    Application,
    Place,
    admin_gate,
    open_store,
    reload_at,
)
from proxy.loop import end_task, first_of, stay, use_threads
from proxy.server.admin import Admin
from proxy.server.admin_access import AdminAccess
from proxy.server.api import ApiRequest, ApiResponse, failed
from proxy.server.control import Channel, Message, MessageTooLong
from proxy.server.listener import Listener, ListenError
from proxy.server.refusals import Refusals
from proxy.server.sockets import bind_shared
from proxy.server.stats import Machine
from proxy.server.supervisor import Supervisor, Task, WorkerError
from proxy.settings import ClusterLimitSettings, Settings
from proxy.sharing import StartError
from proxy.storage.base import StorageError, Usage
from proxy.storage.disk import DiskBlobs
from proxy.telemetry.events import silent
from proxy.telemetry.logs import setup_logging
from proxy.telemetry.shared import SharedMetrics, environment_of_workers, share_metrics

# Seconds. What an operator has done may be many tags, each asked of its upstream. A worker that hangs holds up neither
# what is read from one of the others, nor for long what is read from all of them.
_ANSWER_LIMIT = 300.0
_READ_LIMIT = 10.0
_STATS_LIMIT = 3.0

_log = logging.getLogger("pullthrough")


def worker_count(settings: Settings) -> int:
    """How many processes are to serve; `auto`: one for each processor that this one may use."""
    return min(len(os.sched_getaffinity(0)), 64) if settings.workers == "auto" else settings.workers


def of_one(settings: Settings, workers: int) -> Settings:
    """What one of so many workers goes by: connections and the rates of clusters are counted for the machine.

    Not those of one client, which may all come to one worker; but no client is to have more than half of a worker.
    """
    upstreams = {
        name: upstream.model_copy(update={"max_connections": max(1, upstream.max_connections // workers)})
        for name, upstream in settings.upstreams.items()
    }
    share, client = -(-settings.limits.max_connections // workers), settings.limits.max_connections_per_client
    if workers > 1 and share and client:
        client = min(client, max(1, share // 2))
    limits = settings.limits.model_copy(update={"max_connections": share, "max_connections_per_client": client})
    clusters = tuple(
        cluster.model_copy(update={"limits": _share(cluster.limits, workers)}) for cluster in settings.clusters
    )
    return settings.model_copy(update={"upstreams": upstreams, "limits": limits, "clusters": clusters})


def _share(limits: ClusterLimitSettings, workers: int) -> ClusterLimitSettings:
    rates = {
        "requests_per_second": None if limits.requests_per_second is None else limits.requests_per_second / workers,
        "bytes_per_second": None if limits.bytes_per_second is None else max(1, limits.bytes_per_second // workers),
    }
    return limits.model_copy(update=rates)


async def supervise(settings: Settings, reread: Callable[[], Settings]) -> None:
    """Run workers until SIGTERM or SIGINT. Raises StorageError, ListenError or StartError where the start fails."""
    stop, now, hangup = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    use_threads(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (now if stop.is_set() else stop).set())
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    async with contextlib.AsyncExitStack() as stack:
        fleet = _Fleet(settings, stack)
        starting = loop.create_task(fleet.start(), name="start of the workers")
        stack.push_async_callback(end_task, starting)
        # A signal during the start ends it too.
        await first_of(asyncio.wait([starting]), stop.wait())
        if starting.done():
            starting.result()
            where = ", ".join(str(address) for address in fleet.addresses)
            _log.info("serving on %s by %d workers, admin on %s", where, fleet.count, fleet.admin)
            await first_of(stop.wait(), reload_at(hangup, fleet.reload, reread))
            _log.info("shutting down: running bodies may end within %g s", settings.shutdown_timeout)
            fleet.draining = True
            await first_of(fleet.drain(), now.wait())
    _log.info("stopped")


class _Fleet:
    """The workers and what is one for all of them; closed by `stack`."""

    def __init__(self, settings: Settings, stack: contextlib.AsyncExitStack) -> None:
        self.count = worker_count(settings)
        self.draining = False
        self.addresses = [listen.address for listen in settings.listen]
        self.admin = settings.admin.address
        self._settings = settings
        self._stack = stack
        self._supervisor: Supervisor | None = None
        self._store: DiskBlobs | None = None

    async def start(self) -> None:
        """Raises StorageError, ListenError or StartError."""
        directory, self._store = await open_store(self._settings, silent, self._stack, None)
        files = (directory.path / "metrics").absolute()
        await asyncio.to_thread(_empty, files)
        self._stack.push_async_callback(asyncio.to_thread, shutil.rmtree, files, True)
        metrics = SharedMetrics(files)
        machine = Machine(
            lambda: self._settings, metrics, self._usage, self._ask, self._ask_all, self._workers, time.time()
        )
        access = AdminAccess(self.admin, lambda: self._settings.admin, time.time)
        answers = Admin(metrics, self._not_ready, self._usage, machine.drift, access, machine.answer)
        admin = Listener(self.admin, answers.handle, admin_gate(Refusals(silent, time.time)))
        self._stack.push_async_callback(admin.close)
        await admin.start()
        self.admin = admin.address
        sockets = await self._bind()
        mine = of_one(self._settings, self.count)
        self._supervisor = Supervisor(mine, self.count, sockets, environment_of_workers(files), metrics.ended)
        self._stack.push_async_callback(self._supervisor.stop, 0.0)
        try:
            await self._supervisor.start()
        except WorkerError as error:
            raise StartError(str(error)) from error

    async def drain(self) -> None:
        """Let running bodies end, and the workers."""
        if self._supervisor is not None:
            await self._supervisor.stop(self._settings.shutdown_timeout)

    async def reload(self, settings: Settings) -> list[str]:
        """See `Application.reload`. Raises StartError."""
        assert self._supervisor is not None  # noqa: S101 - started before signals are heeded
        try:
            said = await self._supervisor.reload(of_one(settings, self.count))
        except WorkerError as error:
            raise StartError(str(error)) from error
        self._settings = settings
        return said

    async def _ask(self, request: ApiRequest) -> ApiResponse:
        """What a worker answers; the next one where that one is gone, if asking twice does no harm."""
        if self._supervisor is None:
            return failed(503, "starting")
        reading = request.method == "GET"
        try:
            answer: ApiResponse = await self._supervisor.ask(
                request, _READ_LIMIT if reading else _ANSWER_LIMIT, again=reading
            )
        except WorkerError as error:
            done = "" if request.method == "GET" else "; it may or may not have been done"
            return failed(503, f"no worker answers ({str(error) or 'it ended meanwhile'}){done}")
        return answer

    async def _ask_all(self, request: ApiRequest) -> list[ApiResponse]:
        return await self._supervisor.ask_all(request, _STATS_LIMIT) if self._supervisor is not None else []

    def _workers(self) -> tuple[int, int]:
        return self.count, self._supervisor.serving if self._supervisor is not None else 0

    async def _bind(self) -> list[list[list[socket.socket]]]:
        """For each worker its sockets for each address."""
        sockets: list[list[list[socket.socket]]] = [[] for _ in range(self.count)]
        # The last one is for other replicas, where there may be some.
        shared = self._settings.shared
        replicas = [shared.listen] if shared.metadata is not None else []
        for position, address in enumerate([*self.addresses, *replicas]):
            bound = await asyncio.to_thread(bind_shared, address, self.count)
            for mine, several in zip(sockets, bound, strict=True):
                mine.append(several)
                for one in several:
                    self._stack.callback(one.close)
            if position < len(self.addresses):
                self.addresses[position] = type(address)(address.host, bound[0][0].getsockname()[1])
        return sockets

    def _not_ready(self) -> str | None:
        if self.draining:
            return "shutting down"
        if self._supervisor is None or not self._supervisor.started:
            return "starting"
        return None if self._supervisor.serving else "no worker serves"

    async def _usage(self) -> Usage | None:
        try:
            return await self._store.usage() if self._store is not None else None
        except StorageError as error:
            _log.warning("%s", error)
            return None


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


async def work(descriptor: int) -> None:
    """Be a worker: the supervisor speaks at `descriptor`, first of all of what is to be done."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    use_threads(loop)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A terminal, or systemd, sends them to all; the supervisor tells its workers what they mean.
        signal.signal(number, signal.SIG_IGN)
    channel = await Channel.open(socket.socket(fileno=descriptor))
    try:
        said = await channel.receive()
        task: Task = said.value
        setup_logging(task.settings.log.level, task.settings.log.format, task.settings.log.access)
        share_metrics(task.worker)
        sockets = [[socket.socket(fileno=one) for one in several] for several in task.sockets]
        spread: Callable[[object], None] = lambda news: channel.post(Message("news", news))  # noqa: E731 - a line
        application = Application(task.settings, place=Place(task.worker, sockets, spread))
        try:
            await application.start()
        except (StorageError, ListenError, StartError) as error:
            await channel.send(Message("failed", str(error), said.number))
            return
        try:
            stay()
            await channel.send(Message("ready", number=said.number))
            await _serve_until(channel, application, stop)
        finally:
            await application.close()
    except ConnectionError:
        # The supervisor is gone: nobody would replace this worker, or end it.
        return
    finally:
        await channel.close()


async def _serve_until(channel: Channel, application: Application, stop: asyncio.Event) -> None:
    """Until `stop`, and then until all bodies have ended; no longer than the supervisor lives."""
    loop = asyncio.get_running_loop()
    obeying = loop.create_task(_Words(channel, application, stop).obey(), name="words of the supervisor")
    waits: list[asyncio.Task[object]] = [obeying, loop.create_task(stop.wait(), name="stop")]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        waits.append(loop.create_task(application.drain(), name="drain"))
        await asyncio.wait([obeying, waits[-1]], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            await end_task(task)


class _Words:
    """What the supervisor says to this worker. Calls are answered side by side; all else in its order."""

    def __init__(self, channel: Channel, application: Application, stop: asyncio.Event) -> None:
        self._channel = channel
        self._application = application
        self._stop = stop
        self._calls: set[asyncio.Task[None]] = set()

    async def obey(self) -> None:
        """Do what it says, until it is gone."""
        try:
            while True:
                await self._do(await self._channel.receive())
        except ConnectionError:
            return
        finally:
            for call in list(self._calls):
                await end_task(call)

    async def _do(self, message: Message) -> None:
        match message.name:
            case "drain":
                self._stop.set()
            case "news":
                self._application.heard(message.value)
            case "call":
                call = asyncio.get_running_loop().create_task(self._answer(message), name="answer to the supervisor")
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
            case "reload":
                try:
                    said = Message("reloaded", await self._application.reload(message.value), message.number)
                except StartError as error:
                    said = Message("refused", str(error), message.number)
                await self._channel.send(said)

    async def _answer(self, message: Message) -> None:
        with contextlib.suppress(ConnectionError):
            answer = await self._application.answer(message.value)
            try:
                await self._channel.send(Message("answer", answer, message.number))
            except MessageTooLong as error:
                _log.error("the answer to %s /api/v1/%s is too long", message.value.method, message.value.path)
                await self._channel.send(Message("answer", failed(500, str(error)), message.number))
