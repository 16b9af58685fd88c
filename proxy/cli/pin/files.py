"""Files to pin: found, read, and written back so that nothing else of them changes."""

import codecs
import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_STDIN = Path("-")
_MARKS = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class FileProblem(Exception):
    """A file cannot be read, or not be written. The message names it."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was read; a byte order mark is a part of its `text`. `path` is None for the standard input."""

    name: str
    path: Path | None
    raw: bytes
    text: str
    encoding: str = "utf-8"


def find(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that `paths` mean, each once, whatever links lead to it; of directories *.yaml and *.yml below them.

    What is hidden in a directory (`.git`) is left out. Raises FileProblem for a directory that cannot be read, or has
    none.
    """
    seen = set()
    for path in paths:
        for file in _below(path) if path.is_dir() else [path]:
            if (real := os.path.realpath(file)) not in seen:
                seen.add(real)
                yield file


def _below(directory: Path) -> list[Path]:
    found = []

    def unreadable(error: OSError) -> None:
        # Left out, --check would let pass what is in there.
        raise FileProblem(f"{error.filename}: {error.strerror}") from error

    for folder, folders, names in os.walk(directory, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.endswith((".yaml", ".yml")) and name[0] != "."]
    if not found:
        raise FileProblem(f"{directory}: there is no *.yaml and no *.yml in it")
    return sorted(path for path in found if not path.is_dir())


def read(path: Path) -> File:
    """The file, or for `-` the standard input. Raises FileProblem."""
    name = "<stdin>" if path == _STDIN else os.fsencode(path).decode(errors="backslashreplace")
    try:
        raw = sys.stdin.buffer.read() if path == _STDIN else path.read_bytes()
    except OSError as error:
        raise FileProblem(f"{name}: {error.strerror}") from error
    encoding = next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FileProblem(f"{name}:{line}: the text is not {encoding.upper()}") from error
    return File(name, None if path == _STDIN else path, raw, text, encoding)


def write(file: File, text: str) -> None:
    """Put `text` in the place of what was read: whole or not at all, with its mode and owner, behind its links.

    Raises FileProblem, with the file as it was.
    """
    raw = text.encode(file.encoding)
    if file.path is None:
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
        return
    try:
        _replace(Path(os.path.realpath(file.path)), file, raw)
    except OSError as error:
        raise FileProblem(f"{file.name}: {error.strerror}") from error


def _replace(target: Path, file: File, raw: bytes) -> None:
    state = target.stat()
    if not stat.S_ISREG(state.st_mode):
        raise FileProblem(f"{file.name}: not a regular file; give its text to the standard input, as -")
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(raw)
            # Owner first: changing it takes some of the mode away. Who may not change it gets a file of their own.
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, state.st_uid, state.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(state.st_mode))
            stream.flush()
            os.fsync(descriptor)
        # As late as possible: somebody may have edited it while registries were asked.
        if target.read_bytes() != file.raw:
            raise FileProblem(f"{file.name}: it was changed meanwhile")
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
