from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.kernel.tree import remove_tree
from tests.root.kill.scene import CREATE, Repository, Scene


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="oneroot-kill-", dir="/var/tmp"))
    made.chmod(0o711)
    yield made
    remove_tree(made)


@pytest.fixture(scope="session")
def repository(place: Path) -> Iterator[Repository]:
    made = Repository(place / "repository")
    made.build()
    made.publish("1")
    yield made
    made.clear()


@pytest.fixture(scope="session")
def with_base(place: Path, repository: Repository) -> Scene:
    """A base at its first generation, with an update pending."""
    scene = Scene(place / "with-base")
    scene.prepare()
    scene.run("base", "create", "core", "--source", "debian:bookworm", "--suite", "bookworm",
              "--repository", repository.line, "--package", "probe")  # fmt: skip
    repository.publish("2")
    return scene


@pytest.fixture(scope="session")
def with_containers(place: Path, with_base: Scene) -> Scene:
    """The same, with three containers that are stopped."""
    scene = Scene(place / "with-containers")
    scene.prepare()
    scene.copy_from(with_base)
    scene.run(*CREATE)
    return scene


@pytest.fixture
def scene(place: Path) -> Iterator[Scene]:
    made = Scene(place / "scene")
    if not made.place.exists():
        made.prepare()
    yield made
    made.leave()
