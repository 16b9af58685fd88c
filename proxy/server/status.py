"""The status page over HTTP: `/`, its buttons (`POST /tags/…`), its log-in (`/login`) and its files (`/static/…`).

Nothing but the files and the log-in is answered before `AdminAccess` has seen to the token and to the Origin. A
button's outcome is kept here under a random key until the page that the browser is sent to has shown it: nothing of
a request comes back in an address or a cookie.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from proxy.server import figures
from proxy.server.admin_access import COOKIE, AdminAccess
from proxy.server.api import ApiError, ApiRequest, ApiResponse
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
CHALLENGE = 'Bearer realm="pullthrough admin"'
STATIC = {"status.css": "text/css", "status.js": "text/javascript", "icon.svg": "image/svg+xml"}

_A_PAGE = "50"
_FORM = "application/x-www-form-urlencoded"
_LARGEST_FORM = 16 * 1024
# Seconds.
_FORM_WITHIN = 10.0
_MOST_NOTICES = 100
_MOST_LINES = 10


def _login_page(message: str | None = None) -> web.Response:
    response = _html(render_login(message), 401)
    response.headers["WWW-Authenticate"] = CHALLENGE
    return response


async def _static_file(name: str) -> web.Response:
    if name not in STATIC:
        return _plain(404, "not found")
    body = await asyncio.to_thread(_read, name)
    return web.Response(body=body, content_type=STATIC[name], charset="utf-8", headers=HEADERS)


@cache
def _read(name: str) -> bytes:
    return resources.files("proxy.server").joinpath("static", name).read_bytes()


def _plain(status: int, words: str, **headers: str) -> web.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, text=f"{words}\n", headers=HEADERS | named)


def _html(page: str, status: int = 200) -> web.Response:
    return web.Response(status=status, text=page, content_type="text/html", charset="utf-8", headers=HEADERS)


class StatusPage:
    """Answers what browsers ask for with what `backend` says. `clock` gives Unix seconds."""

    def __init__(self, backend: Backend, access: AdminAccess, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._access = access
        self._clock = clock
        self._notices: OrderedDict[str, Notice] = OrderedDict()

    async def answer(self, request: web.BaseRequest) -> web.Response | None:
        """Answer one request; None where it is none of the page's."""
        method = "GET" if request.method == "HEAD" else request.method
        try:
            match method, request.rel_url.raw_path.split("/")[1:]:
                case "GET", ["static", name]:
                    return await _static_file(name)
                case "GET", [""]:
                    await self._access.check(request)
                    return await self._show(request)
                case "GET", ["login"]:
                    return _plain(303, "see the page", Location="/")
                case "POST", ["login"]:
                    return await self._log_in(request)
                case "POST", ["logout"]:
                    await self._access.check(request)
                    return _plain(303, "see the page", Location="/", Set_Cookie=self._access.log_out(request))
                case "POST", ["tags", action] if action in _ACTIONS:
                    await self._access.check(request)
                    return await self._act(request, action)
        except ApiError as error:
            return _login_page() if error.status == 401 else _plain(error.status, str(error), Connection="close")
        return None

    async def _log_in(self, request: web.BaseRequest) -> web.Response:
        cookie = await self._access.log_in(request, await _field(request, "token"))
        if cookie is None:
            return _login_page("That is not the token.")
        return _plain(303, "see the page", Location="/", Set_Cookie=cookie)

    async def _show(self, request: web.BaseRequest) -> web.Response:
        # A notice is shown once; HEAD does not use it up.
        query = request.rel_url.query
        shown = _shown(query)
        notice = self._notices.pop(query.get("notice", ""), None) if request.method == "GET" else None
        actor = _actor(request)
        stats, tags = await asyncio.gather(
            self._backend(ApiRequest("GET", "stats", actor=actor)),
            self._backend(ApiRequest("GET", "tags", _tags_query(shown), actor=actor)),
        )
        trouble = next((answer for answer in (stats, tags) if answer.status != 200), None)
        found = tags.body if tags.status == 200 else None
        view = View(
            self._clock(), shown, stats.body if stats.status == 200 else None,
            found["tags"] if found is not None else None, found is not None and "last" in found, notice,
            _said(trouble) if trouble is not None else None, session=COOKIE in request.cookies,
        )  # fmt: skip
        return _html(render(view), 200 if trouble is None else trouble.status)

    async def _act(self, request: web.BaseRequest, action: str) -> web.Response:
        reference = await _field(request, "reference")
        answer = await self._backend(_ACTIONS[action](reference, _actor(request)))
        key = self._keep(outcome(action, reference, answer))
        return _plain(303, "see the page", Location=f"/{_shown(request.rel_url.query).query(notice=key)}")

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


def _actor(request: web.BaseRequest) -> str:
    return request.remote or ""


async def _field(request: web.BaseRequest, name: str) -> str:
    """What the form says for `name`. Raises ApiError."""
    if request.content_type != _FORM:
        raise ApiError(415, "not a form")
    try:
        async with asyncio.timeout(_FORM_WITHIN):
            fields = parse_qs(await _form(request), max_num_fields=10)
    except TimeoutError:
        raise ApiError(408, "the form did not come in time") from None
    except ValueError:
        raise ApiError(400, "not a form") from None
    if len(fields.get(name, ())) != 1:
        raise ApiError(400, f"the form is to say one {name}")
    return fields[name][0]


async def _form(request: web.BaseRequest) -> str:
    form = bytearray()
    async for piece in request.content.iter_any():
        form += piece
        if len(form) > _LARGEST_FORM:
            raise ApiError(413, "the form is too large")
    return form.decode()


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
    if action == "release" and not answer.body["tags"]:
        return Notice("bad", (f"{reference} was not held",))
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
