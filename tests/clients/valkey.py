"""The server that replicas share their metadata in: Debian's redis-server, and all that can happen to it."""

import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from tests.clients.process import Daemon, free_port

_BALLAST = "ballast"

Reply = str | int | None | list["Reply"]


class Refused(Exception):
    """The server has answered with an error."""


class ValkeyServer:
    """A server without persistence, on a port that it keeps: what is started again is empty."""

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
    ) -> None:
        """`options` are the server's own: `{"maxmemory": "1mb"}`. `within` is a command that runs it elsewhere."""
        self.host = host
        self.port = free_port()
        self._directory = directory
        self._options = dict(options or {})
        self._within = list(within)
        self._daemon: Daemon | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.start()

    def url(self, prefix: str) -> str:
        """The setting for replicas that share what has this prefix."""
        return f"redis://{self.host}:{self.port}/0?prefix={prefix}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {
            "port": str(self.port), "bind": self.host, "dir": str(self._directory), "save": "", "appendonly": "no",
            "protected-mode": "no",
        }  # fmt: skip
        words = [word for name, value in (settings | self._options).items() for word in (f"--{name}", value)]
        daemon = Daemon([*self._within, "redis-server", *words], self._directory / "log")
        daemon.wait_until(self.answers)
        self._daemon = daemon

    def stop(self) -> None:
        """SIGTERM; it is well where it does not run."""
        if self._daemon is not None:
            self._daemon.signal(signal.SIGCONT)
            self._daemon.stop()
            self._daemon = None

    def kill(self) -> None:
        """SIGKILL."""
        if self._daemon is not None:
            self._daemon.signal(signal.SIGKILL)
            self.stop()

    def restart(self) -> None:
        """End it and start it at once, empty."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Connections are taken, by the system, and nothing is said; until `thaw`."""
        assert self._daemon is not None
        self._daemon.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._daemon is not None
        self._daemon.signal(signal.SIGCONT)

    def flush(self) -> None:
        """Everything in it is gone."""
        assert self.command("FLUSHALL") == "OK"

    def fill_up(self) -> None:
        """It has no room for anything more, and drops nothing, until `make_room`."""
        assert self.command("CONFIG", "SET", "maxmemory-policy", "noeviction") == "OK"
        assert self.command("SETRANGE", _BALLAST, "4000000", "x") == 4000001
        assert self.command("CONFIG", "SET", "maxmemory", "1mb") == "OK"

    def make_room(self) -> None:
        """It has room again."""
        assert self.command("CONFIG", "SET", "maxmemory", "0") == "OK"
        self.command("DEL", _BALLAST)

    def answers(self) -> bool:
        """Does it answer now?"""
        try:
            return self.command("PING") == "PONG"
        except (OSError, Refused):
            return False

    def command(self, *words: str) -> Reply:
        """What it answers, on a connection of its own. Raises Refused, or OSError."""
        with socket.create_connection((self.host, self.port), timeout=5) as connection:
            encoded = [word.encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in encoded))
            with connection.makefile("rb") as answer:
                return _reply(answer)


def _reply(answer: BinaryIO) -> Reply:
    """One reply: https://redis.io/docs/latest/develop/reference/protocol-spec/."""
    line = answer.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("no reply")
    kind, rest = line[:1], line[1:-2].decode(errors="surrogateescape")
    match kind:
        case b"-":
            raise Refused(rest)
        case b":":
            return int(rest)
        case b"$":
            return None if rest == "-1" else answer.read(int(rest) + 2)[:-2].decode(errors="surrogateescape")
        case b"*":
            return [_reply(answer) for _ in range(int(rest))]
        case _:
            return rest
