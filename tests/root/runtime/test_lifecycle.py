"""start, stop, restart, wait, and what state containers are seen in."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oneroot.container import lease, lifecycle
from oneroot.container.lifecycle import Change
from oneroot.container.spec import Limits, spec_file
from oneroot.container.state import State, read_state, read_states
from oneroot.errors import Busy, CorruptState, OnerootError
from oneroot.work import locks
from tests.root.runtime.conftest import World, all_pids, command_line


@pytest.fixture
def name(world: World) -> str:
    return world.make(f"rt-life{len(world.made)}")


def start(world: World, name: str) -> Change:
    return lifecycle.start_one(world.settings, name, verb="start")


def stop(world: World, name: str, timeout: float | None = None) -> Change:
    return lifecycle.stop_one(world.settings, name, verb="stop", timeout=timeout)


def test_verbs_can_be_said_again(world: World, name: str) -> None:
    assert stop(world, name) is Change.NOTHING
    assert start(world, name) is Change.STARTED
    first = world.lease(name)
    assert start(world, name) is Change.NOTHING
    assert world.lease(name) == first
    assert stop(world, name) is Change.STOPPED
    assert lease.read(world.settings.paths, name) is None
    assert world.monitors(name) == []
    assert stop(world, name) is Change.NOTHING


def test_an_end_that_nobody_asked_for(world: World, name: str) -> None:
    start(world, name)
    world.lxc("lxc-stop", name, "--kill")
    world.wait_for(lambda: world.state(name) is State.STOPPED)
    assert read_state(world.settings, name).ended_by_itself
    assert stop(world, name) is Change.NOTHING
    assert not read_state(world.settings, name).ended_by_itself


def test_a_graceful_stop_uses_the_signal_of_a_command(world: World) -> None:
    name = world.make("rt-term", command="trap 'echo bye > /said; exit 0' TERM; while :; do sleep 0.05; done")
    start(world, name)
    time.sleep(0.2)  # its shell sets the trap
    stop(world, name)
    assert (world.settings.paths.container(name) / "overlay/upper/said").read_text() == "bye\n"


def test_a_unit_container_stops_cleanly(world: World) -> None:
    name = world.make("rt-clean", command=None)
    start(world, name)
    world.wait_for(
        lambda: "running" in world.lxc("lxc-attach", name, "--", "systemctl", "is-system-running").stdout
    )
    world.inside(
        name,
        "printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/true\\n"
        'ExecStop=/bin/sh -c "echo bye > /said"\\n\' > /run/systemd/system/bye.service; systemctl start bye',
    )
    stop(world, name, timeout=20)
    assert (world.settings.paths.container(name) / "overlay/upper/said").read_text() == "bye\n"


def test_one_that_ignores_its_signal_is_killed(world: World) -> None:
    name = world.make("rt-deaf", command="trap '' TERM INT; while :; do sleep 1; done")
    start(world, name)
    time.sleep(0.2)  # its shell sets the trap
    assert stop(world, name, timeout=1) is Change.STOPPED
    assert world.state(name) is State.STOPPED


def test_a_frozen_one(world: World, name: str) -> None:
    start(world, name)
    assert world.lxc("lxc-freeze", name).returncode == 0
    assert world.state(name) is State.FROZEN
    assert start(world, name) is Change.NOTHING
    assert stop(world, name) is Change.STOPPED


def test_a_start_that_lxc_fails_tells_the_cause(world: World, name: str) -> None:
    config = world.settings.paths.container(name) / "config"
    text = config.read_text()
    config.write_text(text.replace("/usr/bin/tini", "/usr/bin/missing"))
    with pytest.raises(OnerootError, match='Failed to exec "/usr/bin/missing"') as caught:
        start(world, name)
    assert "newuidmap" not in caught.value.why
    assert caught.value.container == name
    assert world.state(name) is State.STOPPED
    config.write_text(text)
    assert start(world, name) is Change.STARTED


def test_a_failing_overlay_is_named(world: World, name: str) -> None:
    config = world.settings.paths.container(name) / "config"
    config.write_text(config.read_text().replace("index=off", "index=maybe"))
    with pytest.raises(OnerootError, match="Failed to mount") as caught:
        start(world, name)
    first = caught.value.why.splitlines()[0]
    assert "workdir=" in first, "this is LXC's second attempt, whose error has another cause"


def test_a_damaged_declaration(world: World, name: str) -> None:
    start(world, name)
    file = spec_file(world.settings.paths, name)
    kept = file.read_text()
    file.write_text('{"schema": 1, "name":')
    other = world.make("rt-whole")
    damaged, whole = read_states(world.settings, [name, other])
    assert "damaged" in damaged.damage and damaged.spec is None
    assert (damaged.state, damaged.base, damaged.generation) == (State.RUNNING, "core", 1)
    assert (whole.state, whole.damage) == (State.STOPPED, "")
    assert stop(world, name) is Change.STOPPED
    with pytest.raises(CorruptState):
        start(world, name)
    file.write_text(kept)


def test_a_lost_lease_does_not_hide_a_container(world: World, name: str) -> None:
    start(world, name)
    pid = read_state(world.settings, name).pid
    (world.settings.paths.leases / name).unlink()
    found = read_state(world.settings, name)
    assert (found.state, found.pid, found.generation, found.lease) == (State.RUNNING, pid, None, None)
    assert stop(world, name) is Change.STOPPED
    assert world.state(name) is State.STOPPED


def test_the_same_name_on_another_lxc_path_is_not_ours(world: World, name: str) -> None:
    elsewhere = world.place / "elsewhere"
    (elsewhere / name).mkdir(parents=True)
    (elsewhere / name / "config").write_text(
        f"lxc.uts.name = {name}\nlxc.rootfs.path = dir:/\nlxc.rootfs.managed = 0\n"
        "lxc.init.cmd = /bin/sleep 60\nlxc.net.0.type = empty\nlxc.mount.auto = proc:mixed\n"
    )
    try:
        assert world.lxc("lxc-start", name, path=str(elsewhere)).returncode == 0
        assert world.state(name) is State.STOPPED
    finally:
        world.lxc("lxc-stop", name, "--kill", path=str(elsewhere))


def test_wait(world: World, name: str) -> None:
    other = world.make("rt-never")
    start(world, name)
    done, late = lifecycle.wait(world.settings, [name, other], {State.RUNNING}, timeout=0.2)
    assert (done.name, done.value, done.error) == (name, State.RUNNING, None)
    assert late.error is not None and "it is STOPPED" in late.error.why


def test_an_unknown_and_a_busy_one_fail_alone(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_LOCK_PATIENCE", 0.1)
    with locks.container(world.settings.paths, name, verb="test"), pytest.raises(Busy):
        start(world, name)
    with pytest.raises(OnerootError, match="no container rt-absent"):
        start(world, "rt-absent")


KILLED = """
import sys
from oneroot import settings
from oneroot.container import lifecycle
getattr(lifecycle, sys.argv[1] + "_one")(settings.load(), sys.argv[2], verb=sys.argv[1])
"""


@pytest.mark.parametrize("point", [1, 2])
def test_killed_at_every_point(world: World, name: str, point: int) -> None:
    """Start and stop end by SIGKILL at their N-th point; the same command again finishes."""
    env = {**os.environ, "ONEROOT_SETTINGS": str(world.place / "settings.yaml")}

    def run(verb: str, **more: str) -> int:
        argv = [sys.executable, "-c", KILLED, verb, name]
        return subprocess.run(argv, env={**env, **more}, check=False).returncode

    for verb, wanted in (("start", State.RUNNING), ("stop", State.STOPPED)):
        assert run(verb, ONEROOT_KILL_POINT=str(point)) == -9
        assert world.host_mounts() == []
        assert len(world.monitors(name)) <= 1
        assert run(verb, ONEROOT_KILL_POINT="3") == 0, "there is a third point: kill there too"
        assert world.state(name) is wanted
    assert lease.read(world.settings.paths, name) is None


def host_value(name: str, *candidates: str) -> str:
    for candidate in candidates:
        file = Path("/sys/fs/cgroup") / candidate.format(f"lxc.payload.{name}")
        if file.exists():
            return file.read_text().strip()
    raise AssertionError(f"none of {candidates} exists")


def test_limits_are_in_force(world: World) -> None:
    name = world.make("rt-small", limits=Limits(memory=64 << 20, cpus=0.5, pids=50))
    start(world, name)
    assert host_value(name, "memory/{}/memory.limit_in_bytes", "{}/memory.max") == str(64 << 20)
    assert host_value(name, "cpu/{}/cpu.cfs_quota_us", "{}/cpu.max").split()[0] == "50000"
    assert host_value(name, "pids/{}/pids.max", "{}/pids.max") == "50"
    forked = world.lxc("lxc-attach", name, "--", "sh", "-c", "for i in $(seq 80); do sleep 5 & done; wait")
    assert "fork" in forked.stderr
    eaten = world.lxc(
        "lxc-attach", name, "--", "sh", "-c", "head -c 200M /dev/zero | tail -c 150M | wc -c; exit 0"
    )
    assert str(150 << 20) not in eaten.stdout


def test_the_console_log_is_bounded(world: World) -> None:
    name = world.make("rt-loud", command="yes 'a line of some length that says nothing'")
    start(world, name)
    limit = world.settings.policy.console_log
    directory = world.settings.paths.container(name)
    world.wait_for(lambda: (directory / "console.log.1").exists())
    time.sleep(0.3)
    sizes = [file.stat().st_size for file in directory.glob("console.log*")]
    assert sum(sizes) <= 2 * limit + (64 << 10), sizes
    stop(world, name, timeout=1)


def test_no_process_but_lxcs_is_left(world: World, name: str) -> None:
    start(world, name)
    stop(world, name)
    left = [line for pid in all_pids() if name.encode() in (line := command_line(pid))]
    assert left == []
