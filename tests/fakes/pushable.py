"""The fake registry with what pushes need: uploads, manifests put and deleted; and where it keeps its uploads."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from tests.fakes.content import digest_of
from tests.fakes.registry import FakeRegistry, error


@dataclass
class PushableRegistry(FakeRegistry):
    """`uploads` are those under way, by their session; `location` makes the address that a client is told."""

    uploads: dict[str, bytearray] = field(default_factory=dict)
    # Out of repository and session; below /v2/ or anywhere else.
    location: Callable[[str, str], str] = lambda name, session: f"/v2/{name}/blobs/uploads/{session}?_state=a%3D%2Bb"
    # Where uploads are kept besides.
    elsewhere: str = "/elsewhere/"
    # Told the size of what an upload has, for each piece that arrived.
    arrived: Callable[[int], Awaitable[None]] | None = None
    # Bodies that broke off.
    broken: int = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.fault is not None and (response := self.fault(request)) is not None:
            return response
        path, method = request.rel_url.path, request.method
        name, upload, session = path.removeprefix("/v2/").rpartition("/blobs/uploads/")
        if path.startswith(self.elsewhere):
            name, upload, session = path.removeprefix(self.elsewhere).rpartition("/")
        elif not upload and method in {"GET", "HEAD"}:
            return await super().answer(request)
        elif not upload:
            name = _parts(path)[0]
        if (refusal := self._refusal(request, name)) is not None:
            return refusal
        if not upload:
            return await self._change(request)
        return await (self._go_on(request, name, session) if session else self._begin(request, name))

    async def _begin(self, request: web.BaseRequest, name: str) -> web.Response:
        query = request.rel_url.query
        mounted = query.get("mount")
        if mounted is not None and (query.get("from"), mounted) in self.members:
            self.members.add((name, mounted))
            return web.Response(status=201, headers={"Location": f"{self.url}/v2/{name}/blobs/{mounted}"})
        session = f"session-{len(self.seen)}"
        self.uploads[session] = bytearray()
        return self._under_way(name, session, 202)

    async def _go_on(self, request: web.BaseRequest, name: str, session: str) -> web.Response:
        if session not in self.uploads:
            return error(404, "BLOB_UPLOAD_UNKNOWN")
        upload = self.uploads[session]
        if request.method == "DELETE":
            del self.uploads[session]
            return web.Response(status=204)
        if request.method == "GET":
            return self._under_way(name, session, 204)
        start = request.headers.get("Content-Range", "").partition("-")[0]
        if start and int(start) != len(upload):
            return error(416, "BLOB_UPLOAD_INVALID")
        await self._take(request, upload)
        if request.method == "PATCH":
            return self._under_way(name, session, 202)
        digest = request.rel_url.query["digest"]
        if digest_of(bytes(upload)) != digest:
            return error(400, "DIGEST_INVALID")
        self.put(name, "application/octet-stream", bytes(self.uploads.pop(session)))
        return web.Response(status=201, headers={"Location": f"{self.url}/v2/{name}/blobs/{digest}"})

    async def _take(self, request: web.BaseRequest, upload: bytearray) -> None:
        try:
            async for piece in request.content.iter_any():
                upload += piece
                if self.arrived is not None:
                    await self.arrived(len(upload))
        except BaseException:
            # Cancelled, where the connection ended.
            self.broken += 1
            raise

    async def _change(self, request: web.BaseRequest) -> web.Response:
        name, kind, reference = _parts(request.rel_url.path)
        if request.method == "DELETE" and kind == "manifests" and (name, reference) in self.tags:
            del self.tags[name, reference]
            return web.Response(status=202)
        if request.method == "DELETE":
            if (name, reference) not in self.members:
                return error(404, "BLOB_UNKNOWN" if kind == "blobs" else "MANIFEST_UNKNOWN")
            self.members.discard((name, reference))
            self.tags = {key: digest for key, digest in self.tags.items() if (key[0], digest) != (name, reference)}
            return web.Response(status=202)
        body = await request.content.read()
        digest = self.put(name, request.headers["Content-Type"], body)
        for tag in [*request.rel_url.query.getall("tag", []), *([] if ":" in reference else [reference])]:
            self.tags[name, tag] = digest
        headers = {"Location": f"{self.url}/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        subject = json.loads(body).get("subject")
        if subject is not None:
            headers["OCI-Subject"] = subject["digest"]
            self.referrers[subject["digest"]] = json.dumps({"schemaVersion": 2, "manifests": [digest]}).encode()
        return web.Response(status=201, headers=headers, reason="the upstream's own words")

    def _under_way(self, name: str, session: str, status: int) -> web.Response:
        headers = {
            "Location": self.location(name, session),
            "Range": f"0-{max(0, len(self.uploads[session]) - 1)}",
            "Docker-Upload-UUID": session,
            "OCI-Chunk-Min-Length": "1024",
        }
        return web.Response(status=status, headers=headers)


def _parts(path: str) -> tuple[str, str, str]:
    for kind in ("manifests", "blobs"):
        name, found, rest = path.removeprefix("/v2/").rpartition(f"/{kind}/")
        if found:
            return name, kind, rest
    raise AssertionError(path)
