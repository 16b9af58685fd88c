"""Load benchmarks: `python -m benchmarks SCENARIO`. Figures are compared within one run only; machines are noisy."""
