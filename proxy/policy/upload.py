"""The addresses of upload sessions: the upstream's, as our clients see them, and back. Pure.

A registry says where an upload goes on (`Location`), and clients go there with all they have. Ours come back here, so
the address is written anew; and since what a client brings is only its word, nothing of it may choose whom we dial:
- An address below `/v2/<name>/blobs/uploads/` at the upstream's own host keeps its last part and its query. Whatever a
  client makes of those, it asks for an upload of the same repository at the same host.
- Any other path at the upstream's own host (GHCR's `/upload/`, Artifact Registry's) is sealed: path and query with a
  keyed hash over them and the repository. What was not sealed here is no upload.
- Another host is refused. Authorization does not go there, and nobody has vouched for it.

The own host is that of the upstream's URL, or of one of the registry's names: registries behind a gateway answer with
the name that people know. The scheme is not looked at, since it is the URL's own origin that is dialled.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, quote, unquote_plus, urljoin, urlsplit

from proxy.oci.reference import Repository

# Sessions that stay as they are: nothing to encode, and no `.` or `..`.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,511}")
_SEALED = re.compile(r"~([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{22})")
_SEALED_PREFIX = "~"
# As it stands in a request line: visible ASCII.
_VISIBLE = re.compile(r"[!-~]+")
# Longer ones would not come back: a request line has 8190 bytes.
_LONGEST = 4000
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ForeignUpload(ValueError):
    """The upstream keeps its upload where we do not go. The message is for operators; it does not hold the address."""


class UnknownUpload(ValueError):
    """What a client brings is no address that was given to it."""


@dataclass(frozen=True, slots=True)
class Uploads:
    """The uploads of one repository: the upstream's `url`, all `names` of its registry, and the key that seals."""

    repository: Repository
    url: str
    names: tuple[str, ...]
    key: bytes = field(repr=False)

    @property
    def path(self) -> str:
        """Where uploads are, on the upstream's origin."""
        return f"{urlsplit(self.url).path}/v2/{self.repository.name}/blobs/uploads/"

    def for_client(self, location: str, asked: str) -> tuple[str, str]:
        """Session and query for the client, out of the `Location` that answered `asked`. Raises ForeignUpload."""
        if not _VISIBLE.fullmatch(location) or len(location) > _LONGEST:
            raise ForeignUpload("its Location is no address")
        try:
            parts = urlsplit(urljoin(asked, location))
            own = self._is_own(parts)
        except ValueError:
            raise ForeignUpload("its Location is no address") from None
        if not own:
            raise ForeignUpload("its Location is on another host")
        session = parts.path.removeprefix(self.path)
        query = without_ns(parts.query)
        if session != parts.path and _PLAIN.fullmatch(session):
            return session, query
        target = f"{parts.path or '/'}?{query}" if query else parts.path or "/"
        return f"{_SEALED_PREFIX}{_encoded(target.encode())}.{self._seal(target)}", ""

    def target(self, session: str, query: str) -> str:
        """Path and query upstream of what a client brings back, its own query behind the sealed one.

        Raises UnknownUpload.
        """
        query = without_ns(query)
        if _PLAIN.fullmatch(session):
            return _joined(self.path + session, query)
        sealed = _SEALED.fullmatch(session)
        if sealed is None:
            raise UnknownUpload("not an upload of this repository")
        try:
            target = _decoded(sealed[1]).decode("ascii")
        except ValueError:
            raise UnknownUpload("not an upload of this repository") from None
        if not hmac.compare_digest(self._seal(target), sealed[2]):
            raise UnknownUpload("not an upload of this repository")
        return _joined(target, query)

    def _seal(self, target: str) -> str:
        text = "\0".join(["upload", self.repository.registry, self.repository.name, target])
        return _encoded(hmac.new(self.key, text.encode(), hashlib.sha256).digest()[:16])

    def _is_own(self, parts: SplitResult) -> bool:
        if parts.scheme not in _DEFAULT_PORTS or parts.username is not None or parts.password is not None:
            return False
        host = _authority(parts)
        return host == _authority(urlsplit(self.url)) or host in {name.lower() for name in self.names}


def without_ns(query: str) -> str:
    """A query as it was written, without `ns`, which is between a client and us."""
    return "&".join(pair for pair in query.split("&") if pair and unquote_plus(pair.partition("=")[0]) != "ns")


def with_mount_from(query: str, name: str | None) -> str:
    """A query as it was written, with `name` as the repository that a blob is mounted `from`, or with none."""
    pairs = [pair for pair in query.split("&") if pair and unquote_plus(pair.partition("=")[0]) != "from"]
    return "&".join([*pairs, *([f"from={quote(name, safe='')}"] if name is not None else [])])


def values_in(query: str, name: str) -> list[str]:
    """The values that `name` has in a query."""
    return [value for key, value in parse_qsl(query, keep_blank_values=True) if key == name]


def client_path(name: str, rest: str, query: str, ns: str | None) -> str:
    """A path of ours, relative to our host: with the name and the `ns` that the client came by."""
    pairs: Iterable[str] = (query, f"ns={quote(ns, safe='')}" if ns is not None else "")
    return _joined(f"/v2/{name}/{rest}", "&".join(pair for pair in pairs if pair))


def _joined(path: str, query: str) -> str:
    if not query:
        return path
    return f"{path}{'&' if '?' in path else '?'}{query}"


def _authority(parts: SplitResult) -> str:
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in {None, _DEFAULT_PORTS.get(parts.scheme)} else f"{host}:{parts.port}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
