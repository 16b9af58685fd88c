"""Which blobs go so that another fits: least recently used first, never one with readers. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished blob: its size in bytes and whether somebody reads it."""

    digest: Digest
    size: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class Room:
    """All in bytes: what the cache may hold and holds (reservations included), the file system's free space."""

    max_size: int
    used: int
    min_free: int
    free: int


def choose_victims(oldest_first: Iterable[Candidate], need: int, room: Room) -> list[tuple[Digest, str]] | None:
    """What to evict so that `need` bytes fit, each with its reason (`size` or `free`); None where they cannot fit."""
    over = room.used + need - room.max_size
    short = room.min_free + need - room.free
    victims: list[tuple[Digest, str]] = []
    if need > room.max_size:
        return None
    for candidate in oldest_first:
        if over <= 0 and short <= 0:
            break
        if candidate.in_use:
            continue
        victims.append((candidate.digest, "size" if over > 0 else "free"))
        over -= candidate.size
        short -= candidate.size
    return victims if over <= 0 and short <= 0 else None
