"""What a fill works with, and how it may end besides."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.cache.ask import Ask
from proxy.cache.download import Uncacheable
from proxy.cache.place import Place
from proxy.cache.region import Region
from proxy.cache.speed import Speed
from proxy.storage.base import BlobStore
from proxy.telemetry.events import Tell
from proxy.upstream.errors import UpstreamError, UpstreamInvalid, UpstreamMissing, UpstreamRefused


class OtherSource(Uncacheable):
    """Another upstream's fill of the same digest is under way: until that is hashed, its bytes are nobody else's."""


class LeftBehindWrong(UpstreamInvalid):
    """The bytes were wrong, and some of them were there before this fill: nothing is known of the upstream's."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a fill works with. `granted` is told that the upstream answered an ask with the blob, its media type and
    size; `refused` of each ask that it refused; `failed` why the fill ends, and with whose rights that was; all of them
    before anybody who waits is woken.

    `upstream` is the place that the region's other places come before; `ensure` makes sure that an ask has a right to
    the blob, and raises UpstreamError where it has none.

    `source` says where the bytes come from, in SOURCE_BYTES: other fills' bytes are not taken for these before they are
    hashed. `worker` is this process's number, `shared`: there are others. `speed`: what it keeps to while nobody reads
    it.
    """

    store: BlobStore
    upstream: Place
    region: Region
    ensure: Callable[[Ask], Awaitable[object]]
    granted: Callable[[Ask, str, int], Awaitable[object]]
    refused: Callable[[Ask, UpstreamRefused | UpstreamMissing], Awaitable[None]]
    failed: Callable[[Ask, UpstreamError], Awaitable[None]]
    tell: Tell
    source: bytes
    worker: int = 0
    shared: bool = False
    speed: Speed | None = None
