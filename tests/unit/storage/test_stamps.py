"""Stamps over processes: two tables on one file are two processes to each other."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.storage.stamps import Stamps


def test_a_change_in_one_process_ends_the_stamps_of_all(tmp_path: Path) -> None:
    """From the moment on at which it is told; those of other keys go on."""
    here, there = Stamps(tmp_path / "stamps"), Stamps(tmp_path / "stamps")
    mine, other = here.take("a", "b"), here.take("c")
    there.renew("b")
    assert not mine.holds()
    assert other.holds()
    assert here.take("a", "b").holds()


def test_who_comes_anew_ends_all_stamps(tmp_path: Path) -> None:
    """A process that was killed may have changed something and told nobody; one takes its place."""
    here = Stamps(tmp_path / "stamps")
    stamp = here.take("a")
    Stamps(tmp_path / "stamps")
    assert not stamp.holds()


def test_a_slot_never_has_a_value_twice(tmp_path: Path) -> None:
    """Also where two processes write it at the same time: who read before either of them sees that."""
    here, there = Stamps(tmp_path / "stamps"), Stamps(tmp_path / "stamps")
    taken = []
    for _ in range(200):
        taken.append(here.take("a"))
        here.renew("a")
        there.renew("a")
    assert not any(stamp.holds() for stamp in taken)


def test_who_is_alone_needs_no_file() -> None:
    """A table in memory is one of its own."""
    here, there = Stamps(None), Stamps(None)
    stamp = here.take("a")
    there.renew("a")
    assert stamp.holds()
    here.renew("a")
    assert not stamp.holds()


def test_without_room_there_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever went on without it would keep its changes from the others."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Stamps(tmp_path / "stamps")


@given(st.lists(st.text(max_size=5), max_size=6), st.lists(st.text(max_size=5), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_any_keys(tmp_path_factory: pytest.TempPathFactory, taken: list[str], changed: list[str]) -> None:
    """None, one or several, of any text: a change of one of them is always seen."""
    stamps = Stamps(tmp_path_factory.mktemp("stamps") / "stamps")
    stamp = stamps.take(*taken)
    assert stamp.holds()
    stamps.renew(*changed)
    assert not (stamp.holds() and set(taken) & set(changed))
