"""Circuits: who may ask while they stand, and what other processes hear of them."""

import pytest

from proxy.cache.circuits import Circuits
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS
from proxy.policy.backoff import Circuit, Scope, Subject
from proxy.upstream.errors import LeftAlone, UpstreamFailure, UpstreamInvalid
from tests.fakes.clock import ManualClock

DOWN = UpstreamFailure("connect", "down")
BROKEN = UpstreamFailure("5xx", "broken")


def subject(reference: str = "v1", repository: str = "team/app") -> Subject:
    return Subject(Repository("reg.test", repository), ANONYMOUS, "manifest", reference)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def circuits(clock: ManualClock) -> Circuits:
    """Without jitter: steps of 1, 2, 4, … seconds."""
    return Circuits(clock, lambda: 0.5)


def is_left_alone(circuits: Circuits, one: Subject, again: bool = False) -> bool:
    try:
        circuits.raise_if_hopeless(one, again)
    except LeftAlone:
        return True
    return False


def test_one_may_ask_when_it_is_due(circuits: Circuits, clock: ManualClock) -> None:
    """Nobody while it is open; then one, whatever it asks for; the others when that one has ended without a word."""
    circuits.failed(subject(), DOWN)
    assert not circuits.may_ask(subject())
    assert is_left_alone(circuits, subject("v2"))
    clock.advance(1)
    assert circuits.may_ask(subject())
    assert not is_left_alone(circuits, subject("v2"))
    ended = circuits.asking(subject())
    assert not circuits.may_ask(subject("v2", "team/other"))
    assert is_left_alone(circuits, subject("v2"))
    ended()
    assert circuits.may_ask(subject("v2"))


def test_it_stands_until_the_one_who_asked_has_ended(circuits: Circuits, clock: ManualClock) -> None:
    """However long that takes; its failure begins the next step, its success ends the circuit."""
    circuits.failed(subject(), BROKEN)
    clock.advance(1)
    ended = circuits.asking(subject("v2"))
    clock.advance(24)
    circuits.failed(subject("v2"), BROKEN)
    ended()
    failing = circuits.failing(subject("v3"))
    assert failing is not None
    assert (failing.failures, failing.step) == (2, 2.0)
    clock.advance(2)
    ended = circuits.asking(subject("v2"))
    circuits.succeeded(subject("v2"))
    ended()
    assert circuits.failing(subject("v3")) is None


def test_an_attempt_without_end_holds_nobody_up(circuits: Circuits, clock: ManualClock) -> None:
    """A body may trickle for hours; after some time it says nothing of the upstream."""
    circuits.failed(subject(), DOWN)
    clock.advance(1)
    circuits.asking(subject())
    clock.advance(49)
    assert circuits.failing(subject("v2")) is None
    assert circuits.may_ask(subject("v2"))


def test_an_attempt_from_before_is_no_probe(circuits: Circuits, clock: ManualClock) -> None:
    """It keeps the circuit standing, but may be as lost as what opened it: another one may ask besides."""
    circuits.asking(subject())
    clock.advance(3)
    circuits.failed(subject(), BROKEN)
    clock.advance(5)
    assert circuits.failing(subject("v2")) is not None
    assert circuits.may_ask(subject("v2"))


def test_a_5xx_stops_what_met_it_and_nothing_else(circuits: Circuits, clock: ManualClock) -> None:
    """Another reference of the repository is still asked for; the very same one is not, where it is asked for again."""
    circuits.failed(subject(), BROKEN)
    assert not is_left_alone(circuits, subject())
    assert is_left_alone(circuits, subject(), again=True)
    assert not is_left_alone(circuits, subject("v2"), again=True)
    clock.advance(1)
    assert not is_left_alone(circuits, subject(), again=True)


def test_what_opens_and_what_is_answered_is_told(circuits: Circuits, clock: ManualClock) -> None:
    """Each scope with its circuit, once a step; None when it was answered; nothing when there was nothing."""
    told: list[tuple[Scope, Circuit | None]] = []
    circuits.on_change = lambda scope, circuit, _at: told.append((scope, circuit))
    circuits.succeeded(subject())
    assert told == []
    circuits.failed(subject(), BROKEN)
    circuits.failed(subject(), BROKEN)
    scopes = [subject().scope_of("5xx", False, False), subject().own_scope()]
    assert told == [(scope, Circuit(1, clock.now, 1.0, "5xx")) for scope in scopes]
    told.clear()
    circuits.succeeded(subject())
    assert told == [(scope, None) for scope in scopes]
    circuits.failed(subject(), UpstreamInvalid("odd"))
    assert told[-2][0] == ("reference", "reg.test", "team/app", "v1")


def test_what_others_tell_counts_and_is_not_told_on(circuits: Circuits, clock: ManualClock) -> None:
    """Two processes that hear each other act as one."""
    other, told = Circuits(clock, lambda: 0.5), []
    circuits.on_change = other.heard
    other.on_change = lambda scope, circuit, _at: told.append((scope, circuit))
    circuits.failed(subject(), DOWN)
    assert is_left_alone(other, subject("v2", "team/other"))
    assert told == []
    clock.advance(1)
    circuits.failed(subject(), DOWN)
    failing = other.failing(subject())
    assert failing is not None
    assert (failing.failures, failing.until) == (2, clock.now + 2)
    circuits.succeeded(subject())
    assert other.failing(subject()) is None
    assert told == []


def test_an_older_word_of_others_shortens_nothing(circuits: Circuits, clock: ManualClock) -> None:
    """News may come late: the circuit that stands longer counts."""
    circuits.failed(subject(), UpstreamFailure("429", "slowly", retry_after=60))
    scope = subject().scope_of("429", False, False)
    circuits.heard(scope, Circuit(1, clock.now, 1.0, "429"), clock.now)
    failing = circuits.failing(subject())
    assert failing is not None
    assert failing.until == clock.now + 60
    circuits.heard(scope, Circuit(2, clock.now, 120.0, "429"), clock.now)
    later = circuits.failing(subject())
    assert later is not None
    assert later.until == clock.now + 120


def test_who_waited_for_another_process_hears_what_that_met(circuits: Circuits, clock: ManualClock) -> None:
    """What has just failed there is not asked for again here; another reference's 5xx is no reason."""
    circuits.heard(subject().own_scope(), Circuit(1, clock.now, 1.0, "5xx"), clock.now)
    with pytest.raises(LeftAlone):
        circuits.raise_if_open(subject())
    circuits.raise_if_open(subject("v2"))
    circuits.heard(("upstream", "reg.test"), Circuit(1, clock.now, 1.0, "connect"), clock.now)
    with pytest.raises(LeftAlone):
        circuits.raise_if_open(subject("v2"))
    clock.advance(1)
    circuits.raise_if_open(subject("v2"))


def test_who_waited_with_a_probe_hears_how_the_other_one_ended(circuits: Circuits, clock: ManualClock) -> None:
    """A probe speaks for all that it is the probe of: where that has just failed elsewhere nothing is asked."""
    circuits.failed(subject("v1"), BROKEN)
    clock.advance(1)
    probed = circuits.probed(subject("v2"), usable=True, proved=True)
    circuits.raise_if_open(subject("v2"), probed)
    circuits.heard(probed[0], Circuit(2, clock.now, 2.0, "5xx"), clock.now)
    circuits.raise_if_open(subject("v2"))
    with pytest.raises(LeftAlone):
        circuits.raise_if_open(subject("v2"), probed)


def test_what_an_attempt_is_the_probe_of(circuits: Circuits) -> None:
    """Of every circuit that it is in; where nothing is to fall back on, of those that would hold it back: another
    reference's 5xx does not. Where a right is the question, of those that speak of rights."""
    one, two = subject(), subject("v2")
    assert circuits.probed(one, usable=True, proved=True) == ()
    circuits.failed(one, BROKEN)
    repository = one.scope_of("5xx", False, False)
    assert circuits.probed(one, usable=True, proved=True) == (repository, one.own_scope())
    assert circuits.probed(two, usable=True, proved=True) == (repository,)
    assert circuits.probed(two, usable=True, proved=False) == ()
    assert circuits.probed(one, usable=False, proved=True) == (one.own_scope(),)
    assert circuits.probed(two, usable=False, proved=True) == ()
    circuits.failed(two, DOWN)
    assert circuits.probed(two, usable=False, proved=False) == (two.scope_of("connect", False, False),)


def test_it_stands_while_another_process_may_probe(circuits: Circuits, clock: ManualClock) -> None:
    """Of a probe over there, however long it takes, nothing is known here; nor is it waited for for ever."""
    scope = subject().scope_of("5xx", False, False)
    circuits.heard(scope, Circuit(3, clock.now, 4.0, "5xx"), clock.now)
    clock.advance(4 + 24)
    failing = circuits.failing(subject())
    assert failing is not None
    assert circuits.may_ask(subject())
    circuits.failed(subject(), BROKEN)
    again = circuits.failing(subject())
    assert again is not None
    assert again.failures == 4
    circuits.heard(scope, Circuit(4, clock.now, 8.0, "5xx"), clock.now)
    clock.advance(8 + 48)
    assert circuits.failing(subject()) is None


def test_another_upstream_begins_anew(circuits: Circuits, clock: ManualClock) -> None:
    """Neither circuits nor who asks say anything of the one that replaced it."""
    circuits.failed(subject(), DOWN)
    clock.advance(1)
    circuits.asking(subject())
    circuits.forget({"reg.test"})
    assert circuits.living() == []
    circuits.failed(subject(), DOWN)
    clock.advance(1)
    assert circuits.may_ask(subject())


def test_a_longer_retry_after_is_obeyed_whenever_it_comes(circuits: Circuits, clock: ManualClock) -> None:
    """Of several that were under way each may be told another time; what is shorter changes nothing."""
    circuits.failed(subject(), UpstreamFailure("429", "slowly"))
    circuits.failed(subject("v2"), UpstreamFailure("429", "slowly", retry_after=60))
    circuits.failed(subject("v3"), UpstreamFailure("429", "slowly", retry_after=5))
    failing = circuits.failing(subject("v4"))
    assert failing is not None
    assert (failing.failures, failing.until) == (1, clock.now + 60)


def test_who_was_answered_before_ends_nothing_that_opened_since(circuits: Circuits, clock: ManualClock) -> None:
    """News cross on their way: an end that was told before another process met the failure is not this one's."""
    other, told = Circuits(clock, lambda: 0.5), []
    circuits.on_change = lambda *news: told.append(news)
    circuits.failed(subject(), DOWN)
    circuits.succeeded(subject())
    clock.advance(0.01)
    other.failed(subject(), DOWN)
    for news in told:
        other.heard(*news)
    assert other.failing(subject()) is not None
