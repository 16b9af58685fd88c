"""Which blobs go so that another fits."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.storage.eviction import ANY, Blobs, Candidate, Policy, Room
from proxy.storage.eviction import choose_victims as choose_among

BLOBS = [Digest.of(bytes([number])) for number in range(10)]
PLENTY = 1 << 40


def choose_victims(
    oldest_first: list[Candidate], need: int, room: Room, policy: Policy = ANY
) -> list[tuple[Digest, str]] | None:
    """Out of one list, by digest."""
    victims = choose_among(Blobs.of(oldest_first), need, room, policy)
    return None if victims is None else [(victim.digest, reason) for victim, reason in victims]


def candidates(*sizes: int, in_use: tuple[int, ...] = ()) -> list[Candidate]:
    return [Candidate(BLOBS[n], size, n in in_use) for n, size in enumerate(sizes)]


def test_nothing_goes_where_there_is_room() -> None:
    """Up to the last byte."""
    assert choose_victims(candidates(5), 5, Room(10, 5, 0, PLENTY)) == []


def test_the_oldest_go_first_and_no_more_than_needed() -> None:
    """Least recently used first."""
    assert choose_victims(candidates(4, 4, 2), 4, Room(10, 10, 0, PLENTY)) == [(BLOBS[0], "size")]
    assert choose_victims(candidates(4, 4, 2), 5, Room(10, 10, 0, PLENTY)) == [(BLOBS[0], "size"), (BLOBS[1], "size")]


def test_one_that_is_read_is_passed_over() -> None:
    """However old it is."""
    assert choose_victims(candidates(4, 4, 2, in_use=(0,)), 4, Room(10, 10, 0, PLENTY)) == [(BLOBS[1], "size")]
    assert choose_victims(candidates(10, in_use=(0,)), 1, Room(10, 10, 0, PLENTY)) is None


def test_what_can_never_fit_evicts_nothing() -> None:
    """A blob larger than the cache must not empty it first."""
    assert choose_victims(candidates(5, 5), 11, Room(10, 10, 0, PLENTY)) is None


def test_min_free_is_kept_whatever_max_size_says() -> None:
    """And its victims say so."""
    assert choose_victims(candidates(5, 5), 3, Room(PLENTY, 10, 100, 100)) == [(BLOBS[0], "free")]
    assert choose_victims(candidates(5, 5), 3, Room(PLENTY, 10, 100, 50)) is None


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=8),
    st.integers(0, 60), st.integers(0, 100), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50),
)  # fmt: skip
def test_a_choice_is_enough_least_and_honest(
    blobs: list[tuple[int, bool]], need: int, max_size: int, reserved: int, min_free: int, free: int
) -> None:
    """What is chosen makes the room, without its last one it would not, and nobody who reads is hurt."""
    oldest = [Candidate(BLOBS[n], size, in_use) for n, (size, in_use) in enumerate(blobs)]
    room = Room(max_size, sum(size for size, _ in blobs) + reserved, min_free, free)

    def fits(gone: int) -> bool:
        return room.used - gone + need <= max_size and free + gone - need >= min_free

    victims = choose_victims(oldest, need, room)
    loose = [candidate for candidate in oldest if not candidate.in_use]
    if victims is None:
        assert need > max_size or not fits(sum(candidate.size for candidate in loose))
        return
    sizes = [candidate.size for candidate in loose][: len(victims)]
    assert [digest for digest, _ in victims] == [candidate.digest for candidate in loose][: len(victims)]
    assert fits(sum(sizes))
    assert not victims or not fits(sum(sizes[:-1]))


def blob(number: int, size: int, again: bool, registry: str = "", cluster: str = "", repository: str = "") -> Candidate:
    return Candidate(BLOBS[number], size, False, float(number), again, registry, repository, cluster)


def gone(found: list[Candidate], need: int, room: Room, policy: Policy) -> list[int] | None:
    victims = choose_victims(found, need, room, policy)
    return None if victims is None else [BLOBS.index(digest) for digest, _ in victims]


def test_blobs_used_once_go_first_while_they_hold_more_than_a_fifth() -> None:
    """Then it is the oldest of all, whichever it is."""
    found = [blob(0, 10, True), blob(1, 10, False), blob(2, 10, True), blob(3, 10, False), blob(4, 60, True)]
    room = Room(100, 100, 0, PLENTY)
    assert gone(found, 0, room, Policy()) == []
    # 20 of 100 is not more than a fifth.
    assert gone(found, 10, room, Policy()) == [0]
    found[1] = blob(1, 11, False)
    assert gone(found, 10, room, Policy()) == [1]
    assert gone(found, 12, room, Policy()) == [1, 0]
    assert gone(found, 30, room, Policy()) == [1, 0, 2]


def test_a_share_is_spared_until_nothing_else_is_left() -> None:
    """Of a registry, of a cluster; above it, its blobs go like others."""
    found = [blob(0, 10, False, "a"), blob(1, 10, False, "a"), blob(2, 10, False, "b"), blob(3, 10, False, "b")]
    room = Room(40, 40, 0, PLENTY)
    policy = Policy(registries={"a": 0.25})
    assert gone(found, 10, room, policy) == [0]
    assert gone(found, 30, room, policy) == [0, 2, 3]
    assert gone(found, 40, room, policy) == [0, 2, 3, 1]
    for_cluster = [candidate._replace(registry="", cluster=candidate.registry) for candidate in found]
    assert gone(for_cluster, 30, room, Policy(clusters={"a": 0.25})) == [0, 2, 3]
    assert gone(for_cluster, 30, room, Policy(clusters={"other": 1.0})) == [0, 1, 2]


def test_room_that_a_share_leaves_unused_is_lent() -> None:
    """A guarantee reserves nothing: others may fill the cache until its owner needs the room."""
    found = [blob(number, 10, False, "b") for number in range(4)]
    assert gone(found, 0, Room(40, 40, 0, PLENTY), Policy(registries={"a": 1.0})) == []


def test_what_is_kept_never_goes() -> None:
    """Patterns of registry/repository; a star goes over slashes, and the whole name has to fit."""
    policy = Policy(keep=("docker.io/library/base*", "ghcr.io/*/core"))
    kept = [("docker.io", "library/base"), ("docker.io", "library/base-x/y"), ("ghcr.io", "a/b/core")]
    loose = [("docker.io", "library/bas"), ("ghcr.io", "a/core/x"), ("quay.io", "docker.io/library/base"), ("", "")]
    assert all(policy.keeps(*name) for name in kept)
    assert not any(policy.keeps(*name) for name in loose)
    assert not Policy().keeps("docker.io", "library/base")
    found = [blob(0, 10, False, "docker.io", repository="library/base"), blob(1, 10, False)]
    assert gone(found, 10, Room(20, 20, 0, PLENTY), policy) == [1]
    assert gone(found, 11, Room(20, 20, 0, PLENTY), policy) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.booleans(), st.booleans(), st.sampled_from("abk"), st.sampled_from("xy")),
        max_size=10,
    ),
    st.integers(0, 60), st.integers(1, 100), st.integers(0, 30),
    st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_whatever_is_chosen_respects_what_must_not_go(
    found: list[tuple[int, bool, bool, str, str]], need: int, max_size: int, reserved: int, share: float, other: float
) -> None:
    """Never what is read or kept; the room is reached or nothing is chosen; a share is touched last."""
    policy = Policy(keep=("k/*",), registries={"a": share}, clusters={"x": other})
    blobs = [
        Candidate(BLOBS[n], size, in_use, float(n), again, registry, "r", cluster)
        for n, (size, in_use, again, registry, cluster) in enumerate(found)
    ]
    room = Room(max_size, sum(each.size for each in blobs) + reserved, 0, PLENTY)
    loose = [each for each in blobs if not each.in_use and each.registry != "k"]
    numbers = gone(blobs, need, room, policy)
    if numbers is None:
        assert need > max_size or room.used - sum(each.size for each in loose) + need > max_size
        return
    assert len(set(numbers)) == len(numbers)
    chosen = [blobs[number] for number in numbers]
    assert all(each in loose for each in chosen)
    assert room.used - sum(each.size for each in chosen) + need <= max_size
    held = {name: sum(each.size for each in blobs if each.registry == name) for name in "abk"}
    clustered = {name: sum(each.size for each in blobs if each.cluster == name) for name in "xy"}
    for place, each in enumerate(chosen):
        spared_registry = each.registry == "a" and share > 0 and held["a"] <= share * max_size
        spared_cluster = each.cluster == "x" and other > 0 and clustered["x"] <= other * max_size
        if spared_registry or spared_cluster:
            left = [one for one in loose if one not in chosen[:place]]
            assert all(
                (one.registry == "a" and share > 0 and held["a"] <= share * max_size)
                or (one.cluster == "x" and other > 0 and clustered["x"] <= other * max_size)
                for one in left
            )
        held[each.registry] -= each.size
        clustered[each.cluster] -= each.size


def test_a_hundred_thousand_blobs_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has to go, each is looked at no more than once."""
    looks, keeps = 0, Policy.keeps

    def counted(policy: Policy, registry: str, repository: str) -> bool:
        nonlocal looks
        looks += 1
        return keeps(policy, registry, repository)

    monkeypatch.setattr(Policy, "keeps", counted)
    digest = BLOBS[0]
    found = [Candidate(digest, 10, n % 7 == 0, n, n % 3 == 0, f"r{n % 5}", f"a/{n % 100}", "c") for n in range(100_000)]
    policy = Policy(keep=("r1/a/1*",), registries={"r2": 0.1, "r3": 0.3}, clusters={"c": 0.2})
    assert choose_victims(found, 500_000, Room(1_000_000, 1_000_000, 0, PLENTY), policy)
    assert 0 < looks <= len(found)


def test_no_more_is_read_than_what_goes() -> None:
    """A full cache evicts for every fill: that must not cost reading the whole index each time."""

    def endless(first: int) -> Iterator[Candidate]:
        for number in range(first, first + 100):
            assert number < first + 4
            yield Candidate(BLOBS[0], 10, False, number, first > 0)

    held = [Candidate(BLOBS[0], 500, False, again=again) for again in (False, True)]
    victims = choose_among(Blobs(endless(0), endless(200), held), 30, Room(1000, 1000, 0, PLENTY))
    assert victims is not None
    assert [victim.used for victim, _ in victims] == [0, 1, 2]
