"""What is kept in memory, by key, within a number of bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# What an entry costs besides its value, as its owner counts it: the dictionary's share and this module's.
_OVERHEAD = 300
# One entry may take this share of the whole at most: it would push out too many others.
_SHARE = 8
# So many entries have another turn at a time: to look through all of them, where all were used, would take a while.
_SPARED = 64


class _Entry(Generic[V]):
    __slots__ = ("size", "used", "value")

    def __init__(self, value: V, size: int) -> None:
        self.value = value
        self.size = size
        self.used = False


class Bounded(Generic[K, V]):
    """Entries leave in the order in which they came, but one that was used since has another turn (CLOCK).

    So what is used stays, however many others come once and never again, and using an entry costs next to nothing.
    """

    def __init__(self, limit: int) -> None:
        """`limit` in bytes; 0 keeps nothing."""
        self._limit = limit
        # The first one is at hand in it; in a dictionary the places of those that have left would be in the way.
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which counts as used; None where there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.used = True
        return entry.value

    def put(self, key: K, value: V, size: int) -> None:
        """Keep `value`, which takes `size` bytes with its key; what is too large is not kept, nor what was there."""
        self.drop(key)
        size += _OVERHEAD
        if size > self._limit // _SHARE:
            return
        self._entries[key] = _Entry(value, size)
        self.size += size
        self._shrink()

    def limit(self, limit: int) -> None:
        """Keep to so many bytes from now on."""
        self._limit = limit
        self._shrink()

    def drop(self, key: K) -> None:
        """Keep it no longer."""
        if (entry := self._entries.pop(key, None)) is not None:
            self.size -= entry.size

    def _shrink(self) -> None:
        spared = 0
        while self.size > self._limit:
            key, entry = next(iter(self._entries.items()))
            if entry.used and spared < _SPARED:
                entry.used, spared = False, spared + 1
                self._entries.move_to_end(key)
            else:
                self.drop(key)
