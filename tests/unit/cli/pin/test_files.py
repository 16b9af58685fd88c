"""Files are found, and written so that nothing else of them changes."""

import os
import stat
from pathlib import Path

import pytest

from proxy.cli.pin.files import File, FileProblem, find, read, write


def test_directories_are_walked(tmp_path: Path) -> None:
    """*.yaml and *.yml at any depth, in order, but nothing that is hidden; a file that is named is taken as it is."""
    for name in ("b.yaml", "a/c.yml", "a/d.json", ".git/e.yaml", "a/.f.yaml", "g.yaml/h.yaml"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    below = [str(path.relative_to(tmp_path)) for path in find([tmp_path])]
    assert below == ["a/c.yml", "b.yaml", "g.yaml/h.yaml"]
    assert list(find([tmp_path / "a" / "d.json"])) == [tmp_path / "a" / "d.json"]


def test_a_file_is_found_once(tmp_path: Path) -> None:
    """By its name, in its directory and through a link."""
    file = tmp_path / "a.yaml"
    file.touch()
    (tmp_path / "b.yaml").symlink_to(file)
    assert list(find([file, tmp_path, tmp_path / "b.yaml"])) == [file]


def test_a_directory_without_yaml_is_a_mistake(tmp_path: Path) -> None:
    """It is surely not what was meant, and --check would let it pass."""
    with pytest.raises(FileProblem, match=r"no \*\.yaml and no \*\.yml in it"):
        list(find([tmp_path]))


def test_a_directory_that_cannot_be_read_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any depth: --check would let pass what is in it."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.yaml").touch()
    scan = os.scandir

    def closed(path: str | Path) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(FileProblem, match=r"closed: Permission denied"):
        list(find([tmp_path]))


def test_what_is_not_text_is_refused_with_its_line(tmp_path: Path) -> None:
    """So is what is not there."""
    file = tmp_path / "a.yaml"
    file.write_bytes(b"a: b\nc: \xff\n")
    with pytest.raises(FileProblem, match=r"a\.yaml:2: the text is not UTF-8"):
        read(file)
    with pytest.raises(FileProblem, match="No such file or directory"):
        read(tmp_path / "b.yaml")


def test_written_files_keep_mode_and_links(tmp_path: Path) -> None:
    """A new file takes the place of the old one, behind the link that led to it; nothing is left beside it."""
    folder = tmp_path / "real"
    folder.mkdir()
    file, link = folder / "a.yaml", tmp_path / "link.yaml"
    file.write_bytes(b"old\r\n")
    file.chmod(0o640)
    link.symlink_to(Path("real") / "a.yaml")
    before = file.stat()
    write(read(link), "new\r\n")
    after = file.stat()
    assert (file.read_bytes(), link.readlink()) == (b"new\r\n", Path("real") / "a.yaml")
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert os.listdir(folder) == ["a.yaml"]


def test_what_was_edited_meanwhile_stays(tmp_path: Path) -> None:
    """Another one's words are not lost."""
    file = tmp_path / "a.yaml"
    file.write_text("old")
    had = read(file)
    file.write_text("edited")
    with pytest.raises(FileProblem, match="changed meanwhile"):
        write(had, "new")
    assert (file.read_text(), os.listdir(tmp_path)) == ("edited", ["a.yaml"])


def test_a_disk_that_is_full_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is as it was, and nothing is left beside it."""
    file = tmp_path / "a.yaml"
    file.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileProblem, match="No space left on device"):
        write(read(file), "new")
    assert (file.read_text(), os.listdir(tmp_path)) == ("old", ["a.yaml"])


def test_only_regular_files_are_written(tmp_path: Path) -> None:
    """A pipe, such as a shell's <(…), can be read."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileProblem, match="not a regular file"):
        write(File(str(pipe), pipe, b"", ""), "new")
