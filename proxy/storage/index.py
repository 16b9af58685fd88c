"""The index: what is stored and what is being filled, shared by the processes of a cache directory, in SQLite.

Invariants:
- It is a cache of facts that the files show too: a lost, damaged or foreign one is made anew from them.
- One thread of its own does everything (`run`): SQLite connections belong to threads, and the event loop never waits.
- Whatever is decided by what the index says is decided inside a `transaction`, which holds off the other processes.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from proxy.oci.digest import Digest
from proxy.storage.base import Listed, StorageError, Usage, User
from proxy.storage.eviction import AGAIN_AFTER, Blobs, Candidate

_T = TypeVar("_T")

# Somebody else's transaction may evict many files, or allocate a large one.
_BUSY_SECONDS = 60.0
# "ptix": a database of some other program is none of ours.
_APPLICATION = 0x70746978
_VERSION = 1
_SCHEMA = """
CREATE TABLE blobs (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, stored REAL NOT NULL, used REAL NOT NULL,
    registry TEXT NOT NULL, repository TEXT NOT NULL, cluster TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE fills (digest TEXT PRIMARY KEY, size INTEGER NOT NULL,
    registry TEXT NOT NULL, repository TEXT NOT NULL, cluster TEXT NOT NULL) WITHOUT ROWID;
"""

NOBODY = User("", "", "")
_NO_DIGEST = Digest("", "")


@dataclass(frozen=True, slots=True)
class Use:
    """A finished blob was read: when (seconds), by whom, and whether that one's repository is a kept one."""

    digest: Digest
    size: int
    at: float
    user: User
    kept: bool


class Index:
    """See above. All methods but `run` and `close` are for the index's thread; those raise sqlite3.Error."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="index")
        self._database: sqlite3.Connection | None = None

    async def run(self, job: Callable[[], _T]) -> _T:
        """Run `job` in the index's thread. Raises StorageError for what SQLite cannot do, and what `job` raises.

        The job runs to its end even if the caller is cancelled.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, job)
        except sqlite3.Error as error:
            raise StorageError(f"the index {self._file} failed: {error}") from error

    async def close(self) -> None:
        """Close the database. Nothing else may be called afterwards."""

        def close() -> None:
            if self._database is not None:
                self._database.close()

        with contextlib.suppress(StorageError):
            await self.run(close)
        # The thread is idle by now; waiting for its end would block the loop.
        self._thread.shutdown(wait=False)

    def open(self, mend: bool) -> None:
        """Open the database; with `mend`, which only one process may ask for, also make it and replace a bad one."""
        try:
            self._connect(mend)
        except sqlite3.DatabaseError as error:
            self._disconnect()
            # OperationalError is what a full disk and missing rights are: a new file would fare no better.
            if not mend or isinstance(error, sqlite3.OperationalError):
                raise
            self.make_anew()

    def make_anew(self) -> None:
        """Throw the database away and begin an empty one."""
        self._disconnect()
        for ending in ("", "-wal", "-shm"):
            self._file.with_name(self._file.name + ending).unlink(missing_ok=True)
        self._connect(True)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it happens, or nothing; no other process writes meanwhile."""
        database = self._open_database
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            database.rollback()
            raise
        database.commit()

    def usage(self) -> Usage:
        """Sums over all rows: a few milliseconds for a hundred thousand."""
        stored, count = self._row("SELECT coalesce(sum(size), 0), count(*) FROM blobs") or (0, 0)
        (reserved,) = self._row("SELECT coalesce(sum(size), 0) FROM fills") or (0,)
        return Usage(stored + reserved, count)

    # Finished blobs.

    def candidates(self, in_use: set[Digest]) -> Blobs:
        """All blobs, for eviction: read from the database as far as it looks."""
        sums = self._open_database.execute(
            "SELECT sum(size), used - stored >= ?, registry, cluster FROM blobs GROUP BY 2, 3, 4", (AGAIN_AFTER,)
        )
        held = [
            Candidate(_NO_DIGEST, size, False, 0.0, bool(again), registry, "", cluster)
            for size, again, registry, cluster in sums
        ]
        return Blobs(self._by_use(False, in_use), self._by_use(True, in_use), held)

    def _by_use(self, again: bool, in_use: set[Digest]) -> Iterator[Candidate]:
        rows = self._open_database.execute(
            "SELECT digest, size, used, registry, repository, cluster FROM blobs"
            " WHERE (used - stored >= ?) = ? ORDER BY used",
            (AGAIN_AFTER, again),
        )
        for text, size, used, *user in rows:
            yield Candidate(digest := _digest(text), size, digest in in_use, used, again, *user)

    def blobs(self) -> dict[Digest, int]:
        """Their sizes."""
        return {_digest(text): size for text, size in self._open_database.execute("SELECT digest, size FROM blobs")}

    def listed(self, after: str, limit: int) -> list[Listed]:
        """See `BlobStore.listed`."""
        rows = self._open_database.execute(
            "SELECT digest, size, stored, used, registry, repository, cluster FROM blobs"
            " WHERE digest > ? ORDER BY digest LIMIT ?",
            (after, limit),
        )
        return [Listed(_digest(text), size, stored, used, User(*user)) for text, size, stored, used, *user in rows]

    def blob_size(self, digest: Digest) -> int | None:
        row = self._row("SELECT size FROM blobs WHERE digest = ?", str(digest))
        return row[0] if row else None

    def add_blobs(self, blobs: Iterable[tuple[Digest, int, float]], user: User = NOBODY) -> None:
        """Digest, size and last use of each; a row that is there keeps when it was stored, and for whom."""
        self._open_database.executemany(
            "INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (digest) DO UPDATE SET size = excluded.size, used = excluded.used",
            ((str(digest), size, at, at, user.registry, user.repository, user.cluster) for digest, size, at in blobs),
        )

    def drop_blob(self, digest: Digest) -> bool:
        """False where there was no row."""
        return self._open_database.execute("DELETE FROM blobs WHERE digest = ?", (str(digest),)).rowcount > 0

    def note(self, use: Use) -> bool:
        """Tell of a use; False where there is no row. A kept repository takes the blob over from its first user."""
        user = use.user
        return (
            self._open_database.execute(
                "UPDATE blobs SET used = max(used, :at),"
                " registry = iif(:take OR registry = '', :registry, registry),"
                " repository = iif(:take OR registry = '', :repository, repository),"
                " cluster = iif(:take OR registry = '', :cluster, cluster) WHERE digest = :digest",
                {
                    "at": use.at, "take": use.kept, "digest": str(use.digest),
                    "registry": user.registry, "repository": user.repository, "cluster": user.cluster,
                },
            ).rowcount
            > 0
        )  # fmt: skip

    # Fills.

    def fills(self) -> dict[Digest, int]:
        """Their sizes."""
        return {_digest(text): size for text, size in self._open_database.execute("SELECT digest, size FROM fills")}

    def add_fill(self, digest: Digest, size: int, user: User = NOBODY) -> None:
        """Reserve; a row that is there keeps whom it is for."""
        self._open_database.execute(
            "INSERT INTO fills VALUES (?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET size = excluded.size",
            (str(digest), size, user.registry, user.repository, user.cluster),
        )

    def drop_fill(self, digest: Digest) -> User:
        """Give a reservation back; whom it was for."""
        row = self._row("SELECT registry, repository, cluster FROM fills WHERE digest = ?", str(digest))
        self._open_database.execute("DELETE FROM fills WHERE digest = ?", (str(digest),))
        return User(*row) if row else NOBODY

    # The database.

    def _connect(self, make: bool) -> None:
        mode = "rwc" if make else "rw"
        # Transactions are begun by hand.
        self._database = sqlite3.connect(
            f"{self._file.absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
        )
        if self._row("SELECT count(*) FROM sqlite_master") == (0,) and make:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.executescript(
                f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA application_id = {_APPLICATION};"
                f"PRAGMA user_version = {_VERSION};COMMIT;"
            )
            self._file.chmod(0o600)
        if (self._row("PRAGMA application_id"), self._row("PRAGMA user_version")) != ((_APPLICATION,), (_VERSION,)):
            raise sqlite3.DatabaseError("not an index of this version")
        if make and self._row("PRAGMA quick_check") != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        # A crash of the machine may lose the last transactions, and the next start mends that.
        self._database.execute("PRAGMA synchronous = NORMAL")

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    @property
    def _open_database(self) -> sqlite3.Connection:
        if self._database is None:
            raise sqlite3.OperationalError("it is not open")
        return self._database

    def _row(self, statement: str, *parameters: str) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._open_database.execute(statement, parameters).fetchone()
        return row


def _digest(text: str) -> Digest:
    algorithm, _, value = text.partition(":")
    return Digest(algorithm, value)
