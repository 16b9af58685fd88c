"""How commands speak to a running server: its admin API, or one clear line why not."""

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import aiohttp
import click

from proxy.settings import check_url

_Command = TypeVar("_Command", bound=Callable[..., Any])

_CONNECT_SECONDS = 5.0
# Many tags may have to be asked for, each of its registry.
_ANSWER_SECONDS = 310.0


class AdminError(Exception):
    """The server cannot be asked, or refuses. The message is one line."""


def _url(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        url = check_url(value if "://" in value else f"http://{value}")
    except ValueError as error:
        raise click.BadParameter("not a URL such as http://127.0.0.1:5001") from error
    return url


def admin_options(command: _Command) -> _Command:
    """`--admin` and `--token-file`, which `AdminClient` takes."""
    token = click.option(
        "--token-file", type=click.Path(path_type=Path, dir_okay=False), envvar="PULLTHROUGH_TOKEN_FILE",
        help="A file with the admin token [PULLTHROUGH_TOKEN_FILE].",
    )  # fmt: skip
    url = click.option(
        "--admin", default="http://127.0.0.1:5001", callback=_url, envvar="PULLTHROUGH_ADMIN_URL", show_default=True,
        help="The server's admin listener [PULLTHROUGH_ADMIN_URL].",
    )  # fmt: skip
    return url(token(command))


class AdminClient:
    """The admin API at `admin`, a URL. Use it as a context."""

    def __init__(self, admin: str, token_file: Path | None) -> None:
        self._admin = admin
        self._token_file = token_file
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "AdminClient":
        headers = {}
        if self._token_file is not None:
            try:
                token = (await asyncio.to_thread(self._token_file.read_text)).strip()
            except (OSError, ValueError) as error:
                raise AdminError(f"{self._token_file} cannot be read: {error}") from error
            headers["Authorization"] = f"Bearer {token}"
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS, sock_connect=_CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(headers=headers, timeout=timeout)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None) -> Any:
        """The JSON that `path`, after `/api/v1/`, answers with. Raises AdminError."""
        assert self._session is not None  # noqa: S101 - used as a context
        url = f"{self._admin}/api/v1/{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            async with self._session.request(method, url, json=body, allow_redirects=False) as response:
                status, raw = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise AdminError(f"{self._admin} does not answer: {error or type(error).__name__}") from error
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise AdminError(f"{url} answered {status}, and no JSON: is that the admin listener?") from error
        if status >= 400 or not isinstance(answer, dict):
            what = answer.get("error") if isinstance(answer, dict) else None
            raise AdminError(str(what or f"{url} answered {status}"))
        return answer

    async def tags(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None
    ) -> list[Any]:
        """The tags that `call` answers with. Raises AdminError."""
        return list(_listed(await self.call(method, path, query, body), path))

    async def all_tags(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """All tags that `GET tags` gives for `query`, page after page. Raises AdminError."""
        tags: list[dict[str, Any]] = []
        last: str | None = ""
        while last is not None:
            page = await self.call("GET", "tags", {**query, "n": "1000", **({"last": last} if last else {})})
            tags += _listed(page, "tags")
            last = page.get("last")
        return tags


def _listed(answer: Mapping[str, Any], path: str) -> list[Any]:
    tags = answer.get("tags")
    if not isinstance(tags, list):
        raise AdminError(f"/api/v1/{path} answered without tags: is that the admin listener?")
    return tags


def run(asking: Callable[[], Any]) -> Any:
    """Run a command's coroutine; where the server cannot be asked or refuses, say so in one line and exit with 1."""
    try:
        return asyncio.run(asking())
    except AdminError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
