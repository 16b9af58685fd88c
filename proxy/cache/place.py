"""A place where the bytes of a blob come from."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from proxy.cache.ask import Ask
from proxy.upstream.slots import Slots

# Tries in a row that bring nothing, at an upstream.
TRIES = 6


class RangeReply(Protocol):
    """An answer to a request for a range: see `upstream.client.Reply`."""

    status: int
    address: str | None

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers, by names in any case."""
        ...

    @property
    def content_length(self) -> int | None:
        """The body's length in bytes."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises UpstreamFailure where it breaks off."""
        ...


# Asks for a range, or for all (None), with somebody's rights, at an address where one is known.
Request = Callable[[Ask, tuple[int, int] | None, str | None], AbstractAsyncContextManager[RangeReply]]


@dataclass(frozen=True, slots=True)
class Place:
    """What asks for ranges there, whose turn that is, how many ranges of one blob at a time, and how often in a row it
    is tried again in vain."""

    kind: Literal["upstream", "replica", "object"]
    request: Request
    slots: Slots
    parallel: int
    tries: int = TRIES

    @property
    def vouches(self) -> bool:
        """Is its answer the upstream's word?"""
        return self.kind == "upstream"
