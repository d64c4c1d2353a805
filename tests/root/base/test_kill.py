"""Killed anywhere, a base is as it was or as it should become, and the same command finishes the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oneroot.base import fsck
from oneroot.base.store import Store
from oneroot.settings import Settings
from tests.root.base import repository, treeview
from tests.root.base.conftest import use
from tests.root.base.repository import NAME, Repository

MOST_POINTS = 60


def oneroot(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "oneroot", "--progress", "none", *words]
    return subprocess.run(
        argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )


def assert_nothing_left_running(settings: Settings) -> None:
    place = str(settings.paths.store)
    assert place not in Path("/proc/self/mounts").read_text()
    deadline = time.monotonic() + 10
    while users := [pid for pid in os.listdir("/proc") if pid.isdecimal() and _mounts(pid, place)]:
        assert time.monotonic() < deadline, f"still there: {users}"
        time.sleep(0.05)


def _mounts(pid: str, place: str) -> bool:
    try:
        return place in Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_an_upgrade_killed_at_every_point(
    settings: Settings, adopted: Settings, packages: Repository
) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    untouched = treeview.snapshot(str(Store(adopted).root(NAME, 1)))
    points = 0
    for point in range(1, MOST_POINTS):
        subprocess.run(["rm", "-rf", settings.paths.store], check=True)
        repository.clone(adopted, settings)
        use(settings, packages.line)
        done = oneroot("base", "upgrade", NAME, ONEROOT_KILL_POINT=str(point))
        store = Store(settings)
        assert_nothing_left_running(settings)
        if done.returncode == 0:
            points = point - 1
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert store.current(NAME) == max(store.numbers(NAME)[:1]) or store.current(NAME) == 2
        assert {one.number for one in store.generations(NAME)} in ({1}, {1, 2})
        again = oneroot("base", "upgrade", NAME)
        assert again.returncode == 0, f"after point {point}: {again.stderr}"
        assert (store.current(NAME), store.numbers(NAME)) == (2, [1, 2]), f"after point {point}"
        assert not (store.directory(NAME) / "stage").exists()
        assert store.generation(NAME, 2).packages["tini"] == "99.0-1"
    assert points >= 12
    assert fsck.check(Store(settings), NAME) == []
    assert treeview.snapshot(str(Store(adopted).root(NAME, 1))) == untouched


def test_an_upgrade_killed_while_packages_are_installed(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1", scripts={"postinst": "touch /usr/share/tini/reached; sleep 60"})
    packages.publish()
    store = Store(base)
    reached = store.directory(NAME) / "stage/upper/usr/share/tini/reached"
    argv = [sys.executable, "-m", "oneroot", "--progress", "none", "base", "upgrade", NAME]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 120
        while not reached.exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        child.kill()
    assert_nothing_left_running(base)
    assert (store.current(NAME), store.numbers(NAME)) == (1, [1])
    packages.add("tini", "99.0-2")
    packages.publish()
    assert oneroot("base", "upgrade", NAME).returncode == 0
    assert store.generation(NAME, 2).packages["tini"] == "99.0-2"
    assert fsck.check(store, NAME) == []


def test_a_signal_leaves_no_trace(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1", scripts={"postinst": "touch /usr/share/tini/reached; sleep 60"})
    packages.publish()
    store = Store(base)
    reached = store.directory(NAME) / "stage/upper/usr/share/tini/reached"
    argv = [sys.executable, "-m", "oneroot", "--progress", "none", "base", "upgrade", NAME]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 120
        while not reached.exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        child.terminate()
        said = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and "Traceback" not in said
    assert_nothing_left_running(base)
    assert (store.current(NAME), store.numbers(NAME)) == (1, [1])
    assert not (store.directory(NAME) / "stage").exists()


@pytest.mark.slow
def test_gc_and_rm_killed_at_every_point(settings: Settings, adopted: Settings, packages: Repository) -> None:
    for verb in (("gc",), ("rm",)):
        ended = False
        for point in range(1, MOST_POINTS):
            subprocess.run(["rm", "-rf", settings.paths.store], check=True)
            repository.clone(adopted, settings)
            use(settings, packages.line)
            store = Store(settings)
            with store.holding(NAME, "test"):
                _copy_generations(store)
            done = oneroot("base", *verb, NAME, "--yes", ONEROOT_KILL_POINT=str(point))
            if done.returncode == 0:
                ended = True
                break
            assert done.returncode == -signal.SIGKILL, done.stderr
            if store.exists(NAME):
                assert store.current(NAME) == 3
                again = oneroot("base", *verb, NAME, "--yes")
                assert again.returncode == 0, f"{verb} after point {point}: {again.stderr}"
            if verb == ("gc",):
                assert (store.numbers(NAME), store.collected(NAME)) == ([2, 3], [1])
                assert store.generation(NAME, 1).number == 1 and store.changes(NAME, 1) == []
            else:
                assert store.names() == []
        assert ended


def _copy_generations(store: Store) -> None:
    """Make generations 2 and 3 out of 1, by links: fast, and enough to be collected."""
    import dataclasses

    from oneroot.base.generation import GenerationNumber

    for number in (2, 3):
        prepared = store.stage(NAME) / "generation"
        source = store.directory(NAME) / "generations/1"
        subprocess.run(["cp", "-al", source, prepared], check=True)
        (prepared / "generation.json").unlink()
        changed = dataclasses.replace(store.generation(NAME, 1), number=GenerationNumber(number), parent=1)
        store.commit(prepared, changed)
    store.set_current(NAME, 3)
    store.sweep(NAME)
