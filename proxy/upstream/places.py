"""Where the proxy's own credentials stand: a password file, a docker `config.json`, a docker credential helper, a
kubelet credential provider plugin. Each knows how to look there; `credentials` knows when to.
"""

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from proxy.policy.images import by_precision, image_matches
from proxy.settings import CredentialSettings, PluginSettings
from proxy.upstream.files import FileUnreadable, mark_of, read_text
from proxy.upstream.programs import Limits, ProgramFailed, run_program

# Seconds that a docker helper's answer is kept; helpers do not say.
_HELPER_KEPT = 300.0
_NOT_FOUND = b"credentials not found in native keychain"
# The user name under which Docker's tools hand out an identity token instead of a password.
IDENTITY_TOKEN_USER = "<token>"  # noqa: S105 - a user's name, not a password
# The key under which docker's own tools keep Docker Hub's credentials.
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"

_PLUGIN_API = "credentialprovider.kubelet.k8s.io/v1"
# What Go writes for a duration: `12h0m0s`, `1.5h`, `300ms`.
_GO_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:h|ms|m|s|us|µs|ns))+|0", re.ASCII)
_GO_PART = re.compile(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|µs|ns)", re.ASCII)
_GO_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


class CredentialsUnavailable(Exception):
    """The credential cannot be had. The message is for operators and holds no secret."""


class NoCredential(CredentialsUnavailable):
    """The place was read, and has nothing for this registry."""


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


@dataclass(frozen=True, slots=True)
class Found:
    """What a look gave: credentials by pattern of images, the most precise first; an empty pattern fits all.

    `keep` in seconds; `one_image`: it says nothing about other images than the one that was asked about.
    """

    credentials: Mapping[str, Credential]
    keep: float = math.inf
    one_image: bool = False

    def for_image(self, names: Iterable[str]) -> Credential | None:
        """The credential for an image, by any of its `names`; None where it is to be asked for as nobody."""
        names = list(names)
        for pattern, credential in self.credentials.items():
            if not pattern or any(image_matches(pattern, name) for name in names):
                return credential
        return None


class Place(Protocol):
    """One of the ways in which a credential is configured."""

    async def mark(self) -> object:
        """Another value whenever there may be something else to find; cheap."""
        ...

    def concerns(self, images: Sequence[str]) -> bool:
        """Is it meant for an image, by any of its names? If not, that is asked for as nobody."""
        ...

    async def look(self, images: Sequence[str]) -> Found:
        """What stands there for an image, under any of its names, the best first. Raises CredentialsUnavailable."""
        ...


def place_of(settings: CredentialSettings, names: Sequence[str], host: str | None) -> Place:
    """Where `settings` say to look; `names` are the registry's, the best first; `host` is where it is asked.

    What stands there for that host comes first: another one's credential under a name that is only an alias, or Docker
    Hub's for a mirror of it, is for where there is nothing else.
    """
    hub = [_DOCKER_HUB_KEY] if "docker.io" in names else []
    hosts = list(dict.fromkeys([*([host] if host else []), *hub, *names]))
    limits = Limits(settings.timeout, settings.environment)
    if settings.username is not None and settings.password_file is not None:
        return PasswordFile(settings.username, settings.password_file)
    if settings.docker_config is not None:
        return DockerConfig(settings.docker_config, hosts, limits)
    if settings.plugin is not None:
        return Plugin(settings.plugin, limits)
    return HelperProgram(str(settings.helper), hosts, limits)


class PasswordFile:
    """A user's name, and a file with the password."""

    def __init__(self, username: str, file: Path) -> None:
        self._username = username
        self._file = file

    async def mark(self) -> object:
        """See `Place`."""
        return await mark_of(self._file)

    def concerns(self, images: Sequence[str]) -> bool:
        """See `Place`."""
        return True

    async def look(self, images: Sequence[str]) -> Found:
        """See `Place`."""
        password = (await _text_of(self._file)).strip()
        if not password:
            # Somebody is about to write it.
            raise CredentialsUnavailable(f"{self._file} is empty")
        return Found({"": Credential(self._username, password)})


class DockerConfig:
    """A docker `config.json`: `credHelpers`, then `auths`, for one host after the other, then `credsStore`."""

    def __init__(self, file: Path, hosts: Sequence[str], limits: Limits) -> None:
        self._file = file
        self._hosts = hosts
        self._limits = limits

    async def mark(self) -> object:
        """See `Place`."""
        return await mark_of(self._file)

    def concerns(self, images: Sequence[str]) -> bool:
        """See `Place`."""
        return True

    async def look(self, images: Sequence[str]) -> Found:
        """See `Place`."""
        file, config = self._file, await self._config()
        helpers, auths = _mapping(config, "credHelpers"), _mapping(config, "auths")
        # What is said of an alias, which may be another registry's own name, comes after all that is said of the host.
        for host in self._hosts:
            if _text(helpers.get(host)):
                return await HelperProgram(helpers[host], [host], self._limits).look(images)
            for spelling in _spellings([host]):
                if isinstance(auths.get(spelling), dict) and (credential := _from_auth(auths[spelling], file)):
                    return Found({"": credential})
        if _text(config.get("credsStore")):
            return await HelperProgram(config["credsStore"], self._hosts, self._limits).look(images)
        raise NoCredential(f"{file} has nothing for {self._hosts[-1]}")

    async def _config(self) -> dict[str, Any]:
        try:
            config = json.loads(await _text_of(self._file))
        except (ValueError, RecursionError) as error:
            raise CredentialsUnavailable(f"{self._file} is not JSON") from error
        if not isinstance(config, dict):
            raise CredentialsUnavailable(f"{self._file} is not a docker config.json")
        return config


class HelperProgram:
    """A docker credential helper: `docker-credential-NAME get`, asked by every name of the registry."""

    def __init__(self, name: str, hosts: Sequence[str], limits: Limits) -> None:
        self._name = name
        self._hosts = hosts
        self._limits = limits

    async def mark(self) -> object:
        """See `Place`."""
        return None

    def concerns(self, images: Sequence[str]) -> bool:
        """See `Place`."""
        return True

    async def look(self, images: Sequence[str]) -> Found:
        """See `Place`."""
        for host in self._hosts:
            if credential := await self._ask(host):
                return Found({"": credential}, _HELPER_KEPT)
        raise NoCredential(f"the credential helper {self._name} has nothing for this registry")

    async def _ask(self, host: str) -> Credential | None:
        """None where it knows nothing. Errors come on its standard output."""
        program = f"docker-credential-{self._name}"
        try:
            code, output = await run_program([program, "get"], host, self._limits)
        except ProgramFailed as error:
            raise CredentialsUnavailable(f"{program} {error}") from error
        if code != 0:
            if _NOT_FOUND in output:
                return None
            raise CredentialsUnavailable(f"{program} failed with exit code {code}")
        answer = _json_object(output)
        if answer is None or not {"Username", "Secret"} <= answer.keys():
            raise CredentialsUnavailable(f"{program} answered something unexpected")
        if (login := _login(answer["Username"], answer["Secret"])) is None:
            raise CredentialsUnavailable(f"{program} answered with nothing to log in with")
        return Credential(*login, identity_token=login[0] == IDENTITY_TOKEN_USER)


class Plugin:
    """A kubelet credential provider plugin, which is asked about images (kubelet-credentialprovider.v1)."""

    def __init__(self, settings: PluginSettings, limits: Limits) -> None:
        self._settings = settings
        self._limits = Limits(limits.timeout, limits.visible, settings.env)
        self._name = Path(settings.command).name

    async def mark(self) -> object:
        """See `Place`."""
        return None

    async def look(self, images: Sequence[str]) -> Found:
        """See `Place`. For images that `match_images` does not mean nothing is run, and there is nothing."""
        image = self._meant(images)
        if image is None:
            return Found({}, one_image=True)
        request = {"kind": "CredentialProviderRequest", "apiVersion": _PLUGIN_API, "image": image}
        command = [self._settings.command, *self._settings.args]
        try:
            code, output = await run_program(command, json.dumps(request), self._limits)
        except ProgramFailed as error:
            raise CredentialsUnavailable(f"the plugin {self._name} {error}") from error
        if code != 0:
            raise CredentialsUnavailable(f"the plugin {self._name} failed with exit code {code}")
        return self._found(output)

    def concerns(self, images: Sequence[str]) -> bool:
        """See `Place`."""
        return self._meant(images) is not None

    def _meant(self, images: Sequence[str]) -> str | None:
        patterns = self._settings.match_images
        return next((one for one in images if not patterns or any(image_matches(p, one) for p in patterns)), None)

    def _found(self, output: bytes) -> Found:
        answer, settings = _json_object(output), self._settings
        if answer is None or answer.get("kind") != "CredentialProviderResponse":
            raise CredentialsUnavailable(f"the plugin {self._name} answered something unexpected")
        if answer.get("apiVersion") != _PLUGIN_API:
            raise CredentialsUnavailable(f"the plugin {self._name} does not speak {_PLUGIN_API}")
        kind, duration = _text(answer.get("cacheKeyType")), answer.get("cacheDuration")
        keep = settings.default_cache_duration if duration is None else _go_seconds(duration)
        if kind not in {"Image", "Registry", "Global"} or keep is None:
            raise CredentialsUnavailable(
                f"the plugin {self._name} answered without a cacheKeyType or cacheDuration that exists"
            )
        auth = _mapping(answer, "auth")
        credentials = {pattern: _from_plugin(auth[pattern]) for pattern in by_precision(auth) if pattern}
        found = {key: one for key, one in credentials.items() if one is not None}
        # Nothing for one image is no word on the others.
        return Found(found, keep, kind == "Image" or not found)


async def _text_of(file: Path) -> str:
    try:
        return await read_text(file)
    except FileUnreadable as error:
        raise CredentialsUnavailable(str(error)) from error


def _json_object(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _mapping(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """A string that says something; Docker's tools leave empty ones and nulls behind."""
    if not isinstance(value, str):
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        # Half of a character, which JSON can hold, is nothing that could be sent.
        return ""
    return value


def _spellings(hosts: Iterable[str]) -> Iterable[str]:
    for host in hosts:
        yield host
        if "://" not in host:
            places = ("", "/", "/v1", "/v1/", "/v2", "/v2/")
            yield from (f"{scheme}://{host}{place}" for scheme in ("https", "http") for place in places)


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


def _from_plugin(entry: object) -> Credential | None:
    if not isinstance(entry, dict):
        return None
    login = _login(entry.get("username"), entry.get("password"))
    return Credential(*login) if login is not None else None


def _login(username: object, secret: object) -> tuple[str, str] | None:
    """Both as texts, of which one may be empty or null; None where that is all, or one of them cannot be sent."""
    login = _text(username), _text(secret)
    return login if any(login) and login == (username or "", secret or "") else None


def _go_seconds(duration: object) -> float | None:
    """A Go duration in seconds; None for what is none."""
    if not isinstance(duration, str) or not _GO_DURATION.fullmatch(duration):
        return None
    seconds = sum(float(number) * _GO_UNITS[unit] for number, unit in _GO_PART.findall(duration))
    return seconds if math.isfinite(seconds) else None
