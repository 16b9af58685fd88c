"""The cache directory: modes, lock, format and key."""

import stat
from pathlib import Path

import pytest

from proxy.storage.base import StorageError
from proxy.storage.directory import FORMAT, open_directory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_in_it_is_its_owners_alone(tmp_path: Path) -> None:
    """Directories 0700, the key 0600 and 32 bytes long, parents made."""
    directory = open_directory(tmp_path / "deep" / "cache")
    for path in (directory.path, directory.blobs, directory.fills, directory.metadata):
        assert mode(path) == 0o700
    assert mode(directory.path / "key") == mode(directory.path / "format") == mode(directory.path / "lock") == 0o600
    assert len(directory.key) == 32
    directory.close()


def test_the_key_stays_and_differs_between_directories(tmp_path: Path) -> None:
    """Principals are hashed with it: it outlives a restart, and tells nothing about another cache."""
    first = open_directory(tmp_path / "a")
    first.close()
    again, other = open_directory(tmp_path / "a"), open_directory(tmp_path / "b")
    assert first.key == again.key != other.key
    again.close()
    other.close()


@pytest.mark.parametrize("damaged", [b"", b"short", b"x" * 33])
def test_a_damaged_key_is_made_anew(tmp_path: Path, damaged: bytes) -> None:
    """Then every proof is lost, which costs requests and shows nobody anything."""
    open_directory(tmp_path / "a").close()
    (tmp_path / "a" / "key").write_bytes(damaged)
    directory = open_directory(tmp_path / "a")
    assert len(directory.key) == 32
    assert mode(directory.path / "key") == 0o600
    directory.close()


def test_a_second_instance_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    """Two would index and evict the same files."""
    first = open_directory(tmp_path)
    with pytest.raises(StorageError, match="in use by another process"):
        open_directory(tmp_path)
    first.close()
    open_directory(tmp_path).close()


@pytest.mark.parametrize("found", ["3", "0", "", "1.1", "x" * 1000])
def test_another_format_is_refused_and_left_alone(tmp_path: Path, found: str) -> None:
    """Never guessed at, and the lock is not kept."""
    (tmp_path / "format").write_text(found)
    for _ in range(2):
        with pytest.raises(StorageError, match="has format") as caught:
            open_directory(tmp_path)
        assert len(str(caught.value)) < 300
    assert not (tmp_path / "blobs").exists()
    assert (tmp_path / "format").read_text() == found


def test_its_own_format_is_accepted_with_a_line_end(tmp_path: Path) -> None:
    """Somebody may have looked at it with an editor."""
    (tmp_path / "format").write_text(FORMAT + "\n")
    open_directory(tmp_path).close()


def test_a_path_that_cannot_be_used(tmp_path: Path) -> None:
    """A file, or below a file: one line with the path."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(StorageError, match=f"the cache directory {path} cannot be used"):
            open_directory(path)


def test_a_format_that_is_no_text_is_another_format(tmp_path: Path) -> None:
    """Some other program's file."""
    (tmp_path / "format").write_bytes(b"\xff\xfe")
    with pytest.raises(StorageError):
        open_directory(tmp_path)


@pytest.mark.parametrize("name", ["metadata", "key"])
def test_what_exists_already_is_closed_to_others(tmp_path: Path, name: str) -> None:
    """A restored backup or a volume made by somebody else may be open to all: diskcache needs 0700, the key 0600."""
    open_directory(tmp_path).close()
    (tmp_path / name).chmod(0o777)
    open_directory(tmp_path).close()
    assert mode(tmp_path / name) & 0o077 == 0


def test_the_first_formats_blobs_stay_good(tmp_path: Path) -> None:
    """Its fills go: no restart ever went on with them. What is not one of them is left alone."""
    for folder in ("blobs/sha256/aa", "fills/lost+found", "metadata"):
        (tmp_path / folder).mkdir(parents=True)
    blob = tmp_path / "blobs" / "sha256" / "aa" / ("a" * 64)
    fill = tmp_path / "fills" / f"{'b' * 64}.{'0' * 32}"
    theirs = tmp_path / "fills" / "notes.txt"
    for file in (blob, fill, theirs):
        file.write_text("x")
    (tmp_path / "format").write_text("1\n")
    open_directory(tmp_path).close()
    assert (tmp_path / "format").read_text() == FORMAT == "2"
    assert [file.exists() for file in (blob, fill, theirs)] == [True, False, True]


def test_workers_share_what_one_process_has_locked(tmp_path: Path) -> None:
    """The same key, no lock of their own: closing theirs leaves it locked."""
    first = open_directory(tmp_path)
    worker = open_directory(tmp_path, lock=False)
    assert (worker.key, worker.path) == (first.key, first.path)
    worker.close()
    with pytest.raises(StorageError, match="in use"):
        open_directory(tmp_path)
    first.close()


@pytest.mark.parametrize("found", [None, "1", "3"])
def test_a_worker_makes_and_changes_nothing(tmp_path: Path, found: str | None) -> None:
    """It comes after the one that locks the directory; without that there is nothing to share."""
    if found is not None:
        open_directory(tmp_path).close()
        (tmp_path / "format").write_text(found)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StorageError):
        open_directory(tmp_path, lock=False)
    assert sorted(tmp_path.iterdir()) == before
