"""The upstreams that are configured, while the configuration changes.

Invariants:
- The mapping is the same object for the program's whole life; whoever holds it sees every change of its content.
- An upstream that was replaced or removed serves those who have it to their end, and then has no connection open.
- A removed one can still be asked for: a request may have been routed to it just before.
"""

from collections.abc import Iterator, Mapping

from proxy.upstream.client import Upstream


class Upstreams(Mapping[str, Upstream]):
    """The upstreams by registry."""

    def __init__(self) -> None:
        self._current: dict[str, Upstream] = {}
        self._retired: list[Upstream] = []

    def __getitem__(self, registry: str) -> Upstream:
        return self._current[registry]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def replace(self, started: Mapping[str, Upstream]) -> set[str]:
        """Let `started` count from now on; gives the registries whose upstream is another one now.

        Where one is like the one before it, that stays, with its connections and tokens.
        """
        changed = set()
        for registry, upstream in started.items():
            old = self._current.get(registry)
            if old is not None and not old.pools.retired and upstream.is_like(old):
                continue
            self._current[registry] = upstream
            changed.add(registry)
            if old is not None:
                self._retire(old)
        for registry in self._current.keys() - started.keys():
            self._retire(self._current[registry])
        return changed

    async def close_retired(self) -> None:
        """End the connections of retired upstreams on which nothing runs; the last request ends those of the others."""
        for upstream in self._retired:
            await upstream.pools.close_if_over()
        self._retired = [upstream for upstream in self._retired if not upstream.pools.idle]

    async def close(self) -> None:
        """End all connections."""
        for upstream in [*self._current.values(), *self._retired]:
            await upstream.close()

    def _retire(self, upstream: Upstream) -> None:
        if not upstream.pools.retired:
            upstream.pools.retired = True
            self._retired.append(upstream)
