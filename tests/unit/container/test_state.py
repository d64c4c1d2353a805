"""States as they are read without any container running."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from oneroot.container import spec
from oneroot.container.spec import ContainerSpec
from oneroot.container.state import State, read_states
from oneroot.kernel import proc
from oneroot.names import BaseName, ContainerName
from oneroot.settings import Paths, Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(paths=Paths(store=tmp_path / "s", run=tmp_path / "r", lxc=tmp_path / "l"))
    made.paths.leases.mkdir(parents=True)
    (made.paths.bases / "core").mkdir(parents=True)
    (made.paths.bases / "core/current").symlink_to("generations/7")
    for name in ("unit-a", "unit-b"):
        made.paths.container(name).mkdir(parents=True)
        declared = ContainerSpec(
            name=ContainerName(name),
            base=BaseName("core"),
            created="",
            group="u",
            ids=None,
            addresses=("10.0.0.1",),
        )
        spec.save(made.paths, declared)
    return made


def write_lease(settings: Settings, name: str, **changed: object) -> None:
    fields = {
        "schema": 1, "container": name, "base": "core", "generation": 6, "boot_id": proc.boot_id(),
        "monitor": os.getpid(), "monitor_start": proc.start_time(os.getpid()), "taken": "",
    }  # fmt: skip
    (settings.paths.leases / name).write_text(json.dumps({**fields, **changed}))


def test_stopped(settings: Settings) -> None:
    (found,) = read_states(settings, ["unit-a"])
    assert (found.state, found.pid, found.generation, found.current_generation) == (
        State.STOPPED,
        None,
        None,
        7,
    )
    assert not found.outdated and not found.unprivileged and not found.ended_by_itself
    assert found.addresses == ("10.0.0.1",)


@pytest.mark.parametrize(
    "changed", [{"boot_id": "of another boot"}, {"monitor_start": 1}, {"monitor": 2**22 + 5}]
)
def test_a_lease_that_nobody_holds(settings: Settings, changed: dict[str, object]) -> None:
    write_lease(settings, "unit-a", **changed)
    (found,) = read_states(settings, ["unit-a"])
    assert (found.state, found.generation) == (State.STOPPED, None)
    assert found.ended_by_itself


def test_a_held_lease_without_an_init(settings: Settings) -> None:
    write_lease(settings, "unit-a")
    (found,) = read_states(settings, ["unit-a"])
    assert found.state in (State.STARTING, State.STOPPING)
    assert found.pid is None
    assert (found.generation, found.outdated) == (6, True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 9}', '{"schema": 1}', "\0" * 100])
def test_one_damaged_declaration_does_not_hide_the_others(settings: Settings, text: str) -> None:
    spec.spec_file(settings.paths, "unit-a").write_text(text)
    damaged, whole = read_states(settings, ["unit-a", "unit-b"])
    assert damaged.spec is None and damaged.damage and damaged.state is State.STOPPED
    assert whole.spec is not None and whole.damage == ""


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 2}'])
def test_a_damaged_lease_is_none(settings: Settings, text: str) -> None:
    (settings.paths.leases / "unit-a").write_text(text)
    (found,) = read_states(settings, ["unit-a"])
    assert (found.state, found.lease) == (State.STOPPED, None)
