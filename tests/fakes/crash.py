"""What an abrupt end leaves of a cache directory."""

import contextlib
import shutil
import sqlite3
from pathlib import Path


def copy_as_killed(directory: Path, target: Path) -> None:
    """Copy the cache directory of a proxy that runs as `kill -9` would leave it now.

    Its databases are held still meanwhile: a kill is at one moment, a copy is not.
    """
    with contextlib.ExitStack() as stack:
        for file in directory.rglob("*.db"):
            database = stack.enter_context(contextlib.closing(sqlite3.connect(file, isolation_level=None)))
            database.execute("BEGIN IMMEDIATE")
        shutil.copytree(directory, target)
