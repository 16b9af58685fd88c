"""What the handlers stand on: the configuration as decisions need it, and the use cases."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.cache.blobs import Blobs
from proxy.cache.changes import Changes
from proxy.cache.manifests import Manifests
from proxy.cache.tags import Lists
from proxy.policy.access import (
    ANONYMOUS,
    Principal,
    client_principal,
    is_empty_authorization,
    own_principal,
    public_principal,
)
from proxy.policy.freshness import Lifetimes, lifetimes_of
from proxy.policy.registry import Registries
from proxy.server.pace import Pace
from proxy.settings import ClusterSettings, Settings
from proxy.telemetry.events import Tell, silent
from proxy.upstream.client import Upstream


@dataclass(frozen=True, slots=True)
class House:
    """Everything a request can need. `key` is the random key that principals are hashed with."""

    settings: Settings
    registries: Registries
    lifetimes: Mapping[tuple[str, str], Lifetimes]
    upstreams: Mapping[str, Upstream]
    manifests: Manifests
    blobs: Blobs
    lists: Lists
    changes: Changes
    key: bytes
    tell: Tell = silent
    # Of the clusters that have limits.
    paces: Mapping[str, Pace] = field(default_factory=dict)

    def principal(self, cluster: ClusterSettings, registry: str, authorization: str, takes_basic: bool) -> Principal:
        """Whose rights a request has: the client's own, the proxy's own where the cluster has it, or nobody's.

        In a cluster with `credentials: public` it is nobody, whose pulls count against the proxy's own rate limit.
        """
        if authorization and not is_empty_authorization(authorization):
            return client_principal(self.key, registry, authorization, takes_basic)
        source = self.upstreams[registry].credential
        if not cluster.credentials or source is None:
            return ANONYMOUS
        own = own_principal(self.key, registry, source.identity)
        return own if cluster.credentials is True else public_principal(own)


def lifetimes_table(settings: Settings) -> dict[tuple[str, str], Lifetimes]:
    """The lifetimes for every (cluster, registry): the file's, the upstream's over them, the cluster's over both."""
    return {
        (cluster.name, registry): lifetimes_of(settings.manifests, upstream.manifests, cluster.manifests)
        for cluster in settings.clusters
        for registry, upstream in settings.upstreams.items()
    }
