"""What was measured as a page of Markdown, with plots beside it (matplotlib)."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.peers import versions
from benchmarks.report import HERE, METRICS, Outcome, Row, rows, table

mpl.use("svg")
# The same SVG for the same figures.
mpl.rcParams["svg.hashsalt"] = "pullthrough"
# Letters as letters: as drawings they would be most of a file.
mpl.rcParams["svg.fonttype"] = "none"

# What is drawn, where a scenario has it.
_DRAWN = (
    "rate", "speed", "seconds", "cpu", "cpu_gb", "cpu_seconds", "share", "p50", "p99", "upstream_bytes",
    "upstream_requests", "hits", "memory",
)  # fmt: skip
_HERE = "#0b6e4f"
_OTHERS = ("#8d99ae", "#b08968", "#6d6875", "#a5a58d", "#457b9d", "#c9ada7")


def write_report(outcomes: Sequence[Outcome], source: Path, folder: Path) -> None:
    """Write `report.md` and its plots into `folder`; `source` is the checkout that was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Load report", "", _machine(source), ""]
    for outcome in outcomes:
        lines += [f"## {outcome.name}: {outcome.title}", ""]
        if outcome.samples:
            _draw(outcome, folder / f"{outcome.name}.svg")
            lines += [f"![What was measured of {outcome.name}]({outcome.name}.svg)", ""]
        lines += [*_tables(outcome), *_figures(outcome)]
    (folder / "report.md").write_text("\n".join(lines))


def _machine(source: Path) -> str:
    commit, changes = _said("git", "rev-parse", "--short", "HEAD", cwd=source), _said("git", "diff", "HEAD", cwd=source)
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}{' and more' if changes else ''}, Python "
        f"{platform.python_version()}, Linux {platform.release()}, {model}, {os.cpu_count()} processors. "
        f"Beside it: {', '.join(versions()) or 'nobody'}.\n\n"
        "Medians, with the least and the most of all runs in brackets. Compare within one table only: another run, or "
        "another machine, may be several times as fast."
    )


def _said(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False).stdout.strip()


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def _tables(outcome: Outcome) -> list[str]:
    """One for each case: what can be compared."""
    lines: list[str] = []
    for case in dict.fromkeys(one.case for one in outcome.samples):
        heading, *cells = table([one for one in outcome.samples if one.case == case])
        lines += [f"**{case}**", "", _line(heading[1:]), _line(["---", *("--:" for _ in heading[2:])])]
        lines += [*(_line(row[1:]) for row in cells), ""]
    return lines


def _figures(outcome: Outcome) -> list[str]:
    if not outcome.figures:
        return []
    lines = [_line(["Figure", "Here", "Bar", ""]), _line(["---", "--:", "--:", "---"])]
    for one in outcome.figures:
        value = "not measured" if one.value is None else f"{one.value:,.3f}".rstrip("0").rstrip(".")
        passed = "" if one.bar is None else "met" if one.passed else "**not met**"
        lines.append(_line([one.name, value, "" if one.bar is None else str(one.bar), passed]))
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(outcome: Outcome, file: Path) -> None:
    """A panel for each metric; in it a bar for each case and side, from the least to the most that was measured."""
    found = rows(outcome.samples)
    metrics = [metric for metric in _DRAWN if any(metric in row.values for row in found)]
    canvas = Canvas(figsize=(3.2 + 1.9 * len(metrics), 0.9 + 0.24 * len(found)), layout="constrained")
    panels = canvas.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_panel(panel, metric, found)
    panels[0].set_yticks(range(len(found)), [f"{row.case} · {row.side}" for row in found], fontsize=7)
    panels[0].invert_yaxis()
    canvas.savefig(file, metadata={"Date": None})


def _draw_panel(panel: Axes, metric: str, found: Sequence[Row]) -> None:
    factor = METRICS[metric].factor
    sides = list(dict.fromkeys(row.side for row in found if not row.side.startswith(HERE)))
    for place, row in enumerate(found):
        if metric in row.values:
            middle, least, most = (value * factor for value in row.values[metric])
            spread = [[middle - least], [most - middle]]
            panel.barh(place, middle, xerr=spread, color=_colour(row, sides), ecolor="#333333")
    panel.set_title(METRICS[metric].title, fontsize=8)
    panel.tick_params(axis="x", labelsize=6)
    if _spread(found, metric) > 100:
        panel.set_xscale("log")


def _spread(found: Sequence[Row], metric: str) -> float:
    middles = [row.values[metric][0] for row in found if metric in row.values and row.values[metric][0] > 0]
    return max(middles) / min(middles) if middles else 1.0


def _colour(row: Row, sides: Sequence[str]) -> str:
    return _OTHERS[sides.index(row.side) % len(_OTHERS)] if row.side in sides else _HERE
