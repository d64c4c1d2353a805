from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from oneroot.errors import CorruptState
from oneroot.settings import Paths
from oneroot.work.journal import Journal, RunState, RunStep, StepState


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(store=tmp_path / "store", run=tmp_path / "run")


def steps() -> list[RunStep]:
    return [
        RunStep(container=name, was_running=True, from_generation=1, to_generation=2, batch=batch)
        for batch, name in enumerate(["web001", "web002"])
    ]


def test_a_run_tells_who_did_what_to_whom(paths: Paths) -> None:
    with Journal(paths) as journal:
        run = journal.begin("patch", "core", why="glibc", data={"policy": "25%"}, steps=steps())
        journal.mark(run, "web001", StepState.DOING)
        journal.mark(run, "web001", StepState.DONE)
        journal.mark(run, "web002", StepState.FAILED, "no answer")
        journal.end(run, RunState.FAILED, seconds=3.5)
    with Journal(paths) as journal:
        [found] = journal.history()
        first, second = journal.steps(found.id)
        assert journal.unfinished() is None
    assert (found.verb, found.subject, found.why, found.state) == ("patch", "core", "glibc", RunState.FAILED)
    assert found.data == {"policy": "25%", "seconds": 3.5}
    assert found.person and found.pid == os.getpid() and found.ended
    assert first.state is StepState.DONE and first.started and first.ended
    assert (second.state, second.message) == (StepState.FAILED, "no answer")


def test_a_killed_run_is_found_and_taken_over(paths: Paths) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom oneroot.settings import Paths\n"
        "from oneroot.work.journal import Journal\n"
        "Journal(Paths(store=Path(sys.argv[1]))).begin('patch', 'core')\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(paths.store)], check=False)
    with Journal(paths) as journal:
        found = journal.unfinished("core", "patch")
        assert found is not None and not found.alive and found.state is RunState.RUNNING
        journal.take_over(found.id)
        taken = journal.unfinished("core")
        assert taken is not None and taken.alive and taken.pid == os.getpid()
        journal.end(found.id, RunState.DONE)
        assert journal.unfinished("core") is None


def test_a_paused_run_goes_on(paths: Paths) -> None:
    with Journal(paths) as journal:
        run = journal.begin("patch", "core")
        journal.end(run, RunState.PAUSED)
        found = journal.unfinished()
        assert found is not None and found.state is RunState.PAUSED


def test_a_journal_of_a_newer_oneroot_is_refused(paths: Paths) -> None:
    Journal(paths).close()
    with sqlite3.connect(paths.journal) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(CorruptState, match="99"):
        Journal(paths)


def test_a_damaged_journal_is_named(paths: Paths) -> None:
    paths.store.mkdir()
    paths.journal.write_bytes(b"not a database, not at all " * 100)
    with pytest.raises(CorruptState) as caught:
        Journal(paths)
    assert str(paths.journal) in caught.value.what


def test_only_root_can_read_it(paths: Paths) -> None:
    with Journal(paths):
        assert paths.journal.stat().st_mode & 0o777 == 0o600


def test_proofs_are_kept(paths: Paths) -> None:
    with Journal(paths) as journal:
        journal.record_proof("core", 7, False, {"base": "core"})
        journal.record_proof("core", 8, True, {"base": "core", "n": 2})
        (_, proven, document), (_, older, _) = journal.proofs("core")
    assert (proven, older, document) == (True, False, {"base": "core", "n": 2})


def test_many_may_open_a_new_one_at_once(paths: Paths) -> None:
    for _ in range(5):
        program = (
            "import sys\nfrom pathlib import Path\nfrom oneroot.settings import Paths\n"
            "from oneroot.work.journal import Journal\nsys.stdin.read()\n"
            "Journal(Paths(store=Path(sys.argv[1]))).begin('create', 'web')\n"
        )
        children = [
            subprocess.Popen([sys.executable, "-c", program, str(paths.store)], stdin=subprocess.PIPE)
            for _ in range(6)
        ]
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        assert [child.wait() for child in children] == [0] * 6
        for file in paths.store.iterdir():
            file.unlink()
