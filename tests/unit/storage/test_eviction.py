"""Which blobs go so that another fits."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.storage.eviction import Candidate, Room, choose_victims

BLOBS = [Digest.of(bytes([number])) for number in range(10)]
PLENTY = 1 << 40


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
