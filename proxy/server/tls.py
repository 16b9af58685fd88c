"""TLS on listeners: certificates that follow their files, and what a client's certificate says.

Invariants:
- A context is made whole, of certificate, key and client CAs, and never changed afterwards. A connection keeps the one
  it began with; the next connection gets the one that was made last.
- A context that works is never given up for files that do not.
- Sessions of a former context are worth nothing, and those who are asked for a certificate can resume none: a client CA
  that was taken away counts from the next connection on, whoever was here before.
- Files are looked at by one task, which `start` makes and `close` ends, and at SIGHUP; one look at a time.
"""

import asyncio
import hashlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from proxy.settings import Address, TLSSettings

_log = logging.getLogger("pullthrough.server")

# Seconds. Kubernetes brings a changed secret within a minute or so; nobody waits for less than this.
_LOOK_EVERY = 5.0
# Seconds for a handshake, and for a client to say goodbye too; who takes longer is not waited for.
HANDSHAKE_TIMEOUT = 10.0
SHUTDOWN_TIMEOUT = 10.0

_ALPN = ["http/1.1"]


class TLSError(Exception):
    """The files cannot be used. The message is one line for operators."""


class TLSConnection(ssl.SSLObject):
    """A client's TLS connection. `server_name` is the one it asked for (SNI); empty without."""

    server_name = ""
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    _failed = False

    def do_handshake(self) -> None:
        """See ssl; says at level debug why one failed: it is the client's mistake, or a scanner's.

        asyncio would close the connection without having sent the alert, and clients that lack a certificate would be
        told of an EOF. So the failure looks like a handshake that waits, until the client or its time limit ends it.
        """
        if self._failed:
            self.incoming.read()
            raise ssl.SSLWantReadError
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            _log.debug("a TLS handshake failed: %s", reason_of(error))
            if not self.outgoing.pending:
                raise
            self._failed = True
            raise ssl.SSLWantReadError from error


class Latest(ssl.SSLContext):
    """What asyncio's server is given, and asks for each connection: the context that was made last."""

    made: ssl.SSLContext

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *arguments: Any, **options: Any
    ) -> ssl.SSLObject:
        """A connection by the context that was made last; it stays with that."""
        connection = self.made.wrap_bio(incoming, outgoing, *arguments, **options)
        if isinstance(connection, TLSConnection):
            connection.incoming, connection.outgoing = incoming, outgoing
        return connection


class ListenerTLS:
    """The TLS of one listener. `context` is for asyncio's server, once this has started."""

    def __init__(self, address: Address, settings: TLSSettings) -> None:
        self.context = Latest(ssl.PROTOCOL_TLS_SERVER)
        self._address = address
        self._settings = settings
        # What the files held: when the context was made, when they last were no good, when that was last told.
        self._used: tuple[str, ...] = ()
        self._refused: tuple[str, ...] = ()
        self._told: tuple[str, ...] = ()
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the files, and look at them from now on. Raises TLSError."""
        self._used, self.context.made = await asyncio.to_thread(self._read)
        self._task = asyncio.create_task(look_on(self.look, self._address), name=f"certificates of {self._address}")

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self, asked: bool = False) -> None:
        """Take what the files hold now, if that has changed. `asked`: an operator waits, so all is told at once.

        Otherwise files that are no good are told of when they still are at the next look: certificate and key are
        written one after the other.
        """
        async with self._looking:
            found = await asyncio.to_thread(_contents, self._settings)
            if found == self._used:
                self._refused = self._told = ()
                return
            if found == self._told and not asked:
                return
            try:
                self._used, self.context.made = await asyncio.to_thread(self._read)
            except TLSError as error:
                if asked or found == self._refused:
                    self._told = found
                    _log.error("%s goes on with the certificate it has: %s", self._address, error)
                self._refused = found
                return
            self._refused = self._told = ()
            _log.info("%s has read its certificate again", self._address)

    def _read(self) -> tuple[tuple[str, ...], ssl.SSLContext]:
        """What the files hold, and a context made of them or of what came after: the next look sees that. Blocks."""
        return _contents(self._settings), server_context(self._settings)


async def look_on(look: Callable[[], Awaitable[None]], address: Address) -> None:
    """Look at a listener's certificates every few seconds, until cancelled."""
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        try:
            await look()
        except Exception as error:  # noqa: BLE001 - no thread or descriptor left: the next look may have one
            _log.error("the certificates of %s could not be looked at: %s", address, error)


def server_context(settings: TLSSettings) -> ssl.SSLContext:
    """A context for a server: TLS 1.2 or later, 1.3 where clients are asked for certificates; HTTP/1.1.

    Blocks. Raises TLSError.
    """
    context = bare_context()
    context.sni_callback = _keep_server_name
    _load_pair(context, settings)
    if settings.client_ca is not None:
        _load_client_ca(context, settings.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL if settings.client_auth == "optional" else ssl.CERT_REQUIRED
        # What stands in the file is trusted, an intermediate authority without its root too, as Go's programs do it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # A resumed session is not verified again, however its certificate or the authorities have fared since. TLS 1.2
        # resumes by ID too, which Python's ssl cannot turn off; TLS 1.3 by tickets alone.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def bare_context() -> ssl.SSLContext:
    """A context for a server, without a certificate: TLS 1.2 or later, HTTP/1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that negotiates anew again and again costs far more than it pays.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_ALPN)
    context.sslobject_class = TLSConnection
    return context


def certificate_names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """The names in a client's verified certificate (as ssl gives it): DNS names and URIs (SPIFFE) of its SAN.

    The subject's common name counts only where the SAN has neither, as RFC 6125, section 6.4.4 has it: authorities
    that are limited to some names (name constraints) are not limited in the common name of such certificates. What
    looks like a URI counts only as one, and the other way round, so that no kind of name can pass for another.
    """
    alternatives = [entry for entry in (certificate or {}).get("subjectAltName", ()) if entry[0] in {"DNS", "URI"}]
    if alternatives:
        return frozenset(name for kind, name in alternatives if ("://" in name) == (kind == "URI"))
    subject = (certificate or {}).get("subject", ())
    common = [value for part in subject for key, value in part if key == "commonName" and "://" not in value]
    return frozenset(common) if len(common) == 1 else frozenset()


def check_files(settings: TLSSettings) -> None:
    """Raise OSError where a file cannot be read here, and TLSError where they can but are no good. Blocks."""
    for file in _files(settings):
        file.read_bytes()
    server_context(settings)


def _keep_server_name(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
    if isinstance(connection, TLSConnection):
        connection.server_name = (name or "").lower()


def _load_pair(context: ssl.SSLContext, settings: TLSSettings) -> None:
    certificate, key = settings.certificate, settings.key
    try:
        # OpenSSL would say of neither which one is missing.
        for file in (certificate, key):
            file.open("rb").close()
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TLSError(f"{certificate} and {key} do not belong together") from error
        raise TLSError(_which(certificate, key, error)) from error
    except OSError as error:
        raise TLSError(f"{error.filename or certificate}: {error.strerror}") from error


def _which(certificate: Path, key: Path, error: ssl.SSLError) -> str:
    """Which of the two files is no good; OpenSSL does not tell."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate)
    except (OSError, ValueError):
        return f"{certificate} is no certificate (PEM)"
    if error.reason in {None, "PEM_LIB"}:
        return f"{key} is no private key (PEM)"
    return f"{certificate} and {key} cannot be used: {reason_of(error)}"


def _no_password() -> str:
    # OpenSSL would ask for it at the terminal.
    raise TLSError("the private key is encrypted; a key without a password is needed")


def _load_client_ca(context: ssl.SSLContext, file: Path) -> None:
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise TLSError(f"{file} has no certificates (PEM) of authorities") from error
    except OSError as error:
        raise TLSError(f"{file}: {error.strerror}") from error


def reason_of(error: ssl.SSLError) -> str:
    """In a few words."""
    return (error.reason or str(error)).lower().replace("_", " ")


def _files(settings: TLSSettings) -> list[Path]:
    return [file for file in (settings.certificate, settings.key, settings.client_ca) if file is not None]


def _contents(settings: TLSSettings) -> tuple[str, ...]:
    return contents_of(_files(settings))


def contents_of(files: Iterable[Path]) -> tuple[str, ...]:
    """What each file holds, as a hash, or why it cannot be read. Blocks."""
    return tuple(_content(file) for file in files)


def _content(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        return f"{error.strerror}"
