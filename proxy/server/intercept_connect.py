"""CONNECT: what a client that is told of an HTTPS proxy sends first, before it speaks TLS to whom it asked for.

Invariants:
- It is looked for in the first bytes of a connection only. What begins with anything else is an ordinary connection of
  the listener from its first byte on.
- A registry of this proxy is answered here: TLS by the listener's authority, and inside of that a connection like all
  others, with the same limits. Where the operator allows it, another server is tunnelled to; all else is 403.
- Nothing is sent to anybody before it is decided, and nobody may send more than the head before it is answered.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from proxy.oci.errors import OCIError, error_body
from proxy.policy.cluster import Client, client_address, select_cluster
from proxy.policy.intercept import Decision, Intercepted, NotAllowed, Tunnelled, decide, token_servers
from proxy.policy.registry import Registries
from proxy.server.exchange import CLIENT_LEFT
from proxy.server.gate import Gate
from proxy.server.intercept_entry import LAST_WORD, Beginnings, Entry, Make
from proxy.server.intercept_tls import Interception
from proxy.server.intercept_tunnel import NotTunnelled, Tunnel
from proxy.server.refusals import header_too_large
from proxy.settings import Address, Settings
from proxy.telemetry.events import RequestFinished, Tell

_log = logging.getLogger("pullthrough.server")

_BEGIN = b"CONNECT "
_END = b"\r\n\r\n"
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_REASONS = {
    400: "Bad Request", 403: "Forbidden", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
# How many names are looked up at a time.
_LOOK_UPS = 8
# Seconds for which a tunnel may carry nothing.
_IDLE = 600.0


class Connects:
    """CONNECT at one listener. `settings` and `registries` as they are at present."""

    def __init__(
        self,
        address: Address,
        interception: Interception,
        gate: Gate,
        tunnels: Sequence[str],
        settings: Callable[[], Settings],
        registries: Callable[[], Registries],
        tell: Tell,
    ) -> None:
        self.beginnings = Beginnings()
        # Of their own: those that open blobs are not to wait for a resolver that is slow.
        self.look_ups = ThreadPoolExecutor(_LOOK_UPS, thread_name_prefix="look-ups")
        self.interception = interception
        self._address = address
        self._gate = gate
        self._tunnels = tunnels
        self._settings = settings
        self._registries = registries
        self._tell = tell

    async def close(self) -> None:
        """End what has begun, and all tunnels."""
        await self.beginnings.close()
        self.look_ups.shutdown(wait=False, cancel_futures=True)

    def entry(self, make: Make) -> asyncio.Protocol:
        """What a connection begins with."""
        return ConnectEntry(self, self._gate, make)

    def decide(self, target: str, client: Client) -> tuple[Decision, str]:
        """What becomes of `CONNECT target`, and the client's cluster."""
        settings = self._settings()
        cluster = select_cluster(settings.clusters, client)
        if cluster is None:
            return NotAllowed("this client belongs to no cluster of this proxy"), ""
        tunnels = (*self._tunnels, *token_servers(settings.upstreams))
        return decide(target, self._registries().names, tunnels), cluster.name

    def client(self, transport: asyncio.Transport, target: str) -> Client:
        """Who asks: nobody can speak for it, so its address is that of its connection."""
        peer = transport.get_extra_info("peername")
        address = client_address(peer[0] if isinstance(peer, tuple) else "", "", ())
        return Client(address, target.lower(), self._address)

    def finished(
        self, client: Client, cluster: str, target: str, status: int, sent: int, began: float, answered: float
    ) -> None:
        """Tell of a CONNECT that was no registry's."""
        now = asyncio.get_running_loop().time()
        self._tell(
            RequestFinished(
                client=str(client.address or ""), cluster=cluster, registry="", kind="other", method="CONNECT",
                repository="", reference=target, status=status, cache="pass", detail="connect", bytes_sent=sent,
                first_byte_seconds=answered - began, seconds=now - began,
            )
        )  # fmt: skip


class ConnectEntry(Entry):
    """A connection until it is known whether it begins with CONNECT; a tunnel's for as long as that lasts."""

    def __init__(self, connects: Connects, gate: Gate, make: Make) -> None:
        super().__init__(gate, connects.beginnings, make)
        self._connects = connects
        self._timer: asyncio.TimerHandle | None = None
        self._head = b""
        self._decided = False
        # What its first request is to be answered with, where it may not stay.
        self._excess: OCIError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        try:
            self._excess = self.gate.enter(self, self.peer)
        except ConnectionError:
            self.transport.abort()
            return
        limit = self.gate.limits.header_timeout if self._excess is None else LAST_WORD
        self._timer = asyncio.get_running_loop().call_later(limit, self._late)

    def leave(self) -> None:
        """See `Entry`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().leave()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._decided:
            return
        self._head += data
        if self._excess is not None:
            self._refuse(self._excess)
            return
        if self._head[: len(_BEGIN)] != _BEGIN[: len(self._head)]:
            self._decided = True
            self.hand_over(self.transport, False, [self._head])
            return
        end, limits = self._head.find(_END), self.gate.limits
        too_long = len(self._head) > limits.max_header_size + limits.max_url_length
        if end < 0 and not too_long:
            return
        if too_long:
            self.gate.refusals.add("header-size", self.peer)
            self._refuse(header_too_large(limits.max_header_size))
            return
        line = self._head[:end].split(b"\r\n", 1)[0].decode(errors="replace").split(" ")
        if len(line) != 3 or line[2] not in {"HTTP/1.1", "HTTP/1.0"} or len(self._head) > end + len(_END):
            self.gate.refusals.add("malformed", self.peer)
            self._refuse(OCIError("UNSUPPORTED", "the request is not HTTP that this proxy takes", status=400))
            return
        self._decided = True
        self.transport.pause_reading()
        if self._timer is not None:
            self._timer.cancel()
        self.task = self.beginnings.begin(self._serve(line[1]))

    async def _serve(self, target: str) -> None:
        """Do what is decided about `CONNECT target`; nothing is left open where that fails."""
        transport = self.transport
        try:
            client = self._connects.client(transport, target)
            decision, cluster = self._connects.decide(target, client)
            if isinstance(decision, Intercepted):
                context = self._connects.interception.context(decision.name)
                if context is None:
                    raise OCIError("UNAVAILABLE", "there is no certificate for this registry at present")
                transport.write(_ESTABLISHED)
                await self.speak_tls(context)
            else:
                await self._tunnel(client, cluster, target, decision)
        except OCIError as error:
            self._refuse(error)
        except BaseException as error:
            transport.abort()
            self.leave()
            if not isinstance(error, Exception):
                raise
            _log.error("a connection from %s failed", self.peer, exc_info=error)

    async def _tunnel(self, client: Client, cluster: str, target: str, decision: Tunnelled | NotAllowed) -> None:
        loop = asyncio.get_running_loop()
        began = answered = loop.time()
        status, sent = CLIENT_LEFT, 0
        # What is no name of a server is not repeated.
        named = target.lower() if isinstance(decision, Tunnelled) else ""
        try:
            if isinstance(decision, NotAllowed):
                status = 403
                raise OCIError("DENIED", decision.message, status=status)
            self.gate.busy(self)
            tunnel = Tunnel(decision.host, decision.port, _IDLE, self._connects.look_ups)
            try:
                await tunnel.dial()
            except NotTunnelled as error:
                status = error.status
                raise OCIError("DENIED" if status == 403 else "UNAVAILABLE", str(error), status=status) from error
            status, answered = 200, loop.time()
            try:
                await tunnel.run(self.transport, _ESTABLISHED)
            finally:
                sent = tunnel.to_client
                self.leave()
        finally:
            self._connects.finished(client, cluster, named, status, sent, began, answered)

    def _refuse(self, error: OCIError) -> None:
        """Say why, and close."""
        self._decided = True
        transport = self.transport
        if transport.is_closing():
            self.leave()
            return
        body = error_body(error.code, error.message)
        lines = [
            f"HTTP/1.1 {error.status} {_REASONS.get(error.status, 'Error')}", "Content-Type: application/json",
            f"Content-Length: {len(body)}", "Connection: close",
            *(f"{name}: {value}" for name, value in error.headers.items()),
        ]  # fmt: skip
        transport.write("\r\n".join(lines).encode() + _END + body)
        transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        # Its client reads that, and closes.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LAST_WORD, transport.abort)

    def _late(self) -> None:
        self.gate.refusals.add("header-timeout", self.peer)
        self.transport.abort()
