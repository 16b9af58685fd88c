"""What operators rely on is written down: every setting, every metric, every command."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from proxy.cli import main
from proxy.settings import Settings
from proxy.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SHIPPED = ROOT / "config" / "proxy.yaml"


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside of an annotation, however wrapped."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def keys_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every setting as the path of its keys; what stands between (a registry's name, a list's index) is left out."""
    for name, field in model.model_fields.items():
        yield (*path, name)
        for inner in models_in(field.annotation):
            yield from keys_of(inner, (*path, name))


# Overrides repeat the keys of `manifests`, which are documented there.
KEYS = sorted({path for path in keys_of(Settings) if not (len(path) > 2 and path[1] == "manifests")})


def test_there_are_settings() -> None:
    """The walk through the models finds them, nested ones included."""
    assert ("manifests", "tag_ttl") in KEYS
    assert ("manifests", "tag_rules", "ttl") in KEYS
    assert ("clusters", "match", "networks") in KEYS
    assert ("upstreams", "credentials", "password_file") in KEYS
    assert len(KEYS) > 50


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_every_setting_stands_in_the_shipped_file(path: tuple[str, ...]) -> None:
    """In its section, as a key or in a comment that shows it, with a word of why on the line or above it."""
    text = SHIPPED.read_text()
    sections = re.split(r"^(?=[a-z_]+:)", text, flags=re.MULTILINE)
    (section,) = (part for part in sections if part.startswith(f"{path[0]}:"))
    assert re.search(rf"(^|[\s{{#-]){path[-1]}:", section), f"{path[-1]} is not in the section {path[0]}"


def test_the_shipped_file_has_no_key_that_is_no_setting() -> None:
    """What is commented out becomes a setting when somebody takes the sign away, so it must be one."""
    known = {name for path in KEYS for name in path}
    shown = set(re.findall(r"^\s*#? {0,8}([a-z_]+):(?: |$)", SHIPPED.read_text(), flags=re.MULTILINE))
    assert shown <= known
    assert set(yaml.safe_load(SHIPPED.read_text())) <= set(Settings.model_fields)


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_every_setting_stands_in_the_readme(path: tuple[str, ...]) -> None:
    """By its name in backticks, alone or with its path: `tag_ttl` or `manifests.tag_ttl`."""
    quoted = re.findall(r"`([^`\n]+)`", README.read_text())
    words = {word for text in quoted for word in re.findall(r"[a-z_]+", text)}
    assert path[-1] in words


def metric_names() -> list[str]:
    metrics = Metrics()
    names = set()
    for family in metrics.registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        names.add(family.name.removeprefix("pullthrough_") + suffix)
    return sorted(names)


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_stands_in_the_readme(name: str) -> None:
    """With or without the prefix `pullthrough_`."""
    assert re.search(rf"\b(pullthrough_)?{name}\b", README.read_text())


@pytest.mark.parametrize("name", sorted(name for name, command in main.commands.items() if not command.hidden))
def test_every_command_stands_in_the_readme(name: str) -> None:
    """As it is typed."""
    assert f"pullthrough {name}" in README.read_text()
