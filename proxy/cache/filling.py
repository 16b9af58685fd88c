"""What a download and the fill that it works for say to each other."""

from collections.abc import Iterable
from typing import Protocol

from proxy.cache.ask import Ask
from proxy.cache.speed import Brake
from proxy.storage.base import PartialBlob
from proxy.upstream.errors import UpstreamMissing, UpstreamRefused


class Filling(Protocol):
    """Whom a download works for."""

    def lender(self, refused: set[object]) -> Ask | None:
        """Whoever the upstream has vouched for, or who caused the fill, and whose rights are not among `refused`."""
        ...

    async def refused(self, ask: Ask, error: UpstreamRefused | UpstreamMissing) -> None:
        """The upstream does not give the blob to `ask`."""
        ...

    def waiting(self) -> Iterable[int]:
        """The positions that readers wait for, who waits longest first."""
        ...

    async def found(self, ask: Ask, media_type: str, size: int) -> PartialBlob:
        """The upstream has answered `ask`: the blob is there and has `size` bytes. Gives the file for them."""
        ...

    def advanced(self, count: int) -> None:
        """`count` more bytes are in the map."""
        ...

    @property
    def brake(self) -> Brake:
        """What holds it back."""
        ...

    def failing(self, ask: Ask | None) -> None:
        """The download has failed, with the rights of `ask`, and only clears up.

        Whoever came now would share a failure that is not theirs.
        """
        ...
