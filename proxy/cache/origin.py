"""Manifests as upstreams have them: asked for, held against their digest, written down."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal

from proxy.cache.ask import Ask, Records, Rights
from proxy.cache.records import manifest_key
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.manifest import ACCEPT, MAX_MANIFEST_SIZE, ManifestInvalid, content_type_of, parse_manifest
from proxy.oci.reference import TagOrDigest
from proxy.telemetry.events import DigestMismatch, Tell
from proxy.upstream.client import Call, Reply, Upstream
from proxy.upstream.errors import UpstreamInvalid, UpstreamRejected, WrongDigest


@dataclass(frozen=True, slots=True)
class Content:
    """A manifest: `size` in bytes, `body` None where only its head is known, `at` when the upstream vouched for it."""

    digest: Digest
    media_type: str
    size: int
    body: bytes | None
    at: float = 0.0


class ManifestOrigin:
    """Asks upstreams for manifests. Everything it returns has been recorded: content, membership and proof."""

    def __init__(self, upstreams: Mapping[str, Upstream], records: Records, rights: Rights, tell: Tell) -> None:
        self._upstreams = upstreams
        self._records = records
        self._rights = rights
        self._tell = tell

    async def get(self, ask: Ask, reference: TagOrDigest) -> Content:
        """The manifest by GET, which counts against rate limits. Raises UpstreamError; WrongDigest for other bytes."""
        async with self._request(ask, reference, "GET") as reply:
            body = await reply.read(MAX_MANIFEST_SIZE)
            digest = self._checked(ask, reference, reply, body)
            try:
                manifest = parse_manifest(body, reply.headers.get("Content-Type", ""))
            except ManifestInvalid as error:
                raise UpstreamInvalid(f"{ask.repository} {reference}: {error}") from error
        await self._records.put({manifest_key(digest): body})
        member = await self._rights.grant(ask, digest, manifest.media_type, len(body))
        return Content(digest, manifest.media_type, len(body), body, member.at)

    async def head(self, ask: Ask, reference: TagOrDigest) -> Content:
        """The manifest's head, which costs no pull; by GET where the upstream's HEAD does not say enough."""
        try:
            async with self._request(ask, reference, "HEAD") as reply:
                content = _head(reference, reply)
        except UpstreamRejected as error:
            if error.status != 405:
                raise
            content = None
        if content is None:
            return await self.get(ask, reference)
        member = await self._rights.grant(ask, content.digest, content.media_type, content.size)
        return Content(content.digest, content.media_type, content.size, None, member.at)

    def _request(
        self, ask: Ask, reference: TagOrDigest, method: Literal["GET", "HEAD"]
    ) -> AbstractAsyncContextManager[Reply]:
        call = Call(
            "manifest", method, ask.repository, ask.principal, f"manifests/{reference}", headers={"Accept": ACCEPT}
        )
        return self._upstreams[ask.repository.registry].request(call)

    def _checked(self, ask: Ask, reference: TagOrDigest, reply: Reply, body: bytes) -> Digest:
        """The digest of `body`: the one asked for, the one the upstream names, or sha256 where it names none."""
        digest = reference if isinstance(reference, Digest) else _named(reply) or Digest.of(body)
        if not digest.matches(body):
            self._tell(DigestMismatch(ask.repository.registry))
            raise WrongDigest(f"{ask.repository} {reference}: the manifest's bytes are not those of {digest}")
        return digest


def _named(reply: Reply) -> Digest | None:
    try:
        return Digest.parse(reply.headers.get("Docker-Content-Digest", ""))
    except OCIError:
        return None


def _head(reference: TagOrDigest, reply: Reply) -> Content | None:
    """What a HEAD says; None where it does not name the digest, the length and the type."""
    named, size = _named(reply), reply.content_length
    media_type = content_type_of(reply.headers.get("Content-Type", ""))
    if media_type == "text/html":
        raise UpstreamInvalid(f"the upstream answered {reference} as text/html")
    if isinstance(reference, Digest):
        if named is not None and named.algorithm == reference.algorithm and named != reference:
            raise UpstreamInvalid(f"the upstream answered {reference} with the head of {named}")
        # Another algorithm's digest of the same bytes may be named; what was asked for is what was answered.
        named = reference
    if named is None or size is None or not media_type or media_type == "application/json":
        return None
    return Content(named, media_type, size, None)
