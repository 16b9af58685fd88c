"""Who may use the admin API: tokens, log-ins, web pages that make somebody's browser ask, and names that point here."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from proxy.server.admin_access import COOKIE, AdminAccess
from proxy.server.api import ApiError
from proxy.settings import Address, AdminSettings
from tests.fakes.clock import ManualClock

TOKEN = "s3cret-token"
LOOPBACK, OFF = Address("127.0.0.1", 5001), Address("0.0.0.0", 5001)
HERE = "127.0.0.1:5001"


class Access:
    """An admin listener's at `address`, with a token or without, and a clock."""

    def __init__(self, folder: Path, address: Address = LOOPBACK, token: str | None = None) -> None:
        self.clock = ManualClock()
        self.file = folder / "token"
        self.settings = AdminSettings(token_file=self.file if token is not None else None)
        if token is not None:
            self.file.write_text(token)
        self.access = AdminAccess(address, lambda: self.settings, self.clock)

    async def status(self, method: str = "GET", **headers: str) -> int:
        """200, or what is refused with; header names are written with underscores."""
        try:
            await self.access.check(asking(method, **headers))
        except ApiError as error:
            assert TOKEN not in str(error)
            return error.status
        return 200

    async def cookie(self, given: str = TOKEN) -> str:
        """What a browser sends after the log-in."""
        made = await self.access.log_in(asking("POST"), given)
        assert made is not None
        return made.partition(";")[0]


def asking(method: str = "GET", **headers: str) -> web.BaseRequest:
    named: Any = {"Host": HERE} | {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request(method, "/api/v1/tags", headers=named)


# On loopback without a token: this machine.


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:5001", 200),
        ("127.0.0.1", 200),
        ("localhost:5001", 200),
        ("LOCALHOST:5001", 200),
        ("127.9.9.9:5001", 200),
        ("[::1]:5001", 200),
        # A page's own name that points here (DNS rebinding), and names that look like loopback.
        ("evil.test:5001", 403),
        ("localhost.evil.test:5001", 403),
        ("127.0.0.1.evil.test", 403),
        ("10.0.0.1:5001", 403),
        ("0.0.0.0:5001", 403),
        ("127.0.0.1@evil.test", 403),
        ("localhost:5001@evil.test:80", 403),
        ("", 403),
        (":5001", 403),
        ("127.1:5001", 403),
        ("2130706433:5001", 403),
    ],
)
async def test_names_that_point_to_loopback(tmp_path: Path, host: str, status: int) -> None:
    """Whoever speaks to this machine by another name than its own is somebody's web page, reading or writing."""
    access = Access(tmp_path)
    for method in ("GET", "HEAD", "POST", "DELETE"):
        assert await access.status(method, Host=host) == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": f"http://{HERE}"}, 200),
        ({"Origin": f"https://{HERE}"}, 200),
        ({"Sec_Fetch_Site": "same-origin", "Origin": f"http://{HERE}"}, 200),
        ({"Sec_Fetch_Site": "none"}, 200),
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "http://127.0.0.1:8080"}, 403),
        ({"Origin": "http://localhost:5001"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": f"http://{HERE}.evil.test"}, 403),
        ({"Origin": HERE}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Origin": f"http://{HERE}"}, 403),
        ({"Sec_Fetch_Site": ""}, 403),
    ],
)
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_other_sites_change_nothing(
    tmp_path: Path, headers: dict[str, str], status: int, token: str | None
) -> None:
    """Not on loopback, and not with the cookie of whoever is logged in; what only reads answers nobody's script."""
    access = Access(tmp_path, LOOPBACK if token is None else OFF, token)
    if token is not None:
        headers = headers | {"Cookie": await access.cookie()}
    assert await access.status("GET", **headers) == 200
    for method in ("POST", "DELETE", "PUT", "OPTIONS"):
        assert await access.status(method, **headers) == status


# Tokens.


@pytest.mark.parametrize("address", [LOOPBACK, OFF, Address("::", 1), Address("10.0.0.1", 1), Address("::1", 1)])
@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN} ", 200),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN.upper()}", 401),
        ("Bearer ä", 401),
    ],
)
async def test_the_token(tmp_path: Path, address: Address, authorization: str, status: int) -> None:
    """Where there is one it is needed, on loopback too; who has it is no web page, so neither Origin nor Host count."""
    access = Access(tmp_path, address, TOKEN + "\n")
    for headers in ({}, {"Origin": "http://elsewhere.test"}, {"Host": "proxy.internal:5001"}):
        assert await access.status("POST", Authorization=authorization, **headers) == status
        assert await access.status("GET", Authorization=authorization, **headers) == status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "proxy.internal", "::ffff:7f00:1"])
async def test_off_loopback_without_a_token(tmp_path: Path, host: str) -> None:
    """Nobody, whatever they bring; a name is not known to be loopback."""
    access = Access(tmp_path, Address(host, 5001))
    assert await access.status() == 403
    assert await access.status(Authorization="Bearer ") == 403
    assert await access.status(Host="localhost", Cookie=f"{COOKIE}=1.2") == 403
    with pytest.raises(ApiError) as caught:
        await access.access.log_in(asking("POST"), "")
    assert caught.value.status == 403


@pytest.mark.parametrize("content", ["", " \n", b"\xff\xfe"])
async def test_a_token_that_cannot_be_read(tmp_path: Path, content: str | bytes) -> None:
    """Opens nothing: 503 for everybody, also where it was good a moment ago; nothing of it is told."""
    access = Access(tmp_path, OFF, TOKEN)
    assert await access.status(Authorization=f"Bearer {TOKEN}") == 200
    access.file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for value in (f"Bearer {TOKEN}", "Bearer ", "Bearer", ""):
        assert await access.status(Authorization=value) == 503
    access.file.unlink()
    assert await access.status(Authorization=f"Bearer {TOKEN}") == 503


async def test_another_token(tmp_path: Path) -> None:
    """It counts from the next request on, without a reload; the old one and its log-ins are good for nothing."""
    access = Access(tmp_path, OFF, TOKEN)
    cookie = await access.cookie()
    access.file.write_text("another")
    assert await access.status(Authorization=f"Bearer {TOKEN}") == 401
    assert await access.status(Cookie=cookie) == 401
    assert await access.status(Authorization="Bearer another") == 200


# Log-ins.


async def test_a_log_in_lasts_for_a_while(tmp_path: Path) -> None:
    """For twelve hours, for reading and, from our own page, for changes; the cookie does not hold the token."""
    access = Access(tmp_path, OFF, TOKEN)
    cookie = await access.cookie(f" {TOKEN}\n")
    assert TOKEN not in cookie
    assert await access.status(Cookie=f"other=1; {cookie}") == 200
    assert await access.status("POST", Cookie=cookie, Origin=f"http://{HERE}") == 200
    access.clock.advance(12 * 3600 - 1)
    assert await access.status(Cookie=cookie) == 200
    access.clock.advance(1)
    assert await access.status(Cookie=cookie) == 401


async def test_the_cookie_is_for_this_site_and_no_script(tmp_path: Path) -> None:
    """HttpOnly, SameSite=Strict, Secure over TLS, and it ends by itself; so does the one that logs out, at once."""
    access = Access(tmp_path, OFF, TOKEN)
    made = await access.access.log_in(asking("POST"), TOKEN)
    assert made is not None
    assert made.split("; ")[1:] == ["Max-Age=43200", "Path=/", "HttpOnly", "SameSite=Strict"]
    secure = await access.access.log_in(asking("POST").clone(scheme="https"), TOKEN)
    assert secure is not None
    assert secure.endswith("; Secure")
    assert access.access.log_out(asking("POST")).startswith(f"{COOKIE}=; Max-Age=0; ")


async def test_a_log_in_with_something_else(tmp_path: Path) -> None:
    """No cookie; and none at all for a form that another site sent."""
    access = Access(tmp_path, OFF, TOKEN)
    for given in ("", TOKEN[:-1], TOKEN + "x", "\udcff", "x" * 100_000):
        assert await access.access.log_in(asking("POST"), given) is None
    with pytest.raises(ApiError) as caught:
        await access.access.log_in(asking("POST", Origin="http://evil.test"), TOKEN)
    assert caught.value.status == 403


async def test_cookies_that_somebody_made_up(tmp_path: Path) -> None:
    """Another end, another signature, none, or no cookie at all: 401."""
    access = Access(tmp_path, OFF, TOKEN)
    value = (await access.cookie()).partition("=")[2]
    end, _, signature = value.partition(".")
    later = str(int(end) + 1)
    for made in (
        "", ".", f"{end}.", f".{signature}", f"{later}.{signature}", f"{end}.{signature[:-1]}", f"{end}.{signature}0",
        f"x.{signature}", f"{end}.{signature}.{signature}", f"-1.{signature}", f"{end} .{signature}",
        f"{end}.{signature.upper()}", f"0{end}.{signature}", "9" * 5000 + f".{signature}",
    ):  # fmt: skip
        assert await access.status(Cookie=f"{COOKIE}={made}") == 401, made
    assert await access.status(Cookie=f"{COOKIE}={value}") == 200
