"""`python -m proxy serve` as a process of its own with several workers, and what the system knows of them."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.fakes.proxy import Served
from tests.fakes.reader import Reader

ROOT = Path(__file__).parents[2]
_LOOK = 0.005
_SERVING = re.compile(r"serving on 127\.0\.0\.1:(\d+).* admin on 127\.0\.0\.2:(\d+)")


async def eventually(condition: Callable[[], bool]) -> None:
    """Look until another process has brought `condition` about."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(_LOOK)


class Program:
    """A `serve` process in a group of its own; every line of its log is kept."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self.lines: list[str] = []
        self._process = process
        self._grown = asyncio.Condition()
        self._reading = asyncio.create_task(self._read(), name="log of the proxy")

    async def says(self, text: str, after: int = 0) -> str:
        """Wait for a line with `text` behind the first `after` lines."""
        async with asyncio.timeout(20), self._grown:
            while True:
                found = [line for line in self.lines[after:] if text in line]
                if found:
                    return found[0]
                assert not self._reading.done(), self.lines
                await self._grown.wait()

    def signal(self, number: int) -> None:
        """Send it to the process that was started."""
        self._process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """Send it to that process and to all that came of it, as a terminal does."""
        os.killpg(self.pid, number)

    async def exit(self) -> int:
        """Wait for its end, and for that of everything that writes to its log; gives the status."""
        async with asyncio.timeout(20):
            await asyncio.shield(self._reading)
            return await self._process.wait()

    async def kill(self) -> None:
        """End it with all that came of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            await self._said(line.decode().rstrip("\n"))
        await self._said()

    async def _said(self, *lines: str) -> None:
        async with self._grown:
            self.lines.extend(lines)
            self._grown.notify_all()


class Fleet(Served):
    """A running proxy of several workers, and a client of it."""

    def __init__(self, program: Program, ports: tuple[int, int], session: aiohttp.ClientSession) -> None:
        super().__init__(session)
        self.program = program
        self._port, self._admin_port = ports

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.2:{self._admin_port}"

    async def admin(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.admin_url + path) as response:
            return response.status, await response.text()

    def workers(self) -> list[int]:
        """The process ids of the workers that live."""
        return children(self.program.pid)

    def carrier(self, client: Reader) -> int | None:
        """The process that has accepted the connection of `client`; None as long as it is queued."""
        inode = _inode(self._port, client.port)
        return next((pid for pid in self.workers() if inode and inode in _sockets(pid)), None)

    async def accepted(self, client: Reader) -> int:
        """Wait until a process has accepted it; gives which."""
        await eventually(lambda: self.carrier(client) is not None)
        carrier = self.carrier(client)
        assert carrier is not None
        return carrier

    async def reader_at(self, worker: int, path: str, start: int | None = None, stop: int | None = None) -> Reader:
        """A reader whose connection that worker has; its head is not waited for."""
        for _ in range(100):
            reader = await Reader.connect(self)
            if await self.accepted(reader) == worker:
                reader.ask(path, start, stop)
                return reader
            reader.leave()
        raise AssertionError(f"worker {worker} gets no connection")

    async def counters(self) -> dict[str, float]:
        """Every counter with its labels."""
        _, text = await self.admin("/metrics")
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines if re.search(r"_(total|count|sum|bucket)\b", name)}


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`, those that have ended left out."""
    found = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    return sorted(one for one in found if _state(one)[1:] == [str(pid)] and lives(one))


def lives(pid: int) -> bool:
    """Has it not ended? One that nobody has waited for has."""
    return bool(_state(pid)) and _state(pid)[0] not in {"Z", "X"}


def _state(pid: int) -> list[str]:
    """Its state and its parent; nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return []


def is_stopped(pid: int) -> bool:
    """Has SIGSTOP reached all of it?"""
    stats = (stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat"))
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def _inode(port: int, client: int) -> str:
    """The socket at `port` for the client with that port; empty as long as nobody has accepted it."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if (int(words[1].partition(":")[2], 16), int(words[2].partition(":")[2], 16)) == (port, client):
            return "" if words[9] == "0" else words[9]
    return ""


def _sockets(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
        except OSError:
            continue
    return found


def write_config(directory: Path, upstreams: Mapping[str, Mapping[str, Any]], **more: Any) -> Path:
    """The file of a proxy of two workers on free ports; the first upstream is the default."""
    first = next(iter(upstreams))
    document: dict[str, Any] = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.2:0"},
        "workers": 2,
        "cache": {"directory": str(directory / "cache"), "max_size": "1GiB", "min_free": 0},
        "upstreams": {name: {"default": name == first, **upstream} for name, upstream in upstreams.items()},
        "log": {"access": False},
    } | more
    file = directory / "proxy.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@asynccontextmanager
async def program(config: Path) -> AsyncIterator[Program]:
    """`serve` with that file; killed at the end with all that came of it."""
    command = (sys.executable, "-m", "proxy", "serve", "--config", str(config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PULLTHROUGH_")}
    started = Program(
        await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environment, start_new_session=True, stderr=asyncio.subprocess.PIPE
        )
    )
    try:
        yield started
    finally:
        await started.kill()


@asynccontextmanager
async def fleet(config: Path) -> AsyncIterator[Fleet]:
    """A proxy that serves."""
    options = aiohttp.ClientTimeout(total=20)
    async with program(config) as started, aiohttp.ClientSession(auto_decompress=False, timeout=options) as session:
        found = _SERVING.search(await started.says("serving on"))
        assert found is not None
        yield Fleet(started, (int(found[1]), int(found[2])), session)
