"""How `pullthrough warm` watches a job: bars in a terminal, elsewhere a line for each image that has ended."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click
from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from proxy.cli.admin_client import AdminClient, AdminError

NOT_ENDED = frozenset({"queued", "running"})

_LOOK = 0.5
# A server that restarts goes on with its jobs: for so long, in seconds, it may be away.
_AWAY = 120.0
# Images that have a bar at a time.
_MOST_BARS = 16
_LONGEST_NAME = 60


class Shown(Protocol):
    """Where a job is shown."""

    has_shown: bool

    def show(self, job: dict[str, Any]) -> None:
        """How it stands now."""
        ...


@contextmanager
def _progress(quiet: bool) -> Iterator[Shown]:
    """Where to show a job; nowhere, if `quiet`."""
    console = Console(stderr=True, markup=False, highlight=False)
    if quiet:
        yield _Lines(say=False)
    elif console.is_terminal:
        with _bars(console) as bars:
            yield _Bars(bars)
    else:
        yield _Lines(say=True)


def size(count: int) -> str:
    """Bytes as people read them."""
    unit, suffix = pick_unit_and_suffix(count, ["B", "KiB", "MiB", "GiB", "TiB"], 1024)
    return f"{count / unit:.1f} {suffix}" if unit > 1 else f"{count} {suffix}"


def ended_line(job: dict[str, Any]) -> str:
    """How a job ended, in one line."""
    count, done, failed = len(job["references"]), job["done"], job["failed"]
    what = f"{done} of {count} image{'s' if count != 1 else ''} warm, {size(job['bytes']['done'])}"
    parts = [what, *([f"{failed} failed"] if failed else []), *(["stopped"] if job["state"] == "stopped" else [])]
    return ", ".join(parts)


def _item_line(item: dict[str, Any]) -> str:
    if item["state"] == "done":
        present = item["bytes"]["present"]
        there = f", {size(present)} of it was there" if present else ""
        note = f" ({item['note']})" if item["note"] else ""
        return f"{item['reference']}: {size(item['bytes']['done'])} in {item['blobs']['done']} blobs{there}{note}"
    if item["state"] == "failed":
        return f"{item['reference']}: failed: {item['error']}"
    return f"{item['reference']}: {item['state']}" + (f": {item['note']}" if item["note"] else "")


class _Lines:
    """A line for each image that has ended, or waits for something else than before."""

    def __init__(self, say: bool) -> None:
        self.has_shown = False
        self._say = say
        self._said: dict[str, str] = {}

    def show(self, job: dict[str, Any]) -> None:
        """See `Shown`."""
        self.has_shown = True
        for item in job["items"]:
            is_news = item["state"] in {"done", "failed"} or item["note"]
            # What it waits for counts down; that is no news.
            line = _item_line(item)
            said = line.partition("; it is tried again in")[0]
            if self._say and is_news and self._said.get(item["reference"]) != said:
                self._said[item["reference"]] = said
                click.echo(line, err=item["state"] != "done")


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=console,
        expand=True,
    )


class _Bars:
    """A bar for each image on its way, and one for all of it; what has ended is a line above them."""

    def __init__(self, bars: Progress) -> None:
        self.has_shown = False
        self._bars = bars
        self._total = bars.add_task("all", total=None)
        self._of: dict[str, TaskID] = {}
        self._said: set[str] = set()

    def show(self, job: dict[str, Any]) -> None:
        """See `Shown`."""
        self.has_shown = True
        for item in job["items"]:
            reference = item["reference"]
            if item["state"] in {"done", "failed", "stopped"}:
                self._end(reference, item)
            elif item["state"] == "running" and (reference in self._of or len(self._of) < _MOST_BARS):
                self._move(reference, item)
        ended = job["done"] + job["failed"]
        description = f"{ended} of {len(job['references'])} images"
        self._bars.update(self._total, description=description, **_counts(job["bytes"]))

    def _end(self, reference: str, item: dict[str, Any]) -> None:
        if reference in self._of:
            self._bars.remove_task(self._of.pop(reference))
        if reference not in self._said and item["state"] != "stopped":
            self._said.add(reference)
            self._bars.console.print(_item_line(item), soft_wrap=True)

    def _move(self, reference: str, item: dict[str, Any]) -> None:
        if reference not in self._of:
            self._of[reference] = self._bars.add_task(_short(reference), total=None)
        note = f" ({item['note']})" if item["note"] else ""
        self._bars.update(self._of[reference], description=_short(reference) + note, **_counts(item["bytes"]))


def _counts(of: dict[str, int]) -> dict[str, Any]:
    # Before anything is known of it a bar only shows that it lives.
    return {"completed": of["done"], "total": of["total"] or None}


def _short(reference: str) -> str:
    return reference if len(reference) <= _LONGEST_NAME else f"…{reference[-_LONGEST_NAME:]}"


async def watched(client: AdminClient, path: str, quiet: bool) -> dict[str, Any]:
    """The job once it has ended, shown as it goes on. Raises AdminError."""
    loop, seen = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    with _progress(quiet) as shown:
        while True:
            try:
                job = await client.call("GET", path)
                seen = loop.time()
                shown.show(job)
                if job["state"] not in NOT_ENDED:
                    return dict(job)
            except AdminError as error:
                if not _may_come_back(error, shown) or loop.time() - seen > _AWAY:
                    raise
            await asyncio.sleep(_LOOK)


def _may_come_back(error: AdminError, shown: Shown) -> bool:
    """A server that does not answer any more may be restarting; one that never did, or refuses, is not."""
    return shown.has_shown and "does not answer" in str(error)
