"""A place with a small base for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.rollout import place as places
from tests.root.rollout.place import Place


@pytest.fixture
def place(debian_tree: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A base called core with one small generation, and nothing on it."""
    where = Path(tempfile.mkdtemp(prefix="oneroot-rollout-", dir="/var/tmp"))
    where.chmod(0o711)
    made = places.make(where)
    monkeypatch.setenv("ONEROOT_SETTINGS", str(where / "settings.yaml"))
    try:
        made.generation(1, debian_tree)
        yield made
    finally:
        made.clean_up()
        shutil.rmtree(where)
