"""Which blobs go so that another fits. Pure.

- Never one that somebody reads, never one of a kept repository.
- Least recently used first; but blobs used once go before blobs used again, as long as the former hold more than a
  fifth of the cache: who pulls everything there is, once, must not flush what is needed every day (the idea of 2Q).
- A registry or cluster that is at or below its share loses blobs only when nothing else is left. Room that it does not
  use is lent to the others.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cached_property
from typing import NamedTuple

from proxy.oci.digest import Digest

# A use this long after a blob was stored, in seconds, is another one: the nodes of one roll-out count once.
AGAIN_AFTER = 60.0
# What part of the cache blobs used once may hold before they go first.
_ONCE_SHARE = 0.2


class Candidate(NamedTuple):
    """A finished blob: its size in bytes, when it was used last, whether it was used again and is being read, and who
    it belongs to."""

    digest: Digest
    size: int
    in_use: bool
    used: float = 0.0
    again: bool = False
    registry: str = ""
    repository: str = ""
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """All in bytes: what the cache may hold and holds (reservations included), the file system's free space."""

    max_size: int
    used: int
    min_free: int
    free: int

    def lacks(self, need: int) -> int:
        """How many bytes have to go before `need` fit; not more than 0 where they fit."""
        return max(self.used + need - self.max_size, self.min_free + need - self.free)

    def without(self, size: int) -> "Room":
        """The same with `size` bytes less in it."""
        return Room(self.max_size, self.used - size, self.min_free, self.free + size)


@dataclass(frozen=True)
class Policy:
    """What operators want kept: patterns of `registry/repository`, `*` also over `/`; shares as parts of max_size."""

    keep: tuple[str, ...] = ()
    registries: Mapping[str, float] = field(default_factory=dict)
    clusters: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return re.compile("|".join(translate(pattern) for pattern in self.keep)) if self.keep else None

    def keeps(self, registry: str, repository: str) -> bool:
        """Is what this repository uses never to be evicted?"""
        return self._pattern is not None and self._pattern.match(f"{registry}/{repository}") is not None


ANY = Policy()


@dataclass(frozen=True, slots=True)
class Blobs:
    """All that is stored: what was used once and what was used again, each least recently used first and read only as
    far as it is needed; `held`, who holds how much, may be summed up by owner and use."""

    once: Iterable[Candidate]
    again: Iterable[Candidate]
    held: Iterable[Candidate]

    @staticmethod
    def of(oldest_first: Iterable[Candidate]) -> "Blobs":
        """Out of one list."""
        blobs = list(oldest_first)
        return Blobs([blob for blob in blobs if not blob.again], [blob for blob in blobs if blob.again], blobs)


def choose_victims(blobs: Blobs, need: int, room: Room, policy: Policy = ANY) -> list[tuple[Candidate, str]] | None:
    """What to evict so that `need` bytes fit, each with its reason (`size` or `free`); None where they cannot fit."""
    if need > room.max_size:
        return None
    over = room.used + need - room.max_size
    short = room.min_free + need - room.free
    victims: list[tuple[Candidate, str]] = []
    if over <= 0 and short <= 0:
        return victims
    for blob in _in_order(blobs, room.max_size, policy):
        victims.append((blob, "size" if over > 0 else "free"))
        over -= blob.size
        short -= blob.size
        if over <= 0 and short <= 0:
            return victims
    return None


def _in_order(blobs: Blobs, max_size: int, policy: Policy) -> Iterator[Candidate]:
    """The blobs that may go, each given only when the ones before it have gone."""
    held = _Held(blobs.held, max_size, policy)
    spared: list[Candidate] = []

    def loose(of: Iterable[Candidate]) -> Iterator[Candidate]:
        return (blob for blob in of if not blob.in_use and not policy.keeps(blob.registry, blob.repository))

    for blob in held.once_first(loose(blobs.once), loose(blobs.again)):
        if held.is_guaranteed(blob):
            # Others' evictions never bring its owner above its share again, so one look is enough.
            spared.append(blob)
        else:
            held.lose(blob)
            yield blob
    left = Blobs.of(spared)
    for blob in held.once_first(iter(left.once), iter(left.again)):
        held.lose(blob)
        yield blob


class _Held:
    """Who holds how many bytes while blobs go."""

    def __init__(self, held: Iterable[Candidate], max_size: int, policy: Policy) -> None:
        self._once_limit = _ONCE_SHARE * max_size
        self._registry_limits = {name: share * max_size for name, share in policy.registries.items() if share}
        self._cluster_limits = {name: share * max_size for name, share in policy.clusters.items() if share}
        self._once = 0
        self._registries: Counter[str] = Counter()
        self._clusters: Counter[str] = Counter()
        for blob in held:
            self._once += 0 if blob.again else blob.size
            self._registries[blob.registry] += blob.size
            self._clusters[blob.cluster] += blob.size

    def once_first(self, once: Iterator[Candidate], again: Iterator[Candidate]) -> Iterator[Candidate]:
        first, second = next(once, None), next(again, None)
        while first is not None or second is not None:
            too_many = self._once > self._once_limit
            if first is not None and (second is None or too_many or first.used <= second.used):
                yield first
                first = next(once, None)
            elif second is not None:
                yield second
                second = next(again, None)

    def is_guaranteed(self, blob: Candidate) -> bool:
        return (
            self._registries[blob.registry] <= self._registry_limits.get(blob.registry, -1)
            or self._clusters[blob.cluster] <= self._cluster_limits.get(blob.cluster, -1)
        )  # fmt: skip

    def lose(self, blob: Candidate) -> None:
        self._registries[blob.registry] -= blob.size
        self._clusters[blob.cluster] -= blob.size
        if not blob.again:
            self._once -= blob.size
