"""An in-process registry with a token server, redirects to a storage host, and faults that a test chooses."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from proxy.oci.digest import Digest
from tests.fakes.blobserver import BlobServer
from tests.fakes.content import Image, digest_of

# What a request needs besides being known; without a word it is a push.
_ACTIONS = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}

# Of the rate limit, in seconds.
WINDOW = 21600

Fault = Callable[[web.BaseRequest], web.Response | None]


@dataclass
class FakeStorage(BlobServer):
    """Where a registry may redirect blobs to: serves them by digest, and must never see an Authorization.

    Its addresses are signed; `expire` ends all that were given out.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    generation: int = 0

    def address(self, digest: str) -> str:
        """A signed address, good until the next `expire`."""
        suffix = f"&generation={self.generation}" if self.generation else ""
        return f"{self.url}/{digest}?X-Signature=a%2Fb{suffix}"

    def expire(self) -> None:
        """Every address that was given out is answered with 403 from now on."""
        self.generation += 1

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        digest = request.rel_url.path.lstrip("/")
        body = self.blobs.get(digest)
        if int(request.rel_url.query.get("generation", "0")) != self.generation:
            return web.Response(status=403, text="the signature has expired")
        if body is None:
            return web.Response(status=404, text="no such key")
        headers = {"Content-Type": "application/octet-stream"}
        if request.method == "HEAD":
            return web.Response(headers=headers | {"Content-Length": str(len(body))})
        return await self.send_blob(request, digest, body, headers)


@dataclass
class FakeRegistry(BlobServer):
    """One registry. `tags` and `members` are by repository; `fault` is asked first for each request.

    `limits`: how many manifests each user ("" is nobody) may GET, who is told so as Docker Hub does; `pulled`: how many
    each did.
    """

    tags: dict[tuple[str, str], str] = field(default_factory=dict)
    members: set[tuple[str, str]] = field(default_factory=set)
    content: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    referrers: dict[str, bytes] = field(default_factory=dict)
    fault: Fault | None = None
    head_blobs: bool = True
    storage: FakeStorage | None = None
    # Bearer: who may read. None: no authentication at all.
    private: dict[str, set[str]] | None = None
    passwords: dict[str, str] = field(default_factory=dict)
    token_life: int = 300
    realm: str = ""
    basic: bool = False
    limits: dict[str, int] = field(default_factory=dict)
    pulled: dict[str, int] = field(default_factory=dict)
    _tokens: dict[str, str] = field(default_factory=dict)
    # What a token allows besides pulls.
    _actions: dict[str, set[str]] = field(default_factory=dict)
    _given: int = 0

    def push(self, repository: str, tag: str, image: Image) -> None:
        """Let `repository` have `image` under `tag`."""
        self.tags[repository, tag] = image.digest
        self.put(repository, image.media_type, image.manifest)
        for blob in image.blobs:
            self.put(repository, "application/octet-stream", blob)

    def put(self, repository: str, media_type: str, content: bytes, digest: str | None = None) -> str:
        """Let `repository` have `content`, under its own digest or a wrong one."""
        digest = digest or digest_of(content)
        self.content[digest] = (media_type, content)
        self.members.add((repository, digest))
        if self.storage is not None:
            self.storage.blobs[digest] = content
        return digest

    def revoke_tokens(self) -> None:
        """Every token that was given out is no good any more."""
        self._tokens.clear()

    def revoke(self, token: str) -> None:
        """This one is no good any more."""
        del self._tokens[token]

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.fault is not None and (response := self.fault(request)) is not None:
            return response
        path = request.rel_url.path
        if path == "/token":
            return self._token(request)
        repository, kind, rest = _parse(path)
        refusal = self._refusal(request, repository)
        if refusal is not None:
            return refusal
        if kind == "manifests":
            return await self._limited(request, repository, rest)
        if kind == "blobs":
            return await self._blob(request, repository, rest)
        if kind == "tags":
            return self._list(request, repository)
        if kind == "referrers" and rest in self.referrers:
            return web.Response(body=self.referrers[rest], content_type="application/vnd.oci.image.index.v1+json")
        return error(404, "NAME_UNKNOWN")

    async def _limited(self, request: web.BaseRequest, repository: str, reference: str) -> web.StreamResponse:
        """GETs of manifests count, HEADs and blobs do not; both say what is left."""
        user = _user_of(request)
        if user not in self.limits:
            return await self._manifest(request, repository, reference)
        over = request.method == "GET" and self.left(user) <= 0
        response = error(429, "TOOMANYREQUESTS") if over else await self._manifest(request, repository, reference)
        if request.method == "GET" and response.status == 200:
            self.pulled[user] = self.pulled.get(user, 0) + 1
        response.headers["ratelimit-limit"] = f"{self.limits[user]};w={WINDOW}"
        response.headers["ratelimit-remaining"] = f"{self.left(user)};w={WINDOW}"
        response.headers["docker-ratelimit-source"] = user or "192.0.2.1"
        return response

    def left(self, user: str = "") -> int:
        """How many manifests the user may still GET."""
        return max(0, self.limits[user] - self.pulled.get(user, 0))

    async def _manifest(self, request: web.BaseRequest, repository: str, reference: str) -> web.StreamResponse:
        digest = self.tags.get((repository, reference), reference)
        if (repository, digest) not in self.members:
            return error(404, "MANIFEST_UNKNOWN")
        media_type, body = self.content[digest]
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest, "Content-Length": str(len(body))}
        if request.method == "HEAD":
            return web.Response(headers=headers)
        self.sent += len(body)
        return web.Response(body=body, headers=headers)

    async def _blob(self, request: web.BaseRequest, repository: str, digest: str) -> web.StreamResponse:
        if (repository, digest) not in self.members:
            return error(404, "BLOB_UNKNOWN")
        if self.storage is not None:
            return web.Response(status=307, headers={"Location": self.storage.address(digest)})
        _, body = self.content[digest]
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        if request.method == "HEAD":
            if not self.head_blobs:
                return error(401, "UNAUTHORIZED")
            return web.Response(headers=headers | {"Content-Length": str(len(body))})
        return await self.send_blob(request, digest, body, headers)

    def _list(self, request: web.BaseRequest, repository: str) -> web.Response:
        tags = sorted(tag for name, tag in self.tags if name == repository)
        if not tags:
            return error(404, "NAME_UNKNOWN")
        query, headers = request.rel_url.query, {}
        rest = [tag for tag in tags if tag > query.get("last", "")]
        page = rest[: int(query["n"])] if "n" in query else rest
        if len(page) < len(rest) and page:
            headers["Link"] = f'</v2/{repository}/tags/list?last={page[-1]}&n={query["n"]}>; rel="next"'
        body = json.dumps({"name": repository, "tags": page}).encode()
        return web.Response(body=body, content_type="application/json", headers=headers)

    # Authentication.

    def _refusal(self, request: web.BaseRequest, repository: str) -> web.Response | None:
        if self.private is None:
            return None
        header = request.headers.get("Authorization", "")
        if self.basic:
            user = _basic_user(header, self.passwords)
            allowed = user is not None and user in self.private.get(repository, set())
            return None if allowed else error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="here"'})
        readable = self._tokens.get(header.removeprefix("Bearer "))
        actions = {"pull", *self._actions.get(header.removeprefix("Bearer "), ())}
        if readable == repository and _ACTIONS.get(request.method, "push") in actions:
            return None
        realm = self.realm or f"{self.url}/token"
        challenge = f'Bearer realm="{realm}",service="fake",scope="repository:{repository}:pull"'
        return error(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})

    def _token(self, request: web.BaseRequest) -> web.Response:
        assert self.private is not None
        _, repository, actions = request.rel_url.query["scope"].split(":")
        header = request.headers.get("Authorization")
        user = _basic_user(header, self.passwords) if header else ""
        if user is None:
            return error(401, "UNAUTHORIZED")
        token = self.token(user, repository)
        self._actions[token] = set(actions.split(","))
        return web.json_response({"token": token, "expires_in": self.token_life})

    def token(self, user: str, repository: str) -> str:
        """A token of `user`, nobody's for "", for `repository`; given anyway, with less access than was asked for."""
        assert self.private is not None
        readers = self.private.get(repository)
        self._given += 1
        token = f"token-{self._given}-{user or 'anonymous'}"
        self._tokens[token] = repository if readers is None or user in readers else ""
        return token


def _user_of(request: web.BaseRequest) -> str:
    """Whose token the request brought, as `token` writes them."""
    user = request.headers.get("Authorization", "").partition("-")[2].partition("-")[2]
    return "" if user == "anonymous" else user


def _basic_user(header: str, passwords: dict[str, str]) -> str | None:
    try:
        user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
    except ValueError:
        return None
    return user if passwords.get(user) == password else None


def _parse(path: str) -> tuple[str, str, str]:
    for kind in ("manifests", "blobs", "tags", "referrers"):
        name, found, rest = path.removeprefix("/v2/").rpartition(f"/{kind}/")
        if found:
            return name, kind, rest
    return "", "", ""


def error(status: int, code: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error as registries answer it, with words of its own."""
    body = json.dumps({"errors": [{"code": code, "message": "the upstream's own words"}]}).encode()
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def wrong_digest(content: bytes) -> str:
    """A well-formed digest that `content` does not have."""
    return str(Digest("sha256", digest_of(content + b"!").removeprefix("sha256:")))
