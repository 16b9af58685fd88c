"""Room for fills, what is evicted for it, and the mending of what was left behind; all in the index's thread.

Invariants:
- A reservation is made in the same transaction that made its room, and its files are made inside of it too: so no two
  processes are ever promised the same bytes.
- What is evicted was first asked for: nothing goes for a blob that finds no room anyway.
- Files go before the transaction ends. A process that is killed meanwhile leaves rows without files, which the next
  one who wants their room takes for evicted.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proxy.oci.digest import Digest
from proxy.storage import files
from proxy.storage.base import NoRoom, StorageError, User
from proxy.storage.claims import Claims
from proxy.storage.eviction import Policy, Room, choose_victims
from proxy.storage.files import FillFiles, Places
from proxy.storage.fillmap import FillState
from proxy.storage.index import NOBODY, Index, Use

# A fill that nobody has gone on with for so long, in seconds, is given up.
LEFT_BEHIND = 6 * 3600.0
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class Shelf:
    """What the work here is about; sizes in bytes. `gone` is told, in this thread, of every blob and fill evicted."""

    places: Places
    index: Index
    claims: Claims
    max_size: int
    min_free: int
    policy: Policy
    gone: Callable[[Digest, str], None]


def note(shelf: Shelf, uses: list[Use]) -> None:
    """Tell the index of `uses`. A file that it does not know, since it was lost or is new, gets its row."""
    if not uses:
        return
    with shelf.index.transaction():
        for use in uses:
            file = shelf.places.blob(use.digest)
            if not shelf.index.note(use) and file.exists():
                shelf.index.add_blobs([(use.digest, use.size, use.at)], use.user)
            # What a lost index is made anew from. A disk that takes no writes any more still has the bytes.
            with contextlib.suppress(OSError):
                os.utime(file, (use.at, use.at))


def reserve(shelf: Shelf, digest: Digest, size: int, user: User | None) -> FillFiles:
    """Make room for a fill and its files. Raises NoRoom, OSError."""
    fill: FillFiles | None = None
    failed: NoRoom | OSError | None = None
    try:
        with shelf.index.transaction():
            # What was left behind makes room first of all.
            files.drop_fill(shelf.places, digest)
            shelf.index.drop_fill(digest)
            try:
                make_room(shelf, size, digest)
                fill = _create(shelf, digest, size)
                shelf.index.add_fill(digest, size, user or NOBODY)
            except (NoRoom, OSError) as error:
                # What has gone has gone, so the transaction is to end well.
                failed = error
    except BaseException:
        if fill is not None:
            fill.close()
        raise
    if fill is None:
        raise failed or NoRoom(f"no room for a blob of {size} bytes")
    return fill


def _create(shelf: Shelf, digest: Digest, size: int) -> FillFiles:
    try:
        return files.create_fill(shelf.places, digest, size)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        full = error
    # There is less than the file system said: blocks kept for root, a quota, somebody else's file a moment ago.
    try:
        used = shelf.index.usage().bytes
        _evict(shelf, size, Room(shelf.max_size, used, 0, 0), digest)
        return files.create_fill(shelf.places, digest, size)
    except (NoRoom, OSError) as error:
        raise NoRoom(f"no room for a blob of {size} bytes: {full.strerror}") from error


def make_room(shelf: Shelf, need: int, keep: Digest | None = None) -> None:
    """Evict until `need` bytes fit; `keep` is the fill they are for. In a transaction. Raises NoRoom, OSError."""
    free = shutil.disk_usage(shelf.places.blobs).free
    _evict(shelf, need, Room(shelf.max_size, shelf.index.usage().bytes, shelf.min_free, free), keep)


def _evict(shelf: Shelf, need: int, room: Room, keep: Digest | None) -> None:
    """Free space is not asked for again: file systems free what was removed in their own time."""
    if need > room.max_size:
        raise NoRoom(f"no room for a blob of {need} bytes in a cache of {room.max_size}")
    busy: set[Digest] = set()
    while room.lacks(need) > 0:
        with contextlib.ExitStack() as seized:
            left, after = _left_behind(shelf, need, room, keep, seized)
            victims = choose_victims(shelf.index.candidates(busy), need, after, shelf.policy)
            if victims is None:
                raise NoRoom(f"no room for a blob of {need} bytes")
            read = {victim.digest for victim, _ in victims if not _is_evictable(shelf.places.blob(victim.digest))}
            busy |= read
            if read:
                continue
            for fill in left:
                _drop_fill(shelf, fill, "size")
            room = after
            for victim, reason in victims:
                if remove_blob(shelf, victim.digest, reason) is None:
                    # It found a reader in this moment: others have to go instead.
                    busy.add(victim.digest)
                else:
                    room = room.without(victim.size)


def _left_behind(
    shelf: Shelf, need: int, room: Room, keep: Digest | None, seized: contextlib.ExitStack
) -> tuple[list[Digest], Room]:
    """The fills to evict before any blob, oldest first, claimed until `seized` ends; and the room without them."""
    sizes = shelf.index.fills()
    left: list[Digest] = []
    for digest in sorted(sizes, key=lambda digest: files.touched(shelf.places.data(digest)) or 0.0):
        if room.lacks(need) <= 0:
            break
        if digest != keep and seized.enter_context(_seized(shelf, digest)):
            left.append(digest)
            room = room.without(sizes[digest])
    return left, room


@contextlib.contextmanager
def _seized(shelf: Shelf, digest: Digest) -> Iterator[bool]:
    """The fill is nobody's: neither claimed nor, in whatever process, open."""
    if not shelf.claims.claim(digest):
        yield False
        return
    try:
        yield files.is_unread(shelf.places.data(digest))
    finally:
        shelf.claims.release(digest)


def _is_evictable(file: Path) -> bool:
    try:
        return files.is_unread(file)
    except PermissionError:
        # Somebody else's file: it hinders only itself.
        return False


def remove_blob(shelf: Shelf, digest: Digest, reason: str) -> bool | None:
    """Remove a finished blob; False where there is none, None where somebody reads it. Raises OSError."""
    file = shelf.places.blob(digest)
    there = file.exists()
    if not files.remove_unread(file):
        return None
    if not shelf.index.drop_blob(digest) and not there:
        return False
    shelf.gone(digest, reason)
    return True


def _drop_fill(shelf: Shelf, digest: Digest, reason: str) -> None:
    files.drop_fill(shelf.places, digest)
    shelf.index.drop_fill(digest)
    shelf.gone(digest, reason)


def publish(shelf: Shelf, digest: Digest, fill: FillFiles, size: int, now: float) -> None:
    """Make a fill, whose bytes are on the disk, a finished blob. Raises OSError, StorageError."""
    data, target = shelf.places.data(digest), shelf.places.blob(digest)
    with shelf.index.transaction():
        if not files.is_still(data, fill.identity):
            raise StorageError(f"the blob {digest} cannot be stored: its fill was taken away")
        shelf.index.add_blobs([(digest, size, now)], shelf.index.drop_fill(digest))
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        data.chmod(0o400)
        os.utime(data, (now, now))
        data.replace(target)
    fill.tell(FillState.VERIFIED)
    shelf.places.map(digest).unlink(missing_ok=True)


def discard(shelf: Shelf, digest: Digest, fill: FillFiles) -> None:
    """Remove a fill and give its room back, unless its name is another's by now. Raises OSError."""
    if not files.is_still(shelf.places.data(digest), fill.identity):
        return
    # Those who read it are told, whatever happens to the index.
    fill.tell(FillState.DROPPED)
    files.drop_fill(shelf.places, digest)
    with shelf.index.transaction():
        shelf.index.drop_fill(digest)


def open_index(shelf: Shelf, mend: bool) -> None:
    """Open the index; with `mend` hold it against the files and evict down to the limits. Raises OSError."""
    shelf.index.open(mend)
    if not mend:
        return
    try:
        recover(shelf)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        shelf.index.make_anew()
        recover(shelf)
    evict_down(shelf)


def evict_down(shelf: Shelf) -> None:
    """Evict down to the limits. Raises OSError."""
    # What cannot go stays: nothing is begun until it has.
    with contextlib.suppress(NoRoom), shelf.index.transaction():
        make_room(shelf, 0)


def recover(shelf: Shelf) -> None:
    """Make the index say what the files are. For one process, before others start. Raises OSError."""
    with shelf.index.transaction():
        rows = shelf.index.blobs()
        new: list[tuple[Digest, int, float]] = []
        for digest, size, used in files.finished(shelf.places.blobs):
            known = rows.pop(digest, None)
            if known is None:
                new.append((digest, size, used))
            elif known != size:
                shelf.places.blob(digest).unlink(missing_ok=True)
                shelf.index.drop_blob(digest)
        shelf.index.add_blobs(new)
        for digest in rows:
            shelf.index.drop_blob(digest)
        for digest in files.begun(shelf.places.fills):
            fill = files.attach_fill(shelf.places, digest)
            if fill is not None:
                shelf.index.add_fill(digest, fill.map.size)
                fill.close()
    sweep(shelf, None)


def sweep(shelf: Shelf, now: float | None) -> None:
    """Remove the fills that nobody has and that were left behind long before `now` or are of no use. Raises OSError."""
    with shelf.index.transaction():
        for digest in files.begun(shelf.places.fills) | set(shelf.index.fills()):
            with _seized(shelf, digest) as seized:
                if not seized:
                    continue
                fill = files.attach_fill(shelf.places, digest)
                if fill is None:
                    files.drop_fill(shelf.places, digest)
                    shelf.index.drop_fill(digest)
                    continue
                fill.close()
                touched = files.touched(shelf.places.data(digest))
                if now is not None and touched is not None and now - touched > LEFT_BEHIND:
                    _drop_fill(shelf, digest, "age")
