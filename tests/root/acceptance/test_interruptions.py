"""Signals in the middle of a patch, a clock that was set back, somebody who is not root."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command import oneroot
from tests.conftest import skip_or_fail
from tests.root.acceptance.begun import Begun
from tests.root.acceptance.world import (
    COMMAND,
    CONTAINERS,
    CREATE,
    PATCH,
    ROLLBACK,
    base,
    generations,
    inside,
    refuse,
    running,
    states,
    unchanged,
)
from tests.root.scene import Scene


def interrupt(scene: Scene, label: str, numbers: tuple[int, ...], *words: str) -> None:
    begun = Begun(scene, *words)
    begun.wait_for(label)
    for number in numbers:
        begun.signal(number)
        time.sleep(0.01)
    code, out, err = begun.end()
    assert code == 130, f"{code}: {out}{err}"
    assert err.count("oneroot: ") == 1 and err.startswith("oneroot: Interrupted"), err
    assert "fix: run the same command again" in err and "Traceback" not in err


SIGNALS = {
    "hup": (signal.SIGHUP,),
    "int": (signal.SIGINT,),
    "term": (signal.SIGTERM,),
    "impatient": (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT),
}


@pytest.mark.parametrize("numbers", SIGNALS.values(), ids=SIGNALS.keys())
def test_in_the_middle_of_a_rollout(scene_of_two: Scene, numbers: tuple[int, ...]) -> None:
    scene = scene_of_two
    scene.run("base", "use", "core", "1", "--yes", ok=None)
    scene.run("base", "use", "core", "1")
    scene.run("base", "unpin", "core")
    scene.run("start", "ac*")
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)
    words = ("patch", "core", "--no-upgrade", "--batch", "1", "--yes")
    interrupt(scene, "rollout: before start ac001", numbers, *words)
    # what was begun is finished: nobody was left down
    found = running(scene)
    assert set(found) == set(CONTAINERS) and set(found.values()) <= {1, 2}
    assert found["ac003"] == 1, "it went on"
    scene.assert_whole()
    scene.assert_no_orphans()
    assert "interrupted" in scene.run("rollout", "status", "core").out
    assert "interrupted" in scene.run("history").out
    scene.run(*words)
    assert running(scene) == dict.fromkeys(CONTAINERS, 2)


def test_in_the_middle_of_an_upgrade(scene: Scene) -> None:
    scene.run("start", "ac*")
    before = states(scene)
    for label, number in (("before: install", signal.SIGINT), ("before: fold", signal.SIGHUP)):
        interrupt(scene, label, (number,), *PATCH)
        assert states(scene) == before
        assert generations(scene) == [1] and base(scene)["current"] == 1
        assert not (scene.place / "store/bases/core/stage").exists()
        scene.assert_whole()
    scene.run(*PATCH)
    assert running(scene) == dict.fromkeys(CONTAINERS, 2)
    assert generations(scene) == [1, 2]


def test_in_the_middle_of_a_rollback(scene_of_two: Scene) -> None:
    scene = scene_of_two
    scene.run("start", "ac*")
    interrupt(scene, "rollout: before start", (signal.SIGTERM,), *ROLLBACK, "--batch", "1")
    assert set(running(scene)) == set(CONTAINERS)
    scene.assert_whole()
    scene.run(*ROLLBACK, ok=(0, 3))
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)


def test_in_the_middle_of_a_creation(empty_scene: Scene, with_base: Scene) -> None:
    scene = empty_scene
    scene.copy_from(with_base)
    begun = Begun(scene, "create", *COMMAND, "--replicas", "40", "ac")
    begun.wait_for("ac003: write its declaration")
    begun.signal(signal.SIGTERM)
    assert begun.end()[0] == 130
    scene.assert_whole()
    scene.assert_no_orphans()
    assert len(states(scene)) < 40
    scene.run("create", *COMMAND, "--replicas", "40", "ac")
    assert len({state["addresses"][0] for state in states(scene).values()}) == 40


# The clock


@pytest.fixture(scope="session")
def clock(place: Path) -> str:
    """A library that sets the clock of one program back by a year; the machine's own stays."""
    source = place / "clock.c"
    source.write_text(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <time.h>\n#include <sys/time.h>\n"
        "#define BACK (365L * 86400)\n"
        "int clock_gettime(clockid_t id, struct timespec *t) {\n"
        "  static int (*real)(clockid_t, struct timespec *);\n"
        '  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");\n'
        "  int r = real(id, t); if (id == CLOCK_REALTIME) t->tv_sec -= BACK; return r; }\n"
        "time_t time(time_t *t) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s);\n"
        "  if (t) *t = s.tv_sec; return s.tv_sec; }\n"
    )
    library = place / "clock.so"
    done = subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=False)
    if done.returncode != 0:
        skip_or_fail("no C compiler")
    return str(library)


def test_the_clock_was_set_back(scene_of_two: Scene, clock: str) -> None:
    scene = scene_of_two
    scene.run("start", "ac*")
    scene.run("verify")
    early = {**scene.environment, "LD_PRELOAD": clock}
    said = oneroot("verify", ok=(3,), env=early)
    assert "the clock was set back" in said.out, said.out
    assert set(running(scene)) == set(CONTAINERS)
    # all goes on: names, numbers and order come from no clock
    oneroot("create", *COMMAND, "--replicas", "4", "ac", env=early)
    oneroot("restart", "ac004", env=early)
    oneroot("rollback", "core", "--to", "1", "--reason", "early", "--yes", ok=(0, 3), env=early)
    assert set(running(scene).values()) == {1}
    oneroot("base", "unpin", "core", env=early)
    oneroot("base", "gc", "core", "--yes", env=early)
    assert generations(scene) == [1, 2], "the newest was collected"
    oneroot("patch", "core", "--no-upgrade", "--yes", ok=(0, 3), env=early)
    assert set(running(scene).values()) == {2}
    runs = oneroot("history", "--format", "json", env=early).json
    assert [run["verb"] for run in runs][:2] == ["patch", "rollback"]
    # the way that the message names
    oneroot("verify", "--check-sources", env=early)
    # and with the right time again, nothing of then is in the way
    scene.run("verify", ok=(0, 3))
    scene.run("verify", "--check-sources")


def test_removed_before_and_after_the_clock_was_set_back(scene: Scene, clock: str) -> None:
    """The last one removed comes back, whatever the clock said then; nothing is swept early or lost."""
    scene.run("start", "ac001")
    scene.run("exec", "ac001", "--", "touch", "/first")
    scene.run("rm", "--force", "ac001")
    scene.run(*CREATE)
    early = {**scene.environment, "LD_PRELOAD": clock}
    oneroot("start", "ac001", env=early)
    oneroot("exec", "ac001", "--", "touch", "/second", env=early)
    oneroot("rm", "--force", "ac001", env=early)
    assert len(list((scene.place / "store/trash").glob("ac001-*"))) == 2
    oneroot("undelete", "ac001", env=early)
    oneroot("start", "ac001", env=early)
    assert inside(scene, "ac001", "ls", "/second") == "/second"


# Not root

NOT_ROOT = {
    "nobody": ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"),
    "a-namespace": ("unshare", "--user"),
}


@pytest.fixture(params=NOT_ROOT.values(), ids=NOT_ROOT.keys())
def not_root(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


def test_not_root(neighbour: Scene, not_root: tuple[str, ...]) -> None:
    with unchanged(neighbour):
        for words in (
            ("create", *COMMAND, "new"),
            ("start", "ac002"),
            ("stop", "ac001"),
            ("restart", "ac001"),
            ("rm", "ac002"),
            ("exec", "ac001", "--", "id"),
            ("shell", "ac001"),
            ("cp", "ac001:/etc/hostname", "/tmp/nobodys"),
            ("patch", "core"),
            ("rollback", "core"),
            ("verify",),
            ("history",),
            ("audit",),
            ("logs", "ac001"),
            ("base", "create", "new", "--source", "debian:bookworm"),
            ("base", "upgrade", "core"),
            ("base", "use", "core", "1"),
            ("base", "gc", "core", "--yes"),
            ("base", "rm", "core", "--yes"),
            ("base", "fsck"),
            ("doctor", "--fix"),
        ):
            refuse(neighbour, *words, code=4, why="needs to be root|root", prefix=not_root)
    for words in (("--help",), ("--version",), ("patch", "--help")):
        oneroot(*words, prefix=not_root, env=neighbour.environment)
    for words in (("ls",), ("info", "ac001"), ("base", "ls"), ("doctor",)):
        said = oneroot(*words, prefix=not_root, env=neighbour.environment, ok=(0, 1, 4))
        assert "Traceback" not in said.err and "did not expect" not in said.err, said.err
