"""The status page over HTTP: `/`, its buttons (`POST /tags/…`) and its files (`/static/…`).

Whoever calls has seen to the token and, for POST, to the Origin. A button's outcome is kept here under a random key
until the page that the browser is sent to has shown it: nothing of a request comes back in an address or a cookie.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from proxy.server import figures
from proxy.server.api import ApiRequest, ApiResponse
from proxy.server.page import Notice, View, render, render_login
from proxy.server.tag_table import Shown

Backend = Callable[[ApiRequest], Awaitable[ApiResponse]]

# The page has nothing inline. Referrer: within the page's own origin only; with `no-referrer` browsers would send
# `Origin: null` with its forms (https://fetch.spec.whatwg.org/#append-a-request-origin-header), which is refused.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATIC = {"status.css": "text/css", "status.js": "text/javascript", "icon.svg": "image/svg+xml"}

_A_PAGE = "50"
_FORM = "application/x-www-form-urlencoded"
_LARGEST_FORM = 16 * 1024
# Seconds.
_FORM_WITHIN = 10.0
_MOST_NOTICES = 100
_MOST_LINES = 10


def login_page(message: str | None = None) -> web.Response:
    """Where a token is asked for; `message` says what was wrong with the last one."""
    return _html(render_login(message), 401)


async def static_file(name: str) -> web.Response:
    """One of `STATIC`; they say nothing about anything, so they need no token."""
    if name not in STATIC:
        return plain(404, "not found")
    body = await asyncio.to_thread(_read, name)
    return web.Response(body=body, content_type=STATIC[name], charset="utf-8", headers=HEADERS)


@cache
def _read(name: str) -> bytes:
    return resources.files("proxy.server").joinpath("static", name).read_bytes()


def plain(status: int, words: str, **headers: str) -> web.Response:
    """A line of text."""
    return web.Response(status=status, text=f"{words}\n", headers=HEADERS | headers)


def _html(page: str, status: int = 200) -> web.Response:
    return web.Response(status=status, text=page, content_type="text/html", charset="utf-8", headers=HEADERS)


class StatusPage:
    """Answers what the page asks for with what `backend` says. `clock` gives Unix seconds."""

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.time) -> None:
        self._backend = backend
        self._clock = clock
        self._notices: OrderedDict[str, Notice] = OrderedDict()

    async def show(self, request: web.BaseRequest, actor: str) -> web.Response:
        """`GET /`. A notice is shown once; HEAD does not use it up."""
        query = request.rel_url.query
        shown = _shown(query)
        notice = self._notices.pop(query.get("notice", ""), None) if request.method == "GET" else None
        stats, tags = await asyncio.gather(
            self._backend(ApiRequest("GET", "stats", actor=actor)),
            self._backend(ApiRequest("GET", "tags", _tags_query(shown), actor=actor)),
        )
        trouble = next((_said(answer) for answer in (stats, tags) if answer.status != 200), None)
        found = tags.body if tags.status == 200 else None
        view = View(
            self._clock(), shown, stats.body if stats.status == 200 else None,
            found["tags"] if found is not None else None, found is not None and "last" in found, notice, trouble,
        )  # fmt: skip
        return _html(render(view), 200 if trouble is None else 503)

    async def act(self, request: web.BaseRequest, actor: str) -> web.Response:
        """`POST /tags/ACTION`, a button: 303 to the page, which shows the outcome."""
        action = request.rel_url.raw_path.removeprefix("/tags/")
        if action not in _ACTIONS:
            return plain(404, "not found")
        if request.content_type != _FORM:
            return plain(415, "not a form")
        try:
            async with asyncio.timeout(_FORM_WITHIN):
                reference = await _reference(request)
        except TimeoutError:
            return plain(408, "the form did not come in time", Connection="close")
        except ValueError as error:
            return plain(400, str(error), Connection="close")
        answer = await self._backend(_ACTIONS[action](reference, actor))
        key = self._keep(outcome(action, reference, answer))
        return plain(303, "see the page", Location=f"/{_shown(request.rel_url.query).query(notice=key)}")

    def _keep(self, notice: Notice) -> str:
        key = secrets.token_urlsafe(16)
        self._notices[key] = notice
        if len(self._notices) > _MOST_NOTICES:
            self._notices.popitem(last=False)
        return key


def _shown(query: Mapping[str, str]) -> Shown:
    return Shown(query.get("q", "").strip(), query.get("drifted", "") not in {"", "0"}, query.get("last", ""))


def _tags_query(shown: Shown) -> tuple[tuple[str, str], ...]:
    # A word without wildcards is looked for anywhere: people type `nginx`, not `*nginx*`.
    pattern = shown.q if not shown.q or set(shown.q) & set("*?[") else f"*{shown.q}*"
    chosen = {"n": _A_PAGE, "reference": pattern, "drifted": "true" if shown.drifted else "", "last": shown.last}
    return tuple((key, value) for key, value in chosen.items() if value)


async def _reference(request: web.BaseRequest) -> str:
    """What the form names. Raises ValueError."""
    form = bytearray()
    async for piece in request.content.iter_any():
        form += piece
        if len(form) > _LARGEST_FORM:
            raise ValueError("the form is too large")
    try:
        fields = parse_qs(form.decode(), max_num_fields=10)
    except ValueError:
        raise ValueError("not a form") from None
    if len(fields.get("reference", ())) != 1:
        raise ValueError("the form names no reference")
    return fields["reference"][0]


def _post(path: str) -> Callable[[str, str], ApiRequest]:
    return lambda reference, actor: ApiRequest("POST", path, (), {"reference": reference}, actor)


_ACTIONS: Mapping[str, Callable[[str, str], ApiRequest]] = {
    "refresh": _post("tags/refresh"),
    "hold": _post("tags/hold"),
    "release": _post("tags/release"),
    "purge": lambda reference, actor: ApiRequest("DELETE", "tags", (("reference", reference),), None, actor),
}


def outcome(action: str, reference: str, answer: ApiResponse) -> Notice:
    """What is shown of `answer`."""
    if not 200 <= answer.status < 300:
        return Notice("bad", (f"{reference}: {_said(answer)}",))
    if action == "refresh":
        return _refreshed(answer.body["tags"])
    words = {
        "hold": "is held until it is released",
        "release": "is released",
        "purge": "is forgotten here; the next pull asks the upstream",
    }
    return Notice("good", (f"{reference} {words[action]}",))


def _refreshed(tags: list[dict[str, Any]]) -> Notice:
    lines = [_refreshed_line(tag) for tag in tags[:_MOST_LINES]]
    if len(tags) > _MOST_LINES:
        lines.append(f"and {len(tags) - _MOST_LINES} more")
    failed = any(tag["error"] for tag in tags)
    return Notice("bad" if failed else "good", tuple(lines or ["no tag is cached that fits"]))


def _refreshed_line(tag: Mapping[str, Any]) -> str:
    if tag["error"]:
        return f"{tag['reference']}: {tag['error']}"
    if not tag["changed"]:
        return f"{tag['reference']} is unchanged"
    return f"{tag['reference']} is now {figures.short(tag['after'])}, was {figures.short(tag['before'] or 'unknown')}"


def _said(answer: ApiResponse) -> str:
    """An error's own words."""
    match answer.body:
        case {"error": str(message)}:
            return message
        case _:
            return f"the proxy answered {answer.status}"
