"""What the origin's blobs hold: bytes that are made when they are asked for, so that a gigabyte costs no memory.

Every block begins with its seed and number: two blocks are never alike, and bytes at a wrong offset fail the digest.
"""

import hashlib
import io
import json
import random
import struct
import tarfile
from functools import cache
from typing import Protocol

_BLOCK = 1 << 20
_STAMP = struct.Struct(">QQ")


class Content(Protocol):
    """The bytes of a blob."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, `length` of them; no more than there are."""


class Made:
    """`size` bytes that `seed` determines."""

    def __init__(self, seed: int, size: int) -> None:
        self._seed = seed
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        pieces = []
        while offset < end:
            number, within = divmod(offset, _BLOCK)
            stop = min(_BLOCK, within + end - offset)
            pieces.append(self._block(number, within, stop))
            offset += stop - within
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def holds(self, offset: int, piece: memoryview) -> bool:
        """Are these the bytes at `offset`? Compared where they lie: a copy would cost more than the comparison."""
        while piece:
            number, within = divmod(offset, _BLOCK)
            part, piece = piece[: _BLOCK - within], piece[_BLOCK - within :]
            stamp = part[: max(0, _STAMP.size - within)]
            rest = part[len(stamp) :]
            place = self._shift(number) + within + len(stamp)
            if stamp != self._block(number, within, within + len(stamp)) or not _noise().startswith(rest, place):
                return False
            offset += len(part)
        return True

    def _shift(self, number: int) -> int:
        return (number * 7919 + self._seed * 104729) % _BLOCK

    def _block(self, number: int, start: int, stop: int) -> bytes:
        shift = self._shift(number)
        if start >= _STAMP.size:
            return _noise()[shift + start : shift + stop]
        return (_STAMP.pack(self._seed, number) + _noise()[shift + _STAMP.size : shift + stop])[start:stop]


class Literal:
    """Bytes that are held in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


def sha256(content: Content, start: int = 0) -> str:
    """The hexadecimal sha256 of what `content` holds from `start` on."""
    digest = hashlib.sha256()
    for offset in range(start, content.size, _BLOCK):
        digest.update(content.read(offset, _BLOCK))
    return digest.hexdigest()


def layer(size: int) -> Literal:
    """A layer that can be unpacked: an uncompressed tar of one file of `size` bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = size
        tar.addfile(entry, io.BytesIO(Made(99, size).read(0, size)))
    return Literal(buffer.getvalue())


def config(layers: list[str]) -> Literal:
    """An image's configuration, for uncompressed layers with these digests."""
    roots = {"type": "layers", "diff_ids": layers}
    return Literal(json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": roots}).encode())


@cache
def _noise() -> bytes:
    return random.Random(1).randbytes(2 * _BLOCK)
