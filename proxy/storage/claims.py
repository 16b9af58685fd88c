"""Who fills which digest: one lock of the operating system for each, over all processes of a cache directory.

Invariants:
- A claim is a write lock of one byte of the claims file, at a place that the digest gives. It belongs to the open file
  (F_OFD_SETLK, Linux), so the kernel drops it when the process ends, however that happens.
- The place is a keyed hash: digests are the clients' to choose, and nobody outside can make up one that shares a place.
- An open file never excludes itself. What this object holds is therefore kept in `_held` as well, which is changed by
  single operations of a dict only: the loop and the index's thread both claim.
"""

import errno
import fcntl
import hashlib
import os
import struct
from pathlib import Path

from proxy.oci.digest import Digest

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid, which has to be 0.
_FLOCK = struct.Struct("@hhqqi4x")


def named_claim(name: bytes) -> Digest:
    """What to claim for something that is no blob: no content has this digest, so nobody can hold it by a fill."""
    return Digest("sha256", hashlib.blake2b(name, digest_size=32).hexdigest())


class Claims:
    """The claims of one store."""

    def __init__(self, file: Path, key: bytes) -> None:
        """Open the claims file, or make it; `key` is the cache directory's. Raises OSError."""
        self._key = key
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._held: dict[int, object] = {}

    def claim(self, digest: Digest) -> bool:
        """See `BlobStore.claim`."""
        place, mine = self._place(digest), object()
        if self._held.setdefault(place, mine) is not mine:
            return False
        try:
            self._lock(fcntl.F_WRLCK, place)
        except OSError as error:
            self._held.pop(place, None)
            if error.errno in {errno.EAGAIN, errno.EACCES}:
                return False
            raise
        return True

    def release(self, digest: Digest) -> None:
        """See `BlobStore.release`. What is not held is no error."""
        place = self._place(digest)
        if place in self._held and self._file >= 0:
            # First the kernel's, so that nobody of this process gets a lock that is about to go.
            self._lock(fcntl.F_UNLCK, place)
        self._held.pop(place, None)

    def close(self) -> None:
        """Give all of them up."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _lock(self, kind: int, place: int) -> None:
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))

    def _place(self, digest: Digest) -> int:
        hashed = hashlib.blake2b(str(digest).encode(), digest_size=8, key=self._key).digest()
        # A positive off_t, with room for the byte after it.
        return int.from_bytes(hashed) >> 2
