"""Warm jobs over the admin API, and in whose name they ask.

POST warm           {"references": [...], "platforms": [...], "cluster": name, "bandwidth": bytes/s, "concurrency": n}
GET warm            all jobs without their items, the latest first
GET warm/{id}       one, with its items
DELETE warm/{id}    stop it

Only `references` has to be given. An audit line tells of each job that is begun or stopped.
"""

import logging
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proxy.cache.ask import Ask
from proxy.cache.warm import MOST_REFERENCES, TooManyJobs, Warming
from proxy.cache.warm_records import ENDED, Item, Items, Job
from proxy.cache.warm_run import AskFor
from proxy.oci.errors import OCIError
from proxy.oci.reference import TagOrDigest
from proxy.policy.cluster import check_repository
from proxy.policy.platforms import parse_platforms
from proxy.policy.registry import parse_reference
from proxy.server.api import ApiError, ApiRequest, ApiResponse
from proxy.server.described import rfc3339
from proxy.server.house import House
from proxy.settings import ClusterSettings

_audit = logging.getLogger("pullthrough.audit")

_LONGEST_REFERENCE = 512
_MOST_PLATFORMS = 32
_MOST_ENDED = 10


class _Wanted(BaseModel):
    """The body of POST warm."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    references: list[str] = Field(min_length=1, max_length=MOST_REFERENCES)
    platforms: list[str] = Field(default=[], max_length=_MOST_PLATFORMS)
    cluster: str | None = None
    # Slower than this a range would outlast the patience of upstreams.
    bandwidth: int | None = Field(default=None, ge=64 << 10, le=1 << 50)
    concurrency: int = Field(default=4, ge=1, le=32)


class WarmApi:
    """Answers the part of the admin API that begins with `warm`."""

    def __init__(self, warming: Warming, house: Callable[[], House]) -> None:
        """`house` as it is at present."""
        self._warming = warming
        self._house = house

    async def answer(self, request: ApiRequest) -> ApiResponse:
        """Answer one request. Raises ApiError, or StorageError where a job cannot be kept."""
        match request.method, request.path.split("/")[1:]:
            case "POST", []:
                return ApiResponse(202, await self._begin(request))
            case "GET", []:
                return ApiResponse(200, {"jobs": [job_as_json(job) for job in await self._warming.jobs()]})
            case "GET", [named]:
                return ApiResponse(200, _known(named, await self._warming.job(named)))
            case "DELETE", [named]:
                stopped = _known(named, await self._warming.stop(named))
                _audit.info("stop warm job %s by %s", named, request.actor)
                return ApiResponse(200, stopped)
        raise ApiError(404, f"there is no {request.method} /api/v1/{request.path}")

    async def current(self) -> list[dict[str, Any]]:
        """For an overview: the jobs that have not ended, and the latest of those that have."""
        jobs = await self._warming.jobs()
        ended = [job for job in jobs if job.state in ENDED]
        return [job_as_json(job) for job in [*(job for job in jobs if job.state not in ENDED), *ended[:_MOST_ENDED]]]

    async def _begin(self, request: ApiRequest) -> dict[str, Any]:
        wanted = _wanted(request.body)
        cluster = _cluster(self._house(), wanted.cluster)
        references = list(dict.fromkeys(wanted.references))
        try:
            job = await self._warming.submit(
                references, cluster.name, wanted.platforms, wanted.bandwidth, wanted.concurrency, request.actor
            )
        except TooManyJobs as error:
            raise ApiError(429, str(error)) from error
        more = f" and {len(references) - 1} more" if len(references) > 1 else ""
        _audit.info("warm %s%s by %s: job %s", references[0], more, request.actor, job.id)
        return job_as_json(job)


def asking(house: Callable[[], House]) -> AskFor:
    """How jobs ask: as a request of their cluster does that brings no Authorization along."""

    def ask_for(named: str, text: str) -> tuple[Ask, TagOrDigest]:
        now = house()
        cluster = next((one for one in now.settings.clusters if one.name == named), None)
        if cluster is None or cluster.mode != "transparent":
            raise OCIError("NAME_UNKNOWN", f"there is no cluster {named} any more whose blobs are kept")
        reference = parse_reference(now.registries, text)
        repository = reference.repository
        if cluster.upstreams is not None and repository.registry not in cluster.upstreams:
            raise OCIError("NAME_UNKNOWN", f"the registry {repository.registry} is not served to the cluster {named}")
        check_repository(cluster, repository)
        principal = now.principal(cluster, repository.registry, "", takes_basic=False)
        lifetimes = now.lifetimes[cluster.name, repository.registry]
        return Ask(repository, principal, lifetimes, cluster.name), reference.digest or reference.tag or "latest"

    return ask_for


def job_as_json(job: Job, items: Items | None = None) -> dict[str, Any]:
    """A job as the API tells it, with its items where they are given."""
    told: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "references": list(job.references),
        "cluster": job.cluster,
        "platforms": list(job.platforms),
        "bandwidth": job.bandwidth,
        "concurrency": job.concurrency,
        "by": job.by,
        "created": rfc3339(job.created),
        "started": rfc3339(job.started) if job.started is not None else None,
        "ended": rfc3339(job.ended) if job.ended is not None else None,
        "done": job.done,
        "failed": job.failed,
        "bytes": {"done": job.bytes, "total": job.bytes_total},
        "note": job.note,
    }
    return told if items is None else told | {"items": [_item_as_json(item) for item in items]}


def _item_as_json(item: Item) -> dict[str, Any]:
    return {
        "reference": item.reference,
        "state": item.state,
        "digest": item.digest,
        "manifests": item.manifests,
        "blobs": {"done": item.blobs, "total": item.blobs_total},
        "bytes": {"done": item.bytes, "total": item.bytes_total, "present": item.present},
        "note": item.note,
        "error": item.error,
    }


def _known(named: str, found: tuple[Job, Items] | None) -> dict[str, Any]:
    if found is None:
        raise ApiError(404, f"there is no warm job {named[:64]}; those that have ended are forgotten after a day")
    return job_as_json(*found)


def _wanted(body: Any) -> _Wanted:
    try:
        wanted = _Wanted.model_validate(body)
        parse_platforms(wanted.platforms)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{path or 'the body'}: {first['msg']}") from error
    except ValueError as error:
        raise ApiError(400, f"platforms: {error}") from error
    for reference in wanted.references:
        if not reference or len(reference) > _LONGEST_REFERENCE or not reference.isprintable():
            raise ApiError(400, 'references: write "docker.io/library/nginx:latest"')
    return wanted


def _cluster(house: House, named: str | None) -> ClusterSettings:
    """The cluster of that name, or the first whose blobs are kept here. Raises ApiError."""
    clusters = house.settings.clusters
    if named is None:
        cluster = next((one for one in clusters if one.mode == "transparent"), None)
        if cluster is None:
            raise ApiError(409, "no cluster is transparent: blobs are not kept here")
        return cluster
    cluster = next((one for one in clusters if one.name == named), None)
    if cluster is None:
        raise ApiError(400, f"there is no cluster {named[:64]}")
    if cluster.mode != "transparent":
        raise ApiError(409, f"the cluster {named} is metadata-only: its blobs are not kept here")
    return cluster
