"""Where the server for shared metadata is: at an address, or where Sentinels say that the master is at present."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo

from proxy import __version__

# How this program keeps what it keeps there. Another layout has another number, and so nothing in common with it.
SCHEMA = 1
_SENTINEL = "+sentinel"
_SENTINEL_PORT = 26379


@dataclass(frozen=True, slots=True)
class Place:
    """The setting: a URL as the client knows them, `sentinels` to ask for the master called `service` where there are
    some, and what the names of all keys begin with.

    In braces, so that all of them are in one slot of a cluster: what is changed together has to be.
    """

    url: str
    prefix: str
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""

    @staticmethod
    def of(url: str) -> "Place":
        """By the setting, with `prefix` among its query. Raises ValueError for what is no such URL.

        Sentinels: `redis+sentinel://user:password@one:26379,two:26379/name-of-the-master`; user and password are the
        master's.
        """
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        prefix = f"{{{query.pop('prefix', 'pullthrough')}}}:{SCHEMA}:"
        scheme = parts.scheme.replace("valkey", "redis")
        if not scheme.endswith(_SENTINEL):
            return Place(parts._replace(scheme=scheme, query=urlencode(query)).geturl(), prefix)
        login, _, hosts = parts.netloc.rpartition("@")
        service = unquote(parts.path.strip("/"))
        if not service:
            raise ValueError("no name of a master")
        plain = parts._replace(
            scheme=scheme.removesuffix(_SENTINEL), netloc=f"{login}@master" if login else "master",
            path=f"/{query.pop('db', '0')}", query=urlencode(query),
        )  # fmt: skip
        return Place(plain.geturl(), prefix, tuple(_host_and_port(host) for host in hosts.split(",")), service)


class Server:
    """The client for it; `limit` in seconds, for a connection to come about."""

    def __init__(self, place: Place, limit: float) -> None:
        options: dict[str, Any] = {
            # Whoever asks decides what to do without the server, at once.
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": limit,
            "protocol": 2,
            # It would look for its own version on the disk, for each connection.
            "driver_info": DriverInfo(name="pullthrough", lib_version=__version__),
        }
        self._sentinel: Sentinel | None = None
        if not place.sentinels:
            self.client = redis.Redis.from_pool(redis.ConnectionPool.from_url(place.url, **options))
            return
        parsed: dict[str, Any] = dict(redis.connection.parse_url(place.url))
        connection_class = parsed.pop("connection_class", None)
        for name in ("host", "port"):
            parsed.pop(name, None)
        secure = connection_class is not None and issubclass(connection_class, redis.SSLConnection)
        asked = options | {"ssl": secure, "socket_timeout": limit}
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(place.sentinels), sentinel_kwargs=asked, **options
        )
        self.client = self._sentinel.master_for(place.service, ssl=secure, **parsed)

    async def close(self) -> None:
        """End all connections."""
        await self.client.aclose(close_connection_pool=True)
        if self._sentinel is not None:
            for one in self._sentinel.sentinels:
                await one.aclose(close_connection_pool=True)


def _host_and_port(text: str) -> tuple[str, int]:
    """Raises ValueError."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or _SENTINEL_PORT
