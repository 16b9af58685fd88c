"""What is left of every limit: whose it is, what of it is under way, what others hear of it."""

import logging

import pytest

from proxy.policy.access import ANONYMOUS, Principal, client_principal, own_principal, public_principal
from proxy.policy.budget import Budget, BudgetKey, limit_of
from proxy.telemetry.events import Event, RateLimitSeen
from proxy.upstream import budgets as module
from proxy.upstream.budgets import Budgets
from tests.fakes.clock import ManualClock

HUB = "docker.io"
OWN = own_principal(b"key", HUB, "robot")
PUBLIC = public_principal(OWN)
ALICE = client_principal(b"key", HUB, "Bearer alice", takes_basic=False)


def left(remaining: int, limit: int = 100) -> dict[str, str]:
    """Headers as Docker Hub sends them."""
    return {"ratelimit-remaining": f"{remaining};w=21600", "ratelimit-limit": f"{limit};w=21600"}


class Watched:
    """Budgets with a reserve of a tenth, and what they told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.events: list[Event] = []
        self.told: list[tuple[BudgetKey, Budget]] = []
        self.budgets = Budgets(
            self.clock, self.events.append, {HUB: 0.1}, lambda key, budget: self.told.append((key, budget))
        )

    def remaining(self) -> object:
        described = self.budgets.describe(HUB)
        return described["remaining"] if described is not None else None


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_what_is_described(watched: Watched) -> None:
    """For the admin API; nothing before it was announced, and nothing after its window."""
    assert watched.budgets.describe(HUB) is None
    watched.budgets.read(HUB, ANONYMOUS, left(76))
    assert watched.budgets.describe(HUB) == {
        "remaining": 76, "limit": 100, "window": 21600.0, "seen": "2027-01-15T08:00:00Z", "reserve": 10,
    }  # fmt: skip
    assert watched.events == [RateLimitSeen(HUB, 76, 100)]
    assert watched.budgets.describe("ghcr.io") is None
    watched.clock.advance(21600)
    assert watched.budgets.describe(HUB) is None


def test_answers_without_headers_change_nothing(watched: Watched) -> None:
    """They are of images that are not limited."""
    watched.budgets.read(HUB, ANONYMOUS, left(5))
    watched.budgets.read(HUB, ANONYMOUS, {})
    watched.budgets.read(HUB, ANONYMOUS, {"ratelimit-remaining": "many"})
    assert watched.remaining() == 5
    assert not watched.budgets.allows(HUB, ANONYMOUS, "cached")


def test_a_clients_limit_is_its_own(watched: Watched) -> None:
    """It is neither shown as the proxy's nor held against it, nor the proxy's against the client."""
    watched.budgets.read(HUB, ANONYMOUS, left(76))
    watched.budgets.read(HUB, ALICE, left(0))
    assert watched.remaining() == 76
    assert watched.events == [RateLimitSeen(HUB, 76, 100)]
    assert watched.budgets.allows(HUB, ANONYMOUS, "cached")
    assert not watched.budgets.allows(HUB, ALICE, "cached")
    watched.budgets.read(HUB, ANONYMOUS, left(0))
    watched.budgets.read(HUB, ALICE, left(90))
    assert watched.budgets.allows(HUB, ALICE, "cached")
    assert watched.remaining() == 0


def test_the_credentials_limit_is_shown_before_nobodys(watched: Watched) -> None:
    """Whichever was heard last; nobody's when nothing is known of the credential's any more."""
    watched.budgets.read(HUB, OWN, left(190, 200))
    watched.clock.advance(10)
    watched.budgets.read(HUB, ANONYMOUS, left(7))
    assert watched.remaining() == 190
    assert watched.events == [RateLimitSeen(HUB, 190, 200)]
    watched.clock.advance(21595)
    assert watched.remaining() == 7


def test_pulls_with_a_lent_credential_are_judged_by_its_limit(watched: Watched) -> None:
    """What HEADs as nobody say is nobody's, and not shown as what is left."""
    watched.budgets.read(HUB, PUBLIC, left(0))
    assert watched.events == []
    assert watched.budgets.allows(HUB, PUBLIC, "cached")
    assert not watched.budgets.allows(HUB, ANONYMOUS, "cached")
    watched.budgets.read(HUB, OWN, left(10))
    assert not watched.budgets.allows(HUB, PUBLIC, "cached")


def test_pulls_under_way_count(watched: Watched) -> None:
    """Of many at once no more begin than are left above the reserve; one that ended unannounced cost nothing."""
    watched.budgets.read(HUB, ANONYMOUS, left(12))
    pull = watched.budgets.pull
    with pull(HUB, ANONYMOUS, "cached") as one, pull(HUB, ANONYMOUS, "cached") as two:
        with pull(HUB, ANONYMOUS, "cached") as three, pull(HUB, ANONYMOUS, "background") as four:
            assert [found is not None for found in (one, two, three, four)] == [True, True, False, False]
        with pull(HUB, ANONYMOUS, "uncached") as always:
            assert always is not None
        watched.budgets.read(HUB, ANONYMOUS, left(11))
    assert watched.budgets.allows(HUB, ANONYMOUS, "cached")
    with pytest.raises(ValueError, match="broken"), pull(HUB, ANONYMOUS, "cached"):
        raise ValueError("broken")
    assert watched.budgets.allows(HUB, ANONYMOUS, "cached")


def test_a_pull_whose_answer_has_come_counts_no_longer(watched: Watched) -> None:
    """The answer's head has counted it: while its body comes it would be counted twice."""
    watched.budgets.read(HUB, ANONYMOUS, left(12))
    with watched.budgets.pull(HUB, ANONYMOUS, "cached") as answered:
        watched.budgets.read(HUB, ANONYMOUS, left(11))
        assert not watched.budgets.allows(HUB, ANONYMOUS, "cached")
        assert answered is not None
        answered()
        assert watched.budgets.allows(HUB, ANONYMOUS, "cached")
        answered()
    assert watched.budgets.allows(HUB, ANONYMOUS, "cached")


def test_others_hear_what_changed(watched: Watched) -> None:
    """Once for the same news, and again now and then so that it does not run out for them."""
    for _ in range(3):
        watched.budgets.read(HUB, ANONYMOUS, left(50))
        watched.clock.advance(1)
    assert [(key, budget.remaining) for key, budget in watched.told] == [(limit_of(HUB, ANONYMOUS), 50)]
    watched.budgets.read(HUB, ANONYMOUS, left(49))
    watched.clock.advance(60)
    watched.budgets.read(HUB, ANONYMOUS, left(49))
    assert [budget.remaining for _, budget in watched.told] == [50, 49, 49]


def test_what_others_heard_counts_and_is_not_told_on(watched: Watched) -> None:
    """Unless something newer is known here."""
    other = Watched()
    other.budgets.read(HUB, ANONYMOUS, left(3))
    watched.budgets.heard(*other.told[0])
    assert watched.remaining() == 3
    assert not watched.budgets.allows(HUB, ANONYMOUS, "cached")
    watched.clock.advance(1)
    watched.budgets.read(HUB, ANONYMOUS, left(80))
    watched.budgets.heard(*other.told[0])
    assert watched.remaining() == 80
    assert [budget.remaining for _, budget in watched.told] == [80]


def test_a_clock_that_was_set_back_does_not_keep_news_out(watched: Watched) -> None:
    """What was seen in the future says nothing, so whatever is heard is newer."""
    watched.budgets.read(HUB, ANONYMOUS, left(0))
    watched.clock.advance(-1000)
    assert watched.budgets.allows(HUB, ANONYMOUS, "cached")
    watched.budgets.heard(limit_of(HUB, ANONYMOUS), Budget(60, 100, 21600.0, watched.clock()))
    assert watched.remaining() == 60


def test_another_upstream_has_another_limit(watched: Watched) -> None:
    """After a reload; the other registries' stay."""
    for registry in (HUB, "ghcr.io"):
        watched.budgets.read(registry, ANONYMOUS, left(0))
    watched.budgets.forget({HUB})
    assert watched.budgets.allows(HUB, ANONYMOUS, "cached")
    assert not watched.budgets.allows("ghcr.io", ANONYMOUS, "cached")
    watched.budgets.read(HUB, ANONYMOUS, left(0))
    assert len(watched.told) == 3


def test_clients_tokens_do_not_pile_up(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy's own limits stay, however many clients come with tokens of their own."""
    monkeypatch.setattr(module, "_MOST_BUDGETS", 10)
    watched.budgets.read(HUB, ANONYMOUS, left(0))
    watched.budgets.read(HUB, OWN, left(0))
    for number in range(100):
        watched.clock.advance(1)
        token: Principal = client_principal(b"key", HUB, f"Bearer {number}", takes_basic=False)
        watched.budgets.read(HUB, token, left(5))
    assert len(watched.budgets._budgets) <= 10
    assert watched.budgets._told.keys() <= watched.budgets._budgets.keys()
    assert not watched.budgets.allows(HUB, ANONYMOUS, "cached")
    assert not watched.budgets.allows(HUB, OWN, "cached")
    assert not watched.budgets.allows(HUB, token, "cached")


def test_operators_are_told_once_that_the_reserve_is_reached(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """By whom the registry counts; not for clients' own limits, and again after there was room."""
    for remaining in (11, 10, 9, 50, 8):
        watched.budgets.read(HUB, ANONYMOUS, left(remaining) | {"docker-ratelimit-source": "192.0.2.1"})
    watched.budgets.read(HUB, ALICE, left(0))
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == [
        f"docker.io: {count} pulls are left of 100 (192.0.2.1): they are kept for images that are not cached"
        for count in (10, 8)
    ]
