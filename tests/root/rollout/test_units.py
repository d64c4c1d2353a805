"""Liveness of units, seen from the host; health checks of a real Apache; a rollout that Apache fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oneroot.container import attach, healthcheck, lease, liveness, spec
from oneroot.container.spec import Health
from oneroot.errors import OnerootError
from oneroot.kernel import proc
from oneroot.kernel.tree import Tree
from oneroot.rollout import health
from tests.root.rollout.place import Place, oneroot

ONESHOT = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
ENDS = "[Service]\nExecStart=/bin/true\n"
LOOPS = "[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=60\n"


@pytest.fixture
def web(place: Place, debian_tree: Path) -> Place:
    """A place with a whole tree instead of the small one."""
    place.base = type(place.base)("whole")
    place.generation(1, debian_tree, small=False)
    return place


def unit(place: Place, name: str, file: str, text: str) -> None:
    """Write a unit file into a stopped container."""
    declared = spec.load(place.settings.paths, name)
    assert declared.ids is not None
    with Tree(place.settings.paths.container(name) / "overlay" / "upper") as upper:
        upper.write_file(
            f"etc/systemd/system/{file}", text.encode(), uid=declared.ids.first, gid=declared.ids.first
        )


def wait_until(said: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not said():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


STARTING = "systemd has not begun to start units"


def _problem(place: Place, declared: spec.ContainerSpec) -> str:
    return "; ".join(liveness.look(place.settings.paths, declared).reasons)


def test_apache_is_alive_and_a_dead_one_is_not(web: Place) -> None:
    name = web.container("ro-web", units=("apache2.service",), health=Health(http="80/"), address=True)
    web.start(name)
    assert health.wait_alive(web.settings, name).ok
    declared = spec.load(web.settings.paths, name)
    held = lease.read(web.settings.paths, name)
    assert held is not None
    for pid in proc.pids():
        groups = proc.cgroup(pid)
        if f"lxc.payload.{name}" in groups and "apache2.service" in groups:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: liveness.look(web.settings.paths, declared).alive is False)
    found = healthcheck.check(web.settings, declared)
    assert "apache2.service" in found.reasons[0] and found.running


def test_it_needs_no_process_of_its_own_inside(web: Place) -> None:
    """At the limit of processes nothing can be attached, and a look must still tell."""
    name = web.container("ro-web", units=("apache2.service",), health=Health(http="80/"), address=True)
    web.start(name)
    assert health.wait_alive(web.settings, name).ok
    declared = spec.load(web.settings.paths, name)
    held = lease.read(web.settings.paths, name)
    assert held is not None
    for limit in (
        Path(f"/sys/fs/cgroup/pids/lxc.payload.{name}/pids.max"),
        Path(f"/sys/fs/cgroup/lxc.payload.{name}/pids.max"),
    ):
        if limit.exists():
            limit.write_text("1")
    try:
        ran = attach.execute(web.settings, name, ["/bin/true"], timeout=5).returncode
    except OnerootError:
        ran = -1
    assert ran != 0, "this tests nothing if one can attach"
    assert liveness.look(web.settings.paths, declared).alive is True


def test_units_without_a_process(web: Place) -> None:
    wanted = {"once.service": (ONESHOT, True), "ends.service": (ENDS, False), "loops.service": (LOOPS, False)}
    for place_of, (file, (text, _)) in enumerate(wanted.items()):
        name = f"ro-u{place_of}"
        web.container(name, units=(file,))
        unit(web, name, file, text)
    web.container("ro-u9", units=("dbus.socket",))
    names = [f"ro-u{place_of}" for place_of in range(len(wanted))] + ["ro-u9"]
    masked = web.container("ro-um", units=("dbus.socket", "once.service"))
    unit(web, masked, "once.service", ONESHOT)
    unit(web, masked, "dbus.socket", "[Socket]\nListenStream=/nonsense/\n")
    file_of = dict(zip(names, wanted, strict=False))
    web.start(*names)
    for name, expected in zip(names, [alive for _, alive in wanted.values()] + [True], strict=True):
        if expected:
            assert health.wait_alive(web.settings, name, timeout=10).alive
        else:  # what begins to start looks alive for a moment
            declared = spec.load(web.settings.paths, name)
            wait_until(lambda declared=declared: _problem(web, declared) not in ("", STARTING))
            assert file_of[name] in _problem(web, declared)
    web.start(masked)
    found = health.wait_alive(web.settings, masked, timeout=3)
    assert found.alive is False and found.reasons == ("the unit dbus.socket is failed",)


def test_an_update_that_breaks_apache_is_taken_back(web: Place, debian_tree: Path) -> None:
    web.generation(2, debian_tree)
    ports = web.settings.paths.bases / "whole/generations/2/root/etc/apache2/ports.conf"
    ports.unlink()  # linked to the first generation's
    ports.write_text("Listen nonsense\n")
    names = [
        web.container(f"ro-w{number}", units=("apache2.service",), health=Health(http="80/"), address=True)
        for number in range(3)
    ]
    web.start(*names)
    for name in names:
        assert health.wait_alive(web.settings, name).ok
    monitors = {name: web.monitor_of(name) for name in names}
    said = oneroot("patch", "whole", "--no-upgrade", "--timeout", "3")
    assert said.returncode == 1 and "apache2.service" in said.stdout
    assert [web.generation_of(name) for name in names] == [1, 1, 1]
    assert [web.monitor_of(name) for name in names[1:]] == [monitors[name] for name in names[1:]]
    assert health.wait_alive(web.settings, names[0]).ok
