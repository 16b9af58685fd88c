"""The event loop of a process: its threads, its garbage, and tasks that end together."""

import asyncio
import gc
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_THREADS = 32


def use_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Disk, hashing and name look-ups share a pool: a few long flushes must not stop the rest."""
    loop.set_default_executor(ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="blocking"))


def stay() -> None:
    """What is here by now stays: to look through it for garbage, again and again, would stop the loop for 20 ms."""
    gc.freeze()


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of `waits` is over and end the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        await end_task(task)


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
