"""What the rooms tell. Values of labels come from bounded sets: configured names, kinds, states, statuses."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """One request of a client was answered, or its client left: `status` is what its head said, or 499 without one."""

    client: str
    cluster: str
    registry: str
    kind: str
    method: str
    repository: str
    reference: str
    status: int
    cache: str
    detail: str
    bytes_sent: int
    first_byte_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class UpstreamAnswered:
    """An upstream answered one request: `status` is its number, or `connect` or `timeout`."""

    registry: str
    kind: str
    method: str
    status: str


@dataclass(frozen=True, slots=True)
class UpstreamBytes:
    """Bytes of bodies that arrived from an upstream."""

    registry: str
    count: int


@dataclass(frozen=True, slots=True)
class RateLimitSeen:
    """An upstream said how many pulls are left to the proxy, and of how many, where it says that."""

    registry: str
    remaining: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class UpstreamPulled:
    """A manifest was had by GET, which counts against rate limits; `cluster` caused it, or `background`."""

    registry: str
    cluster: str


@dataclass(frozen=True, slots=True)
class FillStarted:
    registry: str


@dataclass(frozen=True, slots=True)
class FillEnded:
    registry: str


@dataclass(frozen=True, slots=True)
class FillResumed:
    """An upstream broke off in the middle of a blob, which is gone on with at the missing byte."""


@dataclass(frozen=True, slots=True)
class DigestMismatch:
    """An upstream sent a manifest or a blob that is not what its digest names."""

    registry: str


@dataclass(frozen=True, slots=True)
class StaleServed:
    """What is stale was served; `reason`: connect, timeout, 5xx, 429 (the upstream fails), offline (it is not asked),
    404 (it is gone there), budget (pulls are kept)."""

    registry: str
    reason: str


@dataclass(frozen=True, slots=True)
class TargetWasRefused:
    """An upstream led to where it may not lead; `reason`: one of `policy.dial.Reason`."""

    registry: str
    reason: str


@dataclass(frozen=True, slots=True)
class BlobEvicted:
    """`reason`: size, free, age, digest."""

    reason: str


@dataclass(frozen=True, slots=True)
class ClientRefused:
    """A client was over one of the limits; `reason` is which (`server.refusals`)."""

    reason: str


@dataclass(frozen=True, slots=True)
class LoopLag:
    """How late the event loop was, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SharedStoreTurned:
    """What replicas share answers again, or is away. `store`: metadata or blobs."""

    store: str
    up: bool


@dataclass(frozen=True, slots=True)
class SharedStoreFailed:
    """It failed somebody; `reason`: connect, timeout, and of metadata refused or full, of blobs 5xx or denied."""

    store: str
    reason: str


@dataclass(frozen=True, slots=True)
class SharedBytes:
    """Bytes of blobs that came from within the region; `source`: replica or object."""

    source: str
    count: int


@dataclass(frozen=True, slots=True)
class ObjectUploaded:
    """A blob was uploaded; `outcome`: stored, there (it was already), failed, or dropped (too many waited)."""

    outcome: str


@dataclass(frozen=True, slots=True)
class ObjectMismatch:
    """The object store had other bytes than were stored there."""


Event = (
    RequestFinished
    | UpstreamAnswered
    | UpstreamBytes
    | RateLimitSeen
    | UpstreamPulled
    | FillStarted
    | FillEnded
    | FillResumed
    | DigestMismatch
    | StaleServed
    | TargetWasRefused
    | BlobEvicted
    | ClientRefused
    | LoopLag
    | SharedStoreTurned
    | SharedStoreFailed
    | SharedBytes
    | ObjectUploaded
    | ObjectMismatch
)

Tell = Callable[[Event], None]


def silent(_event: Event) -> None:
    """Tells nobody."""
