"""TLS in registries' own names: for each of them a certificate that a listener's authority has signed.

Invariants:
- No handshake makes anything: what it can be answered with was made before, one context for each configured name. So
  however many come, and for whatever names, they cost what a look into a table costs, and no memory is kept of them.
- A name that is not configured, and none at all, is refused in the handshake, with an alert that says so.
- Contexts are made whole and never changed. Those that work are never given up for files that do not.
- Certificates live for a day and are made anew when half of it is over, when the names have changed, and when the
  authority's files have; all that by one task, which `start` makes and `close` ends.
"""

import asyncio
import datetime
import logging
import os
import ssl
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from proxy.server.intercept_ca import Authority, Pair, read_authority
from proxy.server.tls import Latest, TLSConnection, TLSError, bare_context, contents_of, look_on, reason_of
from proxy.settings import Address, InterceptSettings

_log = logging.getLogger("pullthrough.server")

# Seconds.
_LIFE = datetime.timedelta(days=1)
# From here on operators are told that the authority ends.
_ENDS_SOON = datetime.timedelta(days=30)
_TOLD_EVERY = 86400.0


@dataclass(frozen=True, slots=True)
class _Made:
    """Contexts by name, what they were made of and when, and when they are to be made anew (Unix seconds)."""

    contexts: Mapping[str, Latest]
    files: tuple[str, ...]
    at: float
    due: float


class Interception:
    """The TLS of one listener; `front` is for asyncio's server, once this has started."""

    def __init__(
        self,
        address: Address,
        settings: InterceptSettings,
        names: Callable[[], Collection[str]],
        refused: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """`names`, as they are configured at present; `refused` is called for each handshake that asks for another."""
        self._address = address
        self._settings = settings
        self._names = names
        self._refused = refused
        self._clock = clock
        self._made = _Made({}, (), 0.0, 0.0)
        # Why none could be made anew, as it was told last, and when the authority's end was.
        self._told = ""
        self._told_end = 0.0
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        # Which certificate a client gets is decided by the name that it asks for.
        self.front = Latest(ssl.PROTOCOL_TLS_SERVER)
        self.front.made = bare_context()
        self.front.made.sni_callback = self._named

    async def start(self) -> None:
        """Read the authority and make all certificates, and anew from now on. Raises TLSError."""
        self._made = await self._make()
        self._task = asyncio.create_task(look_on(self.look, self._address), name=f"certificates of {self._address}")

    async def close(self) -> None:
        """Make no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def context(self, name: str) -> Latest | None:
        """For a connection to the registry called so; None where none is, or none can be made."""
        return self._made.contexts.get(name)

    async def look(self, asked: bool = False) -> None:
        """Make certificates anew, where that is due. `asked`: an operator waits, so what is wrong is told again."""
        async with self._looking:
            made = self._made
            files = await asyncio.to_thread(contents_of, self._files)
            # A clock that was set back has them begin in the future.
            in_time = made.at <= self._clock() < made.due
            if in_time and files == made.files and made.contexts.keys() == set(self._names()):
                self._told = ""
                return
            try:
                self._made = await self._make()
            except TLSError as error:
                if asked or str(error) != self._told:
                    _log.error("%s goes on with the certificates it has: %s", self._address, error)
                self._told = str(error)
                return
            self._told = ""
            _log.debug("%s has made its certificates anew", self._address)

    @property
    def _files(self) -> tuple[Path, Path]:
        return self._settings.ca_certificate, self._settings.ca_key

    async def _make(self) -> _Made:
        now = self._clock()
        names, files = frozenset(self._names()), await asyncio.to_thread(contents_of, self._files)
        contexts, ends = await asyncio.to_thread(self._contexts, names, now)
        left = ends - now
        if left < _ENDS_SOON.total_seconds() and now - self._told_end >= _TOLD_EVERY:
            self._told_end = now
            _log.warning(
                "%s: the authority that nodes trust ends in %d days: give them another", self._address, left // 86400
            )
        return _Made(contexts, files, now, now + min(_LIFE.total_seconds(), left) / 2)

    def _contexts(self, names: Collection[str], now: float) -> tuple[dict[str, Latest], float]:
        """A context for each name, and when the authority ends. Blocks. Raises TLSError."""
        at = datetime.datetime.fromtimestamp(now, datetime.UTC)
        authority = read_authority(*self._files, at)
        return {name: _context(authority, name, at) for name in names}, authority.ends.timestamp()

    def _named(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        name = (name or "").lower().rstrip(".")
        found = self._made.contexts.get(name)
        # There may be one still for a name that is configured no longer.
        if found is None or name not in self._names():
            _log.debug("%s: a client asked for %.253r, which is no registry", self._address, name)
            self._refused()
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        if isinstance(connection, TLSConnection):
            connection.server_name = name
        connection.context = found.made
        return None


def _context(authority: Authority, name: str, now: datetime.datetime) -> Latest:
    context = bare_context()
    try:
        pair = authority.issue(name, now, _LIFE)
    except ValueError as error:
        raise TLSError(f"no certificate can be made for {name}: {error}") from error

    def named(connection: ssl.SSLSocket | ssl.SSLObject, _asked: str | None, _context: ssl.SSLContext) -> None:
        # Whoever came by CONNECT has said whom it wants, whatever it says here.
        if isinstance(connection, TLSConnection):
            connection.server_name = name

    context.sni_callback = named
    try:
        with _file(pair) as file:
            context.load_cert_chain(file)
    except ssl.SSLError as error:
        raise TLSError(f"the certificate for {name} cannot be used: {reason_of(error)}") from error
    latest = Latest(ssl.PROTOCOL_TLS_SERVER)
    latest.made = context
    return latest


@contextmanager
def _file(pair: Pair) -> Iterator[str]:
    """A file with the pair in it, which ssl can only read from one: in memory, where the system has such."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("certificate", os.MFD_CLOEXEC), "wb", buffering=0) as file:
            file.write(pair.certificate + pair.key)
            yield f"/proc/self/fd/{file.fileno()}"
        return
    # Its mode is 0600.
    with tempfile.NamedTemporaryFile() as kept:
        kept.write(pair.certificate + pair.key)
        kept.flush()
        yield kept.name
