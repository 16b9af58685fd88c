"""The sums of a blob's pieces and the record that has them: by these, what an object store gives is believed or not.

Invariants:
- A sum goes by the blob and by the piece's place in it, so a piece is right in one place of one blob only.
- Sums and record are keyed with the region's secret: whoever can write to the object store, but does not know it, can
  make up neither. Without a secret they only find what was damaged.
- What is given of a record or a piece was checked as a whole before.

Layout of a record, little-endian: magic, the size of a piece, the blob's size, how long its digest and the name of its
data are; both of them; a sum for each piece, in their order; a sum of all that.
"""

import hashlib
import hmac
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from proxy.oci.digest import Digest
from proxy.storage.base import WrongObject

PIECE = 1024 * 1024
# No blob of today has a longer record: this one is of a terabyte.
MOST_BYTES = 16 * 1024 * 1024 + 4096

_MAGIC = b"ptsums1\n"
_HEAD = struct.Struct("<8sIQHH")
_SUM = 16
_WHOLE = 32
# It becomes a part of a path.
_NAME = re.compile(r"[0-9a-f]{1,64}")


def key_of(secret: bytes) -> bytes:
    """The key of all sums of a region; without a secret they have none."""
    return hashlib.blake2b(secret, person=b"pullthrough.sums").digest() if secret else b""


def pieces_of(size: int) -> int:
    """How many pieces a blob of `size` bytes has; the last one may be short."""
    return -(-size // PIECE)


class _Sums:
    """How the pieces of one blob are summed."""

    def __init__(self, digest: Digest, key: bytes) -> None:
        self._key = key
        self._blob = hashlib.blake2b(str(digest).encode(), digest_size=16).digest()

    def begin(self, index: int) -> "hashlib.blake2b":
        """A new sum of the piece with this number."""
        place = index.to_bytes(16, "little")
        return hashlib.blake2b(digest_size=_SUM, key=self._key, person=self._blob, salt=place)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a blob in the object store: `Kept`, the name of its data, and a sum for each piece."""

    digest: Digest
    size: int
    name: str
    sums: bytes = field(repr=False)

    def dump(self, key: bytes) -> bytes:
        """As it is stored."""
        digest, name = str(self.digest).encode(), self.name.encode()
        head = _HEAD.pack(_MAGIC, PIECE, self.size, len(digest), len(name))
        body = head + digest + name + self.sums
        return body + _whole(body, key)

    @staticmethod
    def load(raw: bytes, digest: Digest, key: bytes) -> "Record":
        """Read the record of `digest`. Raises WrongObject for all that was not stored as that with this key."""
        body, whole = raw[:-_WHOLE], raw[-_WHOLE:]
        if not hmac.compare_digest(whole, _whole(body, key)):
            raise WrongObject(f"the record of {digest} is damaged, or was made with another secret")
        try:
            record = _parsed(body)
        except (struct.error, ValueError):
            raise WrongObject(f"the record of {digest} has another layout") from None
        if record.digest != digest:
            raise WrongObject(f"the record of {digest} is another blob's")
        return record

    def length(self, index: int) -> int:
        """How many bytes the piece with this number has; 0 behind the last one."""
        return max(0, min(PIECE, self.size - index * PIECE))

    def sum(self, index: int) -> bytes:
        """The sum of the piece with this number."""
        return self.sums[index * _SUM : (index + 1) * _SUM]


class SumMaker:
    """Makes the sums of a blob that comes from its start on, in parts of any length."""

    def __init__(self, digest: Digest, key: bytes) -> None:
        self._sums = _Sums(digest, key)
        self._made = bytearray()
        self._hasher = self._sums.begin(0)
        self._filled = 0

    def add(self, data: bytes | memoryview) -> None:
        """`data` follows what was added before."""
        view = memoryview(data)
        while view:
            part = view[: PIECE - self._filled]
            self._hasher.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == PIECE:
                self._end()

    def made(self) -> bytes:
        """The sums of all; nothing may be added afterwards."""
        if self._filled:
            self._end()
        return bytes(self._made)

    def _end(self) -> None:
        self._made += self._hasher.digest()
        self._hasher = self._sums.begin(len(self._made) // _SUM)
        self._filled = 0


class SumChecker:
    """Checks the bytes of a blob that come from the start of a piece on, in parts of any length."""

    def __init__(self, record: Record, key: bytes, start: int) -> None:
        """`start` is where a piece begins, in bytes of the blob."""
        if start % PIECE:
            raise ValueError(f"no piece begins at {start}")
        self._record = record
        self._sums = _Sums(record.digest, key)
        self._index = start // PIECE
        self._parts: list[memoryview] = []
        self._held = 0

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The pieces that `data` makes whole, each checked before it is given. Raises WrongObject."""
        view = memoryview(data)
        while view:
            length = self._record.length(self._index)
            part = view[: length - self._held]
            if not part:
                raise WrongObject(f"the object store has more bytes of {self._record.digest} than were stored")
            self._parts.append(part)
            self._held += len(part)
            view = view[len(part) :]
            if self._held == length:
                yield self._checked()

    def _checked(self) -> bytes:
        piece = b"".join(self._parts)
        self._parts, self._held = [], 0
        hasher = self._sums.begin(self._index)
        hasher.update(piece)
        if not hmac.compare_digest(hasher.digest(), self._record.sum(self._index)):
            raise WrongObject(f"piece {self._index} of {self._record.digest} is not what was stored")
        self._index += 1
        return piece


def _whole(body: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_WHOLE, key=key, person=b"pullthrough.rec").digest()


def _parsed(body: bytes) -> Record:
    """Raises ValueError or struct.error."""
    magic, piece, size, digest_length, name_length = _HEAD.unpack_from(body)
    names = body[_HEAD.size : _HEAD.size + digest_length + name_length].decode("ascii")
    digest, name = names[:digest_length], names[digest_length:]
    sums = body[_HEAD.size + digest_length + name_length :]
    if (magic, piece) != (_MAGIC, PIECE) or not _NAME.fullmatch(name) or len(sums) != pieces_of(size) * _SUM:
        raise ValueError("another layout")
    algorithm, _, value = digest.partition(":")
    return Record(Digest(algorithm, value), size, name, sums)
