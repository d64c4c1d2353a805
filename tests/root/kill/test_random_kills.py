"""Every command that changes state is killed at random moments, between any two instructions.

The numbered points are killed at beside the tests of each room.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest

from tests.root.kill.scene import CONTAINERS, CREATE, KILLED, Scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

PATCH = ("patch", "core", "--yes")
ROLLBACK = ("rollback", "core", "--to", "1", "--reason", "test", "--yes")
REMOVE = ("rm", "--force", "--yes", *CONTAINERS)
LONGEST = {"patch": 8.0, "rollback": 3.0}
"""Seconds until a kill at the latest, so that most kills hit work."""


def test_random_moments(scene: Scene, with_containers: Scene, request: pytest.FixtureRequest) -> None:
    """One history of kills: each command starts from what the former one left."""
    seed = int(time.time())
    print(f"seed {seed}")
    chance = random.Random(seed)
    scene.copy_from(with_containers)
    scene.run("start", *CONTAINERS)
    for number in range(request.config.getoption("--random-kills")):
        for words in _round(number):
            _kill_once(scene, words, chance)
        assert set(scene.running()) == set(CONTAINERS)
        assert len(set(scene.running().values())) == 1
        scene.assert_no_orphans()


def _round(number: int) -> list[tuple[str, ...]]:
    """Return the next commands to kill; after them all three containers run."""
    match number % 3:
        case 0:
            return [PATCH]
        case 1:
            return [ROLLBACK, ("base", "unpin", "core")]
        case _:
            return [REMOVE, CREATE, ("start", *CONTAINERS)]


def _kill_once(scene: Scene, words: tuple[str, ...], chance: random.Random) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "oneroot", "--progress", "none", *words],
        env={**os.environ, **scene.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        child.wait(chance.uniform(0.1, LONGEST.get(words[0], 1.5)))
    except subprocess.TimeoutExpired:
        child.kill()
    code = child.wait(30)
    scene.assert_whole()
    gone = 2 if words[0] == "rm" and not scene.states() else 0
    if code in KILLED:
        again = scene.run(*words, ok=None)
        assert again.code in (0, gone), f"{words} after a kill: {again.code}: {again.err}"
        scene.assert_whole()
    else:
        assert code in (0, gone), f"{words} ended with {code}"
