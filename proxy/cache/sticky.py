"""A sticky tag as operators see it, which of them are wanted, and how many there are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from proxy.cache.records import HistoryRecord, HoldRecord, TagRecord
from proxy.oci.reference import Repository
from proxy.policy.freshness import Freshness

Named = tuple[Repository, str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which tags: all that is given must fit. `pattern` is a shell pattern of `registry/repository:tag`."""

    pattern: str | None = None
    registry: str | None = None
    repository: str | None = None
    cluster: str = ""
    drifted: bool = False
    held: bool = False
    unchecked: bool = False


@dataclass(frozen=True, slots=True)
class StickyTag:
    """A tag as it is served here: `record` None where it is known by its hold, or its history, alone.

    `ttl` in seconds, by the lifetimes of the cluster that was asked about; `ttls`: by those of each cluster that was
    served it. `unchecked` says why the proxy cannot ask for it by itself.
    """

    repository: Repository
    tag: str
    record: TagRecord | None
    hold: HoldRecord | None
    history: HistoryRecord
    freshness: Freshness
    ttl: float
    unchecked: str | None
    ttls: Mapping[str, float] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """What is served for it."""
        if self.hold is not None:
            return self.hold.digest
        return self.record.digest if self.record is not None else None

    @property
    def upstream_digest(self) -> str | None:
        """What it was upstream when that was last seen."""
        return (self.record.upstream_digest or self.record.digest) if self.record is not None else None

    @property
    def drifted(self) -> bool:
        """Is it known to be another one upstream?"""
        return self.upstream_digest is not None and self.upstream_digest != self.digest


@dataclass(slots=True)
class Counts:
    """How many tags there are: in all, held, unchecked, and drifted by registry."""

    known: int = 0
    held: int = 0
    unchecked: int = 0
    drifted: dict[str, int] = field(default_factory=dict)

    def add(self, one: StickyTag) -> None:
        """Count one more."""
        registry = one.repository.registry
        self.known += 1
        self.held += one.hold is not None
        self.unchecked += one.unchecked is not None
        self.drifted[registry] = self.drifted.get(registry, 0) + one.drifted


def fits(one: StickyTag, wanted: Wanted) -> bool:
    """Is it one of those that are wanted?"""
    given = not wanted.cluster or any(wanted.cluster in served.clusters for served in one.history.digests)
    return given and is_named((one.repository, one.tag), wanted) and is_so(one, wanted)


def is_named(named: Named, wanted: Wanted) -> bool:
    """Is it wanted by its name? No record has to be read for that."""
    repository = named[0]
    return (
        (wanted.pattern is None or fnmatchcase(text_of(named), wanted.pattern))
        and wanted.registry in (None, repository.registry)
        and (wanted.repository is None or fnmatchcase(repository.name, wanted.repository))
    )


def is_so(one: StickyTag, wanted: Wanted) -> bool:
    """Is it wanted by its state? No history has to be read for that."""
    return (
        (not wanted.drifted or one.drifted)
        and (not wanted.held or one.hold is not None)
        and (not wanted.unchecked or one.unchecked is not None)
    )


def text_of(named: Named) -> str:
    """`registry/repository:tag`."""
    return f"{named[0]}:{named[1]}"
