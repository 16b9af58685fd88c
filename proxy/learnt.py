"""What one worker learns of upstreams and the others should know: how they fail, and what is left of their limits."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from proxy.cache.circuits import Circuits
from proxy.policy.backoff import Circuit, Scope
from proxy.policy.budget import Budget, BudgetKey
from proxy.settings import Settings
from proxy.telemetry.events import Tell
from proxy.upstream.budgets import Budgets


@dataclass(frozen=True, slots=True)
class CircuitNews:
    """A circuit was opened, or (None) closed, at `at` (Unix seconds)."""

    scope: Scope
    circuit: Circuit | None
    at: float


@dataclass(frozen=True, slots=True)
class BudgetNews:
    """An upstream announced what is left."""

    key: BudgetKey
    budget: Budget


class Learnt:
    """The circuits and the budgets of one process; `spread` tells the others."""

    def __init__(
        self, settings: Settings, clock: Callable[[], float], tell: Tell, spread: Callable[[object], None]
    ) -> None:
        self.circuits = Circuits(clock)
        self.circuits.on_change = lambda scope, circuit, at: spread(CircuitNews(scope, circuit, at))
        self.budgets = Budgets(clock, tell, _reserves(settings), lambda key, budget: spread(BudgetNews(key, budget)))

    def heard(self, news: object) -> None:
        """Another worker has told this."""
        match news:
            case CircuitNews(scope, circuit, at):
                self.circuits.heard(scope, circuit, at)
            case BudgetNews(key, budget):
                self.budgets.heard(key, budget)

    def changed(self, settings: Settings, registries: Collection[str]) -> None:
        """`settings` count now, and `registries` have other upstreams."""
        self.circuits.forget(registries)
        self.budgets.forget(registries)
        self.budgets.reserves = _reserves(settings)


def _reserves(settings: Settings) -> dict[str, float]:
    """What of each registry's rate limit is kept for images that are not cached, 0 to 1."""
    return {registry: upstream.pull_reserve for registry, upstream in settings.upstreams.items()}
