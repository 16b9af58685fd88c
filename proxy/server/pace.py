"""The rates of clusters: requests wait for their turn for a moment before they are refused, bodies are paced.

A request over the rate is delayed first: containerd repeats a 429 at once, whatever Retry-After says, five or six
times, and then goes to its next host, which is the upstream itself. So a refusal costs more than it saves, and most
bursts are over before one is needed. How many wait is bounded by the rate.

Bytes are handed out in equal portions in the order of asking, which shares them fairly among a cluster's readers. What
is paced is what clients are sent, never a fill.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Self

from proxy.policy.rate import Bucket
from proxy.server.refusals import Refused
from proxy.settings import ClusterLimitSettings, ClusterSettings

# Seconds that a request waits at most: a head has to leave within 25.
_LONGEST_WAIT = 5.0
# Seconds' worth that may be had at once after a pause: a node that starts asks for everything at once.
_REQUESTS_BURST = 10.0
_BYTES_BURST = 1.0
# A portion is so many seconds' worth of bytes, within these bounds.
_PORTION = 1 / 16
_LEAST_PORTION = 16 * 1024
_MOST_PORTION = 1024 * 1024


class Pace:
    """The limits of one cluster in this process."""

    def __init__(self, limits: ClusterLimitSettings) -> None:
        self.limits = limits
        self._requests: Bucket | None = None
        self._bytes: Bucket | None = None
        self._portion = _MOST_PORTION
        if (rate := limits.requests_per_second) is not None:
            self._requests = Bucket(rate, max(1.0, rate * _REQUESTS_BURST))
        if limits.bytes_per_second is not None:
            self._bytes = Bucket(limits.bytes_per_second, limits.bytes_per_second * _BYTES_BURST)
            self._portion = max(_LEAST_PORTION, min(int(limits.bytes_per_second * _PORTION), _MOST_PORTION))

    @property
    def of_bodies(self) -> Self | None:
        """This, where it has anything to say about bodies."""
        return self if self._bytes is not None else None

    async def turn(self) -> None:
        """Wait for the turn of a request. Raises Refused (429, TOOMANYREQUESTS) where that would take too long."""
        if self._requests is None:
            return
        taken, wait = self._requests.take_within(1, _now(), _LONGEST_WAIT)
        if not taken:
            after = {"Retry-After": str(math.ceil(wait - _LONGEST_WAIT))}
            message = "this cluster asks for more than its share"
            raise Refused("requests-per-second", "TOOMANYREQUESTS", message, headers=after)
        await _wait(self._requests, 1, wait)

    async def portion(self, most: int) -> int:
        """How many bytes a reader may be sent next, `most` at most, once it may."""
        count = min(most, self._portion)
        await self.spend(count)
        return count

    async def spend(self, count: int) -> None:
        """Wait until `count` bytes may be sent."""
        if self._bytes is not None:
            await _wait(self._bytes, count, self._bytes.take(count, _now()))

    def charge(self, count: int) -> None:
        """So many bytes are sent at once; those who come later wait for them."""
        if self._bytes is not None:
            self._bytes.take(count, _now())


def paces(clusters: Sequence[ClusterSettings], before: Mapping[str, Pace]) -> dict[str, Pace]:
    """The pace of every cluster that has limits; what of `before` has the same limits goes on."""
    found = {}
    for cluster in clusters:
        if cluster.limits != ClusterLimitSettings():
            known = before.get(cluster.name)
            found[cluster.name] = (
                known if known is not None and known.limits == cluster.limits else Pace(cluster.limits)
            )
    return found


async def _wait(bucket: Bucket, count: int, seconds: float) -> None:
    if seconds > 0:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            # Its client left: what it would have had is the others'.
            bucket.give_back(count)
            raise


def _now() -> float:
    return asyncio.get_running_loop().time()
