"""Manifests as upstreams have them: asked for, held against their digest, written down.

Invariant: where a principal's pulls go out with the proxy's own credential (`Principal.pulls_as`), they are by digest,
and of what the principal has a right to without it: by a HEAD with rights of its own just now, or by proof and
membership. What comes back to the credential, bytes or a refusal, is nobody's proof and ends none.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Literal

from proxy.cache.ask import Ask, Records, Rights
from proxy.cache.records import manifest_key
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.manifest import (
    ACCEPT,
    MAX_MANIFEST_SIZE,
    SAYS_NOTHING,
    ManifestInvalid,
    content_type_of,
    parse_manifest,
)
from proxy.oci.reference import TagOrDigest
from proxy.policy.access import Principal
from proxy.policy.budget import Wanted
from proxy.telemetry.events import DigestMismatch, Tell, UpstreamPulled
from proxy.upstream.budgets import Budgets
from proxy.upstream.client import Call, Reply, Upstream
from proxy.upstream.errors import (
    LeftAlone,
    UpstreamError,
    UpstreamFailure,
    UpstreamInvalid,
    UpstreamMissing,
    UpstreamRefused,
    UpstreamRejected,
    WrongDigest,
)

_log = logging.getLogger("pullthrough.cache")

# Larger manifests are hashed and parsed in a thread, in bytes.
_LARGE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Content:
    """A manifest: `size` in bytes, `body` None where only its head is known, `at` when the upstream vouched for it."""

    digest: Digest
    media_type: str
    size: int
    body: bytes | None
    at: float = 0.0


class PullKept(LeftAlone):
    """Nothing was sent: the pulls that are left are kept for images that are not cached."""


class ManifestOrigin:
    """Asks upstreams for manifests. Everything it returns has been recorded: content, membership and proof."""

    def __init__(
        self, upstreams: Mapping[str, Upstream], records: Records, rights: Rights, budgets: Budgets, tell: Tell
    ) -> None:
        self._upstreams = upstreams
        self._budgets = budgets
        self._records = records
        self._rights = rights
        self._tell = tell
        # Why the proxy's credential was of no use last, by registry: told once.
        self._useless: dict[str, str] = {}

    async def get(self, ask: Ask, reference: TagOrDigest, wanted: Wanted = "uncached") -> Content:
        """The manifest by GET, which counts against rate limits.

        Raises UpstreamError; WrongDigest for other bytes; PullKept where none may be spent on what is `wanted`.
        """
        registry = ask.repository.registry
        with self._budgets.pull(registry, ask.principal, wanted) as answered:
            if answered is None:
                raise PullKept("429", f"{registry}: the pulls that are left are kept for images that are not cached")
            if ask.principal.pulls_as is not None:
                return await self._get_lent(ask, reference, ask.principal.pulls_as, answered)
            return await self._get(ask, reference, answered)

    async def _get(self, ask: Ask, reference: TagOrDigest, answered: Callable[[], None] | None = None) -> Content:
        generation = await self._records.generation(ask.repository)
        content = await self._read(ask, reference, answered)
        member = await self._rights.grant(ask, content.digest, content.media_type, content.size, generation)
        return replace(content, at=member.at)

    async def _get_lent(
        self, ask: Ask, reference: TagOrDigest, lender: Principal, answered: Callable[[], None]
    ) -> Content:
        """With the credential of `lender`; without, where that is of no use."""
        if not isinstance(reference, Digest) or not await self._rights.has(ask, reference):
            named = await self.head(ask, reference)
            if named.body is not None:
                # The upstream's HEAD does not say enough, so it was had by GET.
                return named
            reference = named.digest
        generation = await self._records.generation(ask.repository)
        try:
            content = await self._read(replace(ask, principal=lender), reference, answered)
        except (UpstreamRefused, UpstreamMissing, UpstreamRejected) as error:
            self._say_useless(ask, error)
        except UpstreamFailure as error:
            if not error.at_token_server:
                raise
            self._say_useless(ask, error)
        else:
            self._useless.pop(ask.repository.registry, None)
            member = await self._rights.admit(ask, content.digest, content.media_type, content.size, generation)
            return replace(content, at=member.at)
        return await self._get(ask, reference)

    async def _read(self, ask: Ask, reference: TagOrDigest, answered: Callable[[], None] | None) -> Content:
        async with self._request(ask, reference, "GET") as reply:
            if answered is not None:
                answered()
            self._tell(UpstreamPulled(ask.repository.registry, ask.cluster))
            content = await read_manifest(ask, reference, reply, self._tell)
        await self._records.put({manifest_key(content.digest): content.body or b""})
        return content

    def _say_useless(self, ask: Ask, error: UpstreamError) -> None:
        registry = ask.repository.registry
        if self._useless.get(registry) != str(error):
            self._useless[registry] = str(error)
            _log.warning("%s: pulling without the proxy's credential: %s", registry, error)

    async def head(self, ask: Ask, reference: TagOrDigest, known: Content | None = None, pulls: bool = True) -> Content:
        """The manifest's head, which costs no pull; by GET where the upstream's HEAD does not say enough.

        Where it names the digest of `known`, which was checked, it only confirms: type and size stay what they are.
        Without `pulls` a HEAD that does not say enough is UpstreamRejected.
        """
        generation = await self._records.generation(ask.repository)
        try:
            async with self._request(ask, reference, "HEAD") as reply:
                seen, content = _digest_seen(reference, reply), _head(reference, reply)
        except UpstreamRejected as error:
            if error.status != 405:
                raise
            seen = content = None
        if known is not None and seen == known.digest:
            if known.body is not None:
                # Confirmed content is kept on.
                await self._records.put({manifest_key(known.digest): known.body})
            content = known
        if content is None and not pulls:
            raise UpstreamRejected(405, f"{ask.repository.registry} does not say by HEAD what {reference} is")
        if content is None:
            return await self._get(ask, reference)
        member = await self._rights.grant(ask, content.digest, content.media_type, content.size, generation)
        return replace(content, at=member.at)

    def _request(
        self, ask: Ask, reference: TagOrDigest, method: Literal["GET", "HEAD"]
    ) -> AbstractAsyncContextManager[Reply]:
        call = Call(
            "manifest", method, ask.repository, ask.principal, f"manifests/{reference}", headers={"Accept": ACCEPT}
        )
        return self._upstreams[ask.repository.registry].request(call)


async def read_manifest(ask: Ask, reference: TagOrDigest, reply: Reply, tell: Tell) -> Content:
    """The manifest in `reply`, held against its digest and its own rules. Raises WrongDigest or UpstreamInvalid."""
    body = await reply.read(MAX_MANIFEST_SIZE)
    # The digest asked for, the one the upstream names, or sha256 where it names none.
    digest = reference if isinstance(reference, Digest) else _named(reply) or Digest.of(body)
    content_type = reply.headers.get("Content-Type", "")
    try:
        if len(body) < _LARGE:
            media_type = _checked(digest, body, content_type)
        else:
            media_type = await asyncio.to_thread(_checked, digest, body, content_type)
    except ManifestInvalid as error:
        raise UpstreamInvalid(f"{ask.repository} {reference}: {error}", reply.status) from error
    if media_type is None:
        tell(DigestMismatch(ask.repository.registry))
        raise WrongDigest(f"{ask.repository} {reference}: the manifest's bytes are not those of {digest}", reply.status)
    return Content(digest, media_type, len(body), body)


def _checked(digest: Digest, body: bytes, content_type: str) -> str | None:
    """The manifest's media type; None where it is not what `digest` names. Raises ManifestInvalid."""
    return parse_manifest(body, content_type).media_type if digest.matches(body) else None


def _named(reply: Reply) -> Digest | None:
    try:
        return Digest.parse(reply.headers.get("Docker-Content-Digest", ""))
    except OCIError:
        return None


def _digest_seen(reference: TagOrDigest, reply: Reply) -> Digest | None:
    """The digest that a HEAD speaks of; None where it names none. Raises UpstreamInvalid for an impossible one."""
    named = _named(reply)
    if content_type_of(reply.headers.get("Content-Type", "")) == "text/html":
        raise UpstreamInvalid(f"the upstream answered {reference} as text/html", reply.status)
    if not isinstance(reference, Digest):
        return named
    if named is not None and named.algorithm == reference.algorithm and named != reference:
        raise UpstreamInvalid(f"the upstream answered {reference} with the head of {named}", reply.status)
    # Another algorithm's digest of the same bytes may be named; what was asked for is what was answered.
    return reference


def _head(reference: TagOrDigest, reply: Reply) -> Content | None:
    """What a HEAD says of a manifest nobody has yet; None where it does not name digest, length and type."""
    digest, size = _digest_seen(reference, reply), reply.content_length
    media_type = content_type_of(reply.headers.get("Content-Type", ""))
    if digest is None or not size or media_type in SAYS_NOTHING:
        return None
    return Content(digest, media_type, size, None)
