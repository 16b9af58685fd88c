"""The configuration as pydantic models. Every key's default and reason stands in config/proxy.yaml."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from proxy.settings.bases import HttpUrl, Model, ProxyUrl, is_host
from proxy.settings.intercept import InterceptSettings, TunnelTarget
from proxy.settings.shared import SharedSettings
from proxy.settings.units import Duration, ListenAddress, Percent, Size, parse_address

# In a cluster's place, for what the proxy asks upstreams of its own accord.
BACKGROUND = "background"


def _registry_name(value: str) -> str:
    name = value.lower()
    parts = urlsplit(f"//{name}")
    if parts.netloc != name or "@" in name or not is_host(parts):
        raise ValueError("not a registry's name: write docker.io or registry.example:5000")
    return name


RegistryName = Annotated[str, AfterValidator(_registry_name)]
# Nothing at all would be read as no limit.
Timeout = Annotated[Duration, Field(gt=0)]
# A user called 123 is written without quotes.
Word = Annotated[str, Field(coerce_numbers_to_str=True)]


def _network_text(value: object) -> object:
    # As a number, 10 would be 0.0.0.10.
    if isinstance(value, int | bytes):
        raise ValueError("not a network: write 10.1.0.0/16")
    return value


def _plain_network(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """IPv4 written as IPv6 (`::ffff:10.0.0.0/104`) is IPv4: clients' addresses are compared as such."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


Network = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network_text), AfterValidator(_plain_network)
]


class TLSSettings(Model):
    """A listener's certificate (a chain, the server's own first) and key, PEM; `client_ca` asks clients for theirs."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    client_auth: Literal["required", "optional"] = "required"

    @model_validator(mode="after")
    def _something_to_verify_by(self) -> Self:
        if "client_auth" in self.model_fields_set and self.client_ca is None:
            raise ValueError("client_auth needs a client_ca")
        return self


class ListenSettings(Model):
    """`intercept`: it speaks TLS in the registries' names, or, with `connect`, once a client has asked for one by
    CONNECT; what it asks for else is tunnelled to where `tunnel` allows."""

    address: ListenAddress
    tls: TLSSettings | None = None
    intercept: InterceptSettings | None = None
    connect: bool = False
    tunnel: tuple[TunnelTarget, ...] = ()

    @model_validator(mode="after")
    def _one_kind_of_listener(self) -> Self:
        if self.connect and self.intercept is None:
            raise ValueError("connect needs an intercept: {ca_certificate, ca_key}")
        if self.tunnel and not self.connect:
            raise ValueError("tunnel is for a listener with connect: true")
        if self.tls is not None and self.intercept is not None and not self.connect:
            raise ValueError(
                "a listener that intercepts has certificates of its own: leave out tls, or say connect: true"
            )
        return self


class AdminSettings(Model):
    address: ListenAddress = parse_address("127.0.0.1:5001")
    token_file: Path | None = None


class CacheSettings(Model):
    directory: Path = Path("cache")
    max_size: Size = 100 << 30
    min_free: Size = 1 << 30
    memory: Size = 64 << 20
    keep: tuple[Annotated[str, Field(min_length=1)], ...] = ()


class TagRule(Model):
    """Tags that match the shell pattern `tags` have a TTL of their own; the first rule that fits counts.

    `repositories` is a shell pattern over the repository's name, without the registry's.
    """

    tags: str
    ttl: Duration
    repositories: Annotated[str, Field(min_length=1)] = "*"


# With all of a TTL nothing would ever be served without being asked for again.
_Ahead = Annotated[Percent, Field(le=0.9)]


class ManifestSettings(Model):
    """How long answers about manifests count (DESIGN: manifests and tags), all in seconds once read."""

    tag_ttl: Duration = 600.0
    stale_if_error: Duration = 86400.0
    negative_ttl: Duration = 10.0
    revalidate_timeout: Duration = 3.0
    proof_ttl: Duration = 300.0
    proof_stale_if_error: Duration = 3600.0
    strict_proofs: bool = False
    refresh_ahead: _Ahead = 0.0
    serve_deleted: bool = False
    drift_interval: Duration = 900.0
    tag_rules: tuple[TagRule, ...] = ()


class ManifestOverrides(Model):
    """The same keys, each optional: what an upstream or a cluster says differently."""

    tag_ttl: Duration | None = None
    stale_if_error: Duration | None = None
    negative_ttl: Duration | None = None
    revalidate_timeout: Duration | None = None
    proof_ttl: Duration | None = None
    proof_stale_if_error: Duration | None = None
    strict_proofs: bool | None = None
    refresh_ahead: _Ahead | None = None
    serve_deleted: bool | None = None
    tag_rules: tuple[TagRule, ...] | None = None


class UpstreamManifestOverrides(ManifestOverrides):
    """What an upstream may say besides: what the proxy does by itself is for no cluster."""

    drift_interval: Duration | None = None


class PluginSettings(Model):
    """A kubelet credential provider plugin: `args` and `env` for it, and the images that it is asked about."""

    command: Annotated[str, Field(min_length=1)]
    args: tuple[Word, ...] = ()
    env: dict[str, Word] = Field(default_factory=dict, repr=False)
    match_images: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    default_cache_duration: Duration = 300.0


class CredentialSettings(Model):
    """Where the proxy's own credential for a registry comes from: exactly one of four ways.

    `timeout` in seconds, and `environment`, what of this process's variables is seen, are for helpers and plugins.
    """

    username: Word | None = None
    password_file: Path | None = None
    docker_config: Path | None = None
    helper: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]+$")] | None = None
    plugin: PluginSettings | None = None
    # No longer than a client can be let wait.
    timeout: Annotated[Duration, Field(gt=0, le=20)] = 20.0
    environment: tuple[Annotated[str, Field(min_length=1)], ...] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file belong together")
        ways = [self.username, self.docker_config, self.helper, self.plugin]
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give one of: username with password_file, docker_config, helper, plugin")
        if self.username is not None and self.model_fields_set & {"timeout", "environment"}:
            raise ValueError("timeout and environment are for a helper or a plugin")
        return self


class UpstreamSettings(Model):
    url: HttpUrl
    aliases: tuple[RegistryName, ...] = ()
    default: bool = False
    credentials: CredentialSettings | None = None
    token_realms: tuple[RegistryName, ...] = ()
    offline: bool = False
    manifests: UpstreamManifestOverrides = UpstreamManifestOverrides()
    ca: Path | None = None
    proxy: ProxyUrl | None = None
    private_networks: tuple[Network, ...] = ()
    connect_timeout: Timeout = 5.0
    read_timeout: Timeout = 30.0
    max_connections: Annotated[int, Field(ge=1)] = 64
    parallel: Annotated[int, Field(ge=1, le=16)] = 4
    cache_share: Percent = 0.0
    pull_reserve: Percent = 0.1


class LimitSettings(Model):
    """What a client may take of the proxy: sizes in bytes, times in seconds; 0 is no limit."""

    max_header_size: Annotated[Size, Field(ge=1024, le=1 << 20)] = 32 << 10
    max_url_length: Annotated[Size, Field(ge=1024, le=1 << 20)] = 8 << 10
    max_body_size: Annotated[Size, Field(ge=4 << 20)] = 8 << 20
    max_upload_size: Size = 0
    header_timeout: Timeout = 10.0
    idle_timeout: Timeout = 75.0
    body_timeout: Timeout = 120.0
    send_timeout: Timeout = 120.0
    max_connections: Annotated[int, Field(ge=0)] = 8192
    max_connections_per_client: Annotated[int, Field(ge=0)] = 4096


class ClusterLimitSettings(Model):
    """How much a cluster may ask for; None is no limit."""

    requests_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    bytes_per_second: Annotated[Size, Field(ge=64 << 10)] | None = None


class MatchSettings(Model):
    """Who belongs to a cluster: every kind that is given must fit, one entry of a kind is enough."""

    networks: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()
    listeners: tuple[ListenAddress, ...] = ()
    certificates: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.networks or self.hosts or self.listeners or self.certificates):
            raise ValueError("an empty match fits nobody; leave match out to fit everybody")
        return self


def _cluster_name(value: str) -> str:
    if value == BACKGROUND:
        raise ValueError(f"{BACKGROUND} is what the proxy's own requests are counted as: choose another name")
    return value


class ClusterSettings(Model):
    name: Annotated[
        str, Field(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,62}[a-zA-Z0-9])?$"), AfterValidator(_cluster_name)
    ]
    mode: Literal["transparent", "metadata-only"] = "transparent"
    match: MatchSettings | None = None
    upstreams: tuple[RegistryName, ...] | None = None
    repositories: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    limits: ClusterLimitSettings = ClusterLimitSettings()
    credentials: bool | Literal["public"] = False
    login: bool = False
    allow_plain_login: bool = False
    manifests: ManifestOverrides = ManifestOverrides()
    cache_share: Percent = 0.0
    blob_redirect: bool | None = None
    push: Literal["deny", "forward"] = "deny"


class LogSettings(Model):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    access: bool = True


class Settings(Model):
    """The whole configuration."""

    listen: Annotated[tuple[ListenSettings, ...], Field(min_length=1)] = (
        ListenSettings(address=parse_address("0.0.0.0:5000")),
    )
    admin: AdminSettings = AdminSettings()
    workers: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    trusted_proxies: tuple[Network, ...] = ()
    fast_path: bool = True
    limits: LimitSettings = LimitSettings()
    cache: CacheSettings = CacheSettings()
    manifests: ManifestSettings = ManifestSettings()
    upstreams: Annotated[dict[RegistryName, UpstreamSettings], Field(min_length=1)]
    clusters: Annotated[tuple[ClusterSettings, ...], Field(min_length=1)] = (ClusterSettings(name="default"),)
    shared: SharedSettings = SharedSettings()
    shutdown_timeout: Duration = 60.0
    log: LogSettings = LogSettings()
