"""Reads the configuration file; reports all mistakes at once, each with its path in the file."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from proxy.settings.checks import cross_mistakes
from proxy.settings.environment import Mistake, overlay
from proxy.settings.models import CredentialSettings, ListenSettings, Settings


class ConfigurationError(Exception):
    """The file cannot be used. `mistakes` has one line each: `path: what is wrong`."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, and a key given twice is a mistake instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int) and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key if isinstance(key, str | int) else id(key_node))
        return super().construct_mapping(node, deep)


def load_settings(file: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in `file` with the environment on top. Raises ConfigurationError with every mistake."""
    document = _read(file)
    mistakes = list(overlay(document, environment, Settings.model_fields))
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        mistakes.extend(_model_mistakes(error, document))
    mistakes.extend(cross_mistakes(document))
    if mistakes or settings is None:
        raise ConfigurationError([f"{_path(location)}: {message}" for location, message in _once(mistakes)])
    return _resolved(settings, file.parent)


def _read(file: Path) -> dict[str, Any]:
    try:
        # A command reads it, or a thread when the file is read again: nothing else waits for it.
        document = yaml.load(file.read_bytes(), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigurationError([f"{file}: {error.strerror}"]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError([f"{file}: {' '.join(str(error).split())}"]) from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigurationError([f"{file}: the file is not a mapping of settings"])
    return document


def _model_mistakes(error: ValidationError, document: dict[str, Any]) -> Iterator[Mistake]:
    found = error.errors()
    for item in found:
        location = tuple(item["loc"])
        # A list whose only entry is bad counts as empty too; the entry's own mistake says it better.
        below = any(other["loc"][: len(location)] == item["loc"] and other is not item for other in found)
        if item["type"] != "too_short" or not below:
            named = location[-1:] if item["type"] == "missing" else ()
            message = _MESSAGES.get(item["type"], _message(item["msg"]))
            yield (*_in_document(location[: len(location) - len(named)], document), *named), message


def _in_document(location: tuple[str | int, ...], node: Any) -> Iterator[str | int]:
    """The parts of pydantic's `location` that somebody wrote: it names members of unions and validators as well."""
    for part in location:
        in_list = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if in_list or (isinstance(node, dict) and part in node):
            node = node[part]
            yield part


_MESSAGES = {"extra_forbidden": "there is no such setting", "missing": "this setting is required"}


def _message(text: str) -> str:
    return re.sub(r"^Value error, ", "", text)


def _once(mistakes: list[Mistake]) -> list[Mistake]:
    """Each place once: a union of types reports the same value for every member."""
    first: dict[str, Mistake] = {}
    for mistake in mistakes:
        first.setdefault(_path(mistake[0]), mistake)
    return list(first.values())


def _path(location: tuple[str | int, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = f'"{part}"' if "." in part else part
            path += f".{name}" if path else name
    return path


def _resolved(settings: Settings, folder: Path) -> Settings:
    """Relative paths start from the file's folder; the cache directory alone from the working directory."""
    upstreams = {}
    for name, upstream in settings.upstreams.items():
        credentials = _credentials_in(folder, upstream.credentials) if upstream.credentials is not None else None
        ca = folder / upstream.ca if upstream.ca is not None else None
        upstreams[name] = upstream.model_copy(update={"credentials": credentials, "ca": ca})
    token_file = settings.admin.token_file
    admin = settings.admin.model_copy(update={"token_file": folder / token_file if token_file else None})
    listen = tuple(_listener_in(folder, one) for one in settings.listen)
    secret = settings.shared.secret_file
    shared = settings.shared.model_copy(update={"secret_file": folder / secret if secret is not None else None})
    return settings.model_copy(update={"upstreams": upstreams, "admin": admin, "listen": listen, "shared": shared})


def _credentials_in(folder: Path, credentials: CredentialSettings) -> CredentialSettings:
    files = {name: getattr(credentials, name) for name in ("password_file", "docker_config")}
    paths: dict[str, Any] = {name: folder / file for name, file in files.items() if file is not None}
    plugin = credentials.plugin
    if plugin is not None and "/" in plugin.command:
        # One without a slash is looked for along PATH.
        paths["plugin"] = plugin.model_copy(update={"command": str(folder / plugin.command)})
    return credentials.model_copy(update=paths)


def _listener_in(folder: Path, listen: ListenSettings) -> ListenSettings:
    update: dict[str, Any] = {}
    if listen.tls is not None:
        files = {name: getattr(listen.tls, name) for name in ("certificate", "key", "client_ca")}
        paths = {name: folder / file for name, file in files.items() if file is not None}
        update["tls"] = listen.tls.model_copy(update=paths)
    if (found := listen.intercept) is not None:
        paths = {"ca_certificate": folder / found.ca_certificate, "ca_key": folder / found.ca_key}
        update["intercept"] = found.model_copy(update=paths)
    return listen.model_copy(update=update)
