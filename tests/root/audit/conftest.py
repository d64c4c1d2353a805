"""One base of two generations for all tests of the proof; each test has containers of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.settings import IdPool, Network, Paths, Settings
from tests.root.audit.place import LIBC, LIBSSL, Place, newer
from tests.root.conftest import clean_up


@pytest.fixture(scope="session")
def whole_place(debian_tree: Path) -> Iterator[Place]:
    top = Path(tempfile.mkdtemp(prefix="oneroot-audit-", dir="/var/tmp"))
    top.chmod(0o711)
    settings = Settings(
        paths=Paths(store=top / "store", run=top / "run", lxc=top / "lxc"),
        ids=IdPool(first=2_050_000_000, count=13_107_200),
        network=Network(ipv4="10.81.128.0/20", gateway="169.254.128.1"),
    )
    settings.paths.lxc.mkdir(mode=0o711)
    place = Place(settings=settings)
    try:
        place.generation(1, debian_tree)
        place.generation(2, place.root(1), {path: newer(place, path) for path in (LIBC, LIBSSL)})
        yield place
    finally:
        clean_up(settings)
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def place(whole_place: Place) -> Iterator[Place]:
    """Generation 2 is current and checked; no container is there."""
    whole_place.use(2)
    whole_place.declare()
    whole_place.checked()
    yield whole_place
    clean_up(whole_place.settings)
    for directory in (whole_place.settings.paths.lxc, whole_place.settings.paths.leases):
        for entry in directory.iterdir() if directory.exists() else ():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
