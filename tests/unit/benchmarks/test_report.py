"""What a load report makes of its samples."""

from pathlib import Path

import pytest

from benchmarks.load.days import least_recently_used
from benchmarks.nodes import share_of
from benchmarks.plots import write_report
from benchmarks.report import Figure, Outcome, Sample, at_least, at_most, ratio, rows, table, values_of


def test_rows_are_medians_with_their_spread() -> None:
    """One for each case and side, in the order of their first runs."""
    samples = [Sample("warm", "a", {"rate": rate}) for rate in (3.0, 1.0, 2.0)] + [Sample("warm", "b", {"rate": 5.0})]
    first, second = rows(samples)
    assert (first.side, first.runs, first.values["rate"]) == ("a", 3, (2.0, 1.0, 3.0))
    assert (second.side, second.values["rate"]) == ("b", (5.0, 5.0, 5.0))
    assert table(samples) == [["case", "side", "requests/s"], ["warm", "a", "2 [1–3]"], ["warm", "b", "5"]]


def test_values_have_the_unit_of_their_title() -> None:
    """Seconds become milliseconds where that is what the column says."""
    (heading, line) = table([Sample("warm", "a", {"p99": 0.01234, "cpu": 0.0000155})])
    assert heading[2:] == ["CPU µs/request", "p99 ms"]
    assert line[2:] == ["15.5", "12.34"]


def test_ratios_are_of_runs_beside_each_other() -> None:
    """A machine that is slow for a while is slow for both sides of a run."""
    assert ratio([1.0, 10.0, 3.0], [2.0, 20.0, 3.0]) == 0.5
    assert ratio([], [1.0]) is None
    assert values_of([Sample("a", "x", {"cpu": 1}), Sample("b", "x", {"cpu": 2})], "b", "x", "cpu") == [2]


@pytest.mark.parametrize(
    ("figure", "passed"),
    [
        (Figure("a", 1.0, at_most(1)), True),
        (Figure("a", 1.1, at_most(1)), False),
        (Figure("a", 1.0, at_least(1)), True),
        (Figure("a", None, at_least(1)), False),
        (Figure("a", 1.0), None),
    ],
)
def test_what_could_not_be_measured_does_not_pass(figure: Figure, passed: bool | None) -> None:
    """A bar is met by a figure only."""
    assert figure.passed is passed


def test_the_offline_cache_drops_what_was_used_least_recently() -> None:
    """Sizes count, and a use makes a blob the youngest."""
    a, b, c = ("a", 4), ("b", 4), ("c", 4)
    assert least_recently_used([a, b, a, c, a], 8) == 2 / 5
    assert least_recently_used([a, b, a, c, b], 8) == 1 / 5
    assert least_recently_used([a, a, a, a], 3) == 0


def test_shares_of_few_values() -> None:
    """The most of them is the whole share, and of none it is nothing."""
    assert [share_of([3, 1, 2], share) for share in (0.0, 0.5, 1.0)] == [1, 2, 3]
    assert share_of([], 0.99) == 0


def test_a_report_has_tables_plots_and_bars(tmp_path: Path) -> None:
    """One page, and a plot for each scenario."""
    samples = [Sample("by tag", side, {"cpu": 1e-5 * n, "p99": 1e-3}) for n, side in enumerate(("pullthrough", "b"), 1)]
    figures = [Figure("CPU of b / here", 2.0, at_least(10)), Figure("failed", 0.0, at_most(0))]
    write_report([Outcome("manifests", "what does it cost?", samples, figures)], tmp_path, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "## manifests: what does it cost?" in page
    assert "| pullthrough | 10.0 | 1.00 |" in page
    assert "| CPU of b / here | 2 | ≥ 10 | **not met** |" in page
    assert "| failed | 0 | ≤ 0 | met |" in page
    assert "(manifests.svg)" in page
    assert "<svg" in (tmp_path / "manifests.svg").read_text()
