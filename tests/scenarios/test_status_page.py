"""The status page over HTTP: what it asks of the API, its buttons, its files, and what browsers are told about it."""

import asyncio
import html
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlencode

import aiohttp
import pytest
from aiohttp import web

from proxy.server.api import ApiResponse
from proxy.server.status import HEADERS, STATIC, StatusPage, login_page, static_file
from tests.fakes.server import FakeServer
from tests.fakes.status import NOW, FakeBackend, digest_named, make_tag

ACTOR = "the test"
NGINX = "docker.io/library/nginx:latest"


@dataclass
class Pages(FakeServer):
    """The admin listener's part that the page is, without its token."""

    backend: FakeBackend = field(default_factory=FakeBackend)

    def __post_init__(self) -> None:
        self.page = StatusPage(self.backend, lambda: NOW)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        if path.startswith("/static/"):
            return await static_file(path.removeprefix("/static/"))
        if path == "/login":
            return login_page("that is not the token")
        if request.method == "POST":
            return await self.page.act(request, ACTOR)
        return await self.page.show(request, ACTOR)


@dataclass
class Browser:
    """A client that follows redirects only when told to."""

    pages: Pages
    session: aiohttp.ClientSession

    async def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        async with self.session.request(method, self.pages.url + path) as response:
            return response.status, html.unescape(await response.text())

    async def press(self, path: str, **fields: str) -> str:
        """Send a form; gives where it leads."""
        address = self.pages.url + path
        async with self.session.post(address, data=fields, allow_redirects=False) as response:
            assert response.status == 303, await response.text()
            return response.headers["Location"]

    async def raw(self, path: str, body: bytes, kind: str = "application/x-www-form-urlencoded") -> tuple[int, str]:
        async with self.session.post(
            self.pages.url + path, data=body, headers={"Content-Type": kind}, allow_redirects=False
        ) as response:
            return response.status, await response.text()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    pages = Pages()
    await pages.start()
    async with aiohttp.ClientSession() as session:
        yield Browser(pages, session)
    await pages.stop()


async def test_the_page_shows_what_the_api_says(browser: Browser) -> None:
    """Stats and the first fifty tags, asked for in the name of whoever looks."""
    browser.pages.backend.tags = [make_tag()]
    status, text = await browser.get("/")
    assert status == 200
    assert NGINX in text.replace("<wbr>", "")
    asked = browser.pages.backend.asked
    assert [(one.method, one.path, one.query, one.actor) for one in asked] == [
        ("GET", "stats", (), ACTOR),
        ("GET", "tags", (("n", "50"),), ACTOR),
    ]


async def test_thousands_of_tags_come_in_pages(browser: Browser) -> None:
    """Fifty on each, by links, until there are no more; each tag once."""
    names = [f"docker.io/team/app{number:04}:v1" for number in range(1234)]
    browser.pages.backend.tags = [make_tag(name) for name in names]
    seen: list[str] = []
    path: str | None = "/"
    while path is not None:
        _, text = await browser.get(path)
        found = re.findall(r'aria-label="Refresh ([^"]+)"', text)
        assert 0 < len(found) <= 50
        seen += found
        following = re.search(r'<a href="([^"#]+)#tags" rel="next">', text)
        path = following[1] if following else None
    assert seen == names


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/?drifted=1", (("n", "50"), ("drifted", "true"))),
        ("/?drifted=0&q=", (("n", "50"),)),
        ("/?q=nginx", (("n", "50"), ("reference", "*nginx*"))),
        ("/?q=+docker.io/*:v1+&last=a%26b", (("n", "50"), ("reference", "docker.io/*:v1"), ("last", "a&b"))),
    ],
)
async def test_filters(browser: Browser, path: str, asked: tuple[tuple[str, str], ...]) -> None:
    """Tags that moved, a pattern as it is, a word anywhere, those after another one."""
    await browser.get(path)
    assert browser.pages.backend.asked[-1].query == asked


@pytest.mark.parametrize(
    ("action", "method", "path", "body", "query"),
    [
        ("refresh", "POST", "tags/refresh", {"reference": NGINX}, ()),
        ("hold", "POST", "tags/hold", {"reference": NGINX}, ()),
        ("release", "POST", "tags/release", {"reference": NGINX}, ()),
        ("purge", "DELETE", "tags", None, (("reference", NGINX),)),
    ],
)
async def test_buttons(
    browser: Browser, action: str, method: str, path: str, body: object, query: tuple[tuple[str, str], ...]
) -> None:
    """Each becomes one request of the API, and leads back to the tags that were shown."""
    location = await browser.press(f"/tags/{action}?q=a%26b&drifted=1&last=z", reference=NGINX)
    (asked,) = browser.pages.backend.asked
    assert (asked.method, asked.path, asked.body, asked.query, asked.actor) == (method, path, body, query, ACTOR)
    assert re.fullmatch(r"/\?q=a%26b&drifted=1&last=z&notice=[\w-]{22}", location)


async def test_the_outcome_is_shown_once(browser: Browser) -> None:
    """After the redirect; not again with a reload, and not used up by HEAD."""
    before, after = digest_named("a"), digest_named("b")
    refreshed = {"reference": NGINX, "before": before, "after": after, "changed": True, "error": None}
    browser.pages.backend.answers["POST", "tags/refresh"] = ApiResponse(200, {"tags": [refreshed]})
    location = await browser.press("/tags/refresh", reference=NGINX)
    words = f"{NGINX} is now {after[:19]}…, was {before[:19]}…"
    assert await browser.get(location, "HEAD") == (200, "")
    assert words in (await browser.get(location))[1]
    assert words not in (await browser.get(location))[1]


async def test_what_failed_is_said(browser: Browser) -> None:
    """An error of the API, one of a single tag, and no tag at all."""
    answers = browser.pages.backend.answers
    answers["POST", "tags/hold"] = ApiResponse(409, {"error": "the registry does not have it"})
    _, text = await browser.get(await browser.press("/tags/hold", reference=NGINX))
    assert f"{NGINX}: the registry does not have it" in text
    failed = {"reference": NGINX, "before": None, "after": None, "changed": False, "error": "it timed out"}
    answers["POST", "tags/refresh"] = ApiResponse(200, {"tags": [failed] * 12})
    _, text = await browser.get(await browser.press("/tags/refresh", reference="docker.io/*"))
    assert text.count(f"{NGINX}: it timed out") == 10
    assert "and 2 more" in text
    answers["POST", "tags/refresh"] = ApiResponse(200, {"tags": []})
    assert "no tag is cached that fits" in (await browser.get(await browser.press("/tags/refresh", reference="x*")))[1]


async def test_notices_are_not_kept_for_ever(browser: Browser) -> None:
    """Those that nobody came for make room after a hundred."""
    first = await browser.press("/tags/release", reference="the first")
    for _ in range(100):
        last = await browser.press("/tags/release", reference="another")
    assert "the first is released" not in (await browser.get(first))[1]
    assert "another is released" in (await browser.get(last))[1]


async def test_nothing_of_a_request_comes_back_as_markup(browser: Browser) -> None:
    """Neither in the page nor in an address, whatever the search or the reference says."""
    hostile = "\"'><script>alert(1)</script>\r\nSet-Cookie: a=b"
    location = await browser.press(f"/tags/release?{urlencode({'q': hostile, 'notice': hostile})}", reference=hostile)
    assert "\r" not in location and "<" not in location
    async with browser.session.get(browser.pages.url + location) as response:
        assert "Set-Cookie" not in response.headers
        assert "<script>" not in await response.text()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"reference=x", "multipart/form-data; boundary=x", 415),
        (b"", "application/x-www-form-urlencoded", 400),
        (b"reference=", "application/x-www-form-urlencoded", 400),
        (b"reference=a&reference=b", "application/x-www-form-urlencoded", 400),
        (b"a=1&" * 20 + b"reference=x", "application/x-www-form-urlencoded", 400),
        (b"reference=%ff\xff", "application/x-www-form-urlencoded", 400),
        (b"reference=" + b"x" * 20_000, "application/x-www-form-urlencoded", 400),
    ],
)
async def test_forms_that_are_none(browser: Browser, body: bytes, kind: str, status: int) -> None:
    """Are refused, and ask the API for nothing."""
    assert (await browser.raw("/tags/refresh", body, kind))[0] == status
    assert browser.pages.backend.asked == []


async def test_a_form_that_does_not_come(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not waited for without end."""
    monkeypatch.setattr("proxy.server.status._FORM_WITHIN", 0.05)

    never = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"reference="
        await never.wait()

    kind, address = {"Content-Type": "application/x-www-form-urlencoded"}, browser.pages.url + "/tags/refresh"
    async with browser.session.post(address, data=slowly(), headers=kind) as response:
        assert response.status == 408


async def test_no_other_action(browser: Browser) -> None:
    """Only those that there are."""
    for path in ("/tags/", "/tags/burn", "/tags/refresh/x"):
        assert (await browser.raw(path, b"reference=x"))[0] == 404


async def test_without_the_api(browser: Browser) -> None:
    """The page is 503, says why, and shows what there is."""
    browser.pages.backend.answers["GET", "stats"] = ApiResponse(503, {"error": "no worker serves"})
    browser.pages.backend.tags = [make_tag()]
    status, text = await browser.get("/")
    assert status == 503
    assert "no worker serves" in text
    assert NGINX in text.replace("<wbr>", "")
    browser.pages.backend.answers["GET", "tags"] = ApiResponse(500, None)
    assert (await browser.get("/"))[0] == 503


async def test_what_browsers_are_told(browser: Browser) -> None:
    """Every answer: nothing inline or from elsewhere, no framing, no guessing of types, nothing kept.

    The referrer stays within the origin; without any, forms would be sent with `Origin: null`.
    """
    for path in ("/", "/login", "/static/status.js", "/static/nothing"):
        async with browser.session.get(browser.pages.url + path) as response:
            assert {name: response.headers[name] for name in HEADERS} == HEADERS
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'none'", "style-src": "'self'", "script-src": "'self'", "connect-src": "'self'",
        "img-src": "'self' data:", "form-action": "'self'", "frame-ancestors": "'none'", "base-uri": "'none'",
    }  # fmt: skip
    assert HEADERS["Referrer-Policy"] == "same-origin"
    assert HEADERS["Cache-Control"] == "no-store"
    location = await browser.press("/tags/release", reference=NGINX)
    assert location.startswith("/?notice=")


async def test_static_files(browser: Browser) -> None:
    """Those that the page names, with their types; no other, and nothing outside."""
    for name, kind in STATIC.items():
        async with browser.session.get(f"{browser.pages.url}/static/{name}") as response:
            assert (response.status, response.content_type) == (200, kind)
            assert await response.read()
    for name in ("nothing", "..%2fstatus.py", "%2e%2e%2fstatus.py", ""):
        assert (await browser.get(f"/static/{name}"))[0] == 404


async def test_the_log_in_page(browser: Browser) -> None:
    """401, a form, and what was wrong."""
    status, text = await browser.get("/login")
    assert status == 401
    assert 'action="/login"' in text
    assert "that is not the token" in text
