"""The composition root: settings → objects → listeners. Nothing happens at import.

The order of life: the cache directory is locked, the stores opened, the pools made, then the listeners opened; the end
runs backwards. SIGTERM turns readiness first, keeps answering until nothing runs or `shutdown_timeout` has passed, and
then closes; a second signal does not wait. SIGHUP changes the configuration of what runs.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from proxy.cache.ask import Records, Rights
from proxy.cache.blobs import Blobs
from proxy.cache.changes import Changes
from proxy.cache.history import History
from proxy.cache.manifests import Manifests
from proxy.cache.tags import Lists
from proxy.cache.turns import Turns
from proxy.learnt import Learnt
from proxy.loop import end_task, first_of, stay, use_threads
from proxy.operating import Operating
from proxy.policy.registry import Registries
from proxy.server.admin import Admin
from proxy.server.admin_access import AdminAccess
from proxy.server.answers import Answers
from proxy.server.api import ApiRequest, ApiResponse
from proxy.server.gate import Gate
from proxy.server.handlers import Handlers
from proxy.server.house import House, lifetimes_table
from proxy.server.listener import Interceptor, Listener
from proxy.server.pace import paces
from proxy.server.refusals import Refusals
from proxy.server.replicas import ReplicaListener
from proxy.server.stats import Machine
from proxy.settings import ConfigurationError, LimitSettings, ListenSettings, Settings, applicable, needs_restart
from proxy.sharing import Shared, Sharing, StartError
from proxy.storage.base import StorageError, Usage
from proxy.storage.directory import CacheDirectory, open_directory
from proxy.storage.disk import DiskBlobs
from proxy.storage.eviction import Policy
from proxy.storage.metadata import DiskcacheMetadata
from proxy.storage.remembered import Remembered
from proxy.telemetry.events import Event, RequestFinished, Tell
from proxy.telemetry.lag import watch_loop_lag
from proxy.telemetry.logs import flush_logging, log_access, setup_logging
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tallies import Tallies
from proxy.upstream.client import Upstream
from proxy.upstream.configured import Upstreams

_log = logging.getLogger("pullthrough")


# Seconds.
_SWEEP_INTERVAL = 600.0


Reload = Callable[[Settings], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place among others: its number, and the sockets that listen for it on each address.

    The supervisor has locked and mended the cache directory, sweeps it, and answers the admin listener.
    """

    worker: int
    sockets: Sequence[Sequence[socket.socket]]
    # Tells the other workers what this one has learnt.
    spread: Callable[[object], None] = lambda _news: None


class Application:
    """A running proxy. `start` it, wait, `close` it."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time, place: Place | None = None) -> None:
        """`place`: where this process is one of several workers."""
        self._settings = settings
        self._clock = clock
        self._place = place
        self._metrics = Metrics(machine=place is None)
        self.tallies = Tallies(self._metrics)
        self._stack = contextlib.AsyncExitStack()
        self._draining = False
        self._refusals = Refusals(self._tell, clock)
        self._gate = Gate(settings.limits, settings.trusted_proxies, self._refusals)
        self._handlers: Handlers | None = None
        self._store: DiskBlobs | None = None
        self._upstreams = Upstreams()
        spread = place.spread if place is not None else lambda _news: None
        self._learnt = Learnt(settings, clock, self._tell, spread)
        self._started_at = clock()
        self._operating: Operating | None = None
        self._shared: Shared
        self.listeners: list[Listener] = []
        self.admin: Listener | None = None

    async def start(self) -> None:
        """Open everything, the listeners last.

        Raises StorageError, ListenError or StartError, with nothing left open.
        """
        try:
            house = await self._house()
            handlers = self._handlers = Handlers(house, self._tell, self._refusals, self.tallies)
            self._operating = Operating(
                handlers, self._records, self._shared.blobs, self._learnt, self._clock,
                Turns(self._store, self._shared.leases),
                self._place is not None or self._shared.leases is not None,
            )  # fmt: skip
            self._operating.start(self._stack)
            lag = asyncio.create_task(watch_loop_lag(self._tell), name="loop lag")
            self._stack.push_async_callback(end_task, lag)
            self._tell_the_rest()
            await self._listen(self._handlers)
        except BaseException:
            await self._stack.aclose()
            raise

    async def reload(self, settings: Settings) -> list[str]:
        """Let `settings` count for every request from now on; what runs goes on with what it began with.

        One call at a time. Gives one line for each change that needs a restart, which is left out. Raises StartError
        with everything as it was.
        """
        assert self._handlers is not None and self._store is not None  # noqa: S101 - it was started
        left_out, old = needs_restart(self._settings, settings), self._settings
        settings = applicable(old, settings)
        started = await self._started(settings)
        # Up to the new house nothing waits, so every request sees all of the change or nothing of it.
        self._learnt.changed(settings, self._upstreams.replace(started))
        self._settings = settings
        self._handlers.house = replace(
            self._handlers.house, settings=settings, registries=Registries.of(settings.upstreams),
            answers=Answers(settings, self._clock), lifetimes=lifetimes_table(settings),
            paces=paces(settings.clusters, self._handlers.house.paces),
        )  # fmt: skip
        self._remembered.limit(settings.cache.memory // 2)
        self._gate.limits, self._gate.trusted = settings.limits, settings.trusted_proxies
        if settings.log != old.log:
            setup_logging(settings.log.level, settings.log.format, settings.log.access)
        await self._upstreams.close_retired()
        for listener in self.listeners:
            await listener.reread()
        if _limits(settings) != _limits(old):
            try:
                await self._store.limit(*_limits(settings))
            except StorageError as error:
                # The limits count all the same, and the next fill evicts.
                _log.warning("%s", error)
        return left_out

    async def drain(self) -> None:
        """Turn readiness, and wait until no request runs, `shutdown_timeout` at most."""
        self._draining = True
        if self._handlers is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.shutdown_timeout):
                    await self._handlers.idle()

    async def close(self) -> None:
        """Close everything, the listeners first."""
        self._draining = True
        await self._stack.aclose()

    async def answer(self, request: ApiRequest) -> ApiResponse:
        """Answer a request of the admin API, as one of the processes that serve."""
        assert self._operating is not None  # noqa: S101 - it was started
        return await self._operating.answer(request)

    def heard(self, news: object) -> None:
        """Another worker has learnt something."""
        self._learnt.heard(news)

    async def _answer_of_all(self, request: ApiRequest) -> list[ApiResponse]:
        return [await self.answer(request)]

    async def _house(self) -> House:
        settings, clock, tell = self._settings, self._clock, self._tell
        worker = self._place.worker if self._place is not None else None
        directory, store = await open_store(settings, tell, self._stack, worker)
        self._store = store
        metadata = DiskcacheMetadata(directory.metadata, shared=worker is not None)
        self._stack.push_async_callback(metadata.close)
        await metadata.open()
        sharing = Sharing(settings, tell, clock, self._stack, first=not worker)
        shared = self._shared = await sharing.open(metadata, store, directory.key)
        self._remembered = Remembered(shared.metadata, settings.cache.memory // 2)
        upstreams, circuits, budgets = self._upstreams, self._learnt.circuits, self._learnt.budgets
        self._stack.push_async_callback(upstreams.close)
        upstreams.replace(await self._started(settings))
        records = Records(self._remembered, clock)
        self._records = records
        rights = Rights(records, clock)
        history = History(records, clock)
        history.start()
        turns = Turns(store if worker is not None else None, shared.leases)
        manifests = Manifests(upstreams, records, rights, circuits, budgets, clock, tell, turns)
        blobs = Blobs(upstreams, shared.blobs, records, rights, circuits, clock, tell, worker, shared.region)
        lists = Lists(upstreams, records, rights, circuits, clock, tell)
        changes = Changes(records)
        for room in (history, manifests, blobs, lists, changes):
            self._stack.push_async_callback(room.close)
        return House(
            settings, Registries.of(settings.upstreams), lifetimes_table(settings), upstreams, manifests, blobs, lists,
            changes, history, shared.key, Answers(settings, clock), tell, paces(settings.clusters, {}),
        )  # fmt: skip

    async def _started(self, settings: Settings) -> dict[str, Upstream]:
        """An upstream for each registry; none has a connection yet. Raises StartError."""
        upstreams = {}
        for registry, described in settings.upstreams.items():
            upstream = upstreams[registry] = Upstream(
                registry, described, self._tell, self._clock, budgets=self._learnt.budgets
            )
            try:
                await upstream.start()
            except (OSError, ssl.SSLError) as error:
                raise StartError(f"the ca of {registry} cannot be used: {described.ca}: {error}") from error
        return upstreams

    async def _listen(self, handlers: Handlers) -> None:
        if self._place is None:
            machine = Machine(
                lambda: self._settings, self._metrics, self._usage, self.answer, self._answer_of_all, lambda: (1, 1),
                self._started_at,
            )  # fmt: skip
            access = AdminAccess(self._settings.admin.address, lambda: self._settings.admin, self._clock)
            admin = Admin(
                self._metrics, self._not_ready, self._usage, machine.drift, access, machine.answer, self._clock
            )  # fmt: skip
            self.admin = Listener(self._settings.admin.address, admin.handle, admin_gate(self._refusals))
            self._stack.push_async_callback(self.admin.close)
            await self.admin.start()
        for position, listen in enumerate(self._settings.listen):
            sockets = self._place.sockets[position] if self._place is not None else ()
            listener = Listener(
                listen.address, partial(handlers.handle, listen.address), self._gate, sockets, listen.tls,
                lambda: handlers.house.answers, self._interceptor(listen, handlers),
            )  # fmt: skip
            self._stack.push_async_callback(listener.close)
            await listener.start()
            self.listeners.append(listener)
        await self._listen_for_replicas(handlers)

    def _interceptor(self, listen: ListenSettings, handlers: Handlers) -> Interceptor | None:
        if listen.intercept is None:
            return None
        try:
            from proxy.server.intercept import interceptor
            from proxy.server.intercept_login import Logins
        except ImportError as error:
            raise StartError(f"`intercept` needs the extra `intercept`: {error.name} is not installed") from error
        handlers.logins = handlers.logins or Logins()
        return interceptor(
            listen, listen.intercept, self._gate, lambda: self._settings, lambda: handlers.house.registries, self._tell,
            self._clock,
        )  # fmt: skip

    async def _listen_for_replicas(self, handlers: Handlers) -> None:
        key, address = self._shared.replica_key, self._settings.shared.listen
        if key is None:
            return
        answers = ReplicaListener(
            address, key, lambda: handlers.house.blobs, lambda: self._settings.limits, self._clock
        )  # fmt: skip
        # The last of the sockets: see `processes`.
        sockets = self._place.sockets[-1] if self._place is not None else ()
        listener = Listener(address, answers.handle, admin_gate(self._refusals), sockets)
        self._stack.push_async_callback(listener.close)
        await listener.start()

    def _tell_the_rest(self) -> None:
        """Have what is told in batches told in time, and at the end, when the listeners are closed."""
        self._stack.callback(flush_logging)
        self._stack.callback(self.tallies.flush)
        flushing = asyncio.create_task(self.tallies.flush_now_and_then(), name="tallies")
        self._stack.push_async_callback(end_task, flushing)

    async def _usage(self) -> Usage | None:
        """What is stored; None where that cannot be told now."""
        try:
            return await self._store.usage() if self._store is not None else None
        except StorageError as error:
            _log.warning("%s", error)
            return None

    def _not_ready(self) -> str | None:
        if self._draining:
            return "shutting down"
        return None if self.listeners else "starting"

    def _tell(self, event: Event) -> None:
        self._metrics.record(event)
        if isinstance(event, RequestFinished):
            log_access(event)


async def open_store(
    settings: Settings, tell: Tell, stack: contextlib.AsyncExitStack, worker: int | None
) -> tuple[CacheDirectory, DiskBlobs]:
    """The cache directory and its blobs, closed by `stack`. A `worker` leaves to its supervisor what is one's alone.

    Raises StorageError.
    """
    alone = worker is None
    directory = await asyncio.to_thread(open_directory, settings.cache.directory, alone)
    stack.callback(directory.close)
    max_size, min_free, policy = _limits(settings)
    store = DiskBlobs(directory, max_size, min_free, tell, policy=policy, worker=worker or 0)
    stack.push_async_callback(store.close)
    await store.start(recover=alone)
    if alone:
        stack.push_async_callback(end_task, asyncio.create_task(_sweep(store), name="sweep"))
    return directory, store


async def serve(settings: Settings, reread: Callable[[], Settings]) -> None:
    """Run until SIGTERM or SIGINT; at SIGHUP go on with what `reread`, called in a thread, gives.

    Raises StorageError, ListenError or StartError where the start fails.
    """
    stop, now, hangup = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (now if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    use_threads(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    # From now on, since its default would end the process; one that comes during the start is looked at after it.
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    application = Application(settings)
    await application.start()
    stay()
    try:
        where = ", ".join(str(listener.address) for listener in application.listeners)
        admin = application.admin.address if application.admin is not None else settings.admin.address
        _log.info("serving on %s, admin on %s", where, admin)
        await first_of(stop.wait(), reload_at(hangup, application.reload, reread))
        _log.info("shutting down: running bodies may end within %g s", settings.shutdown_timeout)
        await first_of(application.drain(), now.wait())
    finally:
        await application.close()
    _log.info("stopped")


async def reload_at(hangup: asyncio.Event, reload: Reload, reread: Callable[[], Settings]) -> None:
    """Reload whenever `hangup` is set, until cancelled; one that comes during a reload has its own after it."""
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            left_out = await reload(await asyncio.to_thread(reread))
        except ConfigurationError as error:
            for mistake in error.mistakes:
                _log.error("not reloaded, the running configuration stays: %s", mistake)
        except StartError as error:
            _log.error("not reloaded, the running configuration stays: %s", error)
        except Exception:  # noqa: BLE001 - whatever it is, the next SIGHUP is to be heard
            _log.exception("the reload failed")
        else:
            for line in left_out:
                _log.warning("%s", line)
            _log.info("reloaded" + (", except for what needs a restart" if left_out else ""))


def admin_gate(refusals: Refusals) -> Gate:
    """The admin listener's: whatever clients do to the others, operators come in."""
    return Gate(LimitSettings(max_connections=0, max_connections_per_client=0), (), refusals)


def _limits(settings: Settings) -> tuple[int, int, Policy]:
    """What the store keeps to: `max_size` and `min_free` in bytes, and what eviction goes by."""
    policy = Policy(
        settings.cache.keep,
        {name: upstream.cache_share for name, upstream in settings.upstreams.items()},
        {cluster.name: cluster.cache_share for cluster in settings.clusters},
    )
    return settings.cache.max_size, settings.cache.min_free, policy


async def _sweep(store: DiskBlobs) -> None:
    """Remove what was left behind, now and then, until cancelled."""
    while True:
        try:
            # Compared with the files' own times, so it is the system's clock.
            await store.sweep(time.time())
        except StorageError as error:
            _log.warning("%s", error)
        await asyncio.sleep(_SWEEP_INTERVAL)
