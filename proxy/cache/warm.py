"""Warm jobs: kept in the metadata store, run by one process each, taken over where that ends.

Invariants:
- A job is run, and written, by whoever has its turn, of the processes of all replicas; it ends with its process.
  Another process, or the next start, goes on with what the store says: references that had ended stay as they are.
- Progress is written at most once a second. Every process answers for every job, from the store.
- Jobs, and references of a job, are bounded; one that has ended is forgotten after a day.
- All tasks are owned here and ended by `close`; what a job had begun when its process ended is gone on with later.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace

from proxy.cache.ask import Records
from proxy.cache.turns import Turns
from proxy.cache.warm_records import (
    ENDED,
    JOBS,
    Item,
    Items,
    Job,
    dump,
    items_key,
    job_key,
    load_items,
    load_job,
    stop_key,
)
from proxy.cache.warm_run import WarmMeans, WarmRun
from proxy.storage.base import StorageError

_log = logging.getLogger("pullthrough.cache")

MOST_JOBS = 100
MOST_REFERENCES = 1000
# Jobs that one process runs at a time; the rest is queued.
_RUNNING = 4
# Seconds.
_KEEP_ENDED = 86400.0
_KEEP = 30 * 86400.0
_WRITE_EVERY = 1.0
# How often it is looked at what other processes have left, or cannot take.
_LOOK = 3.0
_LOOK_ALONE = 60.0
_STOP_LIMIT = 5.0
_STOP_LOOK = 0.05


class TooManyJobs(Exception):
    """So many jobs have not ended yet that another one is not taken."""


class Warming:
    """The jobs of a machine, and those of them that this process runs. `start` it, and `close` it before the rest."""

    def __init__(self, means: WarmMeans, turns: Turns, shared: bool) -> None:
        """`turns` are those of all processes; `shared`: there are others."""
        self._means = means
        self._turns = turns
        self._shared = shared
        self._runs: dict[str, WarmRun] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._works: dict[str, asyncio.Task[tuple[Job, Items]]] = {}
        self._look = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take up what an earlier run left, and whatever comes."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="warm jobs")

    async def close(self) -> None:
        """End what runs; the store has what is left of it."""
        tasks = [*self._tasks.values(), *([self._keeper] if self._keeper is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What is asked.

    async def submit(
        self,
        references: Sequence[str],
        cluster: str,
        platforms: Sequence[str],
        bandwidth: int | None,
        concurrency: int,
        by: str,
    ) -> Job:
        """Keep a job, to be run from now on. Raises TooManyJobs, or StorageError where it cannot be kept."""
        await self._make_room()
        job = Job(
            secrets.token_hex(4), cluster, tuple(platforms), bandwidth, concurrency, by, self._means.clock(),
            tuple(references),
        )  # fmt: skip
        items = tuple(Item(reference) for reference in references)
        if not await self._records.put(dump(job, items), _KEEP, only_while=(job_key(job.id), None)):
            raise StorageError("the job could not be written down")
        self._look.set()
        return job

    async def jobs(self) -> list[Job]:
        """All that are known, the latest first."""
        keys = await self._records.scan(JOBS, limit=2 * MOST_JOBS)
        found = [load_job(raw) for raw in await self._records.get(*keys)] if keys else []
        living = (self._run_of(job) for job in found if job is not None)
        return sorted(living, key=lambda job: (job.created, job.id), reverse=True)

    async def job(self, named: str) -> tuple[Job, Items] | None:
        """One of them; None where it is not known."""
        run = self._runs.get(named)
        if run is not None:
            return run.snapshot()
        raw_job, raw_items = await self._records.get(job_key(named), items_key(named))
        job = load_job(raw_job)
        return None if job is None else (job, load_items(raw_items) or ())

    async def stop(self, named: str) -> tuple[Job, Items] | None:
        """Have it stopped, whoever runs it; gives how it stands a moment later. None where it is not known."""
        found = await self.job(named)
        if found is None or found[0].state in ENDED:
            return found
        await self._records.put({stop_key(named): b"1"}, _KEEP)
        self._look.set()
        if (work := self._works.get(named)) is not None:
            work.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_LIMIT):
                while found is not None and found[0].state not in ENDED:
                    await asyncio.sleep(_STOP_LOOK)
                    found = await self.job(named)
        return found

    def _run_of(self, job: Job) -> Job:
        run = self._runs.get(job.id)
        return run.snapshot()[0] if run is not None else job

    async def _make_room(self) -> None:
        """Forget the oldest that have ended, so that there is room for one more. Raises TooManyJobs."""
        jobs = await self.jobs()
        ended = [job for job in jobs if job.state in ENDED]
        for job in ended[max(0, MOST_JOBS - 1 - (len(jobs) - len(ended))) :]:
            await self._records.delete(job_key(job.id), items_key(job.id), stop_key(job.id))
        if len(jobs) - len(ended) >= MOST_JOBS:
            raise TooManyJobs(f"{MOST_JOBS} jobs have not ended yet")

    # What is run.

    @property
    def _records(self) -> Records:
        return self._means.records

    async def _keep(self) -> None:
        while True:
            self._look.clear()
            try:
                await self._take_up()
            except Exception:  # noqa: BLE001 - whatever it is, the next look may go well
                _log.exception("warm jobs could not be looked at")
            try:
                async with asyncio.timeout(_LOOK if self._shared else _LOOK_ALONE):
                    await self._look.wait()
            except TimeoutError:
                continue

    async def _take_up(self) -> None:
        """Take jobs that nobody runs, the oldest first, and end those that are to be stopped before they run."""
        for job in reversed(await self.jobs()):
            if job.state in ENDED or job.id in self._tasks:
                continue
            stopped = await self._is_stopped(job.id)
            if (len(self._tasks) >= _RUNNING and not stopped) or not await self._turns.take(_turn(job.id)):
                continue
            task = asyncio.get_running_loop().create_task(self._run_claimed(job.id), name=f"warm {job.id}")
            self._tasks[job.id] = task

    async def _run_claimed(self, named: str) -> None:
        """Run it to its end, whichever that is, and give its claim up."""
        try:
            # Whoever had the claim before may have ended it.
            raw_job, raw_items = await self._records.get(job_key(named), items_key(named))
            job, items = load_job(raw_job), load_items(raw_items)
            if job is None or job.state in ENDED:
                return
            if items is None:
                job, items = replace(job, state="failed", note="its references cannot be read any more"), ()
            elif await self._is_stopped(named):
                job, items = _stopped(job, items, self._means.clock())
            else:
                job, items = await self._run(job, items)
            while not await self._records.put(dump(job, items), _KEEP_ENDED):  # noqa: ASYNC110 - a disk sets no event
                # Whoever took it up again would do all of it again.
                await asyncio.sleep(_LOOK)
        except Exception:  # noqa: BLE001 - it stays as the store has it, and is taken up again
            _log.exception("the warm job %s could not be run", named)
            await asyncio.sleep(_LOOK)
        finally:
            self._runs.pop(named, None)
            self._tasks.pop(named, None)
            await self._turns.give_back(_turn(named))
            self._look.set()

    async def _run(self, job: Job, items: Items) -> tuple[Job, Items]:
        """Gives how it ended."""
        clock = self._means.clock
        job = replace(job, state="running", started=job.started if job.started is not None else clock())
        run = self._runs[job.id] = WarmRun(job, items, self._means)
        _log.info("warm job %s: %d references for cluster %s, by %s", job.id, len(items), job.cluster, job.by)
        work = self._works[job.id] = asyncio.get_running_loop().create_task(run.run(), name=f"work of warm {job.id}")
        try:
            await self._watch(job.id, run, work)
            if work.done() and not work.cancelled():
                job, items = work.result()
            else:
                job, items = _stopped(*run.snapshot(), clock())
        except Exception:  # noqa: BLE001 - it would be the same if it were begun again
            _log.exception("the warm job %s failed", job.id)
            job, items = run.snapshot()
            job = replace(job, state="failed", ended=clock(), note="the proxy failed; its log says more")
        finally:
            del self._works[job.id]
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        _log.info("warm job %s %s: %d done, %d failed", job.id, job.state, job.done, job.failed)
        return job, items

    async def _watch(self, named: str, run: WarmRun, work: "asyncio.Task[tuple[Job, Items]]") -> None:
        """Write its progress down until it has ended, or is to be stopped."""
        written = None
        while not work.done():
            if (now := run.snapshot()) != written:
                await self._records.put(dump(*now), _KEEP)
                written = now
            if await self._is_stopped(named):
                return
            await asyncio.wait({work}, timeout=_WRITE_EVERY)

    async def _is_stopped(self, named: str) -> bool:
        return await self._records.get(stop_key(named)) != [None]


def _turn(job: str) -> str:
    return f"warm {job}"


def _stopped(job: Job, items: Items, now: float) -> tuple[Job, Items]:
    """It was stopped: what had not ended by then never will."""
    left: Items = tuple(item if item.state in ENDED else replace(item, state="stopped", note=None) for item in items)
    return replace(job, state="stopped", ended=now), left
