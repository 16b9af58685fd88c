"""Stamps: does what was read from the metadata store still hold? Answered without a lock, a thread or a system call.

A table of slots is mapped into the memory of every process that shares the store; each key has a slot, and keys that
share one are stamped anew together, which costs a look into the store and nothing else.

Invariants:
- A stamp is taken before its keys are read. Whoever changes a key stamps it anew once the change is in the store and
  before anybody is told that it was done. So while a stamp holds, no change of its keys has been told of since.
- A slot never has a value twice. So nobody needs a lock: of two who write a slot at once either one's value is new to
  everybody who read before them, and whoever reads after them reads both changes.
- Who opens the table stamps everything anew: a process that was killed between its change and its stamp is replaced by
  one that does it.
"""

import mmap
import os
from operator import itemgetter
from pathlib import Path
from zlib import crc32

# The first slot is everybody's. So many that two keys in use rarely share one: an answer has five, and each active tag
# renews two every few seconds.
_SLOTS = 1 << 20
_BYTES = 8 * _SLOTS


class Stamp:
    """See `storage.base.Stamp`."""

    __slots__ = ("_pick", "_slots", "_values")

    def __init__(self, slots: "memoryview[int]", picked: tuple[int, ...]) -> None:
        self._slots = slots
        self._pick = itemgetter(0, *picked)
        self._values = self._pick(slots)

    def holds(self) -> bool:
        """Has nothing changed since?"""
        return bool(self._pick(self._slots) == self._values)


class Stamps:
    """The table in `file`, made where there is none; without one it is this process's alone."""

    def __init__(self, file: Path | None) -> None:
        """Blocks. Raises OSError where the table cannot be had: to go on without it would keep changes from others."""
        self._slots = memoryview(mmap.mmap(-1, _BYTES) if file is None else _mapped(file)).cast("Q")
        self._slots[0] = _new()

    def take(self, *keys: str) -> Stamp:
        """A stamp for `keys`, which are to be read after it."""
        return Stamp(self._slots, tuple(map(_slot, keys)))

    def renew(self, *keys: str) -> None:
        """`keys` have changed in the store: no stamp of theirs holds any more, in whatever process."""
        for key in keys:
            self._slots[_slot(key)] = _new()

    def renew_all(self) -> None:
        """Anything may have changed: no stamp holds any more."""
        self._slots[0] = _new()


def _slot(key: str) -> int:
    # What is no text is refused by the store, and has a slot all the same.
    return 1 + crc32(str(key).encode(errors="surrogatepass")) % (_SLOTS - 1)


def _new() -> int:
    return int.from_bytes(os.urandom(8), "big")


def _mapped(file: Path) -> mmap.mmap:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # A hole that could not be filled would kill the process that writes to it.
        os.posix_fallocate(descriptor, 0, _BYTES)
        return mmap.mmap(descriptor, _BYTES)
    finally:
        os.close(descriptor)
