"""Where the server for shared metadata is: at an address, where Sentinels say that the master is at present, or at the
node of a Cluster that has our slot."""

from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis.asyncio as redis
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo

from proxy import __version__

# How this program keeps what it keeps there. Another layout has another number, and so nothing in common with it.
SCHEMA = 1
# Seconds.
_AT_LAST = 60.0
_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True)
class Place:
    """The setting: a URL as the client knows them, and what the names of all keys begin with.

    `hosts` are several to ask: Sentinels, for the master called `service`, or nodes of a Cluster, by `kind`. The prefix
    is in braces, so that all keys are in one slot of a Cluster: what is changed together has to be.
    """

    url: str
    prefix: str
    kind: str = ""
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""

    @staticmethod
    def of(url: str) -> "Place":
        """By the setting, with `prefix` among its query. Raises ValueError for what is no such URL.

        Sentinels: `redis+sentinel://user:password@one:26379,two:26379/name-of-the-master`, user and password are the
        master's. A Cluster: `redis+cluster://one:6379,two:6379`.
        """
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        prefix = f"{{{query.pop('prefix', 'pullthrough')}}}:{SCHEMA}:"
        scheme, _, kind = parts.scheme.replace("valkey", "redis").partition("+")
        if not kind:
            return Place(parts._replace(scheme=scheme, query=urlencode(query)).geturl(), prefix)
        if kind not in _PORTS:
            raise ValueError(f"there is no {kind} of them")
        login, _, hosts = parts.netloc.rpartition("@")
        service = unquote(parts.path.strip("/"))
        if kind == "sentinel" and not service:
            raise ValueError("no name of a master")
        plain = parts._replace(
            scheme=scheme, netloc=f"{login}@master" if login else "master", path=f"/{query.pop('db', '0')}",
            query=urlencode(query),
        )  # fmt: skip
        found = tuple(_host_and_port(host, _PORTS[kind]) for host in hosts.split(","))
        return Place(plain.geturl(), prefix, kind, found, service)


class Server:
    """The client for it.

    `limit` in seconds: for a connection to one of several that are asked. How long one to the server itself may take is
    for whoever asks it to say: only they know how late their loop is.
    """

    client: redis.Redis

    def __init__(self, place: Place, limit: float) -> None:
        options: dict[str, Any] = {
            # Whoever asks decides what to do without the server, at once.
            "retry": Retry(NoBackoff(), 0),
            # Whoever asks has an end of their own; this is for a cancellation that gets lost in the client.
            "socket_connect_timeout": _AT_LAST,
            "socket_timeout": _AT_LAST,
            "protocol": 2,
            # It would look for its own version on the disk, for each connection.
            "driver_info": DriverInfo(name="pullthrough", lib_version=__version__),
        }
        self._place = place
        self._sentinel: Sentinel | None = None
        self._cluster: RedisCluster | None = None
        if not place.kind:
            self.client = redis.Redis.from_pool(redis.ConnectionPool.from_url(place.url, **options))
            return
        parsed: dict[str, Any] = dict(redis.connection.parse_url(place.url))
        connection_class = parsed.pop("connection_class", None)
        for name in ("host", "port"):
            parsed.pop(name, None)
        secure = connection_class is not None and issubclass(connection_class, redis.SSLConnection)
        if place.kind == "sentinel":
            asked = options | {"ssl": secure, "socket_timeout": limit, "socket_connect_timeout": limit}
            self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                list(place.hosts), sentinel_kwargs=asked, **options
            )
            self.client = self._sentinel.master_for(place.service, ssl=secure, **parsed)
            return
        parsed.pop("db", None)
        nodes = [ClusterNode(host, port) for host, port in place.hosts]
        # The next one is asked about the slots where one does not answer.
        options |= {"socket_timeout": limit, "socket_connect_timeout": limit}
        self._cluster = RedisCluster(startup_nodes=nodes, ssl=secure, **parsed, **options)
        # It has the same commands; what is asked of it is in one slot.
        self.client = cast(redis.Redis, self._cluster)

    async def listener(self) -> PubSub:
        """What can be subscribed, at the server that publishes what is changed."""
        if self._cluster is None:
            return self.client.pubsub()
        # Which node has the slot may have changed since.
        await self._cluster.aclose()
        await self._cluster.initialize()
        node = self._cluster.get_node_from_key(self._place.prefix)
        return cast(PubSub, self._cluster.pubsub(node=node))

    async def close(self) -> None:
        """End all connections."""
        if self._cluster is not None:
            await self._cluster.aclose()
            return
        await self.client.aclose(close_connection_pool=True)
        if self._sentinel is not None:
            for one in self._sentinel.sentinels:
                await one.aclose(close_connection_pool=True)


def _host_and_port(text: str, usual: int) -> tuple[str, int]:
    """Raises ValueError."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or usual
