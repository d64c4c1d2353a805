"""What the start hook refuses, and that a refusal or a kill leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from oneroot.container import lifecycle
from oneroot.container.state import State, read_state
from oneroot.errors import Busy, OnerootError
from oneroot.work import locks
from tests.root.runtime.conftest import FIRST_ID, World, all_pids, command_line


@pytest.fixture
def name(world: World, request: pytest.FixtureRequest) -> str:
    """A container of the test's own, whose files it may break."""
    return world.make(f"rt-no{len(world.made)}")


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> None:
    world.use(1)


def refused(world: World, name: str, expected: str, **how: object) -> None:
    """Plain lxc-start fails, for this reason, and leaves no lease and no mount."""
    started = world.lxc("lxc-start", name, **how)  # type: ignore[arg-type]
    assert started.returncode != 0
    code, why, fix = world.refusal(name).splitlines()
    assert expected in why
    assert code and fix
    assert (world.settings.paths.run / f"hook/{name}.error").stat().st_mode & 0o777 == 0o600
    assert not (world.settings.paths.leases / name).exists()
    assert world.host_mounts() == []
    assert world.state(name) is State.STOPPED


def change_config(world: World, name: str, old: str, new: str) -> None:
    file = world.settings.paths.container(name) / "config"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_copy(world: World, name: str) -> None:
    copied = world.lxc("lxc-copy", name, "-N", "rt-copy")
    directory = world.settings.paths.container("rt-copy")
    if copied.returncode != 0:
        # LXC 5.0.2 fails to copy our overlay; what a person does then is this.
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(world.settings.paths.container(name), directory, symlinks=True)
    refused(world, "rt-copy", f"rt-copy is a copy of {name}")


def test_another_configuration(world: World, name: str) -> None:
    other = world.place / "other-config"
    shutil.copy(world.settings.paths.container(name) / "config", other)
    started = world.lxc("lxc-start", name, "-f", str(other))
    assert started.returncode != 0
    assert "started with the configuration" in world.refusal(name)


def test_the_hosts_mount_namespace(world: World, name: str) -> None:
    change_config(world, name, "lxc.monitor.unshare = 1", "lxc.monitor.unshare = 0")
    refused(world, name, "the host's mount namespace")


def test_a_dangling_current(world: World, name: str) -> None:
    world.use(9)
    refused(world, name, "generation 9 of core is gone")


@pytest.mark.parametrize("target", ["/etc", "generations/../../x", "generations/1x", "generations/-1"])
def test_a_current_that_leads_elsewhere(world: World, name: str, target: str) -> None:
    link = world.settings.paths.bases / "core/current"
    link.unlink()
    link.symlink_to(target)
    refused(world, name, f"the current generation of core is {target}")
    link.unlink()


def test_no_current(world: World, name: str) -> None:
    (world.settings.paths.bases / "core/current").unlink()
    refused(world, name, "core has no current generation")


def test_an_incomplete_generation(world: World, name: str) -> None:
    described = world.settings.paths.bases / "core/generations/1/generation.json"
    described.rename(described.with_name("away"))
    try:
        refused(world, name, "generation 1 of core is gone or incomplete")
    finally:
        described.with_name("away").rename(described)


@pytest.mark.parametrize("part", ["overlay", "overlay/upper", "overlay/work"])
@pytest.mark.parametrize("instead", ["nothing", "link"])
def test_a_missing_upper(world: World, name: str, part: str, instead: str) -> None:
    path = world.settings.paths.container(name) / part
    path.rename(world.place / f"away-{name}")
    if instead == "link":
        path.symlink_to(world.place / f"away-{name}")
    refused(world, name, "has no upper and work directory")


def test_an_upper_of_another_range(world: World, name: str) -> None:
    os.chown(world.settings.paths.container(name) / "overlay/upper", FIRST_ID - 1, FIRST_ID - 1)
    refused(world, name, f"belongs to uid {FIRST_ID - 1}")


def test_no_declaration(world: World, name: str) -> None:
    (world.settings.paths.container(name) / "oneroot.json").unlink()
    refused(world, name, "has no declaration")


@pytest.mark.parametrize(
    "word",
    ["--ids 0:5", "--ids 1:0", "--ids 4294967295:2", "--ids x:1", "--ids 5", "--name ../x", "--more 1"],
)
def test_a_damaged_line(world: World, name: str, word: str) -> None:
    option, value = word.split()
    config = world.settings.paths.container(name) / "config"
    lines = config.read_text().splitlines()
    for place, line in enumerate(lines):
        if line.startswith("lxc.hook.pre-start"):
            words = line.split()
            if option in words:
                words[words.index(option) + 1] = value
            else:
                words += [option, value]
            lines[place] = " ".join(words)
    config.write_text("\n".join(lines) + "\n")
    assert world.lxc("lxc-start", name).returncode != 0
    assert world.host_mounts() == []
    assert not (world.settings.paths.leases / name).exists()


@pytest.mark.parametrize("token", [None, "0" * 32, "", locks.TOKEN[:-1], locks.TOKEN + "0"])
def test_the_lock_of_somebody_else(world: World, name: str, token: str | None) -> None:
    with locks.container(world.settings.paths, name, verb="rm"):
        env = {} if token is None else {locks.TOKEN_VARIABLE: token}
        refused(world, name, "does “rm” since", env=env)
    assert world.refusal(name).startswith("busy\n")


def test_the_lock_of_who_starts_it(world: World, name: str) -> None:
    with locks.container(world.settings.paths, name, verb="rollout"):
        started = world.lxc("lxc-start", name, env={locks.TOKEN_VARIABLE: locks.TOKEN})
        assert started.returncode == 0
    # The hook of a start that is over must not hold it either.
    with locks.container(world.settings.paths, name, verb="stop"):
        lifecycle.stop_locked(world.settings, name)


def test_a_refusal_has_its_reason_and_family(world: World, name: str) -> None:
    world.use(9)
    with pytest.raises(OnerootError, match="generation 9 of core is gone") as caught:
        lifecycle.start_one(world.settings, name, verb="start")
    assert caught.value.fix == "oneroot base fsck"
    assert caught.value.container == name
    world.use(1)
    assert lifecycle.start_one(world.settings, name, verb="start") is lifecycle.Change.STARTED
    assert not (world.settings.paths.run / f"hook/{name}.error").exists()


def test_collection_in_progress_is_waited_for(world: World, name: str) -> None:
    world.lxc("lxc-start", world.make("rt-other"))  # makes the lock's file
    import fcntl
    import struct

    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    lock = os.open(world.settings.paths.locks / "mount-core", os.O_RDWR)
    fcntl.fcntl(lock, fcntl.F_OFD_SETLK, whole)
    starting = threading.Thread(target=world.lxc, args=("lxc-start", name))
    starting.start()
    world.wait_for(lambda: hooks(name))
    assert world.state(name) is State.STOPPED
    os.close(lock)
    starting.join()
    assert world.state(name) is State.RUNNING


def test_a_second_monitor(world: World, name: str) -> None:
    """LXC takes another spelling of its path for another container."""
    assert world.lxc("lxc-start", name).returncode == 0
    before = world.lease(name)
    again = world.lxc("lxc-start", name, path=f"{world.settings.paths.lxc}/.")
    assert again.returncode != 0
    assert f"runs already, its monitor is process {before.monitor}" in world.refusal(name)
    assert world.lease(name) == before
    assert world.state(name) is State.RUNNING


def test_concurrent_starts(world: World, name: str) -> None:
    """By hand and by us, all at once: one runs, all say so or are told to wait."""
    failures: list[OnerootError] = []

    def ours() -> None:
        try:
            lifecycle.start_one(world.settings, name, verb="start")
        except Busy as error:
            failures.append(error)

    crew = [threading.Thread(target=ours) for _ in range(3)]
    crew += [threading.Thread(target=world.lxc, args=("lxc-start", name)) for _ in range(3)]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    world.wait_for(lambda: world.state(name) is State.RUNNING)
    assert len(world.monitors(name)) == 1
    assert world.lease(name).monitor == world.monitors(name)[0]


def hooks(name: str) -> list[int]:
    wanted = b"--name\0" + name.encode() + b"\0"
    return [pid for pid in all_pids() if b"/start-hook\0" in (line := command_line(pid)) and wanted in line]


def test_kill_the_hook(world: World, name: str) -> None:
    with locks.container(world.settings.paths, name, verb="test"):  # it waits for this
        starting = subprocess.Popen(
            ["lxc-start", "-P", world.settings.paths.lxc, "-n", name], stderr=subprocess.DEVNULL
        )
        world.wait_for(lambda: hooks(name))
        os.kill(hooks(name)[0], signal.SIGKILL)
        assert starting.wait(30) != 0
    assert world.host_mounts() == []
    assert world.state(name) is State.STOPPED
    assert lifecycle.start_one(world.settings, name, verb="start") is lifecycle.Change.STARTED


def test_kill_the_monitor(world: World, name: str) -> None:
    lifecycle.start_one(world.settings, name, verb="start")
    seen = read_state(world.settings, name)
    held = world.lease(name)
    os.kill(held.monitor, signal.SIGKILL)
    world.wait_for(lambda: not held.held)
    # At once, while its processes may still be ending: the new mount must wait for the old one's end.
    assert lifecycle.start_one(world.settings, name, verb="start") is lifecycle.Change.STARTED
    assert not Path(f"/proc/{seen.pid}/root/etc").exists()
    assert world.host_mounts() == []
    assert world.inside(name, "echo lives") == "lives"


def test_destroy_and_snapshot_harm_nothing(world: World, name: str) -> None:
    paths = world.settings.paths
    tree = sorted(os.listdir(paths.bases / "core/generations/1/root"))
    world.lxc("lxc-snapshot", name)
    assert world.lxc("lxc-destroy", name, "--snapshots").returncode in (0, 1)
    assert (paths.container(name) / "config").exists(), "managed = 0 keeps it"
    assert (paths.container(name) / "overlay/upper/etc/hosts").exists()
    assert sorted(os.listdir(paths.bases / "core/generations/1/root")) == tree
    assert lifecycle.start_one(world.settings, name, verb="start") is lifecycle.Change.STARTED
    assert world.lxc("lxc-destroy", name, "--force").returncode in (0, 1)
    assert (paths.container(name) / "overlay/upper/etc/hosts").exists()
    assert sorted(os.listdir(paths.bases / "core/generations/1/root")) == tree
