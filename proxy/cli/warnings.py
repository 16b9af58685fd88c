"""What is surely not meant in a configuration that could be started all the same."""

import resource
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase

from proxy.processes import of_one, worker_count
from proxy.settings import MatchSettings, Settings

# A connection of a client, and the file that it reads.
_FILES_A_CLIENT = 2
# Where connections are not limited: a thousand nodes at once.
_CLIENTS = 1024
# Listeners, logs, the stores, libraries.
_FILES_OF_ITS_OWN = 64
# An upstream has connections for blobs and as many for all else; what comes in for a blob goes into a file and its map.
_FILES_A_CONNECTION = 4


def configuration_warnings(settings: Settings) -> Iterator[str]:
    """One line each: what, and what to do about it."""
    yield from _unused_credentials(settings)
    yield from _unseen_addresses(settings)
    if not any(upstream.default for upstream in settings.upstreams.values()):
        yield "no upstream is the default: clients that name no registry (Docker's older store) get 404"
    if settings.clusters[-1].match is not None:
        yield "every cluster has a match: clients that fit none get 403"
    if not settings.admin.address.is_loopback and settings.admin.token_file is None:
        yield (
            "the admin listener is not on loopback: health and metrics are open to whoever reaches it, and the admin"
            " API is closed until admin.token_file is set"
        )
    served = {listen.address for listen in settings.listen}
    for cluster in settings.clusters:
        if cluster.match is not None and cluster.match.listeners and not served & set(cluster.match.listeners):
            yield f"cluster {cluster.name} matches listeners that are not served: none of its clients will be found"
        elif cluster.match is not None and cluster.match.certificates and not _asked_of_some(settings, cluster.match):
            yield f"cluster {cluster.name} matches certificates, and no listener that is served asks for them"
    yield from _repositories_of_nobody(settings)
    yield from _private_keys(settings)
    yield from _logins_nobody_is_asked_for(settings)
    yield from _open_files(settings)


def _asked_of_some(settings: Settings, match: MatchSettings) -> bool:
    """Does a listener of such a cluster ask for certificates? `--listen` may have replaced those of the file."""
    return any(
        listen.tls is not None and listen.tls.client_ca is not None
        for listen in settings.listen
        if not match.listeners or listen.address in match.listeners
    )


def _repositories_of_nobody(settings: Settings) -> Iterator[str]:
    for cluster in settings.clusters:
        for pattern in cluster.repositories or ():
            registry = pattern.partition("/")[0]
            if not any(fnmatchcase(name, registry) for name in settings.upstreams):
                yield (
                    f"cluster {cluster.name} allows {pattern}, which no repository has: "
                    f"begin with the name of an upstream, as in docker.io/library/*"
                )


def _private_keys(settings: Settings) -> Iterator[str]:
    keys = [listen.tls.key for listen in settings.listen if listen.tls is not None]
    keys += [listen.intercept.ca_key for listen in settings.listen if listen.intercept is not None]
    for key in dict.fromkeys(keys):
        try:
            mode = key.stat().st_mode
        except OSError:
            # The start says it, and check-config.
            continue
        if mode & stat.S_IROTH:
            yield f"everybody on this machine can read the private key {key}: chmod o-r, or defaultMode: 0400"


def _logins_nobody_is_asked_for(settings: Settings) -> Iterator[str]:
    if all(listen.tls is None for listen in settings.listen):
        for cluster in settings.clusters:
            if cluster.login and not cluster.allow_plain_login:
                yield f"cluster {cluster.name} has a login, but no listener has TLS: nobody will be asked for it"


def _unused_credentials(settings: Settings) -> Iterator[str]:
    for name, upstream in settings.upstreams.items():
        users = [
            cluster.name
            for cluster in settings.clusters
            if cluster.credentials and (cluster.upstreams is None or name in cluster.upstreams)
        ]
        if upstream.credentials is not None and not users:
            yield f"upstreams.{name}.credentials is used by no cluster: set `credentials: true` or `public` in one"


def _unseen_addresses(settings: Settings) -> Iterator[str]:
    for name, upstream in settings.upstreams.items():
        if upstream.proxy is not None:
            yield (
                f"upstreams.{name}.proxy: behind it nobody here sees which addresses the names in redirects and token "
                "realms have: let the proxy itself refuse private ones"
            )


def _open_files(settings: Settings) -> Iterator[str]:
    # `serve` takes all that it may have.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Connections, of clients and to upstreams, are shared out among workers.
    share = of_one(settings, worker_count(settings))
    connections = sum(upstream.max_connections for upstream in share.upstreams.values())
    clients = _FILES_A_CLIENT * (share.limits.max_connections or _CLIENTS)
    need = _FILES_OF_ITS_OWN + clients + _FILES_A_CONNECTION * connections
    if limit != resource.RLIM_INFINITY and limit < need:
        yield (
            f"the open-file limit is {limit}; at least {need} a process is advised (ulimit -n, LimitNOFILE=), "
            f"or a lower limits.max_connections"
        )
