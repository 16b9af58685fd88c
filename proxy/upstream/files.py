"""Small files that others write: read when they have changed, as a mounted secret that is swapped for another one."""

import asyncio
from pathlib import Path

# Kubernetes' secrets have this at most.
_LARGEST = 1024 * 1024


class FileUnreadable(Exception):
    """The file cannot be read. The message names it, and nothing of what it holds."""


async def mark_of(file: Path) -> object:
    """Another value whenever `file` may hold something else: of what its links lead to, or why that is not there."""
    return await asyncio.to_thread(_mark, file)


async def read_text(file: Path) -> str:
    """What `file` holds. Raises FileUnreadable where it cannot be read, is no UTF-8, or larger than any secret."""
    try:
        raw = await asyncio.to_thread(_read, file)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FileUnreadable(f"{file} cannot be read") from error
    if len(raw) > _LARGEST:
        raise FileUnreadable(f"{file} is larger than a file with credentials can be")
    return text


def _mark(file: Path) -> object:
    try:
        # Kubernetes swaps `..data`, a link on the way: then it is another inode, however like the old one it looks.
        found = file.stat()
    except (OSError, ValueError) as error:
        return type(error).__name__
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_LARGEST + 1)
