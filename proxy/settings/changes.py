"""What of a changed configuration counts at once, and what only after a restart."""

from typing import Any

from proxy.settings.models import Settings

# What the start makes and everything else stands on: sockets, processes, the locked directory.
_MADE_AT_START = ("listen", "admin.address", "workers", "cache.directory", "shared")


def needs_restart(old: Settings, new: Settings) -> list[str]:
    """The settings that `new` changes and a running program cannot, one line each."""
    return [
        f"{path} was changed, which needs a restart"
        for path in _MADE_AT_START
        if _value(old, path) != _value(new, path)
    ]


def applicable(old: Settings, new: Settings) -> Settings:
    """`new`, but with what needs a restart as it is in `old`."""
    return new.model_copy(
        update={
            "listen": old.listen,
            "workers": old.workers,
            "shared": old.shared,
            "admin": new.admin.model_copy(update={"address": old.admin.address}),
            "cache": new.cache.model_copy(update={"directory": old.cache.directory}),
        }
    )


def _value(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value
