"""What all connections of clients in this process share: the limits, who may come in, and who was refused."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from proxy.policy.admission import Admission, Excess, counted_as
from proxy.policy.cluster import Network, parse_ip
from proxy.server.refusals import Refusals, Refused
from proxy.settings import LimitSettings

# So many that are too many are told so at a time; the others are closed as they come.
_MOST_TOLD = 128


class Guest(Protocol):
    """A connection, as the gate knows it."""

    def make_room(self) -> None:
        """Close: it has been at rest, and another one needs its place."""

    def __hash__(self) -> int: ...


class Gate:
    """`limits` may be replaced at any time; what connections made of them at their beginning stays with them."""

    def __init__(self, limits: LimitSettings, trusted: Sequence[Network], refusals: Refusals) -> None:
        """`trusted`: the proxies whose connections are many clients' each."""
        self.limits = limits
        self.trusted = trusted
        self.refusals = refusals
        self._admission: Admission[Guest] = Admission()
        self._told: set[Guest] = set()

    def __len__(self) -> int:
        return len(self._admission)

    def enter(self, guest: Guest, peer: str, comes_again: bool = False) -> Refused | None:
        """May it stay? If not, what its first request is to be answered with. Raises ConnectionError: not even that.

        `comes_again`: the same connection will ask once more, as another guest, and is counted then.
        """
        limits, client = self.limits, counted_as(parse_ip(peer), self.trusted)
        admitted = self._admission.admit(
            guest, client, limits.max_connections, limits.max_connections_per_client, self._now()
        )
        if admitted.closing is not None:
            self.refusals.add("made-room", peer)
            admitted.closing.make_room()
        if admitted.refused is None:
            return None
        full = len(self._told) >= _MOST_TOLD
        if full or not comes_again:
            self.refusals.add(admitted.refused, peer)
        if full:
            raise ConnectionError(admitted.refused)
        self._told.add(guest)
        return _excess(admitted.refused)

    def busy(self, guest: Guest) -> None:
        """A request came."""
        self._admission.busy(guest)

    def rests(self, guest: Guest) -> None:
        """All of its requests are answered."""
        self._admission.rests(guest, self._now())

    def leave(self, guest: Guest) -> None:
        """It is closed."""
        self._admission.gone(guest)
        self._told.discard(guest)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _excess(excess: Excess) -> Refused:
    # Clients take both as a reason to go elsewhere: containerd at once after a 503, and after repeating a 429.
    wait = {"Retry-After": "1"}
    if excess == "connections":
        return Refused(excess, "UNAVAILABLE", "the proxy has no room for more connections at present", headers=wait)
    return Refused(excess, "TOOMANYREQUESTS", "too many connections from this address", headers=wait)
