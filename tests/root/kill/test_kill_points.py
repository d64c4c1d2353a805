"""Every command that changes state is killed before and after each of its steps.

Each time nothing may be half, and the same command again must finish the work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from tests.root.kill.scene import CONTAINERS, CREATE, KILLED, Repository, Scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

MOST_POINTS = 200


def kill_everywhere(
    scene: Scene,
    words: Sequence[str],
    *,
    begin: Callable[[], None],
    finished: Callable[[], None],
    first: int = 1,
    every: int = 1,
) -> int:
    """Kill a command at each of its points, check, run it again, check; return the number of points."""
    for point in itertools.count(first, every):
        begin()
        killed = scene.run(*words, ok=None, ONEROOT_KILL_POINT=str(point))
        if killed.code not in KILLED:
            assert killed.code == 0, f"point {point} was not reached, and it failed: {killed.err}"
            return point - 1
        scene.assert_whole()
        again = scene.run(*words, ok=None)
        assert again.code == 0, (
            f"killed at point {point}, the second run ended with {again.code}: {again.err}"
        )
        scene.assert_whole()
        finished()
        assert point < MOST_POINTS
    raise AssertionError


def generations(scene: Scene) -> list[int]:
    base = scene.run("base", "show", "core", "--format", "json").json
    return [generation["number"] for generation in base["generations"]]


def running(scene: Scene) -> dict[str, int]:
    listed = scene.run("ls", "--format", "json").json
    return {item["name"]: item["generation"] for item in listed if item["state"] == "RUNNING"}


def test_base_create(scene: Scene, repository: Repository) -> None:
    words = ("base", "create", "core", "--source", "debian:bookworm", "--suite", "bookworm",
             "--repository", repository.line, "--package", "probe")  # fmt: skip

    def finished() -> None:
        assert len(generations(scene)) == 1

    # Each takes a whole bootstrap: every third point, and the other points in the random kills.
    assert kill_everywhere(scene, words, begin=scene.clear, finished=finished, every=3) >= 3


def test_create(scene: Scene, with_base: Scene) -> None:
    def finished() -> None:
        scene.assert_no_orphans()
        assert {item["name"] for item in scene.run("ls", "--format", "json").json} == set(CONTAINERS)
        scene.run("start", "kp*")
        assert set(running(scene)) == set(CONTAINERS)
        scene.assert_no_orphans()

    points = kill_everywhere(scene, CREATE, begin=lambda: scene.copy_from(with_base), finished=finished)
    assert points >= 10


def test_upgrade(scene: Scene, with_base: Scene) -> None:
    def finished() -> None:
        assert len(generations(scene)) == 2

    words = ("base", "upgrade", "core")
    assert kill_everywhere(scene, words, begin=lambda: scene.copy_from(with_base), finished=finished) >= 6


def test_patch(scene: Scene, upgraded: Scene) -> None:
    def begin() -> None:
        scene.copy_from(upgraded)
        scene.run("base", "use", "core", "1", "--yes")
        scene.run("base", "unpin", "core")
        scene.run("start", "kp*")
        assert set(running(scene).values()) == {1}

    def finished() -> None:
        scene.assert_no_orphans()
        assert running(scene) == dict.fromkeys(CONTAINERS, 2)

    words = ("patch", "core", "--no-upgrade", "--batch", "2", "--yes")
    assert kill_everywhere(scene, words, begin=begin, finished=finished) >= 20


def test_rollback(scene: Scene, upgraded: Scene) -> None:
    def begin() -> None:
        scene.copy_from(upgraded)
        scene.run("start", "kp*")
        assert set(running(scene).values()) == {2}

    def finished() -> None:
        scene.assert_no_orphans()
        assert running(scene) == dict.fromkeys(CONTAINERS, 1)

    words = ("rollback", "core", "--to", "1", "--reason", "test", "--yes")
    assert kill_everywhere(scene, words, begin=begin, finished=finished) >= 20


def test_rm(scene: Scene, with_containers: Scene) -> None:
    def begin() -> None:
        scene.copy_from(with_containers)
        scene.run("start", "kp001")

    def finished() -> None:
        scene.assert_no_orphans()
        assert scene.run("ls", "--format", "json").json == []
        scene.run("undelete", "kp001")
        scene.run("start", "kp001")
        assert set(running(scene)) == {"kp001"}

    words = ("rm", "--force", "--yes", *CONTAINERS)
    assert kill_everywhere(scene, words, begin=begin, finished=finished) >= 6
