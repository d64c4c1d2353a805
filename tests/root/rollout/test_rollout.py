"""Rollouts over real containers: batches, failures, two terminals, signals, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oneroot.container import healthcheck, lease, liveness, spec
from oneroot.container.spec import Health
from oneroot.rollout import health
from oneroot.work import locks
from tests.root.rollout import place as places
from tests.root.rollout.place import COMMAND, Place, oneroot

NAMES = ("ro-a", "ro-b", "ro-c", "ro-d")
PATCH = ("patch", "core", "--no-upgrade")


@pytest.fixture
def running(place: Place, debian_tree: Path) -> Place:
    place.generation(2, debian_tree)
    for name in NAMES:
        place.container(name)
    place.start(*NAMES)
    return place


def on(place: Place, generation: int) -> list[str]:
    return [name for name in NAMES if place.generation_of(name) == generation]


def wait_until(said: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not said():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def begin(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def slowly(place: Place, name: str) -> None:
    """Let a container become healthy only when its file /go is there."""
    declared = spec.load(place.settings.paths, name)
    assert declared.ids is not None
    changed = {**vars(declared), "health": Health(command="test -e /go")}
    spec.save(place.settings.paths, type(declared)(**changed))


def go(place: Place, name: str) -> None:
    declared = spec.load(place.settings.paths, name)
    healthcheck.attach.execute(place.settings, declared.name, ["/bin/touch", "/go"], timeout=10)


def test_patch_then_rollback_then_patch(running: Place) -> None:
    found = json.loads(oneroot(*PATCH, "--format", "json").stdout)
    assert found[0]["rollout"]["moved"] == list(NAMES)
    assert on(running, 2) == list(NAMES)
    back = oneroot("rollback", "core", "--reason", "php broke")
    assert back.returncode == 3 and "Pinned:" in back.stdout
    assert on(running, 1) == list(NAMES)
    refused = oneroot(*PATCH)
    assert refused.returncode == 1 and "php broke" in refused.stderr and "base unpin core" in refused.stderr
    records = json.loads(oneroot("history", "--format", "json").stdout)
    assert [(one["verb"], one["state"]) for one in records] == [("rollback", "done"), ("patch", "done")]
    assert records[0]["why"] == "php broke"


def test_a_dry_run_of_rollback_changes_nothing(running: Place) -> None:
    assert oneroot(*PATCH).returncode in (0, 3)
    said = oneroot("rollback", "core", "--dry-run")
    assert said.returncode == 0 and "ro-d" in said.stdout
    assert on(running, 2) == list(NAMES) and running.current(running.base) == 2
    assert "rollback" not in oneroot("history").stdout


def test_a_failing_canary_is_told_and_taken_back(running: Place) -> None:
    declared = spec.load(running.settings.paths, "ro-a")
    check = Health(command="echo \x1b[31mred; cat /etc/generation; false", retries=1)
    spec.save(running.settings.paths, type(declared)(**{**vars(declared), "health": check}))
    before = lease.read(running.settings.paths, "ro-b")
    said = oneroot(*PATCH)
    assert said.returncode == 1
    assert "exit status 1" in said.stdout and "\\x1b[31mred" in said.stdout and "\x1b" not in said.stdout
    assert on(running, 1) == list(NAMES)
    assert lease.read(running.settings.paths, "ro-b") == before, "only the canary may have been touched"


def test_the_second_operator_is_told_who_and_since_when(running: Place) -> None:
    with locks.base(running.settings.paths, "core", verb="patch core"):
        for command in (PATCH, ("rollback", "core"), ("plan", "core")):
            said = oneroot(*command)
            assert said.returncode == 5
            assert "patch core" in said.stderr and str(os.getpid()) in said.stderr and "since" in said.stderr
        assert oneroot("rollout", "status", "core").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_run_that_goes_on(running: Place, number: signal.Signals) -> None:
    slowly(running, "ro-b")
    child = begin(*PATCH, "--batch", "1")
    wait_until(lambda: running.generation_of("ro-b") == 2)
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130, err
    assert on(running, 2) == ["ro-a", "ro-b"]
    assert json.loads(oneroot("rollout", "status", "--format", "json").stdout)[0]["state"] == "interrupted"
    before = lease.read(running.settings.paths, "ro-b")
    go(running, "ro-b")
    assert oneroot(*PATCH).returncode in (0, 3)
    assert on(running, 2) == list(NAMES)
    assert lease.read(running.settings.paths, "ro-b") == before, "it was restarted without need"


def test_pause_and_resume_from_another_terminal(running: Place) -> None:
    slowly(running, "ro-b")
    child = begin(*PATCH, "--batch", "1")
    wait_until(lambda: running.generation_of("ro-b") == 2)
    assert oneroot("rollout", "pause", "core").returncode == 0
    go(running, "ro-b")
    out, err = child.communicate(timeout=30)
    assert child.returncode == 1 and "paused" in out, err
    assert on(running, 2) == ["ro-a", "ro-b"]
    assert oneroot("rollout", "pause", "core").returncode == 1, "nothing is in progress"
    assert oneroot("rollout", "resume", "core").returncode in (0, 3)
    assert on(running, 2) == list(NAMES)
    assert oneroot("rollout", "resume", "core").returncode == 1, "nothing is unfinished"


def test_abort_from_another_terminal(running: Place) -> None:
    slowly(running, "ro-b")
    child = begin(*PATCH, "--batch", "1", "--timeout", "2")
    wait_until(lambda: running.generation_of("ro-b") == 2)
    assert oneroot("rollout", "abort", "core").returncode == 0
    go(running, "ro-b")
    child.communicate(timeout=30)
    assert child.returncode == 1
    assert on(running, 1) == list(NAMES) and running.current(running.base) == 1


def test_abort_of_a_paused_run(running: Place) -> None:
    slowly(running, "ro-c")
    said = oneroot(*PATCH, "--batch", "1", "--timeout", "0.2", "--on-failure", "pause")
    assert said.returncode == 1 and on(running, 2) == ["ro-a", "ro-b", "ro-c"]
    go(running, "ro-c")
    assert oneroot("rollout", "abort", "core").returncode == 0
    assert on(running, 1) == list(NAMES) and running.current(running.base) == 1


def test_rollback_takes_the_place_of_a_patch_that_was_killed(
    running: Place, tmp_path: Path, debian_tree: Path
) -> None:
    points = tmp_path / "points"
    one_at_a_time = (*PATCH, "--max-unavailable", "1")
    assert oneroot(*one_at_a_time, log=points).returncode in (0, 3)
    labels = [line.partition(" ")[2] for line in points.read_text().splitlines()]
    running.generation(3, debian_tree)
    killed = oneroot(*one_at_a_time, kill=labels.index("rollout: before start ro-c") + 1)
    assert killed.returncode == -9
    assert (on(running, 3), on(running, 2)) == (["ro-a", "ro-b"], ["ro-d"])
    said = oneroot("rollback", "core", "--to", "1")
    assert said.returncode == 3, said.stderr
    assert on(running, 1) == list(NAMES)
    assert "No rollout" in oneroot("rollout", "resume", "core").stderr


def test_liveness_of_commands(running: Place) -> None:
    paths = running.settings.paths
    declared = spec.load(paths, "ro-a")
    assert liveness.look(paths, declared).alive is True
    held = lease.read(paths, "ro-a")
    assert held is not None
    init = liveness.init_pid(held)
    assert init is not None
    os.kill(init, signal.SIGKILL)
    wait_until(lambda: not liveness.look(paths, declared).running)
    found = health.wait_alive(running.settings, "ro-a", timeout=30)
    assert found.alive is False and found.reasons == ("it is not running",)


@pytest.fixture
def full(debian_tree: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, Path]]:
    """A place whose store lies on a small filesystem; its run directory does not."""
    where = Path(tempfile.mkdtemp(prefix="oneroot-full-", dir="/var/tmp"))
    where.chmod(0o711)
    image, mounted = where / "image", where / "disk"
    mounted.mkdir()
    subprocess.run(["truncate", "-s", "40M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    made = places.make(mounted / "place", run=where / "run")
    monkeypatch.setenv("ONEROOT_SETTINGS", str(mounted / "place" / "settings.yaml"))
    mounted.chmod(0o711)
    try:
        made.generation(1, debian_tree)
        yield made, mounted
    finally:
        made.clean_up()
        subprocess.run(["umount", mounted], check=True)
        shutil.rmtree(where)


def fill(disk: Path, name: str) -> None:
    """Fill a filesystem to its last block."""
    for size in (1 << 20, 1 << 12, 1):
        with contextlib.suppress(OSError), open(disk / f"{name}-{size}", "wb", buffering=0) as file:
            while True:
                file.write(bytes(size))
                os.fsync(file.fileno()) if size > 1 else None


@pytest.mark.parametrize("ballast", [True, False])
def test_a_full_disk_never_stops_a_rollback(
    full: tuple[Place, Path], debian_tree: Path, ballast: bool
) -> None:
    place, disk = full
    place.generation(2, debian_tree)
    for name in NAMES:
        place.container(name)
    place.start(*NAMES)
    assert oneroot(*PATCH).returncode in (0, 3)
    fill(disk, "fill")
    if not ballast:
        (place.settings.paths.store / "journal.ballast").unlink()
        fill(disk, "more")
    said = oneroot("rollback", "core", "--reason", "disk")
    assert said.returncode == 3, said.stderr
    assert on(place, 1) == list(NAMES), said.stdout
    assert ballast or "not pinned" in said.stdout
