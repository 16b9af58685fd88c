"""Those who want the same thing at the same time share one attempt.

Invariants:
- An attempt is a task that this object owns; nobody who waits for it drives or ends it, so a client that leaves
  cancels nothing, and whatever the attempt learns is kept.
- Everybody who joined gets the attempt's result or its exception; the next to ask starts a new one.
- `close` ends all attempts and waits for them.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Attempts by key."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}
        self._begun: dict[Hashable, float] = {}

    def start(self, key: Hashable, attempt: Callable[[], Coroutine[Any, Any, T]]) -> tuple[asyncio.Task[T], bool]:
        """The attempt for `key`, begun now or joined; and whether it was joined. Await it through `asyncio.shield`."""
        task = self._tasks.get(key)
        joined = task is not None
        if task is None:
            task = asyncio.get_running_loop().create_task(attempt(), name=f"{self._name} {key}")
            self._tasks[key] = task
            self._begun[key] = asyncio.get_running_loop().time()
            task.add_done_callback(lambda done: self._ended(key, done))
        return task, joined

    def age(self, key: Hashable) -> float | None:
        """For how many seconds the attempt for `key` has run; None where there is none."""
        begun = self._begun.get(key)
        return asyncio.get_running_loop().time() - begun if begun is not None else None

    async def close(self) -> None:
        """Cancel what is under way and wait for its end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: Hashable, task: asyncio.Task[T]) -> None:
        del self._tasks[key], self._begun[key]
        if not task.cancelled():
            # Those who waited were given the exception. Where all of them had left, nobody needs to hear of it.
            task.exception()
