"""The metrics of several processes: each writes its own into files of one folder, the supervisor reads them all.

Invariants:
- Files belong to a worker's number, not to its process: the replacement of a worker that died goes on with the counts
  that are there, so that nothing ever counts down and no files pile up.
- What only a living worker has (`fills_active`, the loop's lag) goes with it.
- What belongs to the machine (`cache_bytes`, `cache_blobs`, `tag_drift`) is the supervisor's own.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, disable_created_metrics, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from proxy.telemetry.metrics import MachineGauges

# The library looks there for its folder, once, when it is imported.
_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def environment_of_workers(folder: Path) -> dict[str, str]:
    """The environment of processes whose metrics are to stand in `folder`."""
    return dict(os.environ) | {_VARIABLE: str(folder)}


def share_metrics(worker: int) -> None:
    """Let this process's metrics be those of `worker`. To be called before any of them is made."""
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]


class SharedMetrics:
    """The supervisor's side: the metrics of all workers together, and what the store holds."""

    def __init__(self, folder: Path) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._folder = folder
        self._registry = CollectorRegistry()
        self._registry.register(_Files(folder))
        self._machine = MachineGauges(self._registry)

    def set_cache(self, stored: int, blobs: int) -> None:
        """See `Metrics.set_cache`."""
        self._machine.set_cache(stored, blobs)

    def set_drift(self, tags: Mapping[str, int]) -> None:
        """See `Metrics.set_drift`."""
        self._machine.set_drift(tags)

    def collect(self) -> Iterable[Metric]:
        """See `Metrics.collect`. Reads files: blocks."""
        return list(self._registry.collect())

    def flush(self) -> None:
        """See `Metrics.flush`. Workers do that by themselves, twice a second."""

    def ended(self, worker: int) -> None:
        """That worker is gone: its gauges count no more, its counters do. Blocks as long as small files take."""
        mark_process_dead(worker, str(self._folder))  # type: ignore[no-untyped-call]

    def render(self) -> bytes:
        """See `Metrics.render`. Reads files: blocks."""
        return generate_latest(self._registry)


class _Files:
    """Collects what stands in the files of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # A worker that starts makes its files empty, and they cannot be read before they have a size.
        files = [str(file) for file in sorted(self._folder.glob("*.db")) if _size(file) > 0]
        found: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return found


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        # Its worker has ended since the folder was listed.
        return 0
