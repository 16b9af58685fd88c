"""The status page over HTTP: what it asks of the API, its buttons, its files, and what browsers are told about it."""

import asyncio
import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import pytest
from aiohttp import web

from proxy.server.admin_access import AdminAccess
from proxy.server.api import ApiResponse
from proxy.server.status import HEADERS, STATIC, StatusPage
from proxy.settings import Address, AdminSettings
from tests.fakes.content import make_image, random_bytes
from tests.fakes.proxy import Proxy
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import FakeServer, Gate
from tests.fakes.status import NOW, FakeBackend, digest_named, make_tag

ACTOR = "127.0.0.1"
FORM = "application/x-www-form-urlencoded"
TOKEN = "correct horse"
NGINX = "docker.io/library/nginx:latest"


@dataclass
class Pages(FakeServer):
    """The admin listener's part that the page is; `address` and `admin` are what its access goes by."""

    backend: FakeBackend = field(default_factory=FakeBackend)
    address: Address = field(default_factory=lambda: Address("127.0.0.1", 5001))
    admin: AdminSettings = field(default_factory=AdminSettings)

    def __post_init__(self) -> None:
        self.page = StatusPage(self.backend, AdminAccess(self.address, lambda: self.admin, lambda: NOW), lambda: NOW)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.page.answer(request) or web.Response(status=404, text="none of the page's")


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

    async def raw(self, path: str, body: bytes, kind: str = FORM, **headers: str) -> tuple[int, str]:
        named = {"Content-Type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        address = self.pages.url + path
        async with self.session.post(address, data=body, headers=named, allow_redirects=False) as response:
            return response.status, await response.text()


@asynccontextmanager
async def browsing(pages: Pages) -> AsyncIterator[Browser]:
    await pages.start()
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield Browser(pages, session)
    await pages.stop()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """On loopback, without a token."""
    async with browsing(Pages()) as started:
        yield started


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[Browser]:
    """Off loopback, with a token."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    async with browsing(Pages(address=Address("192.0.2.1", 5001), admin=AdminSettings(token_file=file))) as started:
        yield started


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
    first = await browser.press("/tags/purge", reference="the first")
    for _ in range(100):
        last = await browser.press("/tags/purge", reference="another")
    assert "the first is forgotten" not in (await browser.get(first))[1]
    assert "another is forgotten" in (await browser.get(last))[1]


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
        (b"", FORM, 400),
        (b"reference=", FORM, 400),
        (b"reference=a&reference=b", FORM, 400),
        (b"a=1&" * 20 + b"reference=x", FORM, 400),
        (b"reference=%ff\xff", FORM, 400),
        (b"reference=" + b"x" * 20_000, FORM, 413),
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

    kind, address = {"Content-Type": FORM}, browser.pages.url + "/tags/refresh"
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
    for path in ("/", "/static/status.js", "/static/nothing"):
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


async def test_without_a_session_there_is_the_log_in(remote: Browser) -> None:
    """For the page and for every button, and nothing is asked of the API; the files need none."""
    async with remote.session.get(remote.pages.url) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
        assert {name: response.headers[name] for name in HEADERS} == HEADERS
        assert 'action="/login"' in await response.text()
    for action in ("refresh", "hold", "release", "purge"):
        assert (await remote.raw(f"/tags/{action}", b"reference=x"))[0] == 401
    assert (await remote.raw("/logout", b""))[0] == 401
    assert remote.pages.backend.asked == []
    assert (await remote.get("/static/status.css"))[0] == 200


async def test_logging_in_and_out(remote: Browser) -> None:
    """The token leads to the page, with a cookie that no script and no other site's request has; until the log-out."""
    remote.pages.backend.tags = [make_tag()]
    address, data = remote.pages.url + "/login", {"token": TOKEN}
    async with remote.session.post(address, data=data, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, "/")
        assert "HttpOnly; SameSite=Strict" in response.headers["Set-Cookie"]
        assert TOKEN not in response.headers["Set-Cookie"]
    assert "Log out" in (await remote.get("/"))[1]
    assert (await remote.press("/tags/refresh", reference=NGINX)).startswith("/?notice=")
    assert await remote.press("/logout") == "/"
    assert (await remote.get("/"))[0] == 401


async def test_a_wrong_token(remote: Browser) -> None:
    """Is said to be one, and sets no cookie; so does a form without any."""
    for body in (b"token=wrong", b"token=%3Cscript%3E"):
        status, text = await remote.raw("/login", body)
        assert status == 401
        assert "That is not the token." in text
        assert "&lt;" not in text
    assert (await remote.raw("/login", b""))[0] == 400
    assert len(remote.session.cookie_jar) == 0


async def test_other_sites_cannot_press_buttons(browser: Browser, remote: Browser) -> None:
    """A form that another page sent is refused, with a session and where none is needed; nor can it log anybody in."""
    await remote.press("/login", token=TOKEN)
    for one in (browser, remote):
        for origin in ("https://evil.example", "null"):
            for path in ("/tags/purge", "/tags/refresh", "/login", "/logout"):
                assert (await one.raw(path, f"reference=x&token={TOKEN}".encode(), Origin=origin))[0] == 403
        assert (await one.raw("/tags/purge", b"reference=x", Sec_Fetch_Site="cross-site"))[0] == 403
        assert one.pages.backend.asked == []
        assert (await one.raw("/tags/purge", b"reference=x", Origin=one.pages.url))[0] == 303


async def test_a_name_that_points_here_shows_nothing(browser: Browser) -> None:
    """A page that had its own name resolve to loopback is known by its Host."""
    async with browser.session.get(browser.pages.url, headers={"Host": "evil.example"}) as response:
        assert response.status == 403
        assert browser.pages.backend.asked == []


# A whole proxy: its API says what the page expects.


async def pressed(proxy: Proxy, action: str, reference: str) -> str:
    """Press a button, and give the page that it leads to."""
    async with proxy.session.post(f"{proxy.admin_url}/tags/{action}", data={"reference": reference}) as response:
        assert response.status == 200
        return await response.text()


async def test_of_a_whole_proxy(proxy: Proxy, registry: FakeRegistry) -> None:
    """Tags, history, a hold, an upstream that fails, a fill and a warm job are all there at once."""
    old, new = make_image(100, seed=1), make_image(100, seed=2)
    registry.push("team/app", "v1", old)
    await proxy.get("/v2/team/app/manifests/v1")
    registry.push("team/app", "v1", new)
    assert f"is now {new.digest[:19]}…" in await pressed(proxy, "refresh", "registry.test/team/app:v1")
    assert "is held until" in await pressed(proxy, "hold", f"registry.test/team/app:v1@{old.digest}")
    digest = registry.put("team/app", "application/octet-stream", random_bytes(2_000_000, 3))
    registry.pause = gate = Gate(1_000_000)
    body = asyncio.create_task(proxy.get(f"/v2/team/app/blobs/{digest}"))
    await gate.reached.wait()
    async with proxy.session.post(
        f"{proxy.admin_url}/api/v1/warm", json={"references": ["registry.test/team/app:v1"]}
    ) as response:
        assert response.status < 300, await response.text()
    async with proxy.session.get(proxy.admin_url) as response:
        text = await response.text()
        assert response.status == 200
    assert f'held at <code title="{old.digest}">' in text
    assert f'title="{new.digest}"' in text
    assert f'<code title="{digest}">' in text
    assert "<progress" in text
    assert re.search("[01] of 1 done", text)
    # What cannot be meant is not the proxy's failure.
    async with proxy.session.get(f"{proxy.admin_url}/?q={'a' * 2000}") as response:
        assert (response.status, "printable characters" in await response.text()) == (400, True)
    gate.open()
    assert (await body).status == 200
    assert "is released" in await pressed(proxy, "release", "registry.test/team/app:v1")
    assert "was not held" in await pressed(proxy, "release", "registry.test/team/app:v1")
    assert "is forgotten here" in await pressed(proxy, "purge", "registry.test/team/app:v1")
