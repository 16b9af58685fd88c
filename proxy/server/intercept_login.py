"""Log-ins of clients that know of no proxy: they ask whom they mean, and are answered by it.

- A ping (`GET /v2/`) is where Docker, podman and skopeo learn whether to log in, and where: they are told what the
  registry says, and what they send along is tried there. In a cluster that logs in by itself, or has the proxy's own
  credentials, that is what counts.
- Tokens of registries that issue them under their own name (ghcr.io, quay.io) are asked for here: such a request goes
  to the realm that the registry names, as it is, and so does the answer.

What the registry says to a ping without credentials is remembered for a minute, and while it fails. One asks then, for
a moment, and the others have what is remembered: nobody waits for a registry that is slow to get what is here. Whatever
goes to the registry has its turn in its cluster first.
"""

import asyncio
import logging
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from aiohttp import web

from proxy.oci.errors import OCIError
from proxy.oci.route import Ping
from proxy.policy.access import is_empty_authorization
from proxy.policy.registry import registry_at
from proxy.server.exchange import Exchange
from proxy.server.house import House
from proxy.server.refusals import body_too_large
from proxy.server.respond import EVERY_ANSWER
from proxy.upstream import login
from proxy.upstream.challenge import parse_challenges
from proxy.upstream.client import Upstream
from proxy.upstream.errors import UpstreamFailure

_log = logging.getLogger("pullthrough.server")

# Seconds: how long it is remembered, how soon a registry that failed is asked again, and how long it is waited for.
_LASTS, _AGAIN = 60.0, 5.0
_ANSWERS_WITHIN, _ANSWERS_WITHIN_IF_KNOWN = 5.0, 2.0
# Forms with a refresh token, in bytes.
_LONGEST_BODY = 64 * 1024
_CONTENT = ("/manifests/", "/blobs/", "/tags/", "/referrers/")
_Name = tuple[str, str]
# What token servers go by.
_PASSED_ON = ("Authorization", "Content-Type", "Accept", "User-Agent")


# A registry that says nothing asks nobody to log in: what may be had is judged where it is asked for.
_NOTHING = login.LoginAnswer(200, {}, b"")


class Logins:
    """Those of one process; answers what is a log-in."""

    def __init__(self) -> None:
        # By registry and url: when the registry is to be asked again, and what it said to one without credentials; None
        # where it has said nothing yet.
        self._said: dict[_Name, tuple[float, login.LoginAnswer | None]] = {}
        # One asks for all who come at once; a lock lives as long as somebody holds it or waits for it.
        self._asking: WeakValueDictionary[_Name, asyncio.Lock] = WeakValueDictionary()

    async def answer(self, exchange: Exchange, house: House) -> web.StreamResponse | None:
        """The answer to a ping, or for a token; None for everything else.

        Raises UpstreamError where the registry does not answer, and what the client asks for needs its word.
        """
        request, cluster = exchange.request, exchange.cluster
        path = request.rel_url.raw_path
        if cluster is None or any(part in path for part in _CONTENT):
            return None
        registry = registry_at(house.registries, exchange.client.host, exchange.client.server_name)
        if registry is None or (cluster.upstreams is not None and registry not in cluster.upstreams):
            return None
        upstream = house.upstreams[registry]
        exchange.chosen = registry
        if path in {"/v2", "/v2/"}:
            if request.method not in {"GET", "HEAD"} or cluster.login or cluster.credentials:
                return None
            exchange.passing, exchange.route = True, Ping()
            await exchange.take_turn(house.paces.get(cluster.name))
            return await self._ping(exchange, house, upstream)
        said = await self._without_credentials(house, upstream)
        realm = _realm(said)
        if not _is_at(realm, registry, path, house):
            return None
        exchange.passing = exchange.asked = True
        await exchange.take_turn(house.paces.get(cluster.name))
        return await _token(exchange, house, upstream, realm)

    async def _ping(self, exchange: Exchange, house: House, upstream: Upstream) -> web.StreamResponse:
        authorization = exchange.request.headers.get("Authorization", "")
        if is_empty_authorization(authorization) or not authorization:
            said = await self._without_credentials(house, upstream)
        else:
            try:
                said = await login.ping(upstream, authorization, _ANSWERS_WITHIN, house.tell)
            except UpstreamFailure as error:
                _log.debug("a log-in is not tried: %s", error)
                said = _NOTHING
        if said.status in {401, 403}:
            code = "UNAUTHORIZED" if said.status == 401 else "DENIED"
            headers = {"WWW-Authenticate": said.challenge} if said.challenge else {}
            raise OCIError(code, f"{upstream.registry} asks for a log-in", status=said.status, headers=headers)
        return web.Response(body=b"{}", content_type="application/json", headers=EVERY_ANSWER)

    async def _without_credentials(self, house: House, upstream: Upstream) -> login.LoginAnswer:
        """What the registry says to a ping by nobody."""
        name = upstream.registry, upstream.settings.url
        lock = self._asking.setdefault(name, asyncio.Lock())
        due, known = self._said.get(name, (0.0, None))
        if known is not None and (lock.locked() or not self._is_due(house, due)):
            return known
        async with lock:
            due, known = self._said.get(name, (0.0, None))
            if not self._is_due(house, due):
                return known or _NOTHING
            try:
                limit = _ANSWERS_WITHIN if known is None else _ANSWERS_WITHIN_IF_KNOWN
                known, lasts = await login.ping(upstream, "", limit, house.tell), _LASTS
            except UpstreamFailure as error:
                _log.debug("%s", error)
                lasts = _AGAIN
            self._said = {key: one for key, one in self._said.items() if key[0] in house.upstreams}
            self._said[name] = house.answers.clock() + lasts, known
            return known or _NOTHING

    @staticmethod
    def _is_due(house: House, due: float) -> bool:
        # Not where the clock was set back since, either.
        return not due - _LASTS <= house.answers.clock() < due


async def _token(exchange: Exchange, house: House, upstream: Upstream, realm: str) -> web.StreamResponse:
    request = exchange.request
    if request.method not in {"GET", "POST"}:
        raise OCIError("UNSUPPORTED", "a token is asked for by GET or POST", headers={"Allow": "GET, POST"})
    body = b""
    if request.method == "POST":
        if request.content_length is None or request.content_length > _LONGEST_BODY:
            raise body_too_large(_LONGEST_BODY)
        body = await request.read()
    headers = {name: value for name in _PASSED_ON if (value := request.headers.get(name)) is not None}
    query = request.rel_url.raw_query_string
    answer = await login.token(upstream, realm, request.method, query, headers, body, house.tell)
    passed = EVERY_ANSWER | dict(answer.headers)
    if answer.challenge is not None:
        passed["WWW-Authenticate"] = answer.challenge
    return web.Response(status=answer.status, body=answer.body, headers=passed)


def _realm(said: login.LoginAnswer) -> str:
    challenges = parse_challenges([said.challenge] if said.challenge is not None else [])
    return next((one.get("realm") for one in challenges if one.scheme == "bearer"), "")


def _is_at(realm: str, registry: str, path: str, house: House) -> bool:
    """Does a request for `path`, in the registry's name, mean its realm?"""
    try:
        parts = urlsplit(realm)
        host = parts.netloc.lower()
    except ValueError:
        return False
    return parts.path == path and registry_at(house.registries, host, "") == registry
