"""What the handlers stand on: the configuration as decisions need it, and the use cases."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.cache.ask import Ask
from proxy.cache.blobs import Blobs
from proxy.cache.changes import Changes
from proxy.cache.history import History
from proxy.cache.manifests import Manifests
from proxy.cache.records import Prover
from proxy.cache.tags import Lists
from proxy.oci.reference import Repository
from proxy.policy.access import (
    ANONYMOUS,
    Principal,
    client_principal,
    is_empty_authorization,
    own_principal,
    public_principal,
)
from proxy.policy.freshness import Lifetimes, lifetimes_of, side_by_side
from proxy.policy.registry import Registries
from proxy.server.answers import Answers
from proxy.server.pace import Pace
from proxy.settings import BACKGROUND, ClusterSettings, Settings
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
    history: History
    key: bytes
    answers: Answers
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

    def lifetimes_in(self, registry: str, cluster: str = "") -> Lifetimes | None:
        """What holds at `registry` for a cluster, or for the proxy itself; None where either is not known."""
        return self.lifetimes.get((cluster, registry))

    def background(self, repository: Repository, proved_by: Prover | None) -> Ask | None:
        """How the proxy itself asks for what `proved_by` has a right to; None where it cannot.

        What nobody has asked for yet it asks for with its own credential, where a cluster may use that.
        """
        upstream, lifetimes = self.upstreams.get(repository.registry), self.lifetimes_in(repository.registry)
        if upstream is None or lifetimes is None:
            return None
        source, used = upstream.credential, {cluster.credentials for cluster in self.settings.clusters}
        if proved_by is None:
            proved_by = "own" if True in used and source is not None else "anonymous"
        if proved_by == "anonymous":
            return Ask(repository, ANONYMOUS, lifetimes, BACKGROUND)
        if proved_by == "client" or source is None or (True if proved_by == "own" else "public") not in used:
            return None
        own = own_principal(self.key, repository.registry, source.identity)
        return Ask(repository, own if proved_by == "own" else public_principal(own), lifetimes, BACKGROUND)


def lifetimes_table(settings: Settings) -> dict[tuple[str, str], Lifetimes]:
    """The lifetimes for every (cluster, registry): the file's, the upstream's over them, the cluster's over both.

    The cluster "" stands for the proxy itself, which goes by the file's and the upstream's.
    """
    table: dict[tuple[str, str], Lifetimes] = {}
    for registry, upstream in settings.upstreams.items():
        ours, offline = (settings.manifests, upstream.manifests), upstream.offline
        of_all = {"": lifetimes_of(*ours, offline=offline)} | {
            cluster.name: lifetimes_of(*ours, cluster.manifests, offline=offline) for cluster in settings.clusters
        }
        table |= {(cluster, registry): lifetimes for cluster, lifetimes in side_by_side(of_all).items()}
    return table
