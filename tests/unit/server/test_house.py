"""Whose rights a request has."""

from types import SimpleNamespace
from typing import Any, cast

from proxy.server.house import House
from proxy.settings import ClusterSettings

OPEN, OWN = ClusterSettings(name="open"), ClusterSettings(name="own", credentials=True)
PUBLIC = ClusterSettings(name="public", credentials="public")


def house(key: bytes = b"k" * 32, identity: str = "me") -> House:
    """A house with one registry whose upstream has a credential, and one without."""
    upstreams: Any = {
        "a.test": SimpleNamespace(credential=SimpleNamespace(identity=identity)),
        "b.test": SimpleNamespace(credential=None),
    }
    nothing = cast(Any, None)
    return House(nothing, nothing, {}, upstreams, nothing, nothing, nothing, nothing, nothing, key, nothing)


def test_the_three_kinds_of_principals() -> None:
    """The client's own, the proxy's own where the cluster may use it and there is one, else anonymous."""
    assert house().principal(OWN, "a.test", "Bearer x", False).kind == "client"
    assert house().principal(OWN, "a.test", "", False).kind == "own"
    assert house().principal(OWN, "a.test", "Basic Og==", False).kind == "own"
    assert house().principal(OWN, "b.test", "", False).kind == "anonymous"
    assert house().principal(OPEN, "a.test", "", False).kind == "anonymous"


def test_the_proxys_credential_for_its_rate_limit_only() -> None:
    """Nobody, who pulls as the proxy; a client's own rights stay its own, and without a credential there is nothing."""
    own = house().principal(OWN, "a.test", "", False)
    public = house().principal(PUBLIC, "a.test", "", False)
    assert (public, public.pulls_as) == (house().principal(OPEN, "a.test", "", False), own)
    client = house().principal(PUBLIC, "a.test", "Bearer x", False)
    assert (client.kind, client.pulls_as) == ("client", None)
    assert house().principal(PUBLIC, "b.test", "", False).pulls_as is None


def test_keys_tell_principals_apart_and_hold_no_secret() -> None:
    """By header, registry and the cache's own key; the same one every time."""
    keys = {
        house().principal(OPEN, "a.test", "Bearer x", False).key,
        house().principal(OPEN, "a.test", "Bearer y", False).key,
        house().principal(OPEN, "b.test", "Bearer x", False).key,
        house(key=b"o" * 32).principal(OPEN, "a.test", "Bearer x", False).key,
        house().principal(OWN, "a.test", "", False).key,
        house(identity="other").principal(OWN, "a.test", "", False).key,
        house().principal(OPEN, "a.test", "", False).key,
    }
    assert len(keys) == 7
    assert house().principal(OPEN, "a.test", "Bearer x", False).key in keys
    assert not any("Bearer" in key for key in keys)


def test_a_header_with_bytes_that_are_no_text_has_a_principal_too() -> None:
    """aiohttp hands bytes that are not UTF-8 on as lone surrogates."""
    assert house().principal(OPEN, "a.test", "Bearer \udcff", False).kind == "client"
