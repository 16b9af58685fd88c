"""Warm jobs as the metadata store holds them, and as others are told of them.

warm/job/<id>     who asked for what, and how it stands
warm/items/<id>   its references, and how each of them stands
warm/stop/<id>    it is to be stopped; whoever runs it looks for this

A job is written by whoever has its claim, and read by every process.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from proxy.cache.records import adapter

State = Literal["queued", "running", "done", "failed", "stopped"]

ENDED: frozenset[State] = frozenset({"done", "failed", "stopped"})

_Time = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Item:
    """One reference of a job. Sizes in bytes; `total` is known once its manifests are here.

    `digest` is what the reference meant. `present`: what was here before. `note`: one line on what it waits for, or
    what is not as was asked; `error`: why it failed.
    """

    reference: str
    state: State = "queued"
    digest: str | None = None
    manifests: int = 0
    blobs: int = 0
    blobs_total: int = 0
    bytes: int = 0
    bytes_total: int = 0
    present: int = 0
    note: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job without its items. Times in Unix seconds; `bandwidth` in bytes a second, None for as fast as it goes.

    `done` and `failed` count its references. `bytes` and `bytes_total` are those of its items: what several
    have in common counts for each of them. `note`: one line on what whoever asked should know.
    """

    id: str
    cluster: str
    platforms: tuple[str, ...]
    bandwidth: int | None
    concurrency: int
    by: str
    created: _Time
    references: tuple[str, ...]
    state: State = "queued"
    started: _Time | None = None
    ended: _Time | None = None
    done: int = 0
    failed: int = 0
    bytes: int = 0
    bytes_total: int = 0
    note: str | None = None


Items = tuple[Item, ...]

JOBS = "warm/job/"


def job_key(job: str) -> str:
    return f"{JOBS}{job}"


def items_key(job: str) -> str:
    return f"warm/items/{job}"


def stop_key(job: str) -> str:
    return f"warm/stop/{job}"


def dump(job: Job, items: Items | None = None) -> dict[str, bytes]:
    """As entries for the store."""
    entries = {job_key(job.id): adapter(Job).dump_json(job)}
    return entries if items is None else entries | {items_key(job.id): adapter(Items).dump_json(items)}


@lru_cache(maxsize=256)
def load_job(raw: bytes | None) -> Job | None:
    """Out of the store's bytes; None for what is absent or of another version."""
    try:
        job: Job | None = adapter(Job).validate_json(raw, strict=True) if raw is not None else None
    except ValueError:
        return None
    return job


def load_items(raw: bytes | None) -> Items | None:
    """The same."""
    try:
        items: Items | None = adapter(Items).validate_json(raw, strict=True) if raw is not None else None
    except ValueError:
        return None
    return items


def summed(job: Job, items: Items) -> Job:
    """`job` with what its items say."""
    return replace(
        job,
        done=sum(item.state == "done" for item in items),
        failed=sum(item.state == "failed" for item in items),
        bytes=sum(item.bytes for item in items),
        bytes_total=sum(item.bytes_total for item in items),
    )
