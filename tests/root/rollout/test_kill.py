"""patch and rollback, killed at every numbered point and run again: nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneroot.container import lease
from oneroot.container.spec import Health
from oneroot.rollout.job import unfinished
from oneroot.work.journal import Journal, RunState
from tests.root.rollout.place import Place, oneroot

NAMES = ("ro-a", "ro-b", "ro-c")
STOPPED = "ro-stopped"
MANY = 200


def monitors(place: Place, generation: int) -> dict[str, int]:
    """Return the monitors of the containers that run on a generation."""
    found = {name: lease.read(place.settings.paths, name) for name in NAMES}
    return {
        name: one.monitor for name, one in found.items() if one and one.held and one.generation == generation
    }


def finished(place: Place, command: tuple[str, ...], target: int, died_at: str) -> None:
    before = monitors(place, target)
    again = oneroot(*command)
    assert again.returncode in (0, 3), f"after {died_at}: {again.stderr}"
    after = monitors(place, target)
    assert sorted(after) == sorted(NAMES), f"after {died_at}: {again.stdout}"
    restarted = [name for name, monitor in before.items() if after[name] != monitor]
    assert not restarted, f"after {died_at}: restarted without need"
    assert place.generation_of(STOPPED) is None, f"after {died_at}: what was stopped was started"
    assert place.current(place.base) == target
    with Journal(place.settings.paths) as journal:
        assert unfinished(journal, place.base) is None, f"after {died_at}: a run is left open"
        assert journal.history(limit=1)[0].state is RunState.DONE


@pytest.fixture
def running(place: Place) -> Place:
    for name in (*NAMES, STOPPED):
        place.container(name)
    place.start(*NAMES)
    return place


@pytest.mark.slow
def test_patch_killed_at_every_point(running: Place, tmp_path: Path, debian_tree: Path) -> None:
    command = ("patch", "core", "--no-upgrade", "--batch", "2")
    for point in range(1, MANY):
        running.generation(point + 1, debian_tree)
        log = tmp_path / f"points-{point}"
        killed = oneroot(*command, kill=point, log=log)
        reached = log.read_text().splitlines() if log.exists() else []
        if killed.returncode != -9:
            assert killed.returncode in (0, 3), killed.stderr
            assert point > 20, "there are fewer kill points than steps"
            return
        finished(running, command, point + 1, reached[-1])
    pytest.fail("it never came to its end")


@pytest.mark.slow
def test_rollback_killed_at_every_point(running: Place, tmp_path: Path, debian_tree: Path) -> None:
    for number in range(2, MANY // 2):
        running.generation(number, debian_tree)
    top = MANY // 2 - 1
    assert oneroot("patch", "core", "--no-upgrade").returncode in (0, 3)
    command = ("rollback", "core", "--reason", "test")
    for point in range(1, top):
        log = tmp_path / f"points-{point}"
        killed = oneroot(*command, kill=point, log=log)
        reached = log.read_text().splitlines() if log.exists() else []
        if killed.returncode != -9:
            assert killed.returncode in (0, 3), killed.stderr
            assert point > 20, "there are fewer kill points than steps"
            return
        begun = any("rollback core begun" in line for line in reached)
        ended = "journal: run done" in reached[-1]
        if ended:  # the same command again is another rollback
            continue
        assert begun
        finished(running, command, top - point, reached[-1])
    pytest.fail("it never came to its end")


@pytest.mark.slow
def test_going_back_after_a_failure_killed_at_every_point(
    place: Place, tmp_path: Path, debian_tree: Path
) -> None:
    place.generation(2, debian_tree)
    place.container("ro-a")
    place.container("ro-b", health=Health(command='test "$(cat /etc/generation)" = 1', retries=1))
    place.container("ro-c")
    place.container(STOPPED)
    place.start(*NAMES)
    command = ("patch", "core", "--no-upgrade", "--batch", "2", "--canary", "0")
    for point in range(1, MANY):
        log = tmp_path / f"points-{point}"
        killed = oneroot(*command, kill=point, log=log)
        last = log.read_text().splitlines()[-1] if log.exists() else ""
        if killed.returncode == -9 and "run rolled back" not in last:
            again = oneroot(*command)
            assert again.returncode == 1, f"after {last}: {again.stdout} {again.stderr}"
            assert "ro-b" in again.stdout or "going back" in again.stderr or "rolled back" in again.stdout
        assert sorted(monitors(place, 1)) == sorted(NAMES), f"after {last}"
        assert place.current(place.base) == 1, f"after {last}"
        assert place.generation_of(STOPPED) is None
        with Journal(place.settings.paths) as journal:
            assert unfinished(journal, place.base) is None, f"after {last}"
            assert journal.history(limit=1)[0].state is RunState.ROLLED_BACK, f"after {last}"
        if killed.returncode != -9:
            assert point > 30, "there are fewer kill points than steps"
            return
    pytest.fail("it never came to its end")
