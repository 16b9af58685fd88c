"""method + path + query → a frozen route value: everything a request of the distribution API can mean.

Parsed once, at the edge. The path is percent-decoded exactly once and then held against the grammar, so `..`,
`%2e%2e`, empty components and control characters end here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.reference import TagOrDigest, parse_name, parse_tag_or_digest

MAX_PATH_LENGTH = 1024
# Addresses of upload sessions are the upstream's to choose.
MAX_UPLOAD_PATH_LENGTH = 6144
MAX_QUERY_VALUE_LENGTH = 1024

# What lists are paged with: the specification's `n` and `last`, and the keys that registries' own links use instead.
# Lists are kept by their query, so keys that nobody knows would only fill the cache.
PAGE_KEYS = frozenset(
    "n last next_page page page_size next_token nextToken nextPageToken token marker cursor".split()  # noqa: SIM905
)

_SHAPE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<rest>[^/]*)", re.DOTALL)
_UPLOAD = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<session>[^/]*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Ping:
    """`GET /v2/`: does a registry answer here?"""

    kind = "ping"


@dataclass(frozen=True, slots=True)
class ManifestRoute:
    """`GET|HEAD /v2/<name>/manifests/<tag or digest>`."""

    name: str
    reference: TagOrDigest
    kind = "manifest"


@dataclass(frozen=True, slots=True)
class BlobRoute:
    """`GET|HEAD /v2/<name>/blobs/<digest>`."""

    name: str
    digest: Digest
    kind = "blob"


@dataclass(frozen=True, slots=True)
class TagsRoute:
    """`GET /v2/<name>/tags/list?n=&last=`."""

    name: str
    # As upstream is to see it, each value as the client wrote it.
    query: tuple[tuple[str, str], ...] = ()
    kind = "tags"


@dataclass(frozen=True, slots=True)
class ReferrersRoute:
    """`GET /v2/<name>/referrers/<digest>?artifactType=`."""

    name: str
    digest: Digest
    # As upstream is to see it: the filter, which may stand more than once, and the keys that registries page with.
    query: tuple[tuple[str, str], ...]
    kind = "referrers"


@dataclass(frozen=True, slots=True)
class UploadRoute:
    """`POST /v2/<name>/blobs/uploads/` (no session), `GET|PATCH|PUT|DELETE /v2/<name>/blobs/uploads/<session>`.

    The session is what stands in the path, whoever chose it: still to be judged.
    """

    name: str
    session: str
    kind = "push"


@dataclass(frozen=True, slots=True)
class ChangeRoute:
    """`PUT|DELETE /v2/<name>/manifests/<tag or digest>`, `DELETE /v2/<name>/blobs/<digest>`."""

    name: str
    what: Literal["manifests", "blobs"]
    reference: TagOrDigest
    kind = "push"


PushRoute = UploadRoute | ChangeRoute
Route = Ping | ManifestRoute | BlobRoute | TagsRoute | ReferrersRoute | PushRoute


def parse_route(method: str, raw_path: str, query: Mapping[str, str], pushes: bool = False) -> Route:
    """The route of a request. `raw_path` is still percent-encoded, `query` is decoded; `pushes`: these are served too.

    Raises OCIError: 404 outside `/v2/`; 405 UNSUPPORTED for what the proxy does not do under it; 400 for names, tags
    and digests off the grammar.
    """
    most = MAX_UPLOAD_PATH_LENGTH if pushes and "/blobs/uploads/" in raw_path else MAX_PATH_LENGTH
    if len(raw_path) > most:
        raise OCIError("NAME_INVALID", f"the path is longer than {most} characters", status=414)
    path = unquote(raw_path, errors="replace")
    if path in {"/v2", "/v2/"}:
        return _readable(method, Ping())
    if not path.startswith("/v2/"):
        raise OCIError("UNSUPPORTED", "there is nothing outside /v2/", status=404)
    if pushes and (upload := _UPLOAD.fullmatch(path)) is not None:
        return _upload(method, UploadRoute(parse_name(upload["name"]), upload["session"]))
    shape = _SHAPE.fullmatch(path)
    if shape is None or (shape["kind"] == "tags" and shape["rest"] != "list"):
        # Nothing at all is allowed there, which is what an empty Allow says (RFC 9110, section 10.2.1).
        raise OCIError("UNSUPPORTED", "this proxy serves manifests, blobs, tags and referrers", headers={"Allow": ""})
    route = _route(shape["kind"], parse_name(shape["name"]), shape["rest"], query)
    return _pushable(method, route) if pushes else _readable(method, route)


def _route(kind: str, name: str, rest: str, query: Mapping[str, str]) -> Route:
    if kind == "manifests":
        return ManifestRoute(name, parse_tag_or_digest(rest))
    if kind == "blobs":
        return BlobRoute(name, Digest.parse(rest))
    if any(len(value) > MAX_QUERY_VALUE_LENGTH for value in query.values()):
        raise OCIError("UNSUPPORTED", "a value in the query is too long", status=400)
    known = tuple(sorted(item for item in query.items() if item[0] in PAGE_KEYS))
    if kind == "tags":
        return TagsRoute(name, known)
    filters = tuple(sorted(item for item in query.items() if item[0] == "artifactType"))
    return ReferrersRoute(name, Digest.parse(rest), filters + known)


def _upload(method: str, route: UploadRoute) -> Route:
    allowed = ("GET", "PATCH", "PUT", "DELETE") if route.session else ("POST",)
    if method in allowed:
        return route
    raise _not_allowed("this cannot be done with an upload", allowed)


def _pushable(method: str, route: Route) -> Route:
    """As `_readable`, where manifests and blobs may be changed too."""
    match route:
        case ManifestRoute(name, reference):
            changes: tuple[str, ...] = ("PUT", "DELETE")
            changed = ChangeRoute(name, "manifests", reference)
        case BlobRoute(name, digest):
            changes, changed = ("DELETE",), ChangeRoute(name, "blobs", digest)
        case _:
            return _readable(method, route)
    if method in changes:
        return changed
    if method in {"GET", "HEAD"}:
        return route
    raise _not_allowed(f"this cannot be done with {changed.what}", ("GET", "HEAD", *changes))


def _readable(method: str, route: Route) -> Route:
    allowed = ("GET",) if isinstance(route, TagsRoute | ReferrersRoute) else ("GET", "HEAD")
    if method in allowed:
        return route
    raise _not_allowed("this proxy only serves pulls", allowed)


def _not_allowed(message: str, allowed: Iterable[str]) -> OCIError:
    return OCIError("UNSUPPORTED", message, headers={"Allow": ", ".join(allowed)})
