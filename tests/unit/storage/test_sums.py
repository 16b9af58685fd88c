"""What an object store gives is believed where its sums say so, and nowhere else."""

import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.storage import sums
from proxy.storage.base import WrongObject
from proxy.storage.sums import PIECE, Record, SumChecker, SumMaker, key_of

SECRET, OTHER = key_of(b"the region's secret"), key_of(b"another one")
KEYS = [key_of(b""), SECRET]
NAME = "0123456789abcdef"
# Two whole pieces and a short one.
BLOB = random.Random(1).randbytes(2 * PIECE + 1000)


def recorded(blob: bytes, key: bytes = SECRET, step: int = PIECE) -> Record:
    """The record of `blob`, which comes in parts of `step` bytes."""
    digest = Digest.of(blob)
    maker = SumMaker(digest, key)
    for at in range(0, len(blob), step):
        maker.add(blob[at : at + step])
    return Record(digest, len(blob), NAME, maker.made())


def checked(record: Record, parts: Iterable[bytes], key: bytes = SECRET, start: int = 0) -> bytes:
    """What a checker gives of `parts`."""
    checker = SumChecker(record, key, start)
    return b"".join(piece for part in parts for piece in checker.feed(part))


def cut(blob: bytes, places: Iterable[int]) -> list[bytes]:
    """`blob` in parts that end at `places`."""
    ends = [0, *sorted(place % (len(blob) + 1) for place in places), len(blob)]
    return [blob[start:end] for start, end in pairwise(ends)]


@pytest.mark.parametrize("key", KEYS, ids=["no secret", "a secret"])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1000])
def test_a_right_blob_is_given_as_it_is(size: int, key: bytes) -> None:
    """Of any size, with a secret or without one, after its record was stored and read."""
    blob = BLOB[:size]
    record = recorded(blob, key)
    assert len(record.sums) == 16 * sums.pieces_of(size)
    assert Record.load(record.dump(key), record.digest, key) == record
    assert checked(record, [blob], key) == blob


@settings(deadline=None, max_examples=30)
@given(step=st.integers(1000, 3 * PIECE), places=st.lists(st.integers(0, len(BLOB)), max_size=12))
def test_parts_of_any_length(step: int, places: list[int]) -> None:
    """How the bytes come in makes no difference: to the sums, nor to what is given."""
    record = recorded(BLOB, step=step)
    assert record == recorded(BLOB)
    assert checked(record, cut(BLOB, places)) == BLOB


@settings(deadline=None, max_examples=30)
@given(place=st.integers(0, len(BLOB) - 1), bit=st.integers(0, 7), places=st.lists(st.integers(0, len(BLOB))))
def test_no_wrong_byte_is_ever_given(place: int, bit: int, places: list[int]) -> None:
    """One wrong bit anywhere: the pieces before its own are given, and nothing of it."""
    wrong = bytearray(BLOB)
    wrong[place] ^= 1 << bit
    checker, given_ = SumChecker(recorded(BLOB), SECRET, 0), bytearray()
    with pytest.raises(WrongObject):
        for part in cut(bytes(wrong), places):
            for piece in checker.feed(part):
                given_ += piece
    assert given_ == BLOB[: place - place % PIECE]


def test_from_the_middle_on() -> None:
    """A checker begins where a piece does, and at no other place."""
    record = recorded(BLOB)
    assert checked(record, [BLOB[PIECE:]], start=PIECE) == BLOB[PIECE:]
    with pytest.raises(ValueError, match="no piece begins"):
        SumChecker(record, SECRET, 5)


def test_a_piece_is_right_in_its_place_only() -> None:
    """Two pieces that change places are wrong, though the sums have both."""
    swapped = BLOB[PIECE : 2 * PIECE] + BLOB[:PIECE] + BLOB[2 * PIECE :]
    with pytest.raises(WrongObject):
        checked(recorded(BLOB), [swapped])
    with pytest.raises(WrongObject):
        checked(recorded(BLOB), [BLOB[:PIECE]], start=PIECE)


def test_pieces_that_are_alike_have_sums_that_are_not() -> None:
    """So nobody who sees the sums can tell."""
    record = recorded(bytes(2 * PIECE))
    assert record.sum(0) != record.sum(1)


def test_a_sum_is_right_in_its_blob_only() -> None:
    """The sums of another blob are of no use, though it begins with the same piece."""
    mine, other = recorded(BLOB), recorded(BLOB[:PIECE])
    assert mine.sum(0) != other.sum(0)
    with pytest.raises(WrongObject):
        checked(Record(mine.digest, PIECE, NAME, other.sums), [BLOB[:PIECE]])


def test_more_bytes_than_were_stored() -> None:
    """They are wrong, whatever they are."""
    with pytest.raises(WrongObject, match="more bytes"):
        checked(recorded(BLOB), [BLOB, b"x"])


def test_a_piece_that_is_not_whole_is_not_given() -> None:
    """Its sum is that of all of it."""
    assert checked(recorded(BLOB), [BLOB[: PIECE + 500]]) == BLOB[:PIECE]


def test_without_the_secret_nobody_makes_up_sums() -> None:
    """Sums that were made with another key are of no use."""
    with pytest.raises(WrongObject):
        checked(recorded(BLOB, OTHER), [BLOB])


@pytest.mark.parametrize("key", [OTHER, b""], ids=["another secret", "no secret"])
def test_without_the_secret_nobody_makes_up_a_record(key: bytes) -> None:
    """A record that is good for somebody else is refused."""
    record = recorded(BLOB, key)
    with pytest.raises(WrongObject, match="another secret"):
        Record.load(record.dump(key), record.digest, SECRET)


@pytest.mark.parametrize("key", KEYS, ids=["no secret", "a secret"])
@given(data=st.data())
def test_a_damaged_record_is_refused(key: bytes, data: st.DataObject) -> None:
    """One wrong bit anywhere, or cut off, or with more behind it."""
    record = recorded(b"blob", key)
    raw = record.dump(key)
    place, bit = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 7))
    wrong = bytearray(raw)
    wrong[place] ^= 1 << bit
    for damaged in (bytes(wrong), raw[:place], raw + raw[:1]):
        with pytest.raises(WrongObject):
            Record.load(damaged, record.digest, key)


@given(raw=st.binary(max_size=300))
def test_no_bytes_do_harm(raw: bytes) -> None:
    """Whatever stands where a record should, with a good sum of the whole or without, is refused as one."""
    digest = Digest.of(b"blob")
    for offered in (raw, raw + sums._whole(raw, SECRET)):
        with pytest.raises(WrongObject):
            Record.load(offered, digest, SECRET)


def test_a_record_is_one_of_its_blob() -> None:
    """Nobody can put it where another one's should be."""
    record = recorded(BLOB)
    with pytest.raises(WrongObject, match="another blob"):
        Record.load(record.dump(SECRET), Digest.of(b"other"), SECRET)
    longer = Digest.of(BLOB, "sha512")
    with pytest.raises(WrongObject, match="another blob"):
        Record.load(record.dump(SECRET), longer, SECRET)


@pytest.mark.parametrize("name", ["", "../../secret", "a/b", "x" * 65, "0" * 65])
def test_the_name_is_no_way_to_elsewhere(name: str) -> None:
    """It is a part of a path: letters and digits, or the record is none."""
    record = Record(Digest.of(b""), 0, name, b"")
    with pytest.raises(WrongObject, match="layout"):
        Record.load(record.dump(SECRET), record.digest, SECRET)


@pytest.mark.parametrize("size", [0, PIECE, PIECE + 1, 2**60])
def test_as_many_sums_as_pieces(size: int) -> None:
    """A record with another number of them would leave pieces unchecked."""
    record = Record(Digest.of(b""), size, NAME, bytes(3 * 16))
    with pytest.raises(WrongObject, match="layout"):
        Record.load(record.dump(SECRET), record.digest, SECRET)


def test_digests_of_another_algorithm() -> None:
    """A blob named by sha512 has a record like others."""
    digest = Digest.of(BLOB, "sha512")
    record = Record(digest, 0, NAME, b"")
    assert Record.load(record.dump(SECRET), digest, SECRET) == record


def test_a_record_is_small() -> None:
    """Of twenty gigabytes it has a third of a megabyte, so it is read as a whole and remembered."""
    size = 20 * 10**9
    record = Record(Digest.of(b""), size, NAME, bytes(16 * sums.pieces_of(size)))
    assert len(record.dump(SECRET)) < 320_000
    assert Record.load(record.dump(SECRET), record.digest, SECRET).size == size
