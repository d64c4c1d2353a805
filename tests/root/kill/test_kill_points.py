"""Patch and rollback, with real containers, are killed before and after each of their steps.

Each time nothing may be half, and the same command again must finish the work. The other commands
are killed in the same way beside the tests of their rooms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from tests.root.kill.scene import CONTAINERS, KILLED, Scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

MOST_POINTS = 120


def kill_everywhere(
    scene: Scene, words: Sequence[str], *, begin: Callable[[], None], finished: Callable[[], None]
) -> int:
    """Kill a command at each of its points, check, run it again, check; return the number of points."""
    for point in itertools.count(1):
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
        scene.assert_no_orphans()
        finished()
        assert point < MOST_POINTS
    raise AssertionError


def test_patch(scene: Scene, upgraded: Scene) -> None:
    scene.copy_from(upgraded)

    def begin() -> None:
        scene.run("base", "unpin", "core")
        scene.run("base", "use", "core", "1", "--no-pin")
        scene.run("restart", *CONTAINERS)
        assert scene.running() == dict.fromkeys(CONTAINERS, 1)

    def finished() -> None:
        assert scene.running() == dict.fromkeys(CONTAINERS, 2)

    words = ("patch", "core", "--no-upgrade", "--batch", "2", "--yes")
    assert kill_everywhere(scene, words, begin=begin, finished=finished) >= 20


def test_rollback(scene: Scene, upgraded: Scene) -> None:
    scene.copy_from(upgraded)

    def begin() -> None:
        scene.run("base", "unpin", "core")
        scene.run("base", "use", "core", "2", "--no-pin")
        scene.run("restart", *CONTAINERS)
        assert scene.running() == dict.fromkeys(CONTAINERS, 2)

    def finished() -> None:
        assert scene.running() == dict.fromkeys(CONTAINERS, 1)

    words = ("rollback", "core", "--to", "1", "--reason", "test", "--yes")
    assert kill_everywhere(scene, words, begin=begin, finished=finished) >= 20
