"""The cache directory: its format version, its lock and the key that principals are hashed with.

format       the layout's version; another version is refused, never guessed at
lock         held (flock) as long as a process uses the directory; its workers go without
key          32 random bytes, mode 0600
index.db     what is stored and reserved (SQLite); made anew from the files where it is lost
blobs/       finished blobs: <algorithm>/<first two hex>/<all hex>, read-only
fills/       blobs being downloaded, their maps, and the locks of those who do it
metadata/    diskcache
"""

import fcntl
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from proxy.storage.base import StorageError

FORMAT = "2"
# Format 1 had the same blobs, no index, and fills that no restart could go on with.
_OLD_FORMAT = "1"
_OLD_FILL = re.compile(r"[0-9a-f]{64,128}\.[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class CacheDirectory:
    """An opened cache directory; it stays locked until `close`, if it was to be locked."""

    path: Path
    key: bytes
    lock: int | None

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def fills(self) -> Path:
        return self.path / "fills"

    @property
    def index(self) -> Path:
        return self.path / "index.db"

    @property
    def metadata(self) -> Path:
        return self.path / "metadata"

    def close(self) -> None:
        """Give the lock back."""
        if self.lock is not None:
            os.close(self.lock)


def open_directory(path: Path, lock: bool = True) -> CacheDirectory:
    """Make or open the cache directory at `path` (mode 0700) and lock it. Blocks.

    Without `lock` it is that of another process, which has made it and locked it for this one too.
    Raises StorageError where it is in use, of another format, or cannot be written.
    """
    try:
        if not lock:
            return _shared(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _locked(path)
    except OSError as error:
        raise StorageError(f"the cache directory {path} cannot be used: {error.strerror}") from error


def _shared(path: Path) -> CacheDirectory:
    found, key = (path / "format").read_text(errors="replace").strip(), (path / "key").read_bytes()
    if found != FORMAT or len(key) != 32:
        raise StorageError(f"the cache directory {path} was not opened by the process that locks it")
    return CacheDirectory(path, key, None)


def _locked(path: Path) -> CacheDirectory:
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(lock, path)
        _check_format(path)
        for name in ("blobs", "fills", "metadata"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
            # A restored backup may be open to all, and what stands in `metadata` is read back.
            (path / name).chmod(0o700)
        return CacheDirectory(path, _key(path / "key"), lock)
    except BaseException:
        os.close(lock)
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
    if found == _OLD_FORMAT:
        for fill in (path / "fills").glob("*"):
            if _OLD_FILL.fullmatch(fill.name) and fill.is_file():
                fill.unlink()
        _write_new(file, FORMAT.encode())
    elif found != FORMAT:
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
