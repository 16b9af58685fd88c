"""The cache directory: its format version, its lock and the key that principals are hashed with.

format       the layout's version; another version is refused, never guessed at
lock         held (flock) as long as a process uses the directory
key          32 random bytes, mode 0600
blobs/       finished blobs: <algorithm>/<first two hex>/<all hex>, read-only
fills/       blobs being downloaded
metadata/    diskcache
"""

import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from proxy.storage.base import StorageError

FORMAT = "1"


@dataclass(frozen=True, slots=True)
class CacheDirectory:
    """An opened cache directory; it stays locked until `close`."""

    path: Path
    key: bytes
    lock: int

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def fills(self) -> Path:
        return self.path / "fills"

    @property
    def metadata(self) -> Path:
        return self.path / "metadata"

    def close(self) -> None:
        """Give the lock back."""
        os.close(self.lock)


def open_directory(path: Path) -> CacheDirectory:
    """Make or open the cache directory at `path` (mode 0700) and lock it. Blocks.

    Raises StorageError where it is in use, of another format, or cannot be written.
    """
    lock = -1
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _lock(lock, path)
        _check_format(path)
        for name in ("blobs", "fills", "metadata"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
            # A restored backup may be open to all, and what stands in `metadata` is read back.
            (path / name).chmod(0o700)
        return CacheDirectory(path, _key(path / "key"), lock)
    except BaseException as error:
        if lock >= 0:
            os.close(lock)
        if isinstance(error, OSError):
            raise StorageError(f"the cache directory {path} cannot be used: {error.strerror}") from error
        raise


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(f"the cache directory {path} is in use by another process") from error


def _check_format(path: Path) -> None:
    file = path / "format"
    try:
        found = file.read_text(errors="replace").strip()
    except FileNotFoundError:
        _write_new(file, FORMAT.encode())
        return
    if found != FORMAT:
        raise StorageError(f"the cache directory {path} has format {found[:20]!r}, this program knows {FORMAT}")


def _key(file: Path) -> bytes:
    try:
        key = file.read_bytes()
    except FileNotFoundError:
        key = b""
    if len(key) != 32:
        key = secrets.token_bytes(32)
        _write_new(file, key)
    file.chmod(0o600)
    return key


def _write_new(file: Path, content: bytes) -> None:
    """Write `file` so that after a crash it is there whole or not at all."""
    staging = file.with_name(f".{file.name}.new")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    staging.replace(file)
