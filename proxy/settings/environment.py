"""Environment variables over the file: `PULLTHROUGH_CACHE__MAX_SIZE=10GiB` is `cache: {max_size: 10GiB}`.

Lists and mappings are read as YAML, like the file; anything else is text, so that an address or a folder needs no
quotes inside the shell's. The variables are laid over the document before anything is checked, so that the checks see
what would run. Variables of that prefix whose first part is no setting are ignored on purpose: Kubernetes injects
`PULLTHROUGH_PORT` and the like where a Service is named pullthrough.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

PREFIX = "PULLTHROUGH_"

_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_WHOLE = re.compile(r"[0-9]{1,18}")

Mistake = tuple[tuple[str | int, ...], str]


def overlay(document: dict[str, Any], environment: Mapping[str, str], settings: Collection[str]) -> Iterator[Mistake]:
    """Lay the variables for `settings` over `document`; gives the mistakes in them."""
    for name in sorted(environment):
        path = tuple(name[len(PREFIX) :].lower().split("__"))
        if not name.upper().startswith(PREFIX) or path[0] not in settings:
            continue
        try:
            _put(document, path, _value(environment[name]))
        except (yaml.YAMLError, ValueError, RecursionError):
            yield path, f"the environment variable {name} cannot be read"


def _value(text: str) -> Any:
    """A list or a mapping where `text` is one; whole numbers, true, false and null; any other text is text."""
    stripped = text.strip()
    if stripped.startswith("{") or (stripped.startswith("[") and stripped.endswith("]")):
        return yaml.safe_load(stripped)
    return _WORDS.get(stripped.lower(), int(stripped) if _WHOLE.fullmatch(stripped) else text)


def _put(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        below = document.get(part)
        # A copy: the file may have said one mapping in two places.
        document[part] = dict(below) if isinstance(below, dict) else {}
        document = document[part]
    document[path[-1]] = value
