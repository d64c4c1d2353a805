"""A full disk: a clear error, the old state intact, and the same command works when there is room."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.base import fsck
from oneroot.base.store import Store
from oneroot.base.upgrade import upgrade
from oneroot.errors import NoSpace
from oneroot.settings import Settings
from tests.root.base import repository
from tests.root.base.conftest import use
from tests.root.base.repository import NAME, Repository

MIB = 1 << 20


@pytest.fixture
def small(settings: Settings, debian_tree: Path, packages: Repository) -> Iterator[Settings]:
    """A store on a filesystem of its own, with a base of one generation."""
    place = settings.paths.store.parent
    image, mount = place / "image", place / "small"
    mount.mkdir()
    size = int(
        subprocess.run(["du", "-sm", debian_tree], capture_output=True, text=True, check=True).stdout.split()[
            0
        ]
    )
    with open(image, "wb") as file:
        file.truncate((size + 500) * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        paths = dataclasses.replace(settings.paths, store=mount / "store")
        made = dataclasses.replace(settings, paths=paths)
        repository.adopt(made, debian_tree, [packages.line])
        use(made, packages.line)
        yield made
    finally:
        subprocess.run(["umount", mount], check=True)


def leave(place: Path, free: int) -> Path:
    """Fill the filesystem until only so many bytes are free; returns the file that does it."""
    status = os.statvfs(place)
    filler = place / "filler"
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - free)
    return filler


def test_no_room_at_all(small: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    filler = leave(small.paths.store, 10 * MIB)
    with pytest.raises(NoSpace) as caught:
        upgrade(small, NAME)
    assert "MB are needed" in caught.value.why and caught.value.fix
    store = Store(small)
    assert (store.current(NAME), store.numbers(NAME)) == (1, [1])
    with store.holding(NAME, "test"):
        store.set_current(NAME, 1)
    filler.unlink()
    done = upgrade(small, NAME)
    assert done is not None and done.number == 2
    assert fsck.check(store, NAME) == []


def test_room_that_runs_out_while_packages_are_installed(small: Settings, packages: Repository) -> None:
    fill = {"postinst": "head -c 400000000 /dev/zero > /usr/share/tini/large"}
    packages.add("tini", "99.0-1", scripts=fill)
    packages.publish()
    leave(small.paths.store, 200 * MIB)
    with pytest.raises(NoSpace) as caught:
        upgrade(small, NAME)
    assert "log" in caught.value.fix
    store = Store(small)
    assert (store.current(NAME), store.numbers(NAME)) == (1, [1])
    assert not (store.directory(NAME) / "stage").exists()
    assert os.statvfs(small.paths.store).f_bavail * os.statvfs(small.paths.store).f_frsize > 150 * MIB
    packages.add("tini", "99.0-2")
    packages.publish()
    assert upgrade(small, NAME) is not None


def test_no_byte_left(small: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    subprocess.run(
        ["sh", "-c", 'cat /dev/zero > "$0/filler"', small.paths.store], stderr=subprocess.DEVNULL, check=False
    )
    with pytest.raises(NoSpace):
        upgrade(small, NAME)
    store = Store(small)
    assert (store.current(NAME), store.numbers(NAME)) == (1, [1])
    assert store.spec(NAME).name == NAME
    with store.holding(NAME, "test"):
        store.set_current(NAME, 1)  # the way back needs no room
