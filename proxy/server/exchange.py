"""One request and what becomes of it, as it walks from the listener to the access line."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from proxy.cache.ask import Ask
from proxy.cache.known import Lasting
from proxy.oci.route import Route
from proxy.policy.cluster import Client
from proxy.policy.freshness import CacheState, Verdict
from proxy.server.pace import Pace
from proxy.server.refusals import Reason
from proxy.server.windows import Windows
from proxy.settings import ClusterSettings, LimitSettings
from proxy.telemetry.events import RequestFinished

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

# What the access line says of a client that left before it was sent a head (nginx's number for it).
CLIENT_LEFT = 499


@dataclass(frozen=True, slots=True)
class Repeatable:
    """An answer that may be given again: `headers` are those that do not depend on the time."""

    registry: str
    verdict: Verdict
    lasting: Lasting
    headers: Mapping[str, str]
    body: bytes
    status: int = 200


@dataclass(slots=True)
class Exchange:
    """Filled in on the way; whatever is still empty at the end was not reached. Times are the loop's, in seconds."""

    request: web.BaseRequest
    client: Client
    started: float
    limits: LimitSettings
    windows: Windows
    cluster: ClusterSettings | None = None
    route: Route | None = None
    ask: Ask | None = None
    state: CacheState = CacheState.PASS
    detail: str = ""
    # What was found for it; whether it goes past the cache in any case; of an error, whether the upstream was asked,
    # and what it answered.
    verdict: Verdict | None = None
    passing: bool = False
    asked: bool = False
    fwd_status: int | None = None
    # The registry it is for, before anybody knows more.
    chosen: str = ""
    status: int = CLIENT_LEFT
    bytes_sent: int = 0
    head_sent: float | None = None
    deadline: asyncio.Timeout | None = None
    damaged: bool = False
    # What paces its body, where anything does, and which limit it met.
    pace: Pace | None = None
    refusal: Reason | None = None
    # What may be given again to whoever asks the same.
    repeatable: Repeatable | None = None
    # How long its client may have the blob that it asked for, which is here.
    decided: Lasting | None = None
    # A refusal asks the client for user and password, whatever the upstream's own challenge is.
    takes_basic: bool = False

    @property
    def registry(self) -> str:
        """The registry's configured name; empty until it was chosen."""
        return self.ask.repository.registry if self.ask is not None else self.chosen

    async def take_turn(self, pace: Pace | None) -> None:
        """Wait for the request's turn in its cluster. Raises Refused where that would take too long."""
        if pace is not None:
            self.pace = pace.of_bodies
            await pace.turn()

    def finished(self, now: float) -> RequestFinished:
        """What is told of this exchange once it is over."""
        route, reference = self.route, ""
        if route is not None:
            reference = str(getattr(route, "reference", getattr(route, "digest", "")))
        method = self.request.method
        return RequestFinished(
            client=str(self.client.address or ""),
            cluster=self.cluster.name if self.cluster is not None else "",
            registry=self.registry,
            kind=route.kind if route is not None else "other",
            method=method if method in _METHODS else "other",
            repository=self.ask.repository.name if self.ask is not None else "",
            reference=reference,
            status=self.status,
            cache=self.state.value,
            detail=self.detail,
            bytes_sent=self.bytes_sent,
            first_byte_seconds=(self.head_sent if self.head_sent is not None else now) - self.started,
            seconds=now - self.started,
        )
