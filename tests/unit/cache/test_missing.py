"""404s that are remembered: for each principal, and by the time of whoever asks."""

import pytest

from proxy.cache.ask import Ask
from proxy.cache.missing import KnownMissing, Missing
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS, Principal
from proxy.policy.freshness import lifetimes_of
from proxy.settings import ManifestSettings
from tests.fakes.clock import ManualClock

REPOSITORY = Repository("reg.test", "a")


def ask(ttl: str = "10s", principal: Principal = ANONYMOUS) -> Ask:
    return Ask(REPOSITORY, principal, lifetimes_of(ManifestSettings.model_validate({"negative_ttl": ttl})))


def remembered(missing: Missing, one: Ask, reference: str = "v1", generation: bytes | None = None) -> float | None:
    """For how long it still counts."""
    try:
        missing.raise_if_known(one, reference, generation)
    except KnownMissing as error:
        return error.left
    return None


def test_each_has_its_own_time() -> None:
    """From when the upstream said so, however long the one who asked then remembers it."""
    clock = ManualClock()
    missing = Missing(clock)
    missing.remember(ask("0s"), "v1", None)
    clock.advance(4)
    assert [remembered(missing, ask(ttl)) for ttl in ("1h", "10s", "4s", "0s")] == [3596, 6, None, None]
    with pytest.raises(KnownMissing) as raised:
        missing.raise_if_known(ask(), "v1", None)
    assert raised.value.age == 4


def test_it_is_of_one_principal_reference_and_generation() -> None:
    """Others ask for themselves, and so does everybody after a push."""
    missing = Missing(ManualClock())
    missing.remember(ask(), "v1", b"1")
    assert remembered(missing, ask(), generation=b"1") == 10
    assert remembered(missing, ask(), generation=b"2") is None
    assert remembered(missing, ask(), "v2", b"1") is None
    assert remembered(missing, ask(principal=Principal("client", "me")), generation=b"1") is None


def test_it_is_forgotten_when_it_is_there() -> None:
    """One who found it, whatever its times, takes the 404 away from the others."""
    missing = Missing(ManualClock())
    missing.remember(ask("1h"), "v1", None)
    missing.forget(ask("1s"), "v1")
    assert remembered(missing, ask("1h")) is None


def test_a_clock_set_back() -> None:
    """How old it is nobody knows then."""
    clock = ManualClock()
    missing = Missing(clock)
    missing.remember(ask(), "v1", None)
    clock.advance(-1)
    assert remembered(missing, ask()) is None


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients choose what they ask for: there is an end to what is remembered."""
    monkeypatch.setattr("proxy.cache.missing._MOST", 3)
    missing = Missing(ManualClock())
    for reference in ("a", "b", "a", "c", "d"):
        missing.remember(ask(), reference, None)
    assert [remembered(missing, ask(), reference) is not None for reference in "abcd"] == [True, False, True, True]
