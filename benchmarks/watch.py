"""What /proc tells about a process: memory, processor time, connections."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
_ESTABLISHED = "01"


def memory(pid: int, field: str = "VmHWM") -> int:
    """Bytes: `VmRSS` resident now, `VmHWM` at the most so far; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)


def proportional_memory(pid: int) -> int:
    """Bytes, of which those that processes share are shared out."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def cpu_seconds(pids: Sequence[int]) -> float:
    """Seconds of processor time that the processes have used, user and system."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(entry[11]) + int(entry[12]) for entry in fields) / _TICKS


def connections(pid: int, port: int) -> int:
    """How many clients are connected to the process at `port`."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {line[9] for line in table if int(line[1].partition(":")[2], 16) == port and line[3] == _ESTABLISHED}
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = descriptor.readlink().name
        except FileNotFoundError:
            continue
        count += target.removeprefix("socket:[").removesuffix("]") in inodes
    return count


class Peak:
    """The most resident memory of any of the processes while it is watched, in bytes, sampled."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.bytes = max(self.bytes, *(memory(pid, "VmRSS") for pid in self._pids))
