"""`python -m benchmarks [SCENARIO…]`: the proxy side by side with others. `load`, `fill` and `all` are groups.

Figures with a bar pass or fail; the exit code is 1 when one fails.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.fill import breaks, containerd, resources, transfers
from benchmarks.load import days, pulls, region, start, warm
from benchmarks.programs import ROOT
from benchmarks.report import Outcome, Scenario, run

_FILL = transfers.SCENARIOS | breaks.SCENARIOS | resources.SCENARIOS | containerd.SCENARIOS
_LOAD = {**warm.SCENARIOS, **pulls.SCENARIOS, **days.SCENARIOS, **start.SCENARIOS}
_GROUPS = {"load": list(_LOAD), "fill": list(_FILL), "all": [*_LOAD, *_FILL]}
# What takes a machine of its own for a while.
_ALONE = {**region.SCENARIOS}


def main() -> None:
    """Run what is asked for, print, and write JSON where that is wanted."""
    known: dict[str, Scenario] = _LOAD | _FILL | _ALONE
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", metavar="SCENARIO", nargs="*", help=", ".join([*_GROUPS, *known]))
    parser.add_argument("--proxy-dir", type=Path, default=ROOT, help="the checkout whose proxy is measured")
    parser.add_argument("--turns", type=int, default=5, help="how often what is compared runs (5)")
    parser.add_argument("--report", type=Path, help="a folder for a report in Markdown with plots, and its data")
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    arguments = parser.parse_args()
    names = [name for word in arguments.names or ["load"] for name in _GROUPS.get(word, [word])]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    outcomes = [run(name, known[name], arguments.proxy_dir.resolve(), arguments.turns) for name in names]
    if arguments.report:
        # Here, since whoever wants no report needs no library for its plots.
        from benchmarks.plots import write_report

        write_report(outcomes, arguments.proxy_dir.resolve(), arguments.report)
        print(f"the report is {arguments.report / 'report.md'}")
    for file in [arguments.json, arguments.report and arguments.report / "report.json"]:
        if file:
            file.write_text(json.dumps([_plain(outcome) for outcome in outcomes]))
    barred = [figure for outcome in outcomes for figure in outcome.figures if figure.bar]
    failed = sum(not figure.passed for figure in barred)
    if barred:
        print(f"{len(barred) - failed} of {len(barred)} bars met")
    raise SystemExit(1 if failed else 0)


def _plain(outcome: Outcome) -> dict[str, object]:
    figures = [
        asdict(one) | {"bar": None if one.bar is None else str(one.bar), "passed": one.passed}
        for one in outcome.figures
    ]
    return asdict(outcome) | {"figures": figures}


if __name__ == "__main__":
    main()
