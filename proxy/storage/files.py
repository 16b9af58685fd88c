"""The files of blobs and fills, and the locks that their readers hold. Everything here blocks.

    blobs/<algorithm>/<first two hex>/<all hex>   finished, read-only
    fills/<algorithm>-<hex>                       being filled, of the blob's full size from the beginning
    fills/<algorithm>-<hex>.map                   what of it has arrived (fillmap)
    fills/claims                                  who fills what (claims)

Invariants:
- Whoever has one of these files open for its bytes holds a shared lock (flock) through that descriptor. It moves with
  the file when a fill is published.
- A file is removed under an exclusive lock from a descriptor of its own, so no reader of any process loses it. (A
  reader who would lose it still had its bytes; their room would be counted as free.)
- A fill that is replaced or dropped is marked so before its files go: who opened the old map and the new file sees it.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.storage.fillmap import BadMap, FillMap, FillState, map_bytes

# NONBLOCK: somebody's pipe with a digest's name must not hang the reader.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class WrongSize(Exception):
    """The file is not as long as the blob is."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files are."""

    blobs: Path
    fills: Path

    def blob(self, digest: Digest) -> Path:
        return self.blobs / f"{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def data(self, digest: Digest) -> Path:
        return self.fills / f"{digest.algorithm}-{digest.hex}"

    def map(self, digest: Digest) -> Path:
        return self.fills / f"{digest.algorithm}-{digest.hex}.map"


@dataclass(slots=True)
class FillFiles:
    """An open fill. `identity` tells its file from another of the same name."""

    data: BinaryIO
    mapped: mmap.mmap
    map: FillMap
    identity: tuple[int, int]

    def tell(self, state: FillState) -> None:
        """Write what became of it into the map. Closed already, it tells nobody: others see the files go."""
        # What struct says of a closed map.
        with contextlib.suppress(TypeError, ValueError, BadMap):
            if self.map.state is FillState.FILLING:
                self.map.state = state

    def close(self) -> None:
        """Let go of both. May be called more than once."""
        self.data.close()
        # Somebody looks at the map this moment, in another thread: it goes with the last one who does.
        with contextlib.suppress(BufferError):
            self.mapped.close()


# Finished blobs.


def open_blob(file: Path, size: int | None, touch: float | None, waits: bool = True) -> BinaryIO:
    """Open a finished blob with its reader's lock; with `touch`, that time becomes its last use.

    Raises FileNotFoundError where there is none, WrongSize where it is not of `size` bytes, and BlockingIOError where
    somebody has it locked and `waits` is False.
    """
    while True:
        descriptor = _open_regular(file)
        try:
            # Who holds it exclusively is about to remove it, or only asks whether it is read: soon it is known which.
            fcntl.flock(descriptor, fcntl.LOCK_SH | (0 if waits else fcntl.LOCK_NB))
            status = os.fstat(descriptor)
            if status.st_nlink == 0:
                # Removed or replaced since it was opened.
                os.close(descriptor)
                continue
            if size is not None and status.st_size != size:
                raise WrongSize(file)
            if touch is not None:
                # A disk that takes no writes any more still has the bytes.
                with contextlib.suppress(OSError):
                    os.utime(file, (touch, touch))
        except BaseException:
            os.close(descriptor)
            raise
        return open(descriptor, "rb", buffering=0)


def peek_blob(file: Path) -> BinaryIO:
    """Open a finished blob without a reader's lock. Raises OSError."""
    return open(_open_regular(file), "rb", buffering=0)


def _open_regular(file: Path) -> int:
    try:
        descriptor = os.open(file, _READ)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise FileNotFoundError(errno.ENOENT, "no file", str(file)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "no file", str(file))
    return descriptor


def is_unread(file: Path) -> bool:
    """Has nobody, in whatever process, this file open for its bytes? True for one that is not there."""
    with _exclusive(file) as alone:
        return alone


def remove_unread(file: Path) -> bool:
    """Remove the file unless somebody reads it; then False. One that is not there is removed. Raises OSError."""
    with _exclusive(file) as alone:
        if alone:
            file.unlink(missing_ok=True)
        return alone


@contextlib.contextmanager
def _exclusive(file: Path) -> Iterator[bool]:
    try:
        descriptor = _open_regular(file)
    except FileNotFoundError:
        # Something that is no file: not ours to take away.
        yield not os.path.lexists(file)
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def finished(blobs: Path) -> Iterator[tuple[Digest, int, float]]:
    """Digest, size and last use of every blob; a file with another name is not ours and stays untouched."""
    for file in blobs.glob("*/*/*"):
        digest = _named(f"{file.parent.parent.name}-{file.name}")
        if digest is None or file.parent.name != digest.hex[:2]:
            continue
        with contextlib.suppress(FileNotFoundError):
            status = file.lstat()
            if stat.S_ISREG(status.st_mode):
                yield digest, status.st_size, status.st_mtime


# Fills.


def create_fill(places: Places, digest: Digest, size: int) -> FillFiles:
    """Make the files of a fill, all of their room taken from the file system. Raises OSError, with nothing left."""
    with contextlib.ExitStack() as undo:
        data = undo.enter_context(open(places.data(digest), "x+b", buffering=0))
        undo.callback(places.data(digest).unlink, missing_ok=True)
        fcntl.flock(data, fcntl.LOCK_SH)
        if size:
            _allocate(data.fileno(), size)
        undo.callback(places.map(digest).unlink, missing_ok=True)
        # Zeros that are written have their room for sure: a mapped page without it would kill the process.
        places.map(digest).write_bytes(bytes(map_bytes(size)))
        mapped = undo.enter_context(_map(places.map(digest)))
        fill = FillFiles(data, mapped, FillMap.format(mapped, size), _identity(data))
        undo.pop_all()
        return fill


def _allocate(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
        # The index alone knows that the room is taken.
        os.ftruncate(descriptor, size)


def attach_fill(places: Places, digest: Digest) -> FillFiles | None:
    """Open the fill that is there; None where it is none that can be used. Raises OSError."""
    with contextlib.ExitStack() as undo:
        try:
            # The map first: old ones are marked before their files go, so what is FILLING now belongs to the data.
            mapped = undo.enter_context(_map(places.map(digest)))
            data = undo.enter_context(open(places.data(digest), "r+b", buffering=0))
            fcntl.flock(data, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fill_map = FillMap(mapped, os.fstat(data.fileno()).st_size)
            if fill_map.state is not FillState.FILLING:
                return None
        except (FileNotFoundError, BlockingIOError, BadMap):
            return None
        undo.pop_all()
        return FillFiles(data, mapped, fill_map, _identity(data))


def _map(file: Path) -> mmap.mmap:
    with open(file, "r+b", buffering=0) as stream:
        try:
            return mmap.mmap(stream.fileno(), 0)
        except ValueError as error:
            raise BadMap("an empty file") from error


def _identity(data: BinaryIO) -> tuple[int, int]:
    status = os.fstat(data.fileno())
    return status.st_dev, status.st_ino


def is_still(file: Path, identity: tuple[int, int]) -> bool:
    """Is `file` the one of this identity?"""
    try:
        status = file.lstat()
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino) == identity


def drop_fill(places: Places, digest: Digest) -> None:
    """Remove the files of a fill, whoever has them open; those learn it from the map. Raises OSError."""
    with contextlib.suppress(OSError):
        fill = attach_fill(places, digest)
        if fill is not None:
            fill.tell(FillState.DROPPED)
            fill.close()
    places.map(digest).unlink(missing_ok=True)
    places.data(digest).unlink(missing_ok=True)


def begun(fills: Path) -> set[Digest]:
    """The digests of all fills of which there is a file."""
    found = (_named(file.name.removesuffix(".map")) for file in fills.iterdir())
    return {digest for digest in found if digest is not None}


def touched(file: Path) -> float | None:
    """When something was last written to `file`, in seconds; None where there is none."""
    try:
        return file.lstat().st_mtime
    except FileNotFoundError:
        return None


def _named(name: str) -> Digest | None:
    algorithm, _, value = name.partition("-")
    try:
        return Digest.parse(f"{algorithm}:{value}")
    except OCIError:
        return None
