"""A tiny signed package repository on this machine's disk, and a base over a ready tree."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from oneroot.base import build
from oneroot.base.generation import BaseSpec, Generation
from oneroot.base.store import Store, now
from oneroot.names import BaseName
from oneroot.platform import dpkg, sources
from oneroot.settings import Settings
from oneroot.work import locks

NAME = BaseName("core")


@dataclasses.dataclass
class Repository:
    """A flat repository: all of its files lie in one directory."""

    place: Path
    home: Path

    @property
    def keyring(self) -> Path:
        return self.home / "key.gpg"

    @property
    def line(self) -> str:
        return f"deb [signed-by={self.keyring}] file:{self.place} ./"

    def add(
        self,
        name: str,
        version: str,
        *,
        files: dict[str, str] | None = None,
        scripts: dict[str, str] | None = None,
        fields: tuple[str, ...] = (),
        changelog: str = "",
    ) -> None:
        """Build a package into the repository; `publish` makes it known."""
        tree = self.home / "build"
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "DEBIAN").mkdir(parents=True)
        control = [
            *(f"Package: {name}", f"Version: {version}", f"Architecture: {dpkg.host_architecture()}"),
            *("Maintainer: Test <t@example.org>", "Description: made by a test", *fields),
        ]
        (tree / "DEBIAN/control").write_text("\n".join(control) + "\n")
        for script, text in (scripts or {}).items():
            (tree / "DEBIAN" / script).write_text(f"#!/bin/sh\nset -e\n{text}\n")
            (tree / "DEBIAN" / script).chmod(0o755)
        for path, text in {f"usr/share/{name}/version": version, **(files or {})}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        if changelog:
            docs = tree / f"usr/share/doc/{name}"
            docs.mkdir(parents=True)
            (docs / "changelog.Debian.gz").write_bytes(gzip.compress(changelog.encode()))
        _sh("dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, self.place)

    def publish(
        self, *, valid: timedelta | None = None, suite: str = "stable-security", sign: bool = True
    ) -> None:
        """Write the lists, and sign them."""
        lists = self.place / "Packages"
        lists.write_text("\n".join(_paragraph(file) for file in sorted(self.place.glob("*.deb"))))
        begun = datetime.now(UTC) + min(valid or timedelta(), timedelta()) - timedelta(days=1)
        fields = {"Origin": "Test", "Suite": suite, "Date": _rfc2822(begun)}
        if valid is not None:
            fields["Valid-Until"] = _rfc2822(datetime.now(UTC) + valid)
        text = "".join(f"{name}: {value}\n" for name, value in fields.items())
        digest = hashlib.sha256(lists.read_bytes()).hexdigest()
        release = self.place / "Release"
        release.write_text(f"{text}SHA256:\n {digest} {lists.stat().st_size} Packages\n")
        (self.place / "InRelease").unlink(missing_ok=True)
        if sign:
            self._gpg("--clearsign", "--output", self.place / "InRelease", release)

    def _gpg(self, *words: object) -> None:
        _sh("gpg", "--batch", "--yes", "--homedir", self.home, "--passphrase", "", *words)

    def make_key(self) -> None:
        self._gpg("--quick-generate-key", f"test {self.home.name}", "ed25519", "sign", "never")
        self._gpg("--output", self.keyring, "--export")
        self.keyring.chmod(0o644)


def make(place: Path) -> Repository:
    """Make an empty repository with a key of its own."""
    made = Repository(place=place / "repository", home=place / "keys")
    made.place.mkdir(parents=True)
    made.home.mkdir(mode=0o700)
    made.make_key()
    return made


def _paragraph(file: Path) -> str:
    control = _sh("dpkg-deb", "--field", file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{control}Filename: ./{file.name}\nSize: {file.stat().st_size}\nSHA256: {digest}\n"


def _rfc2822(time: datetime) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S UTC")


def _sh(*words: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def adopt(
    settings: Settings, tree: Path, lines: list[str], packages: tuple[str, ...] = ("tini",)
) -> Generation:
    """Make a base whose first generation is a copy of a tree, without a bootstrap."""
    paths = settings.paths
    store = Store(settings)
    for directory in (paths.store, paths.bases, store.directory(NAME)):
        directory.mkdir(mode=0o700)
    repositories = tuple(sources.parse_repository(line) for line in lines)
    spec = BaseSpec(
        name=NAME, source="debian:bookworm", packages=packages, repositories=repositories, created=now(),
        architecture=dpkg.host_architecture(),
    )  # fmt: skip
    with locks.base(paths, NAME, verb="test"):
        store.save_spec(spec)
        prepared = store.stage(NAME) / "generation"
        prepared.mkdir(mode=0o700)
        subprocess.run(["cp", "-a", "--reflink=auto", tree, prepared / "root"], check=True)
        made = build.describe(
            prepared, spec=spec, number=store.next_number(NAME), parent=None, releases=(), reason="adopted"
        )
        store.commit(prepared, made)
        store.set_current(NAME, made.number)
        store.sweep(NAME)
    return made


def clone(source: Settings, target: Settings) -> None:
    """Copy a store by hard links; what is in it is never written to, and a test shows that."""
    subprocess.run(["cp", "-al", source.paths.store, target.paths.store], check=True)
    for file in target.paths.bases.glob("*/*.json"):
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data)
        os.chmod(file, 0o600)
