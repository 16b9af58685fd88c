"""Which digests tags have now: asked of a proxy, or of the registries themselves.

Invariants:
- Each tag of each repository is asked for once, at most `_AT_ONCE` at a time; an image that fails fails alone.
- By HEAD, which no rate limit counts; by GET, whose body is hashed, where a HEAD is not answered or names no digest.
- Credentials of the docker config.json go to the registry, or the proxy, that they stand there for.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from multidict import CIMultiDictProxy

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.image import ImageName
from proxy.oci.manifest import ACCEPT, MAX_MANIFEST_SIZE, ManifestInvalid, parse_manifest
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS, Principal
from proxy.settings import CredentialSettings, UpstreamSettings
from proxy.telemetry.events import silent
from proxy.upstream.client import Call, Reply, Upstream
from proxy.upstream.errors import (
    TargetRefused,
    UpstreamError,
    UpstreamInvalid,
    UpstreamRefused,
    UpstreamRejected,
)
from proxy.upstream.places import CredentialsUnavailable, NoCredential, place_of

_AT_ONCE = 8
# Where a registry is not at its own name.
_HOSTS = {"docker.io": "registry-1.docker.io"}
# Hosts besides their own that issue registries' tokens.
_TOKEN_REALMS = {
    "docker.io": ("auth.docker.io",),
    "registry-1.docker.io": ("auth.docker.io",),
    "registry.gitlab.com": ("gitlab.com",),
    "docker.elastic.co": ("docker-auth.elastic.co",),
    "lscr.io": ("ghcr.io",),
}
_LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?")
# RFC 7234, section 5.5; 299 is the one that the distribution specification has.
_WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Ways:
    """How registries are asked: through `proxy`, a URL, or (None) each at its own name.

    `plain_http`: registries without TLS, besides those on loopback. `token_realms`: hosts that may issue tokens besides
    the registry's own. `docker_config`: the file with the user's credentials.
    """

    proxy: str | None = None
    plain_http: frozenset[str] = frozenset()
    token_realms: tuple[str, ...] = ()
    docker_config: Path | None = None


class Unknown(Exception):
    """The digest cannot be had. The message is one line for people and holds no secret."""


async def find_digests(
    names: Iterable[ImageName], ways: Ways, warn: Callable[[str], None]
) -> dict[ImageName, Digest | Unknown]:
    """The digest of each of `names`, or why there is none; `warn` is told what registries and proxies warn of."""
    # With and without a written `latest` it is the same tag.
    wanted: dict[tuple[Repository, str], list[ImageName]] = {}
    for name in names:
        wanted.setdefault((name.repository, name.tag_or_latest), []).append(name)
    urls = {key: ways.proxy or url_of(key[0].registry, ways) for key in wanted}
    async with AsyncExitStack() as stack:
        gate = asyncio.Semaphore(_AT_ONCE)
        hosts = {}
        for url in set(urls.values()):
            hosts[url] = host = _Host(url, ways, warn, gate)
            stack.push_async_callback(host.close)
        async with asyncio.TaskGroup() as group:
            asked = {key: group.create_task(hosts[urls[key]].digest(same[0])) for key, same in wanted.items()}
    return {name: asked[key].result() for key, same in wanted.items() for name in same}


def url_of(registry: str, ways: Ways) -> str:
    """Where a registry is asked when no proxy is."""
    plain = registry in ways.plain_http or _LOOPBACK.fullmatch(registry)
    return f"{'http' if plain else 'https'}://{_HOSTS.get(registry, registry)}"


class _Host:
    """The proxy, or a registry at its own name. What it needs is made ready for the first who asks."""

    def __init__(self, url: str, ways: Ways, warn: Callable[[str], None], gate: asyncio.Semaphore) -> None:
        self._url = url
        self._ways = ways
        self._warn = warn
        self._gate = gate
        self._ready: asyncio.Task[tuple[Upstream, Principal]] | None = None

    async def close(self) -> None:
        """End what was started."""
        if self._ready is not None:
            (result,) = await asyncio.gather(self._ready, return_exceptions=True)
            if isinstance(result, tuple):
                await result[0].close()

    async def digest(self, image: ImageName) -> Digest | Unknown:
        """The digest that the image's tag has now."""
        async with self._gate:
            if self._ready is None:
                self._ready = asyncio.create_task(self._make_ready(image.repository.registry), name=self._url)
            try:
                upstream, principal = await asyncio.shield(self._ready)
            except ValueError:
                return Unknown(f"{self._url} is no address that could be asked")
            try:
                return await self._ask(upstream, principal, image)
            except UpstreamError as error:
                return Unknown(f"{error}{_advice(error)}")

    async def _make_ready(self, registry: str) -> tuple[Upstream, Principal]:
        """Raises ValueError where the URL is not one that could be dialled."""
        name = registry if self._ways.proxy is None else urlsplit(self._url).netloc
        realms = (*_TOKEN_REALMS.get(name, ()), *self._ways.token_realms)
        upstream = Upstream(name, UpstreamSettings(url=self._url, token_realms=realms), silent, time.time)
        await upstream.start()
        return upstream, await self._principal(name)

    async def _principal(self, name: str) -> Principal:
        """With the user's own credential, where there is one."""
        if self._ways.docker_config is None:
            return ANONYMOUS
        place = place_of(CredentialSettings(docker_config=self._ways.docker_config), [name], urlsplit(self._url).netloc)
        try:
            credential = (await place.look([])).for_image([])
        except NoCredential:
            return ANONYMOUS
        except CredentialsUnavailable as error:
            self._warn(f"{name} is asked without a credential: {error}")
            return ANONYMOUS
        if credential is None:
            return ANONYMOUS
        return Principal("client", "docker config", basic=(credential.username, credential.secret))

    async def _ask(self, upstream: Upstream, principal: Principal, image: ImageName) -> Digest:
        try:
            async with upstream.request(self._call("HEAD", principal, image)) as reply:
                self._hear(image, reply.headers)
                digest = _named(reply)
        except UpstreamRejected as error:
            if error.status != 405:
                raise
            digest = None
        if digest is None:
            async with upstream.request(self._call("GET", principal, image)) as reply:
                self._hear(image, reply.headers)
                digest = await _hashed(reply, image)
        return digest

    def _call(self, method: Literal["GET", "HEAD"], principal: Principal, image: ImageName) -> Call:
        query = [("ns", image.repository.registry)] if self._ways.proxy is not None else []
        path = f"manifests/{image.tag_or_latest}"
        return Call("manifest", method, image.repository, principal, path, {"Accept": ACCEPT}, query)

    def _hear(self, image: ImageName, headers: CIMultiDictProxy[str]) -> None:
        for header in headers.getall("Warning", []):
            for text in _WARNING.findall(header):
                said = "".join(char for char in re.sub(r"\\(.)", r"\1", text) if char.isprintable())
                self._warn(f"{image.repository}:{image.tag_or_latest}: {said}")


def _named(reply: Reply) -> Digest | None:
    try:
        return Digest.parse(reply.headers.get("Docker-Content-Digest", ""))
    except OCIError:
        return None


async def _hashed(reply: Reply, image: ImageName) -> Digest:
    """The digest of the body. Raises UpstreamInvalid for what is no manifest, or not what the registry calls it."""
    body = await reply.read(MAX_MANIFEST_SIZE)
    digest = _named(reply) or Digest.of(body)
    try:
        parse_manifest(body, reply.headers.get("Content-Type", ""))
    except ManifestInvalid as error:
        raise UpstreamInvalid(f"{image.repository.registry}: {error}") from error
    if not digest.matches(body):
        raise UpstreamInvalid(f"{image.repository.registry}: the manifest's bytes are not those of {digest}")
    return digest


def _advice(error: UpstreamError) -> str:
    if isinstance(error, UpstreamRefused):
        return " (it is not there, or needs a login)"
    if isinstance(error, TargetRefused) and error.why == "realm":
        return "; name that host with --token-realm if it is to be trusted"
    return ""
