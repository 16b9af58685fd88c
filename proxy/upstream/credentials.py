"""The proxy's own credentials: a password file, a docker `config.json`, a docker credential helper.

Files are read whenever a credential is needed, which is once a token, so rotated secrets are found without a restart;
a helper's answer, which costs a process, is kept for a while.
"""

import asyncio
import base64
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiofiles

from proxy.settings import CredentialSettings

_HELPER_TIMEOUT = 20.0
_HELPER_KEPT = 300.0
_NOT_FOUND = "credentials not found in native keychain"
# The user name under which Docker's tools hand out an identity token instead of a password.
IDENTITY_TOKEN_USER = "<token>"  # noqa: S105 - a user's name, not a password
# The key under which docker's own tools keep Docker Hub's credentials.
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"


class CredentialsUnavailable(Exception):
    """The credential cannot be had. The message is for operators and holds no secret."""


@dataclass(frozen=True, slots=True)
class Credential:
    """User name and password, or an identity token that a token server takes instead (its user name is unused)."""

    username: str
    secret: str = field(repr=False)
    identity_token: bool = False

    @property
    def basic(self) -> str:
        """The Authorization header of HTTP Basic."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.secret}".encode()).decode()


class CredentialSource:
    """Where a registry's own credential comes from. `names` are the keys it may stand under, the best first."""

    def __init__(self, settings: CredentialSettings, names: Iterable[str]) -> None:
        self._settings = settings
        self._names = list(names)
        if "docker.io" in self._names:
            self._names.insert(0, _DOCKER_HUB_KEY)
        self._kept: tuple[float, Credential] | None = None
        self._asking = asyncio.Lock()

    @property
    def identity(self) -> str:
        """What tells this credential from another one, and outlives the rotation of its secret."""
        settings = self._settings
        return f"{settings.username or ''}|{settings.docker_config or ''}|{settings.helper or ''}"

    async def get(self) -> Credential:
        """The credential as it is now. Raises CredentialsUnavailable."""
        settings = self._settings
        if settings.username is not None and settings.password_file is not None:
            return Credential(settings.username, (await _read(settings.password_file)).strip())
        if settings.docker_config is not None:
            return await self._from_docker_config(settings.docker_config)
        return await self._from_helper(str(settings.helper), self._names)

    async def _from_docker_config(self, file: Path) -> Credential:
        try:
            config = json.loads(await _read(file))
        except (ValueError, RecursionError) as error:
            raise CredentialsUnavailable(f"{file} is not JSON") from error
        if not isinstance(config, dict):
            raise CredentialsUnavailable(f"{file} is not a docker config.json")
        helpers, auths = _mapping(config, "credHelpers"), _mapping(config, "auths")
        for name in self._names:
            if _text(helpers.get(name)):
                return await self._from_helper(helpers[name], [name])
        for name in _spellings(self._names):
            if isinstance(auths.get(name), dict) and (credential := _from_auth(auths[name], file)):
                return credential
        if _text(config.get("credsStore")):
            return await self._from_helper(config["credsStore"], self._names)
        raise CredentialsUnavailable(f"{file} has nothing for {self._names[-1]}")

    async def _from_helper(self, helper: str, names: Iterable[str]) -> Credential:
        async with self._asking:
            if self._kept is not None and time.monotonic() - self._kept[0] < _HELPER_KEPT:
                return self._kept[1]
            for name in names:
                if credential := await _ask_helper(helper, name):
                    self._kept = (time.monotonic(), credential)
                    return credential
        raise CredentialsUnavailable(f"the credential helper {helper} has nothing for this registry")

    def forget(self) -> None:
        """The credential was refused: ask the helper again next time."""
        self._kept = None


async def _read(file: Path) -> str:
    try:
        async with aiofiles.open(file, encoding="utf-8") as stream:
            return await stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsUnavailable(f"{file} cannot be read") from error


def _mapping(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _spellings(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        yield name
        if "://" not in name:
            places = ("", "/", "/v1", "/v1/", "/v2", "/v2/")
            yield from (f"{scheme}://{name}{place}" for scheme in ("https", "http") for place in places)


def _from_auth(entry: dict[str, Any], file: Path) -> Credential | None:
    """One entry of `auths`: an identity token, `username` and `password`, or both in base64 as `auth`."""
    if token := _text(entry.get("identitytoken")):
        return Credential(IDENTITY_TOKEN_USER, token, identity_token=True)
    if (user := _text(entry.get("username"))) and (password := _text(entry.get("password"))):
        return Credential(user, password)
    # Go's decoder, which wrote the file, takes line ends.
    packed = "".join(_text(entry.get("auth")).split())
    try:
        username, colon, secret = base64.b64decode(packed, validate=True).decode().partition(":")
    except ValueError as error:
        raise CredentialsUnavailable(f"{file} has an auth that is not base64") from error
    return Credential(username, secret.rstrip("\0")) if colon else None


def _text(value: object) -> str:
    """A string that says something; Docker's tools leave empty ones and nulls behind."""
    return value if isinstance(value, str) else ""


async def _ask_helper(helper: str, name: str) -> Credential | None:
    """`docker-credential-HELPER get` for `name`; None where it knows nothing. Errors come on its standard output."""
    try:
        process = await asyncio.create_subprocess_exec(
            f"docker-credential-{helper}", "get",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise CredentialsUnavailable("the docker credential helper cannot be run") from error
    try:
        output, _ = await asyncio.wait_for(process.communicate(name.encode()), _HELPER_TIMEOUT)
    except TimeoutError as error:
        raise CredentialsUnavailable(f"docker-credential-{helper} did not answer in time") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        if _NOT_FOUND in output.decode(errors="replace"):
            return None
        raise CredentialsUnavailable(f"docker-credential-{helper} failed with exit code {process.returncode}")
    return _helper_answer(helper, output)


def _helper_answer(helper: str, output: bytes) -> Credential:
    try:
        answer = json.loads(output)
        username, secret = _text(answer["Username"]), _text(answer["Secret"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CredentialsUnavailable(f"docker-credential-{helper} answered something unexpected") from error
    if not username and not secret:
        raise CredentialsUnavailable(f"docker-credential-{helper} answered with nothing")
    return Credential(username, secret, identity_token=username == IDENTITY_TOKEN_USER)
