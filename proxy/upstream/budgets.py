"""The rate limits of all upstreams, as they were announced last; `policy.budget` judges them.

Invariants:
- A limit belongs to a registry and to the credential that was sent. What a client's own says is neither shown as the
  proxy's nor held against it.
- Pulls that are under way count as made: a decision and its pull's beginning are one step, so that many at once take no
  more than one after the other.
- What another process has heard is taken in and not told on.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from proxy.policy.access import Principal
from proxy.policy.budget import Budget, BudgetKey, Wanted, allows, announced, limit_of, limit_of_pulls, reserved
from proxy.telemetry.events import RateLimitSeen, Tell, silent

_log = logging.getLogger("pullthrough.upstream")

# Each token of a client is a principal of its own.
_MOST_BUDGETS = 4096
# The same news is told to other processes again after so many seconds, or a tenth of its life where that is shorter.
_NEWS_INTERVAL = 60.0

OnChange = Callable[[BudgetKey, Budget], None]


def _nobody(_key: BudgetKey, _budget: Budget) -> None:
    """There are no other processes."""


class Budgets:
    """What is left of every limit. `reserves` by registry, 0 to 1 of the limit, may be replaced at any time.

    `on_change` is told what this process heard from an upstream, for others' `heard`.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        tell: Tell = silent,
        reserves: Mapping[str, float] | None = None,
        on_change: OnChange = _nobody,
    ) -> None:
        self.reserves = reserves or {}
        self._clock = clock
        self._tell = tell
        self._on_change = on_change
        self._budgets: dict[BudgetKey, Budget] = {}
        self._under_way: dict[BudgetKey, int] = {}
        self._told: dict[BudgetKey, Budget] = {}

    def read(self, registry: str, principal: Principal, headers: Mapping[str, str]) -> None:
        """The upstream answered a request that was sent as `principal` with `headers`."""
        budget = announced(headers, self._clock())
        if budget is None:
            return
        key = limit_of(registry, principal)
        self._say_reserved(key, budget)
        self._keep(key, budget)
        # What is left to nobody is not what a cluster lives on whose pulls go out with the proxy's credential.
        if key.kind != "client" and principal.pulls_as is None and self._shown(registry) == key:
            self._tell(RateLimitSeen(registry, budget.remaining, budget.limit))
        told = self._told.get(key)
        if told is None or _is_news(told, budget):
            self._told[key] = budget
            self._on_change(key, budget)

    def heard(self, key: BudgetKey, budget: Budget) -> None:
        """Another process has heard `budget` from the upstream."""
        key = BudgetKey(*key)
        known = self._budgets.get(key)
        if known is None or known.is_over(self._clock()) or known.seen <= budget.seen:
            self._keep(key, budget)

    def allows(self, registry: str, principal: Principal, wanted: Wanted) -> bool:
        """May a request of the kind `wanted` be sent for `principal`, with the pulls that are under way counted?"""
        key = limit_of_pulls(registry, principal)
        budget = self._budgets.get(key)
        if budget is not None:
            budget = replace(budget, remaining=max(0, budget.remaining - self._under_way.get(key, 0)))
        return allows(budget, self._clock(), self.reserves.get(registry, 0.0), wanted)

    @contextmanager
    def pull(self, registry: str, principal: Principal, wanted: Wanted) -> Iterator[Callable[[], None] | None]:
        """Around one GET of a manifest; None where it may not be sent.

        It counts as made until the upstream has answered, which is to be told by calling what is given: what it cost
        the answer's head has said by then. One without a limit was of an image that is not limited.
        """
        if not self.allows(registry, principal, wanted):
            yield None
            return
        key = limit_of_pulls(registry, principal)
        self._under_way[key] = self._under_way.get(key, 0) + 1
        waits = True

        def answered() -> None:
            nonlocal waits
            if waits:
                waits = False
                self._under_way[key] -= 1
                if not self._under_way[key]:
                    del self._under_way[key]

        try:
            yield answered
        finally:
            answered()

    def describe(self, registry: str) -> dict[str, object] | None:
        """What is left of the proxy's own limit, or nobody's where its own is not known; None where none is known.

        `remaining`, `limit` and `reserve` in pulls, `window` in seconds, `seen` as RFC 3339 has it. `limit` and
        `window` are None where the upstream does not say.
        """
        key = self._shown(registry)
        if key is None:
            return None
        budget = self._budgets[key]
        return {
            "remaining": budget.remaining,
            "limit": budget.limit,
            "window": budget.window,
            "seen": datetime.fromtimestamp(budget.seen, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "reserve": reserved(budget, self.reserves.get(registry, 0.0)),
        }

    def forget(self, registries: Collection[str]) -> None:
        """Other upstreams serve `registries` now: what those before them announced says nothing."""
        self._budgets = {key: budget for key, budget in self._budgets.items() if key.registry not in registries}
        self._told = {key: budget for key, budget in self._told.items() if key in self._budgets}

    def _shown(self, registry: str) -> BudgetKey | None:
        """Whose limit is the proxy's at `registry`: the credential's before nobody's, of several the one seen last."""
        now = self._clock()
        living = [
            (key.kind == "own", budget.seen, key)
            for key, budget in self._budgets.items()
            if key.registry == registry and key.kind != "client" and not budget.is_over(now)
        ]
        return max(living)[2] if living else None

    def _keep(self, key: BudgetKey, budget: Budget) -> None:
        self._budgets[key] = budget
        if len(self._budgets) > _MOST_BUDGETS:
            self._budgets = _most_of(self._budgets, self._clock())
            self._told = {kept: told for kept, told in self._told.items() if kept in self._budgets}

    def _say_reserved(self, key: BudgetKey, budget: Budget) -> None:
        """Tell operators when what is left has come down to the reserve."""
        reserve, before, now = self.reserves.get(key.registry, 0.0), self._budgets.get(key), self._clock()
        if key.kind == "client" or allows(budget, now, reserve, "cached") or not allows(before, now, reserve, "cached"):
            return
        _log.warning(
            "%s: %d pulls are left of %s (%s): they are kept for images that are not cached",
            key.registry, budget.remaining, budget.limit or "an unknown limit", budget.source or key.kind,
        )  # fmt: skip


def _is_news(told: Budget, budget: Budget) -> bool:
    return replace(told, seen=budget.seen) != budget or (
        abs(budget.seen - told.seen) >= min(_NEWS_INTERVAL, budget.life / 10)
    )


def _most_of(budgets: dict[BudgetKey, Budget], now: float) -> dict[BudgetKey, Budget]:
    """Without those that are over, and half as many at most; clients' that were seen long ago go first."""
    living = [item for item in budgets.items() if not item[1].is_over(now)]
    living.sort(key=lambda item: (item[0].kind != "client", item[1].seen))
    return dict(living[-_MOST_BUDGETS // 2 :])
