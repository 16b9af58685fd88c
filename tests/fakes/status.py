"""What the admin API answers, made up: for the status page, which must show all of it as it is."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from proxy.server.api import ApiRequest, ApiResponse

# 2026-11-24 12:00:00 UTC.
NOW = 1_795_521_600.0


def at(offset: float) -> str:
    """A time so many seconds after NOW, in RFC 3339."""
    return datetime.fromtimestamp(NOW + offset, UTC).isoformat().replace("+00:00", "Z")


def digest_named(name: str) -> str:
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def make_tag(reference: str = "docker.io/library/nginx:latest", **more: Any) -> dict[str, Any]:
    """A fresh tag, checked a minute ago, due in nine."""
    registry, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    return {
        "registry": registry, "repository": repository, "tag": tag, "reference": reference,
        "digest": digest_named("now"), "fetched": at(-3600), "checked": at(-60), "expires": at(540), "state": "fresh",
        "age": 60, "pulls": 1234, "clusters": {"prod": 1200, "dev": 34}, "upstream_digest": None, "drifted": False,
        "unchecked": None, "held": None, "gone": None, "expires_in": {}, "history": [],
    } | more  # fmt: skip


def make_upstream(registry: str = "docker.io", **more: Any) -> dict[str, Any]:
    return {
        "registry": registry, "url": f"https://{registry}", "state": "ok", "failing": [], "rate_limit": None,
        "requests": 10, "errors": 0, "bytes": 1 << 20,
    } | more  # fmt: skip


def make_fill(digest: str = "", **more: Any) -> dict[str, Any]:
    return {
        "digest": digest or digest_named("blob"), "registry": "docker.io", "repository": "library/nginx",
        "size": 1000, "arrived": 250, "readers": 3, "started": at(-5),
    } | more  # fmt: skip


def make_job(**more: Any) -> dict[str, Any]:
    """A warm job of three images, one of them done."""
    return {
        "id": "k3q7", "cluster": "default", "platforms": ["linux/amd64"], "bandwidth": None, "concurrency": 4,
        "by": "127.0.0.1", "created": at(-30), "references": ["nginx:1", "redis:7", "python:3"],
        "state": "running", "started": at(-29), "ended": None,
        "done": 1, "failed": 0, "bytes": {"done": 1 << 20, "total": 4 << 20}, "note": None,
    } | more  # fmt: skip


def make_stats(**more: Any) -> dict[str, Any]:
    """One worker, one cluster, one upstream, nothing under way."""
    cluster = {
        "name": "default", "mode": "transparent", "upstreams": None, "requests": 200, "hits": 150, "hit_ratio": 0.75,
        "client_bytes": 5 << 20,
    }  # fmt: skip
    return {
        "version": "1.2.3", "started": at(-86400), "workers": {"configured": 1, "serving": 1},
        "cache": {"bytes": 3 << 30, "blobs": 77, "max_size": 100 << 30},
        "bytes": {"client": 9 << 30, "upstream": 1 << 30, "saved": 8 << 30},
        "clusters": [cluster], "upstreams": [make_upstream()], "fills": [],
        "tags": {"known": 1, "drifted": 0, "held": 0, "unchecked": 0}, "warm": [],
    } | more  # fmt: skip


class FakeBackend:
    """Answers as the API does, from `tags` and `stats`; `asked` is what it was asked, `answers` goes before."""

    def __init__(self, tags: Sequence[dict[str, Any]] = (), /, **stats: Any) -> None:
        self.tags = list(tags)
        self.stats = make_stats(**stats)
        self.asked: list[ApiRequest] = []
        self.answers: dict[tuple[str, str], ApiResponse] = {}

    async def __call__(self, request: ApiRequest) -> ApiResponse:
        self.asked.append(request)
        match request.method, request.path:
            case place if place in self.answers:
                return self.answers[place]
            case "GET", "stats":
                return ApiResponse(200, self.stats)
            case "GET", "tags":
                return ApiResponse(200, self._page(dict(request.query)))
            case _:
                return ApiResponse(200, {"tags": []})

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        pattern = query.get("reference", "*")
        found = [
            tag
            for tag in self.tags
            if tag["reference"] > query.get("last", "")
            and fnmatchcase(tag["reference"], pattern)
            and (tag["drifted"] or "drifted" not in query)
        ]
        page = found[: int(query["n"])]
        return {"tags": page} | ({"last": page[-1]["reference"]} if len(found) > len(page) else {})
