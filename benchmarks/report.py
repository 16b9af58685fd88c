"""Figures, each beside its bar and beside what others do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Result
from benchmarks.programs import Bench, NotInstalled, NotStarted

_COLUMNS = f"{'':54}{'here':>10}{'direct':>10}  {'others':24}bar"


@dataclass(frozen=True)
class Bar:
    """What a figure has to be: at most, or at least, `limit`."""

    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True)
class Figure:
    """One figure: of this proxy, of a direct download, and of another program where there is one."""

    name: str
    value: float | None
    bar: Bar | None = None
    direct: float | None = None
    other: str = ""

    @property
    def passed(self) -> bool | None:
        """None where there is no bar; what could not be measured does not pass."""
        return None if self.bar is None else self.value is not None and self.bar.met(self.value)

    def __str__(self) -> str:
        outcome = "" if self.bar is None else f"{self.bar!s:10}{'pass' if self.passed else 'FAIL'}"
        return f"  {self.name:52}{_number(self.value):>10}{_number(self.direct):>10}  {self.other:24}{outcome}".rstrip()


@dataclass(frozen=True)
class Scenario:
    """A scenario by name: what it asks, and how its figures are measured."""

    title: str
    figures: Callable[[Bench], Iterator[Figure]]


def at_most(limit: float) -> Bar:
    return Bar(limit)


def at_least(limit: float) -> Bar:
    return Bar(limit, at_least=True)


def failures(results: list[Result]) -> int:
    """How many clients did not get every byte right."""
    return sum(not result.good for result in results)


def last(results: list[Result]) -> float:
    """Seconds until the last client was done."""
    return max(result.seconds for result in results)


def run(name: str, scenario: Scenario, source: Path) -> list[Figure]:
    """Measure and print one scenario."""
    print(f"{name}: {scenario.title}\n{_COLUMNS}", flush=True)
    figures = []
    with Bench(source) as bench:
        for figure in _measured(scenario, bench):
            print(figure, flush=True)
            figures.append(figure)
    return figures


def _measured(scenario: Scenario, bench: Bench) -> Iterator[Figure]:
    """The figures; one that fails at the end of a scenario that could not go on."""
    try:
        yield from scenario.figures(bench)
    except NotInstalled as error:
        print(f"  {error}")
    except NotStarted as error:
        print(f"  {error}")
        yield Figure("came to its end", None, at_least(1))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.0f}"
        if value == int(value) and abs(value) < 1e6
        else f"{value:.3g}"
        if value >= 100
        else f"{value:.3f}"
    )
