from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from oneroot.errors import Busy, ExitCode
from oneroot.settings import Paths
from oneroot.work import locks


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(run=tmp_path / "run", store=tmp_path / "store")


def test_the_second_is_told_who_and_since_when(paths: Paths) -> None:
    with locks.base(paths, "core", verb="patch"):
        with pytest.raises(Busy) as caught, locks.base(paths, "core", verb="rollback"):
            pytest.fail("two hold one lock")
        assert caught.value.exit_code is ExitCode.BUSY
        assert f"process {os.getpid()}" in caught.value.why and "“patch”" in caught.value.why
        assert "since 20" in caught.value.why


def test_threads_exclude_each_other(paths: Paths) -> None:
    seen: list[bool] = []

    def other() -> None:
        try:
            with locks.container(paths, "web", verb="start"):
                seen.append(True)
        except Busy:
            seen.append(False)

    with locks.container(paths, "web", verb="stop"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [False]


def test_waiting_gets_the_lock_once_it_is_free(paths: Paths) -> None:
    entered = threading.Event()
    release = threading.Event()

    def first() -> None:
        with locks.pools(paths, verb="create"):
            entered.set()
            release.wait(5)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(5)
    threading.Timer(0.05, release.set).start()
    with locks.pools(paths, verb="create", wait=5):
        assert release.is_set()
    thread.join()


def test_a_lock_ends_with_its_killed_holder(paths: Paths) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom oneroot.settings import Paths\n"
        "from oneroot.work import locks\n"
        "with locks.base(Paths(run=Path(sys.argv[1])), 'core', verb='patch'):\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(paths.run)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        found = locks.holder(paths, "base-core")
        assert found is not None and (found.pid, found.verb) == (child.pid, "patch")
        child.kill()
    assert locks.holder(paths, "base-core") is None
    with locks.base(paths, "core", verb="patch"):
        pass


def test_looking_does_not_lock(paths: Paths) -> None:
    assert locks.holder(paths, "base-core") is None
    with locks.base(paths, "core", verb="patch"):
        assert locks.holder(paths, "base-core") is not None
    assert locks.holder(paths, "base-core") is None
