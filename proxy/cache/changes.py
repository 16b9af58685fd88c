"""What a push through here changes in the cache: a client that pushes and then pulls sees its push.

Invariants:
- The repository's generation changes first, then records go: whoever asked the upstream before the push writes nothing
  down after it (`only_while`), keeps no 404 beyond it, and is joined by nobody who comes after it. All processes that
  share the metadata see the same generation.
- Once begun it comes to its end, whoever leaves meanwhile; `close` waits for it.
- Content and fills stay: bytes are what their digest says, and rights are asked for anew where a member went.
"""

import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.cache.ask import Records
from proxy.cache.records import member_key, pushed_key, tag_key
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
        self._tasks: set[asyncio.Task[None]] = set()

    async def happened(self, change: Change) -> None:
        """Drop what `change` made untrue: tags, members, lists and 404s."""
        task = asyncio.get_running_loop().create_task(self._drop(change), name=f"change of {change.repository}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drop(self, change: Change) -> None:
        repository = change.repository
        await self._records.put({pushed_key(repository): uuid.uuid4().hex.encode()}, _KEEP_GENERATION)
        tags = [tag_key(repository, tag) for tag in change.tags]
        members = [member_key(repository, digest) for digest in change.deleted]
        if tags or members:
            await self._records.delete(*tags, *members)
