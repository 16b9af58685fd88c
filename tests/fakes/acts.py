"""What a test lets a server do with single requests for a blob, and the record of what it did.

All offsets are the blob's own, whatever range was asked for.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tests.fakes.server import Gate


@dataclass(eq=False)
class BlobRequest:
    """One GET of a blob, and what of it was sent. `began` and `ended` count up over all requests of a server."""

    number: int
    digest: str
    # As asked, held to the blob's size; `ranged` tells whether there was a Range at all.
    start: int
    stop: int
    ranged: bool
    # Of the blob, or of what is sent in its stead.
    size: int
    range_header: str | None = None
    status: int = 0
    sent_from: int = 0
    sent_to: int = 0
    began: int = 0
    ended: int | None = None
    # The connection was ended so that bytes which had been sent may never have been read.
    reset: bool = False
    # The server itself ended the connection.
    cut: bool = False
    connection: asyncio.Transport | None = None

    @property
    def sent(self) -> tuple[int, int]:
        """The bytes of the blob that were handed out: from the first to before the second."""
        return self.sent_from, self.sent_to

    @property
    def dropped(self) -> bool:
        """Did whoever asked end the connection? One that brought its answer to the last byte is kept for the next."""
        return not self.cut and (self.connection is None or self.connection.is_closing())

    @property
    def bounded(self) -> bool:
        """Did it say where its range ends?"""
        return self.range_header is not None and not self.range_header.endswith("-")


@dataclass(frozen=True)
class Act:
    """What is done with one request. Nothing given: it is answered as it should be."""

    # An error instead of the blob.
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    # Before the head leaves, and before the first byte at or after its offset leaves.
    head_gate: Gate | None = None
    gate: Gate | None = None
    # The connection ends, or falls silent, before the byte there leaves; at its own start: after the head.
    fin_at: int | None = None
    rst_at: int | None = None
    stall_at: int | None = None
    # The connection ends before the head.
    drop: bool = False
    # 200 and the whole blob, whatever was asked.
    whole: bool = False
    # Other bytes under the same offsets.
    body: bytes | None = None
    # At most so many bytes of the range, said so truthfully in Content-Range.
    most: int | None = None
    # What Content-Range says instead of the truth.
    content_range: str | None = None
    # False: no Content-Length.
    length: bool = True

    def stops(self) -> Iterable[int]:
        """The offsets at which something happens."""
        found = (self.gate.offset if self.gate else None, self.fin_at, self.rst_at, self.stall_at)
        return (offset for offset in found if offset is not None)


# Told each request; None is "as it should be". A list is used up, one act a request.
Script = Callable[[BlobRequest], Act | None] | list[Act]


class Record:
    """All GETs of blobs that a server was asked."""

    def __init__(self) -> None:
        self.requests: list[BlobRequest] = []
        self.most_open = 0
        self._moments = 0

    @property
    def open_now(self) -> int:
        return sum(request.ended is None for request in self.requests)

    def begin(self, request: BlobRequest) -> None:
        request.began = self._moment()
        self.requests.append(request)
        self.most_open = max(self.most_open, self.open_now)

    def end(self, request: BlobRequest) -> None:
        if request.ended is None:
            request.ended = self._moment()

    def of(self, digest: str) -> list[BlobRequest]:
        return [request for request in self.requests if request.digest == digest]

    def asked(self, digest: str) -> list[tuple[int, int]]:
        """The ranges of a blob that were asked for, in the order of coming."""
        return [(request.start, request.stop) for request in self.of(digest)]

    def sent_spans(self, digest: str) -> list[tuple[int, int]]:
        """The bytes of a blob that were handed out, request by request; empty ones left out."""
        return [request.sent for request in self.of(digest) if request.sent_to > request.sent_from]

    def times_sent(self, digest: str) -> list[tuple[int, int, int]]:
        """(start, stop, how often) for the whole blob, in order; neighbours with the same count are one."""
        marks: dict[int, int] = {}
        for start, stop in self.sent_spans(digest):
            marks[start] = marks.get(start, 0) + 1
            marks[stop] = marks.get(stop, 0) - 1
        found: list[tuple[int, int, int]] = []
        position, count = 0, 0
        for offset in sorted(marks):
            if offset > position and (not found or found[-1][2] != count):
                found.append((position, offset, count))
            elif offset > position:
                found[-1] = (found[-1][0], offset, count)
            position, count = offset, count + marks[offset]
        return found

    def sent_twice(self, digest: str, since: int = 0) -> list[str]:
        """Every pair of requests that brought the same bytes without an excuse; a test wants it empty.

        `since`: the number of the first request that counts.

        Excuses: the earlier one was reset; the later one began within the range of the earlier one, which was ended
        early for it; no ranges are honoured.
        """
        requests = [request for request in self.of(digest) if request.sent_to > request.sent_from]
        requests = [request for request in requests if request.number >= since]
        return [
            f"{one.number}: {one.sent} and {other.number}: {other.sent}"
            for place, one in enumerate(requests)
            for other in requests[place + 1 :]
            if max(one.sent_from, other.sent_from) < min(one.sent_to, other.sent_to) and not _excused(one, other)
        ]

    def _moment(self) -> int:
        self._moments += 1
        return self._moments


def _excused(earlier: BlobRequest, later: BlobRequest) -> bool:
    if earlier.reset or 200 in {earlier.status, later.status}:
        return True
    on_its_way = earlier.ended is None or earlier.ended > later.began or earlier.dropped
    return on_its_way and earlier.start < later.start < earlier.stop
