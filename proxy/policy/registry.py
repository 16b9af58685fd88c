"""Which registry does this request mean? (DESIGN, section 3.)

First match wins: the `ns` query; the Host, as it is and then without its port; the TLS server name; the first path
component; the upstream marked `default`. A leading path component that names the chosen registry is stripped,
whichever rule chose it: BuildKit sends both the prefix and `ns`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.reference import Repository, parse_name, parse_tag_or_digest
from proxy.policy.cluster import host_without_port
from proxy.settings import UpstreamSettings

_DOCKER_HUB = "docker.io"


@dataclass(frozen=True, slots=True)
class Registries:
    """The configured registries: `names` maps every name and alias to the registry it names."""

    names: Mapping[str, str]
    default: str | None

    @classmethod
    def of(cls, upstreams: Mapping[str, UpstreamSettings]) -> "Registries":
        names = {name: name for name in upstreams}
        names |= {alias: name for name, upstream in upstreams.items() for alias in upstream.aliases}
        default = next((name for name, upstream in upstreams.items() if upstream.default), None)
        return cls(names, default)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says about its registry: `ns` (None if it did not), the lower-case Host, the path's name.

    `server_name` is that of its TLS connection (SNI), empty without: it names the connection, which a load balancer may
    have opened, and the Host the request, so the Host goes first.
    """

    ns: str | None
    host: str
    name: str
    server_name: str = ""
    # Its client knows of no proxy: the connection's own name is all that counts, and no other registry's content is
    # given in it.
    intercepted: bool = False


def choose_repository(registries: Registries, allowed: Collection[str] | None, asked: Asked) -> Repository:
    """The repository `asked` means, at its registry.

    Raises OCIError NAME_UNKNOWN (404) where no registry is meant, or one that is not configured or not among the
    cluster's `allowed` (None: all); containerd then goes on to its next host.
    """
    registry = _registry(registries, asked)
    if allowed is not None and registry not in allowed:
        raise OCIError("NAME_UNKNOWN", f"the registry {registry} is not served to this cluster")
    return Repository(registry, name_at(registries, registry, asked.name))


def name_at(registries: Registries, registry: str, name: str) -> str:
    """What a client calls `name`, as `registry` calls it: without the prefix that names the registry."""
    first, _, rest = name.partition("/")
    if rest and registries.names.get(first) == registry:
        name = rest
    return f"library/{name}" if registry == _DOCKER_HUB and "/" not in name else name


@dataclass(frozen=True, slots=True)
class Reference:
    """What people write: a repository with a tag, a digest, or both."""

    repository: Repository
    tag: str | None
    digest: Digest | None

    def __str__(self) -> str:
        return str(self.repository) + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(registries: Registries, text: str) -> Reference:
    """`nginx`, `nginx:1.27`, `ghcr.io/team/app@sha256:…`, as clients read them: without either, the tag is `latest`.

    A first component with a dot or a colon, or `localhost`, is a registry's name; otherwise docker.io is meant, if it
    is configured, or else the default. Raises OCIError.
    """
    named, at, after = text.partition("@")
    digest = Digest.parse(after) if at else None
    name, colon, tag = named.rpartition(":")
    if not colon or "/" in tag:
        name, colon, tag = named, "", "" if at else "latest"
    if tag or colon:
        parse_tag_or_digest(tag)
    first = name.partition("/")[0].lower()
    names_one = "/" in name and ("." in first or ":" in first or first == "localhost")
    registry = registries.names.get(first) if "/" in name else None
    if registry is None and names_one:
        raise OCIError("NAME_UNKNOWN", f"the registry {first} is not configured on this proxy")
    registry = registry or registries.names.get(_DOCKER_HUB) or registries.default
    if registry is None:
        raise OCIError("NAME_UNKNOWN", "the reference names no registry and no upstream is the default")
    if "/" in name and first in registries.names:
        # Registries' names have no case; repositories' do.
        name = first + name[len(first) :]
    return Reference(Repository(registry, parse_name(name_at(registries, registry, name))), tag or None, digest)


def registry_at(registries: Registries, host: str, server_name: str) -> str | None:
    """The registry that a connection in its own name is for, by the Host (in lower case) or the TLS server name."""
    names = (host, host_without_port(host), server_name)
    return next((registries.names[name] for name in names if name in registries.names), None)


def _registry(registries: Registries, asked: Asked) -> str:
    if asked.intercepted:
        if (own := registry_at(registries, asked.host, asked.server_name)) is None:
            raise OCIError("NAME_UNKNOWN", "this is no name of a registry that is configured on this proxy")
        return own
    if asked.ns is not None:
        registry = registries.names.get(asked.ns.lower())
        if registry is None:
            # The value is not repeated: it is the client's, of any length and content.
            raise OCIError("NAME_UNKNOWN", "the registry named by ns is not configured on this proxy")
        return registry
    if (named := registry_at(registries, asked.host, asked.server_name)) is not None:
        return named
    first = asked.name.partition("/")[0] if "/" in asked.name else ""
    if first in registries.names:
        return registries.names[first]
    if registries.default is None:
        raise OCIError("NAME_UNKNOWN", "the request names no registry and no upstream is the default")
    return registries.default
