"""The admin API's requests and answers, apart from HTTP: the admin listener may be another process's.

Every change leaves an audit line: what, which, by whom.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from proxy.cache.control import CannotHold, Control, TooMany
from proxy.cache.sticky import Named, StickyTag, Wanted, fits
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.policy.registry import Reference, Registries, parse_reference
from proxy.server.described import digest_as_json, refreshed_as_json, rfc3339, tag_as_json, text_of
from proxy.storage.base import BlobStore, StorageError
from proxy.upstream.replicas import Dropped

_log = logging.getLogger("pullthrough.server")
_audit = logging.getLogger("pullthrough.audit")

_MOST = 1000
_USUAL = 100
# No command concerns more tags than this at once.
_MOST_MATCHING = 10_000
# References are shorter, and so are patterns that somebody wrote, in characters.
_LONGEST_TEXT = 1024
# A page of tags ends at the one that brings it to so many clients: it is sent between processes, whole.
_MOST_NODES = 20_000
_LONGEST_LINE = 20
_PATTERN = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """`path` after `/api/v1/`; `body` a JSON value, or None; `actor` who asks, for the audit line."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Any = None
    actor: str = ""


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """`body` is a JSON value."""

    status: int
    body: Any


class ApiError(Exception):
    """The message is one line for whoever asked."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """Answers the admin API in a process that serves."""

    def __init__(
        self,
        control: Control,
        blobs: BlobStore,
        purge_blob: Callable[[Digest], Awaitable[Dropped]],
        registries: Callable[[], Registries],
        clusters: Callable[[], Iterable[str]],
        stats: Callable[[], Any],
        clock: Callable[[], float],
        warm: Callable[[ApiRequest], Awaitable[ApiResponse]],
    ) -> None:
        """`registries` and `clusters` as they are configured at present; `stats`: what this process knows of itself.

        `warm` answers what begins with that.
        """
        self._control = control
        self._blobs = blobs
        self._purge_blob = purge_blob
        self._registries = registries
        self._clusters = clusters
        self._stats = stats
        self._clock = clock
        self._warm = warm
        self._changes: set[asyncio.Task[ApiResponse]] = set()

    async def answer(self, request: ApiRequest) -> ApiResponse:
        """Answer one request; every error is an answer too. A change comes to its end, whoever leaves meanwhile."""
        if request.method == "GET":
            return await self._try(request)
        change = asyncio.get_running_loop().create_task(self._try(request), name="change by an operator")
        self._changes.add(change)
        change.add_done_callback(self._changes.discard)
        return await asyncio.shield(change)

    async def close(self) -> None:
        """End what is under way."""
        for change in self._changes:
            change.cancel()
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def _try(self, request: ApiRequest) -> ApiResponse:
        try:
            if request.path.split("/")[0] == "warm":
                return await self._warm(request)
            return ApiResponse(200, await self._answer(request))
        except ApiError as error:
            return failed(error.status, str(error))
        except TooMany as error:
            return failed(400, str(error))
        except OCIError as error:
            return failed(400, error.message)
        except StorageError as error:
            return failed(503, str(error))
        except Exception as error:  # noqa: BLE001 - see below
            # Whoever waits for the answer, perhaps in another process, has one.
            _log.error("%s /api/v1/%s failed", request.method, request.path, exc_info=error)
            return failed(500, "the proxy failed to answer this request")

    async def _answer(self, request: ApiRequest) -> Any:
        query = dict(request.query)
        match request.method, request.path.split("/"):
            case "GET", ["tags"]:
                return await self._tags(query)
            case "POST", ["tags", "refresh"]:
                return await self._refresh(request)
            case "POST", ["tags", "hold"]:
                return await self._hold(request)
            case "POST", ["tags", "release"]:
                return await self._release(request)
            case "DELETE", ["tags"]:
                return await self._purge(request, query.get("reference", ""))
            case "GET", ["blobs"]:
                return await self._list_blobs(query)
            case "DELETE", ["blobs", text]:
                return await self._remove_blob(request, Digest.parse(text))
            case "GET", ["stats"]:
                return await self._stats()
        raise ApiError(404, f"there is no {request.method} /api/v1/{request.path}")

    # Tags.

    async def _tags(self, query: Mapping[str, str]) -> Any:
        cluster, with_nodes, n = query.get("cluster", ""), _flag(query, "nodes"), _number(query, "n", _USUAL)
        if cluster and cluster not in self._clusters():
            raise ApiError(400, f"there is no cluster {cluster}")
        pattern = _text_in(query, "reference")
        wanted = Wanted(
            pattern, query.get("registry"), _text_in(query, "repository"), cluster,
            _flag(query, "drifted"), _flag(query, "held"), _flag(query, "unchecked"),
        )  # fmt: skip
        if pattern is not None and not _PATTERN & set(pattern):
            one = await self._control.tag(self._named(pattern), cluster)
            known = one.digest is not None or one.history.digests
            found = [one] if known and fits(one, replace(wanted, pattern=None)) else []
        else:
            found = await self._control.tags(wanted, n + 1, _text_in(query, "last") or "")
        tags: list[dict[str, Any]] = []
        nodes = 0
        for one in found[:n]:
            if nodes >= _MOST_NODES:
                break
            tags.append(await self._described(one, with_nodes))
            nodes += sum(len(digest.get("nodes", ())) for digest in tags[-1]["history"])
        return {"tags": tags} | ({"last": tags[-1]["reference"]} if len(tags) < len(found) else {})

    async def _described(self, one: StickyTag, with_nodes: bool) -> dict[str, Any]:
        history = []
        for served in one.history.digests:
            nodes = None
            if with_nodes:
                nodes = await self._control.nodes((one.repository, one.tag), served.digest)
            history.append(digest_as_json(served, nodes))
        return tag_as_json(one, self._clock()) | {"history": history}

    async def _refresh(self, request: ApiRequest) -> Any:
        named = await self._matching(request)
        found = await self._control.refresh(named)
        self._say(request, "refresh", named)
        return {"tags": [refreshed_as_json(one) for one in found]}

    async def _purge(self, request: ApiRequest, text: str) -> Any:
        if not text:
            raise ApiError(400, "say which: ?reference=docker.io/library/nginx:latest")
        reference = self._reference(text)
        if reference is not None and reference.digest is not None:
            await self._control.purge_manifest(reference.repository, reference.digest)
            _audit.info("purge %s@%s by %s", reference.repository, reference.digest, request.actor)
            return {"tags": [f"{reference.repository}@{reference.digest}"]}
        named = await self._select(text, reference)
        await self._control.purge(named)
        self._say(request, "purge", named)
        return {"tags": [text_of(one) for one in named]}

    async def _hold(self, request: ApiRequest) -> Any:
        held: list[Named] = []
        for named, digest in await self._to_hold(_text_of(request)):
            try:
                await self._control.hold(named, digest, request.actor)
            except CannotHold as error:
                before = f"; {len(held)} others are held now" if held else ""
                raise ApiError(409, f"{text_of(named)}: {error}{before}") from error
            _audit.info("hold %s@%s by %s", text_of(named), digest, request.actor)
            held.append(named)
        return {"tags": [tag_as_json(await self._control.tag(one), self._clock()) for one in held]}

    async def _to_hold(self, text: str) -> list[tuple[Named, Digest]]:
        """Tags and digests: the one that is named, or what each is at present; what is held already stays as it is."""
        reference = self._reference(text)
        if reference is not None and reference.tag is not None and reference.digest is not None:
            return [((reference.repository, reference.tag), reference.digest)]
        found = [await self._control.tag(named) for named in await self._select(text, reference)]
        if reference is not None and found[0].digest is None:
            raise ApiError(409, f"{text} is not known here: say which digest to hold it at")
        return [
            ((one.repository, one.tag), Digest.parse(one.digest))
            for one in found
            if one.digest is not None and (one.hold is None or reference is not None)
        ]

    async def _release(self, request: ApiRequest) -> Any:
        named = await self._control.release(await self._matching(request))
        self._say(request, "release", named)
        return {"tags": [tag_as_json(await self._control.tag(one), self._clock()) for one in named]}

    async def _matching(self, request: ApiRequest) -> list[Named]:
        text = _text_of(request)
        return await self._select(text, self._reference(text))

    async def _select(self, text: str, reference: Reference | None) -> list[Named]:
        """The tags that `text`, a reference or a pattern, means."""
        if reference is None:
            return await self._control.matching(text, _MOST_MATCHING)
        if reference.tag is None or reference.digest is not None:
            raise ApiError(400, "name a tag, or a pattern of tags")
        return [(reference.repository, reference.tag)]

    def _named(self, text: str) -> Named:
        reference = self._reference(text)
        if reference is None or reference.tag is None:
            raise ApiError(400, "name a tag: docker.io/library/nginx:latest")
        return reference.repository, reference.tag

    def _reference(self, text: str) -> Reference | None:
        """The reference; None where the text is a pattern."""
        _checked(text, "reference")
        return None if _PATTERN & set(text) else parse_reference(self._registries(), text)

    @staticmethod
    def _say(request: ApiRequest, verb: str, named: list[Named]) -> None:
        texts = [text_of(one) for one in named]
        for text in texts[:_LONGEST_LINE]:
            _audit.info("%s %s by %s", verb, text, request.actor)
        if len(texts) > _LONGEST_LINE or not texts:
            _audit.info("%s by %s: %d tags in all", verb, request.actor, len(texts))

    # Blobs.

    async def _list_blobs(self, query: Mapping[str, str]) -> Any:
        n = _number(query, "n", _USUAL)
        found = await self._blobs.listed(_text_in(query, "last") or "", n + 1)
        blobs = [
            {
                "digest": str(one.digest), "size": one.size, "stored": rfc3339(one.stored), "used": rfc3339(one.used),
                "registry": one.user.registry, "repository": one.user.repository, "cluster": one.user.cluster,
            }
            for one in found[:n]
        ]  # fmt: skip
        return {"blobs": blobs} | ({"last": blobs[-1]["digest"]} if len(found) > n else {})

    async def _remove_blob(self, request: ApiRequest, digest: Digest) -> Any:
        dropped = await self._purge_blob(digest)
        if dropped is Dropped.READ:
            raise ApiError(409, f"{digest} is being read at present")
        if dropped is Dropped.NONE:
            raise ApiError(404, f"{digest} is not in the cache")
        _audit.info("remove %s by %s", digest, request.actor)
        return {"blobs": [str(digest)]}


def failed(status: int, message: str) -> ApiResponse:
    """An error as the API tells it."""
    return ApiResponse(status, {"error": message})


def _text_of(request: ApiRequest) -> str:
    body = request.body
    text = body.get("reference") if isinstance(body, dict) else None
    if not isinstance(text, str) or not text:
        raise ApiError(400, 'the body is to be {"reference": "docker.io/library/nginx:latest"}')
    return text


def _text_in(query: Mapping[str, str], name: str) -> str | None:
    return _checked(query[name], name) if name in query else None


def _checked(text: str, name: str) -> str:
    if len(text) > _LONGEST_TEXT or not text.isprintable():
        raise ApiError(400, f"{name} is to be no longer than {_LONGEST_TEXT} printable characters")
    return text


def _number(query: Mapping[str, str], name: str, usual: int) -> int:
    text = query.get(name, str(usual))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= _MOST):
        raise ApiError(400, f"{name} is to be a number from 1 to {_MOST}")
    return int(text)


def _flag(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "false").lower()
    if text not in {"", "1", "true", "0", "false"}:
        raise ApiError(400, f"{name} is to be true or false")
    return text in {"", "1", "true"}


def parse_body(raw: bytes) -> Any:
    """The JSON of a request's body, None where there is none. Raises ApiError."""
    if not raw:
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is not JSON") from error
