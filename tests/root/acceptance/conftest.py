"""One host, made once: a base with updates of setuid programs pending, three containers."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.kernel.tree import remove_tree
from tests.root.acceptance.world import CREATE, MORE, NEIGHBOURS_MORE, NEIGHBOURS_NETWORK, NETWORK
from tests.root.scene import Repository, Scene

BASE = ("base", "create", "core", "--source", "debian:bookworm", "--suite", "bookworm", "--package", "probe")


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="oneroot-acceptance-", dir="/var/tmp"))
    made.chmod(0o711)
    with open("/var/tmp/oneroot-acceptance.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of these tests would have the same addresses
        yield made
        remove_tree(made)


def new_scene(place: Path) -> Scene:
    made = Scene(place, network=NETWORK, more=MORE)
    if not place.exists():
        made.prepare()
    return made


@pytest.fixture(scope="session")
def repository(place: Path) -> Iterator[Repository]:
    made = Repository(place / "repository")
    made.build()
    made.publish("1")
    yield made
    made.clear()


@pytest.fixture(scope="session")
def with_base(place: Path, repository: Repository) -> Scene:
    """A base at its first generation; updates of ``probe``, ``passwd`` and ``util-linux`` are pending."""
    scene = new_scene(place / "with-base")
    scene.run(*BASE, "--repository", repository.line)
    for name in ("passwd", "util-linux"):
        [file] = (scene.place / "store/cache/packages").glob(f"{name}_*.deb")
        repository.add_again(file, "+again")
    repository.publish("2")
    return scene


@pytest.fixture(scope="session")
def with_containers(place: Path, with_base: Scene) -> Scene:
    """The same, with three containers that are stopped."""
    scene = new_scene(place / "with-containers")
    scene.copy_from(with_base)
    scene.run(*CREATE)
    return scene


@pytest.fixture(scope="session")
def upgraded(place: Path, with_containers: Scene) -> Scene:
    """The same, with a second generation, which is current."""
    scene = new_scene(place / "upgraded")
    scene.copy_from(with_containers)
    scene.run("base", "upgrade", "core")
    return scene


@pytest.fixture(scope="session")
def neighbour(place: Path, with_base: Scene) -> Iterator[Scene]:
    """Another store on the same host, for tests that change nothing: containers, one of which runs."""
    made = Scene(place / "neighbour", network=NEIGHBOURS_NETWORK, more=NEIGHBOURS_MORE)
    if not made.place.exists():
        made.prepare()
    made.copy_from(with_base)
    made.run(*CREATE)
    made.run("start", "ac001")
    yield made
    made.leave()


@pytest.fixture
def empty_scene(place: Path) -> Iterator[Scene]:
    """A host without anything; what a test makes there is gone afterwards."""
    made = new_scene(place / "scene")
    made.write_settings()
    made.clear()
    yield made
    made.write_settings()
    made.leave()


@pytest.fixture
def scene(empty_scene: Scene, with_containers: Scene) -> Scene:
    """Three stopped containers on generation 1, an update pending."""
    empty_scene.copy_from(with_containers)
    return empty_scene


@pytest.fixture
def scene_of_two(empty_scene: Scene, upgraded: Scene) -> Scene:
    """Three stopped containers on a base whose current generation is its second."""
    empty_scene.copy_from(upgraded)
    return empty_scene
