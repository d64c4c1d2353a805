"""Whoever starts a container, and however: it takes the generation that is current then."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from oneroot.container.state import State, read_state
from oneroot.kernel import proc
from tests.root.runtime.conftest import World

REBOOT = "systemctl reboot --force --force"  # calls reboot(2) itself, so it needs no systemd


@pytest.fixture(scope="module")
def command(world: World) -> str:
    return world.make("rt-command")


@pytest.fixture(scope="module")
def units(world: World) -> str:
    return world.make("rt-units", command=None)


@pytest.fixture(scope="module")
def privileged(world: World) -> str:
    return world.make("rt-root", privileged=True)


@pytest.fixture(autouse=True)
def fresh(world: World) -> None:
    """Every test begins with nothing running, and generation 1."""
    for name in world.made:
        if world.state(name) is not State.STOPPED:
            world.lxc("lxc-stop", name, "--kill")
        world.wait_for(lambda name=name: not world.monitors(name))
    world.use(1)


@pytest.mark.parametrize("name", ["command", "units", "privileged"])
def test_plain_lxc_start(world: World, name: str, request: pytest.FixtureRequest) -> None:
    name = request.getfixturevalue(name)
    for number in (1, 2):
        world.use(number)
        started = world.lxc("lxc-start", name)
        assert started.returncode == 0, started.stderr + world.refusal(name)
        assert world.generation_inside(name) == number
        found = world.lease(name)
        assert (found.container, found.base, found.generation) == (name, "core", number)
        assert found.held and world.monitors(name) == [found.monitor]
        assert found.monitor_start == proc.start_time(found.monitor)
        seen = read_state(world.settings, name)
        assert (seen.state, seen.generation, seen.outdated) == (State.RUNNING, number, False)
        world.lxc("lxc-stop", name, "--kill")
        world.wait_for(lambda: not world.monitors(name))


def test_nothing_in_the_hosts_mount_table(world: World, command: str) -> None:
    world.lxc("lxc-start", command)
    assert world.host_mounts() == []
    table = Path(f"/proc/{world.lease(command).monitor}/mountinfo").read_text()
    ours = {line.split()[4]: line.split()[5] for line in table.splitlines() if str(world.place) in line}
    paths = world.settings.paths
    assert ours.keys() == {str(paths.lower), str(paths.overlay)}
    assert {"ro", "nosuid", "nodev"} <= set(ours[str(paths.lower)].split(","))
    assert {"rw", "nosuid", "nodev"} <= set(ours[str(paths.overlay)].split(","))


def test_the_lease_is_roots_alone(world: World, command: str) -> None:
    world.lxc("lxc-start", command)
    file = world.settings.paths.leases / command
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_reboot_from_inside_in_command_mode(world: World, command: str) -> None:
    world.lxc("lxc-start", command)
    before = world.lease(command)
    world.use(2)
    world.lxc("lxc-attach", command, "--", "sh", "-c", REBOOT)
    world.wait_for(lambda: world.lease(command).generation == 2)
    world.wait_for(lambda: world.state(command) is State.RUNNING)
    assert world.generation_inside(command) == 2
    assert world.lease(command).monitor == before.monitor
    mounted = Path(f"/proc/{before.monitor}/mountinfo").read_text().count(str(world.place / "run"))
    assert mounted == 2, "the mounts of before the reboot are still there"


@pytest.mark.parametrize("how", ["inside", "lxc-stop"])
def test_reboot_in_unit_mode(world: World, units: str, how: str) -> None:
    world.lxc("lxc-start", units)
    # A booting systemd does not hear the signal of lxc-stop.
    world.wait_for(
        lambda: "running" in world.lxc("lxc-attach", units, "--", "systemctl", "is-system-running").stdout
    )
    before = world.lease(units)
    world.use(2)
    if how == "inside":
        world.lxc("lxc-attach", units, "--", "systemctl", "reboot")
    else:
        world.lxc("lxc-stop", units, "--reboot", "--timeout", "20")
    world.wait_for(lambda: world.lease(units).generation == 2)
    world.wait_for(lambda: world.state(units) is State.RUNNING)
    assert world.generation_inside(units) == 2
    assert world.lease(units).monitor == before.monitor


def test_lxc_stop_reboot_ends_a_command(world: World, command: str) -> None:
    """A command's tini knows no reboot: it ends at the signal. ADR 0002 says so."""
    world.lxc("lxc-start", command)
    world.lxc("lxc-stop", command, "--reboot", "--timeout", "5")
    world.wait_for(lambda: world.state(command) is State.STOPPED)
    assert read_state(world.settings, command).ended_by_itself


def test_a_privileged_container_cannot_reboot(world: World, privileged: str) -> None:
    world.lxc("lxc-start", privileged)
    refused = world.lxc("lxc-attach", privileged, "--", "sh", "-c", REBOOT)
    assert refused.returncode != 0
    assert world.state(privileged) is State.RUNNING


def test_setuid_programs_work_inside(world: World, command: str) -> None:
    """passwd must read /etc/shadow, and is not root but by its setuid bit."""
    world.lxc("lxc-start", command)
    said = world.inside(command, "su -s /bin/sh nobody -c 'id -u; test ! -r /etc/shadow; passwd -S'")
    assert said.splitlines()[0] == "65534"
    assert said.splitlines()[1].startswith("nobody L")


def test_nobody_on_the_host_reaches_nothing(world: World, command: str) -> None:
    world.lxc("lxc-start", command)
    paths = world.settings.paths
    init = read_state(world.settings, command).pid
    upper = paths.container(command) / "overlay/upper"
    upper.parent.parent.chmod(0o700)  # as create makes it
    generation = paths.bases / "core/generations/1/root/usr/bin/passwd"
    lower = f"/proc/{world.lease(command).monitor}/root{paths.lower}/usr/bin/passwd"
    for path in (
        paths.bases,
        generation,
        upper,
        upper / "etc/hosts",
        lower,
        f"/proc/{init}/root/etc",
        paths.leases,
    ):
        tried = subprocess.run(
            ["ls", "-d", f"{path}/."], user=65534, group=65534, capture_output=True, text=True
        )
        assert tried.returncode != 0, path
        assert "denied" in tried.stderr, tried.stderr
    assert os.listdir(paths.lower) == []


def test_planted_variables_are_not_seen_by_init(world: World, command: str) -> None:
    world.lxc("lxc-start", command, env={"PLANTED": "secret", "ONEROOT_LOCK_TOKEN": "0" * 32})
    environment = world.inside(command, "tr '\\0' '\\n' < /proc/1/environ").splitlines()
    assert set(environment) == {
        "container=lxc",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG=C.UTF-8",
        "HOME=/root",
    }
