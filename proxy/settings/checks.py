"""Mistakes that stand between keys, not in one of them.

They are looked for in the raw document, not in the models: a document with one bad value has no model yet, and all
mistakes are to be reported at once. So everything here tolerates values of any type.
"""

from collections.abc import Iterator
from typing import Any

from proxy.settings.environment import Mistake
from proxy.settings.units import parse_address, parse_percent


def cross_mistakes(document: dict[str, Any]) -> Iterator[Mistake]:
    """Every mistake between keys: its path in the document and what is wrong."""
    upstreams = _mapping(document.get("upstreams"))
    yield from _names_twice(upstreams)
    yield from _defaults(upstreams)
    yield from _clusters(document.get("clusters"), upstreams)
    yield from _listeners(document)
    yield from _shares(upstreams, document.get("clusters"))
    yield from _shared(document)


def _mapping(value: object) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict):
        return {}
    return {str(key): entry for key, entry in value.items() if isinstance(entry, dict)}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _names_twice(upstreams: dict[str, dict[str, Any]]) -> Iterator[Mistake]:
    owner: dict[str, str] = {}
    for name in upstreams:
        if (first := owner.setdefault(name.lower(), name)) != name:
            yield ("upstreams", name), f"{first} is the same registry: names do not tell case apart"
    for name, upstream in upstreams.items():
        for position, alias in enumerate(_list(upstream.get("aliases"))):
            first = owner.setdefault(str(alias).lower(), name)
            if first != name or str(alias).lower() == name.lower():
                yield ("upstreams", name, "aliases", position), f"{alias} already names {first}"


def _defaults(upstreams: dict[str, dict[str, Any]]) -> Iterator[Mistake]:
    defaults = [name for name, upstream in upstreams.items() if _is_true(upstream.get("default"))]
    for name in defaults[1:]:
        yield ("upstreams", name, "default"), f"there is a default already: {defaults[0]}"


def _is_true(value: object) -> bool:
    """What the models take for true."""
    return value == 1 or str(value).lower() in {"true", "yes", "on", "1", "t", "y"}


def _clusters(clusters: object, upstreams: dict[str, dict[str, Any]]) -> Iterator[Mistake]:
    known = {name.lower() for name in upstreams}
    names: set[str] = set()
    open_to_all: str | None = None
    for position, cluster in enumerate(_list(clusters)):
        if not isinstance(cluster, dict):
            continue
        name = str(cluster.get("name"))
        if name in names:
            yield ("clusters", position, "name"), f"there is a cluster {name} already"
        names.add(name)
        if open_to_all is not None:
            yield (
                ("clusters", position),
                f"never reached: cluster {open_to_all} before it has no match and fits everybody",
            )
        elif cluster.get("match") is None:
            open_to_all = name
        for place, upstream in enumerate(_list(cluster.get("upstreams"))):
            if str(upstream).lower() not in known:
                yield ("clusters", position, "upstreams", place), f"{upstream} is not one of the upstreams"


def _listeners(document: dict[str, Any]) -> Iterator[Mistake]:
    listed = _list(document.get("listen")) or [{"address": "0.0.0.0:5000"}]
    addresses = [_address(entry.get("address")) for entry in listed if isinstance(entry, dict)]
    for position, address in enumerate(addresses):
        if address in addresses[:position]:
            yield ("listen", position, "address"), f"{address} is listened on already"
    admin = document.get("admin")
    if _address(admin.get("address", "127.0.0.1:5001") if isinstance(admin, dict) else "127.0.0.1:5001") in addresses:
        yield ("admin", "address"), "the admin listener needs an address of its own"
    for position, cluster in enumerate(_list(document.get("clusters"))):
        match = cluster.get("match") if isinstance(cluster, dict) else None
        for place, listener in enumerate(_list(match.get("listeners")) if isinstance(match, dict) else []):
            if _address(listener) not in addresses:
                yield ("clusters", position, "match", "listeners", place), f"nothing listens on {listener}"
    yield from _certificates(listed, document.get("clusters"))


def _certificates(listed: list[Any], clusters: object) -> Iterator[Mistake]:
    """A cluster that goes by certificates has to have a listener that asks for them."""
    asking = {_address(entry.get("address")) for entry in listed if isinstance(entry, dict) and _asks(entry.get("tls"))}
    for position, cluster in enumerate(_list(clusters)):
        match = cluster.get("match") if isinstance(cluster, dict) else None
        if isinstance(match, dict) and match.get("certificates"):
            own = {_address(listener) for listener in _list(match.get("listeners"))}
            if not (asking & own if own else asking):
                yield (
                    ("clusters", position, "match", "certificates"),
                    "no listener of this cluster asks for certificates: give one a tls.client_ca",
                )


def _shared(document: dict[str, Any]) -> Iterator[Mistake]:
    """What replicas share: an address of its own for them, and something to redirect to where that is wished."""
    shared = document.get("shared")
    shared = shared if isinstance(shared, dict) else {}
    if shared.get("metadata") is not None:
        listed = _list(document.get("listen")) or [{"address": "0.0.0.0:5000"}]
        admin = document.get("admin")
        taken = [_address(entry.get("address")) for entry in listed if isinstance(entry, dict)]
        taken.append(_address(admin.get("address", "127.0.0.1:5001") if isinstance(admin, dict) else "127.0.0.1:5001"))
        if _address(shared.get("listen", "0.0.0.0:5002")) in taken:
            yield ("shared", "listen"), "replicas need a listener of their own"
    for position, cluster in enumerate(_list(document.get("clusters"))):
        if isinstance(cluster, dict) and _is_true(cluster.get("blob_redirect")) and shared.get("blobs") is None:
            yield ("clusters", position, "blob_redirect"), "there is nothing to redirect to: give shared.blobs"


def _asks(tls: object) -> bool:
    return isinstance(tls, dict) and tls.get("client_ca") is not None


def _shares(upstreams: dict[str, dict[str, Any]], clusters: object) -> Iterator[Mistake]:
    """What is guaranteed has to be there: of registries among themselves, and of clusters among themselves."""
    listed = [(("clusters", place), entry) for place, entry in enumerate(_list(clusters)) if isinstance(entry, dict)]
    named = [(("upstreams", name), entry) for name, entry in upstreams.items()]
    for kind, owners in (("registries", named), ("clusters", listed)):
        total = 0.0
        for path, entry in owners:
            total += _share(entry.get("cache_share"))
            # Thirds and the like are written with as many digits as anybody cares for.
            if total > 1 + 1e-9:
                yield (*path, "cache_share"), f"the shares of all {kind} are more than 100%"
                break


def _share(value: object) -> float:
    """A share; one that is none is reported by the models."""
    try:
        return parse_percent(value)
    except ValueError:
        return 0.0


def _address(value: object) -> str:
    """An address in one spelling; what is none stays what it is, the models report it."""
    try:
        return str(parse_address(value))
    except ValueError:
        return str(value)
