"""Samples of what is measured side by side, and figures that stand beside a bar."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.client import Result
from benchmarks.programs import Bench, NotInstalled

_COLUMNS = f"{'':54}{'here':>10}{'direct':>10}  {'others':24}bar"
HERE = "pullthrough"


@dataclass(frozen=True)
class Metric:
    """How a measured value is told: its name with its unit, and what it is multiplied with for that."""

    title: str
    factor: float = 1
    digits: int = 3


METRICS = {
    "rate": Metric("requests/s", 1, 0),
    "speed": Metric("GB/s", 1e-9),
    "seconds": Metric("seconds", 1, 2),
    "cpu": Metric("CPU µs/request", 1e6, 1),
    "cpu_gb": Metric("CPU s/GB"),
    "cpu_seconds": Metric("CPU s", 1, 2),
    "share": Metric("CPU %", 100, 2),
    "p50": Metric("p50 ms", 1e3, 2),
    "p99": Metric("p99 ms", 1e3, 2),
    "worst": Metric("worst ms", 1e3, 1),
    "lag": Metric("loop lag ms", 1e3, 1),
    "upstream_bytes": Metric("upstream bytes ×", 1, 3),
    "upstream_requests": Metric("upstream requests", 1, 0),
    "upstream_pulls": Metric("upstream pulls", 1, 0),
    "hits": Metric("hit ratio %", 100, 2),
    "failed": Metric("failed", 1, 0),
    "memory": Metric("memory MB", 1e-6, 0),
    "metadata_cpu_seconds": Metric("metadata server's CPU s", 1, 2),
    "metadata_commands": Metric("its commands", 1, 0),
    "metadata_memory": Metric("its memory MB", 1e-6, 1),
}


@dataclass(frozen=True)
class Sample:
    """One run of one side. `values` by the names of METRICS: seconds, bytes, counts."""

    case: str
    side: str
    values: dict[str, float]


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
    """A scenario by name: what it asks, in one line, and how it is measured."""

    title: str
    measure: Callable[[Bench], Iterator[Sample | Figure]]


@dataclass(frozen=True)
class Outcome:
    """What came of a scenario."""

    name: str
    title: str
    samples: list[Sample]
    figures: list[Figure]


@dataclass(frozen=True)
class Row:
    """The median, the least and the most of each metric over the runs of one side."""

    case: str
    side: str
    runs: int
    values: dict[str, tuple[float, float, float]]


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


def values_of(samples: Sequence[Sample], case: str, side: str, metric: str) -> list[float]:
    """In the order of the runs."""
    return [one.values[metric] for one in samples if (one.case, one.side) == (case, side) and metric in one.values]


def ratio(here: Sequence[float], there: Sequence[float]) -> float | None:
    """The median of the runs' ratios: a machine that is slow for a while is slow for both sides of a run."""
    pairs = [ours / theirs for ours, theirs in zip(here, there, strict=False) if theirs]
    return median(pairs) if pairs else None


def rows(samples: Sequence[Sample]) -> list[Row]:
    """One for each case and side, in the order of their first runs."""
    found: list[Row] = []
    for case, side in dict.fromkeys((one.case, one.side) for one in samples):
        names = [name for name in METRICS if values_of(samples, case, side, name)]
        of = {name: values_of(samples, case, side, name) for name in names}
        values = {name: (median(all_), min(all_), max(all_)) for name, all_ in of.items()}
        found.append(Row(case, side, max(map(len, of.values()), default=0), values))
    return found


def told(metric: str, value: float) -> str:
    """A measured value, in the unit of its title."""
    return f"{value * METRICS[metric].factor:,.{METRICS[metric].digits}f}"


def table(samples: Sequence[Sample]) -> list[list[str]]:
    """Medians with their spread, the heading first."""
    found = rows(samples)
    metrics = [name for name in METRICS if any(name in row.values for row in found)]
    lines = [["case", "side", *(METRICS[name].title for name in metrics)]]
    for row in found:
        cells = [row.values.get(name) for name in metrics]
        lines.append([row.case, row.side, *(_cell(name, cell) for name, cell in zip(metrics, cells, strict=True))])
    return lines


def run(name: str, scenario: Scenario, source: Path, turns: int) -> Outcome:
    """Measure and print one scenario."""
    print(f"\n{name}: {scenario.title}", flush=True)
    outcome = Outcome(name, scenario.title, [], [])
    with Bench(source, turns) as bench:
        for one in _measured(scenario, bench):
            if isinstance(one, Sample):
                outcome.samples.append(one)
            else:
                if not outcome.figures:
                    _print_table(outcome.samples)
                    print(_COLUMNS)
                print(one, flush=True)
                outcome.figures.append(one)
    if not outcome.figures:
        _print_table(outcome.samples)
    return outcome


def _measured(scenario: Scenario, bench: Bench) -> Iterator[Sample | Figure]:
    """What it measures; a figure that fails at the end of a scenario that could not go on."""
    try:
        yield from scenario.measure(bench)
    except NotInstalled as error:
        print(f"  {error}")
    except Exception as error:  # noqa: BLE001 - the other scenarios are wanted all the same
        print(f"  {type(error).__name__}: {error}")
        yield Figure("came to its end", None, at_least(1))


def _print_table(samples: Sequence[Sample]) -> None:
    lines = table(samples) if samples else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for case, side, *cells in lines:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[2:], strict=True))
        print("  " + "  ".join([f"{case:<{widths[0]}}", f"{side:<{widths[1]}}", *padded]).rstrip())


def _cell(metric: str, cell: tuple[float, float, float] | None) -> str:
    if cell is None:
        return ""
    middle, least, most = (told(metric, value) for value in cell)
    return middle if least == most else f"{middle} [{least}–{most}]"


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
