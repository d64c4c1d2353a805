"""The journal: which runs are in progress, what each did to whom, and their history.

SQLite with a write-ahead log. Directories are the truth for what exists; the journal is the
truth for runs. A step is written before it is done, so that a killed run can be finished or
taken back by running the same command again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NewType

from oneroot.errors import CorruptState, NoSpace, OnerootError
from oneroot.kernel import proc
from oneroot.settings import Paths
from oneroot.work import killpoint
from oneroot.work.locks import person

RunId = NewType("RunId", int)

_BALLAST_BYTES = 4 << 20

_MIGRATIONS = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY, verb TEXT NOT NULL, subject TEXT NOT NULL, person TEXT NOT NULL,
        why TEXT NOT NULL, pid INTEGER NOT NULL, pid_start INTEGER NOT NULL, boot_id TEXT NOT NULL,
        started TEXT NOT NULL, ended TEXT, state TEXT NOT NULL, data TEXT NOT NULL DEFAULT '{}'
    );
    CREATE INDEX runs_open ON runs (verb, subject) WHERE ended IS NULL;
    CREATE TABLE steps (
        run INTEGER NOT NULL REFERENCES runs (id), position INTEGER NOT NULL,
        container TEXT NOT NULL, was_running INTEGER NOT NULL,
        from_generation INTEGER, to_generation INTEGER,
        state TEXT NOT NULL, batch INTEGER NOT NULL, message TEXT NOT NULL DEFAULT '',
        started TEXT, ended TEXT, PRIMARY KEY (run, position)
    ) WITHOUT ROWID;
    CREATE TABLE proofs (
        id INTEGER PRIMARY KEY, base TEXT NOT NULL, generation INTEGER, taken TEXT NOT NULL,
        proven INTEGER NOT NULL, document TEXT NOT NULL
    );
    CREATE TABLE leases (
        container TEXT NOT NULL, base TEXT NOT NULL, generation INTEGER NOT NULL,
        boot_id TEXT NOT NULL, monitor INTEGER NOT NULL, since TEXT NOT NULL
    );
    """,
)


class RunState(enum.Enum):
    """How far a run is. The first three are not ended: the same command goes on with them."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    ROLLED_BACK = "rolled back"
    ABORTED = "aborted"


class StepState(enum.Enum):
    """How far a container's move is; DOING is written before anything is done."""

    PLANNED = "planned"
    DOING = "doing"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"
    SKIPPED = "skipped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStep:
    """One container's part in a run."""

    container: str
    was_running: bool
    from_generation: int | None
    to_generation: int | None
    batch: int = 0
    state: StepState = StepState.PLANNED
    message: str = ""
    started: str | None = None
    ended: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run as the journal has it."""

    id: RunId
    verb: str
    subject: str
    person: str
    why: str
    pid: int
    started: str
    ended: str | None
    state: RunState
    data: dict[str, object]
    """What the verb keeps beside its steps; plain JSON values."""
    alive: bool
    """Its process still exists."""


class Journal:
    """The open journal. All methods may be called from any thread.

    :raises NoSpace: it cannot be written for lack of space.
    :raises CorruptState: it is damaged, or of a newer oneroot.
    """

    def __init__(self, paths: Paths) -> None:
        self._path = paths.journal
        self._ballast = _ballast(paths)
        self._lock = threading.Lock()
        paths.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.OperationalError as error:
            raise _storage_error(self._path, error) from error
        except sqlite3.DatabaseError as error:
            raise CorruptState(
                f"The journal {self._path} cannot be opened",
                why=str(error),
                fix=f"move it away ({self._path}.bad); containers and bases are not affected",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        old = os.umask(0o077)
        try:
            connection = sqlite3.connect(
                self._path, timeout=30, isolation_level=None, check_same_thread=False
            )
        finally:
            os.umask(old)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        while (found := _version(connection)) < len(_MIGRATIONS):
            connection.execute("BEGIN IMMEDIATE")
            if _version(connection) == found:  # else another process was faster
                for statement in filter(str.strip, _MIGRATIONS[found].split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {found + 1}")
            connection.execute("COMMIT")
        if found > len(_MIGRATIONS):
            raise CorruptState(
                f"The journal {self._path} is of version {found}, this oneroot knows {len(_MIGRATIONS)}",
                fix="use the oneroot that wrote it, or a newer one",
            )

    def close(self) -> None:
        self._connection.close()
        if not self._ballast.exists():
            with contextlib.suppress(OSError):
                self._write_ballast()

    def _write_ballast(self) -> None:
        try:
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, _BALLAST_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            self._ballast.unlink(missing_ok=True)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def begin(
        self,
        verb: str,
        subject: str,
        *,
        why: str = "",
        data: dict[str, object] | None = None,
        steps: Sequence[RunStep] = (),
    ) -> RunId:
        """Write a new run with its planned steps, before anything is done."""
        with self._transaction() as connection:
            me = os.getpid()
            cursor = connection.execute(
                "INSERT INTO runs (verb, subject, person, why, pid, pid_start, boot_id, started, state, data)"
                " VALUES (?,?,?,?,?,?,?,?,?,?)",
                (
                    *(verb, _storable(subject), _storable(person()), _storable(why)),
                    *(me, proc.start_time(me), proc.boot_id(), _now()),
                    *(RunState.RUNNING.value, json.dumps(data or {})),
                ),
            )
            run = RunId(cursor.lastrowid or 0)
            _insert_steps(connection, run, steps, 0)
        killpoint.reach(f"journal: {verb} {subject} begun")
        return run

    def add_steps(self, run: RunId, steps: Sequence[RunStep]) -> None:
        """Add planned steps behind those that the run has."""
        with self._transaction() as connection:
            row = connection.execute("SELECT count(*) FROM steps WHERE run = ?", (run,)).fetchone()
            _insert_steps(connection, run, steps, row[0])

    def take_over(self, run: RunId) -> None:
        """Make this process the one that goes on with a run whose process died."""
        with self._transaction() as connection:
            me = os.getpid()
            connection.execute(
                "UPDATE runs SET pid = ?, pid_start = ?, boot_id = ?, state = ?, ended = NULL WHERE id = ?",
                (me, proc.start_time(me), proc.boot_id(), RunState.RUNNING.value, run),
            )

    def set_data(self, run: RunId, **values: object) -> None:
        """Change what the verb keeps beside its steps."""
        with self._transaction() as connection:
            row = connection.execute("SELECT data FROM runs WHERE id = ?", (run,)).fetchone()
            data = {**json.loads(row["data"]), **values} if row else values
            connection.execute("UPDATE runs SET data = ? WHERE id = ?", (json.dumps(data), run))

    def mark(self, run: RunId, container: str, state: StepState, message: str = "") -> None:
        """Set how far a container's move is."""
        column = "started" if state is StepState.DOING else "ended"
        with self._transaction() as connection:
            connection.execute(
                f"UPDATE steps SET state = ?, message = ?, {column} = ?"  # noqa: S608  one of two names
                " WHERE run = ? AND container = ?",
                (state.value, _storable(message), _now(), run, container),
            )
        killpoint.reach(f"journal: {container} {state.value}")

    def end(self, run: RunId, state: RunState, **values: object) -> None:
        """Close a run (or leave it INTERRUPTED or PAUSED, to be gone on with)."""
        if values:
            self.set_data(run, **values)
        goes_on = state in (RunState.RUNNING, RunState.INTERRUPTED, RunState.PAUSED)
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET state = ?, ended = ? WHERE id = ?",
                (state.value, None if goes_on else _now(), run),
            )
        killpoint.reach(f"journal: run {state.value}")

    def unfinished(self, subject: str | None = None, verb: str | None = None) -> Run | None:
        """Return the newest run that has not ended, of this subject and verb if given."""
        found = self._query(
            "SELECT * FROM runs WHERE ended IS NULL AND (?1 IS NULL OR subject = ?1)"
            " AND (?2 IS NULL OR verb = ?2) ORDER BY id DESC LIMIT 1",
            (subject and _storable(subject), verb),
        )
        return _run(found[0]) if found else None

    def history(self, *, limit: int = 50, subject: str | None = None) -> list[Run]:
        """Return runs, newest first."""
        rows = self._query(
            "SELECT * FROM runs WHERE ?1 IS NULL OR subject = ?1 ORDER BY id DESC LIMIT ?2",
            (subject, limit),
        )
        return [_run(row) for row in rows]

    def steps(self, run: RunId) -> list[RunStep]:
        """Return a run's steps in their order."""
        return [
            _step(row) for row in self._query("SELECT * FROM steps WHERE run = ? ORDER BY position", (run,))
        ]

    def record_proof(self, base: str, generation: int | None, proven: bool, document: object) -> None:
        """Keep a proof as evidence."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO proofs (base, generation, taken, proven, document) VALUES (?,?,?,?,?)",
                (base, generation, _now(), proven, json.dumps(document)),
            )

    def proofs(
        self, base: str | None = None, *, limit: int = 20
    ) -> list[tuple[str, bool, dict[str, object]]]:
        """Return kept proofs, newest first, as (taken, proven, document)."""
        rows = self._query(
            "SELECT * FROM proofs WHERE ?1 IS NULL OR base = ?1 ORDER BY id DESC LIMIT ?2", (base, limit)
        )
        return [(row["taken"], bool(row["proven"]), json.loads(row["document"])) for row in rows]

    def _query(self, sql: str, values: Sequence[object]) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(sql, tuple(values)).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise _storage_error(self._path, error) from error
                raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def free_ballast(paths: Paths) -> None:
    """Give up the megabytes that the journal keeps aside, so that a rollback can work on a full disk."""
    _ballast(paths).unlink(missing_ok=True)


def _ballast(paths: Paths) -> Path:
    return paths.store / "journal.ballast"


def _insert_steps(connection: sqlite3.Connection, run: RunId, steps: Sequence[RunStep], first: int) -> None:
    connection.executemany(
        "INSERT INTO steps (run, position, container, was_running, from_generation, to_generation,"
        " state, batch, message) VALUES (?,?,?,?,?,?,?,?,?)",
        [
            (
                *(run, first + place, step.container, step.was_running, step.from_generation),
                *(step.to_generation, step.state.value, step.batch, step.message),
            )
            for place, step in enumerate(steps)
        ],
    )


def _storable(text: str) -> str:
    """Names of files and words of the command line may have bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _storage_error(path: Path, error: sqlite3.OperationalError) -> OnerootError:
    family = NoSpace if "full" in str(error) or "disk I/O" in str(error) else OnerootError
    return family(
        f"The journal {path} cannot be written",
        why=str(error),
        fix=f"free space below {path.parent}, then run the same command again",
    )


def _run(row: sqlite3.Row) -> Run:
    alive = row["boot_id"] == proc.boot_id() and proc.alive(row["pid"], row["pid_start"])
    return Run(
        id=RunId(row["id"]),
        verb=row["verb"],
        subject=row["subject"],
        person=row["person"],
        why=row["why"],
        pid=row["pid"],
        started=row["started"],
        ended=row["ended"],
        state=RunState(row["state"]),
        data=json.loads(row["data"]),
        alive=alive,
    )


def _step(row: sqlite3.Row) -> RunStep:
    return RunStep(
        container=row["container"],
        was_running=bool(row["was_running"]),
        from_generation=row["from_generation"],
        to_generation=row["to_generation"],
        batch=row["batch"],
        state=StepState(row["state"]),
        message=row["message"],
        started=row["started"],
        ended=row["ended"],
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
