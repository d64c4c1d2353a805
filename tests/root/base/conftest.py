"""A base over a ready tree, made once; each test works on a copy."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.settings import Paths, Settings
from tests.root.base import repository
from tests.root.base.repository import Repository


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One key for all repositories; making it takes a while."""
    place = Path(tempfile.mkdtemp(prefix="oneroot-keys-", dir="/var/tmp"))
    repository.make(place)
    yield place
    subprocess.run(["gpgconf", "--homedir", place / "keys", "--kill", "gpg-agent"], check=False)
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def packages(keys: Path) -> Iterator[Repository]:
    """An empty, signed repository."""
    place = Path(tempfile.mkdtemp(prefix="oneroot-packages-", dir="/var/tmp"))
    place.chmod(0o755)
    yield Repository(place=place, home=keys / "keys")
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session")
def adopted(debian_tree: Path) -> Iterator[Settings]:
    """A store with a base of one generation; read-only, `base` gives a copy of it."""
    place = Path(tempfile.mkdtemp(prefix="oneroot-adopted-", dir="/var/tmp"))
    made = Settings(paths=Paths(store=place / "store", run=place / "run", lxc=place / "lxc"))
    repository.adopt(made, debian_tree, ["deb http://127.0.0.1:9/ ./"])
    yield made
    shutil.rmtree(place)


@pytest.fixture
def base(settings: Settings, adopted: Settings, packages: Repository) -> Settings:
    """Settings of a store with the base ``core``, whose packages come from `packages`."""
    repository.clone(adopted, settings)
    use(settings, packages.line)
    return settings


def use(settings: Settings, *lines: str, **options: bool) -> None:
    """Let the base take its packages from these sources."""
    from oneroot.base.store import Store
    from oneroot.platform import sources

    store = Store(settings)
    chosen = tuple(sources.parse_repository(line, **options) for line in lines)
    with store.holding(repository.NAME, "test"):
        store.save_spec(dataclasses.replace(store.spec(repository.NAME), repositories=chosen))
