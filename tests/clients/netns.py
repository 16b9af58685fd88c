"""A network of its own for a server, so that a firewall can cut it off: packets vanish, and nobody is told."""

import contextlib
import itertools
import os
from types import TracebackType
from typing import Self

from tests.clients.process import run

# Of 198.18.0.0/15, which is for tests of networks (RFC 2544): each namespace has four addresses of it.
_BLOCKS = itertools.count(os.getpid() % 16_000)


class Namespace:
    """A network namespace, joined to ours by a pair of interfaces; to be entered, and gone when it is left."""

    def __init__(self, start: str = "") -> None:
        """`start`: the first two numbers of its addresses, where they are to be others."""
        block = next(_BLOCKS) % 16_000
        # An interface's name holds 15 characters.
        self.name = f"pt{os.getpid()}n{block}"[-15:]
        self._ours, self._theirs = f"pta{block}", f"ptb{block}"
        start = f"{start or f'198.{18 + block // 8192}'}.{block % 8192 // 32 % 256}"
        last = block % 32 * 4
        self.host, self.address = f"{start}.{last + 1}", f"{start}.{last + 2}"
        # What runs a program inside; it becomes that program.
        # Not `ip netns exec`, which hides what is mounted below /sys.
        self.within = ("nsenter", f"--net=/run/netns/{self.name}")

    def __enter__(self) -> Self:
        try:
            run("ip", "netns", "add", self.name)
            run("ip", "link", "add", self._ours, "type", "veth", "peer", "name", self._theirs, "netns", self.name)
            run("ip", "address", "add", f"{self.host}/30", "dev", self._ours)
            run("ip", "link", "set", self._ours, "up")
            self._inside("ip", "address", "add", f"{self.address}/30", "dev", self._theirs)
            self._inside("ip", "link", "set", self._theirs, "up")
            self._inside("ip", "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def cut_off(self) -> None:
        """Drop whatever comes and goes, without a word to anybody, until `let_through`."""
        for chain in ("INPUT", "OUTPUT"):
            self._inside("iptables", "-A", chain, "-j", "DROP")

    def let_through(self) -> None:
        """Drop nothing any more."""
        self._inside("iptables", "-F")

    def _inside(self, *words: str) -> None:
        run(*self.within, *words)

    def _remove(self) -> None:
        # Whatever is not there, because it was never made, is no matter. The other interface goes with ours.
        for words in (("ip", "link", "delete", self._ours), ("ip", "netns", "delete", self.name)):
            with contextlib.suppress(AssertionError):
                run(*words)
