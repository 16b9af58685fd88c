"""`python -m benchmarks [cold|warm|all]`, `python -m benchmarks fill [SCENARIO…]`: the proxy beside a direct download.

Figures with a bar pass or fail; the exit code is 1 when one fails.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks import quick
from benchmarks.fill import breaks, containerd, resources, transfers
from benchmarks.programs import ROOT
from benchmarks.report import Figure, Scenario, run

_FILL = transfers.SCENARIOS | breaks.SCENARIOS | resources.SCENARIOS | containerd.SCENARIOS
_GROUPS = {"all": list(quick.SCENARIOS), "fill": list(_FILL)}


def main() -> None:
    """Run what is asked for, print, and write JSON where that is wanted."""
    known: dict[str, Scenario] = quick.SCENARIOS | _FILL
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", metavar="SCENARIO", nargs="*", help=", ".join([*_GROUPS, *known]))
    parser.add_argument("--proxy-dir", type=Path, default=ROOT, help="the checkout whose proxy is measured")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    names = _chosen(arguments.names)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    figures = {name: run(name, known[name], arguments.proxy_dir.resolve()) for name in names}
    if arguments.json:
        arguments.json.write_text(json.dumps({name: [_plain(one) for one in many] for name, many in figures.items()}))
    barred = [figure for many in figures.values() for figure in many if figure.bar]
    failed = sum(not figure.passed for figure in barred)
    if barred:
        print(f"{len(barred) - failed} of {len(barred)} bars met")
    raise SystemExit(1 if failed else 0)


def _chosen(words: list[str]) -> list[str]:
    """The scenarios that the words name; `fill` alone is all of its scenarios, before others it is only a heading."""
    if words[:1] == ["fill"] and len(words) > 1:
        words = words[1:]
    return [name for word in words or ["all"] for name in _GROUPS.get(word, [word])]


def _plain(figure: Figure) -> dict[str, object]:
    bar = None if figure.bar is None else str(figure.bar)
    return asdict(figure) | {"bar": bar, "passed": figure.passed}


if __name__ == "__main__":
    main()
