"""Who may use the admin API and the status page (DESIGN, section 9).

- Off loopback, and wherever a token is configured: who knows the token, sent as `Authorization: Bearer`, or once to the
  log-in form and from then on as a cookie that ends by itself. The cookie holds no token, only a keyed hash that names
  its end, so it dies with the token.
- On loopback without a token: everybody on this machine, but no web page that makes somebody's browser ask. A browser
  names the page's origin when it changes something, and names in Host what it thinks it speaks to: a page that had its
  own name point here (DNS rebinding) is known by that.
"""

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from proxy.policy.cluster import host_without_port, parse_ip
from proxy.server.api import ApiError
from proxy.settings import Address, AdminSettings
from proxy.upstream.files import FileUnreadable, read_text

COOKIE = "pullthrough_session"
# Seconds.
_SESSION = 12 * 3600
_SAFE = frozenset({"GET", "HEAD"})


class AdminAccess:
    """Judges requests. `settings` gives what counts at present; `address` is where the listener is."""

    def __init__(self, address: Address, settings: Callable[[], AdminSettings], clock: Callable[[], float]) -> None:
        self._address = address
        self._settings = settings
        self._clock = clock

    async def check(self, request: web.BaseRequest) -> None:
        """Raise ApiError where the request may not be answered: 401 for want of a log-in, 403 for good, 503."""
        token = await self._token()
        if token is not None:
            if self._bears(request, token):
                return
            if not self._has_session(request, token):
                raise ApiError(401, "this needs the admin token (Authorization: Bearer …)")
        elif not self._address.is_loopback:
            raise ApiError(403, "off loopback the admin API needs a token: set admin.token_file")
        elif not _names_loopback(request.headers.get("Host", "")):
            raise ApiError(403, "this listener is spoken to by its address, or as localhost")
        if request.method not in _SAFE and not _same_origin(request):
            raise ApiError(403, "the request comes from another site")

    async def log_in(self, request: web.BaseRequest, given: str) -> str | None:
        """The value of a Set-Cookie that lets its browser in; None where what it gave is not the token.

        Raises ApiError, also for a form that another site sent.
        """
        token = await self._token()
        if not _same_origin(request):
            raise ApiError(403, "the request comes from another site")
        if token is None:
            raise ApiError(403, "there is no token to log in with")
        if not hmac.compare_digest(given.strip().encode(errors="replace"), token.encode()):
            return None
        end = str(int(self._clock()) + _SESSION)
        return _cookie(f"{end}.{_signed(token, end)}", _SESSION, request.secure)

    @staticmethod
    def log_out(request: web.BaseRequest) -> str:
        """The value of a Set-Cookie that ends the session."""
        return _cookie("", 0, request.secure)

    async def _token(self) -> str | None:
        file: Path | None = self._settings().token_file
        if file is None:
            return None
        try:
            token = (await read_text(file)).strip()
        except FileUnreadable as error:
            raise ApiError(503, "the admin token cannot be read") from error
        if not token:
            raise ApiError(503, "the admin token is empty")
        return token

    @staticmethod
    def _bears(request: web.BaseRequest, token: str) -> bool:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            value.strip().encode(errors="replace"), token.encode()
        )

    def _has_session(self, request: web.BaseRequest, token: str) -> bool:
        end, _, signature = request.cookies.get(COOKIE, "").partition(".")
        if not hmac.compare_digest(signature.encode(errors="replace"), _signed(token, end).encode()):
            return False
        # Signed, so it is a number.
        return self._clock() < int(end)


def _signed(token: str, end: str) -> str:
    return hmac.new(token.encode(), f"session until {end}".encode(errors="replace"), hashlib.sha256).hexdigest()


def _cookie(value: str, age: int, secure: bool) -> str:
    return f"{COOKIE}={value}; Max-Age={age}; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")


def _names_loopback(host: str) -> bool:
    name = host_without_port(host.lower())
    address = parse_ip(name)
    return name == "localhost" or (address is not None and address.is_loopback)


def _same_origin(request: web.BaseRequest) -> bool:
    """Does the request come from our own page, or from no page at all? Browsers say `null` where they will not say."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = request.headers.get("Origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("Host", "")
