"""What the acceptance tests share: the words, and what a host looks like before and after."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oneroot.container import spec
from oneroot.container.state import read_states
from tests.command import Said, refused
from tests.root.scene import Scene

NETWORK = "ipv4: 10.94.0.0/23, gateway: 169.254.94.1"
NEIGHBOURS_NETWORK = "ipv4: 10.94.2.0/23, gateway: 169.254.94.1"
IDS = (2100000000, 50 * 65536)
MORE = f"ids: {{first: {IDS[0]}, count: {IDS[1]}}}"
NEIGHBOURS_MORE = f"ids: {{first: {IDS[0] + IDS[1]}, count: {IDS[1]}}}"
CONTAINERS = ("ac001", "ac002", "ac003")
COMMAND = ("--base", "core", "--command", "sleep infinity")
CREATE = ("create", *COMMAND, "--replicas", "3", "ac")
PATCH = ("patch", "core", "--yes")
ROLLBACK = ("rollback", "core", "--to", "1", "--reason", "test", "--yes")

_PASSING = re.compile(
    r"store/(cache|log|journal\.db.*|journal\.ballast|pools\.json|stage)(/.*)?"
    r"|lxc/[^/]+/(console\.log.*|overlay/work(/.*)?)"
    r"|store/bases/[^/]+/(checked\.json|stage)"
)
"""What may change although nothing happened: caches, logs, the journal of what was tried."""
_TREE = re.compile(r"store/bases/[^/]+/generations/[0-9]+/root")


def picture(scene: Scene) -> dict[str, tuple[object, ...]]:
    """Describe everything of a host that a refused command must not change; runs included."""
    found: dict[str, tuple[object, ...]] = {}
    for name in ("store", "lxc"):
        _look(scene.place, name, found)
    settings = scene.settings
    for state in read_states(settings, spec.names(settings.paths)):
        found[f"state of {state.name}"] = (state.state, state.generation, state.pid)
    return found


def _look(place: Path, path: str, found: dict[str, tuple[object, ...]]) -> None:
    if _PASSING.fullmatch(path):
        return
    full = place / path
    try:
        status = full.lstat()
    except FileNotFoundError:
        return
    content: object = None
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(full)
    elif stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(full.read_bytes()).hexdigest()
    found[path] = (status.st_mode, status.st_uid, status.st_gid, content)
    # the trees of generations are looked at whole in test_generations
    if stat.S_ISDIR(status.st_mode) and not _TREE.fullmatch(path):
        for name in os.listdir(full):
            _look(place, f"{path}/{name}", found)


@contextlib.contextmanager
def unchanged(scene: Scene) -> Iterator[None]:
    """Whatever is done in between must leave everything as it was."""
    before = picture(scene)
    yield
    after = picture(scene)
    differing = {
        path: (before.get(path), after.get(path))
        for path in {*before, *after}
        if before.get(path) != after.get(path)
    }
    assert not differing, differing


def refuse(scene: Scene, *words: str, code: int, why: str, prefix: tuple[str, ...] = ()) -> Said:
    """Run what must be refused with one message that says this, and change nothing."""
    said = refused(*words, code=code, env=scene.environment, prefix=prefix)
    messages = [line for line in said.err.splitlines() if line.startswith("oneroot: ")]
    assert len(messages) == 1, f"{words}: {len(messages)} messages:\n{said.err}"
    assert re.search(why, said.err), f"{words}: nothing of {why!r} in:\n{said.err}"
    assert all(len(line) < 2000 for line in said.err.splitlines())
    return said


def fix_of(said: Said) -> list[str]:
    """Return the command that a message tells to run, without its first word."""
    match = re.search(r"^  fix: (?:.*: )?oneroot (.*?)(?:,.*)?$", said.err, re.MULTILINE)
    assert match, f"no command is named: {said.err}"
    return shlex.split(match[1])


def states(scene: Scene) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in scene.run("ls", "--format", "json").json}


def running(scene: Scene) -> dict[str, int]:
    """Return the generation of every container that runs."""
    return {name: item["generation"] for name, item in states(scene).items() if item["state"] == "RUNNING"}


def base(scene: Scene) -> dict[str, Any]:
    found: dict[str, Any] = scene.run("base", "show", "core", "--format", "json").json
    return found


def generations(scene: Scene) -> list[int]:
    return [one["number"] for one in base(scene)["generations"]]


def inside(scene: Scene, name: str, *words: str) -> str:
    """Return what a program says inside a container."""
    return scene.run("exec", name, "--", *words).out.strip()


def lxc(scene: Scene, program: str, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run one of LXC's own programs."""
    return subprocess.run(
        [program, "-P", str(scene.place / "lxc"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
