"""A store with a tiny base that cannot run, for all that never starts; and one that can."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot import settings as settings_module
from oneroot.container import network
from oneroot.settings import Settings
from tests.root.conftest import clean_up

FIRST = 1_960_000_000
EACH = 65536


def oneroot(
    *words: str, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command line as it is; ``ONEROOT_SETTINGS`` names the test's settings."""
    done = subprocess.run(
        [sys.executable, "-m", "oneroot", "--progress", "none", *words],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    error: dict[str, str] = json.loads(done.stderr.splitlines()[-1])["error"]
    return error


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    place = Path(tempfile.mkdtemp(prefix="oneroot-create-", dir="/var/tmp"))
    yield from _settings_in(place, monkeypatch)
    shutil.rmtree(place)


def _settings_in(place: Path, monkeypatch: pytest.MonkeyPatch, count: int = 65_536_000) -> Iterator[Settings]:
    place.chmod(0o711)
    file = place / "settings.yaml"
    file.write_text(
        f"paths: {{store: {place}/store, run: {place}/run, lxc: {place}/lxc}}\n"
        f"ids: {{first: {FIRST}, count: {count}}}\n"
        "network: {ipv4: 10.81.96.0/20, gateway: 169.254.96.1}\n"
        "timeouts: {stop: 5}\n"
    )
    monkeypatch.setenv("ONEROOT_SETTINGS", str(file))
    made = settings_module.load()
    made.paths.lxc.mkdir()
    made.paths.store.mkdir(mode=0o700)
    try:
        yield made
    finally:
        clean_up(made)
        network.teardown(made)


def generation_directory(settings: Settings) -> Path:
    directory = settings.paths.bases / "core" / "generations" / "1"
    directory.mkdir(parents=True)
    (settings.paths.bases / "core" / "base.json").write_text("{}")
    (directory / "generation.json").write_text("{}")
    (settings.paths.bases / "core" / "current").symlink_to("generations/1")
    return directory


@pytest.fixture
def tiny(settings: Settings) -> Settings:
    """Settings with a base that has just what create looks for."""
    root = generation_directory(settings) / "root"
    for path in ("usr/bin/tini", "bin/sh", "usr/lib/systemd/systemd", "usr/lib/systemd/system/web.service"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    (root / "etc").mkdir(mode=0o755)
    (root / "var/lib/dbus").mkdir(parents=True)
    os.chown(root / "var/lib/dbus", 101, 102)
    (root / "var/lib/dbus").chmod(0o750)
    return settings


@pytest.fixture
def real(settings: Settings, debian_tree: Path) -> Settings:
    """Settings with a base that runs: its files are the shared tree's own, and only read."""
    subprocess.run(["cp", "-al", debian_tree, generation_directory(settings) / "root"], check=True)
    return settings
