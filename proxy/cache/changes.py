"""What a push through here changes in the cache: a client that pushes and then pulls sees its push.

Invariants:
- The repository's generation changes first, then records go: whoever asked the upstream before the push writes nothing
  down after it (`only_while`), keeps no 404 beyond it, and is joined by nobody who comes after it. All processes that
  share the metadata see the same generation.
- Once begun it comes to its end, whoever leaves meanwhile; `close` waits for it.
- A push of which nobody knows whether it was done takes nothing away: its tags are asked for before they are served
  again, and served all the same while the upstream cannot be asked. Who may not push must not be able to purge.
- Content and fills stay: bytes are what their digest says, and rights are asked for anew where a member went.
"""

import asyncio
import uuid
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any

from proxy.cache.ask import Records
from proxy.cache.records import TagRecord, member_key, pushed_key, tag_key
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository, TagOrDigest

# Longer than anything is kept that could be taken for newer once this had ended.
_KEEP_GENERATION = 3650 * 86400.0


@dataclass(frozen=True, slots=True)
class Change:
    """What was pushed to or deleted from `repository`: the tags it concerns, and what is there no more."""

    repository: Repository
    tags: tuple[str, ...] = ()
    deleted: tuple[Digest, ...] = ()


def change_of(method: str, repository: Repository, reference: TagOrDigest, more_tags: Iterable[str] = ()) -> Change:
    """The change that PUT or DELETE of `reference` makes; `more_tags` are those that a PUT by digest sets as well."""
    tags = tuple(more_tags) if method == "PUT" else ()
    if not isinstance(reference, Digest):
        return Change(repository, (reference, *tags))
    return Change(repository, tags, (reference,) if method == "DELETE" else ())


class Changes:
    """Writes changes down."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._tasks: set[asyncio.Task[bool]] = set()

    async def happened(self, change: Change) -> bool:
        """Drop what `change` made untrue: tags, members, lists and 404s. False where the store could not."""
        return await self._to_its_end(self._drop(change))

    async def in_doubt(self, change: Change) -> bool:
        """Believe nothing that `change` makes untrue if it was made, without losing it; False as for `happened`."""
        return await self._to_its_end(self._doubt(change))

    async def close(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _to_its_end(self, work: Coroutine[Any, Any, bool]) -> bool:
        task = asyncio.get_running_loop().create_task(work, name="change in the cache")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _begin_generation(self, repository: Repository) -> bytes | None:
        """The new one; None where the store could not."""
        generation = uuid.uuid4().hex.encode()
        begun = await self._records.put({pushed_key(repository): generation}, _KEEP_GENERATION)
        return generation if begun else None

    async def _drop(self, change: Change) -> bool:
        repository = change.repository
        keys = [tag_key(repository, tag) for tag in change.tags]
        keys += [member_key(repository, digest) for digest in change.deleted]
        # Before and after: who doubts the same tags writes down what it read, in the generation in which it read.
        before = not keys or await self._records.delete(*keys)
        begun = await self._begin_generation(repository)
        after = not keys or await self._records.delete(*keys)
        return before and begun is not None and after

    async def _doubt(self, change: Change) -> bool:
        generation = await self._begin_generation(change.repository)
        if generation is None:
            return False
        keys = [tag_key(change.repository, tag) for tag in change.tags]
        found = [TagRecord.load(raw) for raw in await self._records.get(*keys)]
        # Not over what a later push has made of them, nor anything back that it took away.
        doubted = {
            key: replace(record, in_doubt=True).dump()
            for key, record in zip(keys, found, strict=True)
            if record is not None
        }
        if not doubted:
            return True
        written = await self._records.put(doubted, only_while=(pushed_key(change.repository), generation))
        # Where it was not, a later change may have been quicker.
        return written or await self._records.generation(change.repository) not in (generation, None)
