"""Manifests say everything, survive a file, and compare."""

from __future__ import annotations

import dataclasses
import gzip
import os
from pathlib import Path

import pytest

from oneroot.base import manifest
from oneroot.base.manifest import Entry, Kind, Manifest
from oneroot.base.survey import is_code, look, survey
from oneroot.errors import CorruptState


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"#!/bin/sh\n")
    (root / "usr/bin/tool").chmod(0o755)
    (root / "bin").symlink_to("usr/bin")
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"latin-\xe9")).write_text("x")
    os.link(root / "usr/bin/tool", root / "usr/bin/same")
    os.setxattr(root / "usr/bin/tool", "user.colour", b"blue")
    return root


def test_every_path_is_described(tree: Path) -> None:
    found = survey(tree, {"/usr/bin/tool": "tools", "/usr/bin": "tools"})
    entry = found.manifest.get("/usr/bin/tool")
    assert entry is not None
    assert entry == dataclasses.replace(
        entry, kind=Kind.FILE, mode=0o755, size=10, package="tools", code=True,
        attributes={"user.colour": b"blue".hex()},
        digest="a8076d3d28d21e02012b20eaf7dbf75409a6277134439025f282e368e3305abf",
    )  # fmt: skip
    assert found.manifest.get("usr/bin/tool") == entry
    link = found.manifest.get("/bin")
    assert link is not None and (link.kind, link.digest) == (Kind.LINK, "usr/bin")
    directory = found.manifest.get("/usr/bin")
    assert directory is not None and (directory.kind, directory.package) == (Kind.DIRECTORY, None)
    assert found.manifest.get("/usr/bin/other") is None
    assert "/pipe" in found.manifest and "/" in found.manifest
    assert found.size == 11, "two names of one file count once"
    assert len(found.manifest) == 8


def test_it_survives_a_file(tree: Path, tmp_path: Path) -> None:
    made = survey(tree, {}).manifest
    made.save(tmp_path / "m.gz")
    loaded = manifest.load(tmp_path / "m.gz")
    assert list(loaded) == list(made)
    assert loaded.digest() == made.digest()
    assert manifest.load(tmp_path / "m.gz") is loaded, "kept"
    assert (tmp_path / "m.gz").stat().st_mode & 0o777 == 0o600


def test_known_files_are_not_read_again(tree: Path) -> None:
    first = survey(tree, {}).manifest
    known = {row[0]: row for row in first.rows() if row[1] != "d"}
    again = survey(tree, {"/usr/bin/tool": "moved"}, known)
    assert again.read == 0
    assert again.manifest.changes_from(first) == []
    entry = again.manifest.get("/usr/bin/tool")
    assert entry is not None and entry.package == "moved"


def test_changes_name_what_differs_and_nothing_else(tree: Path) -> None:
    old = survey(tree, {}).manifest
    (tree / "usr/bin/tool").write_bytes(b"#!/bin/sh\nx")
    (tree / "new").touch()
    (tree / "pipe").unlink()
    (tree / "usr").chmod(0o700)
    os.utime(tree / "bin", ns=(1, 1), follow_symlinks=False)
    new = survey(tree, {}).manifest
    changes = {change.path: change for change in new.changes_from(old)}
    assert set(changes) == {"/usr/bin/tool", "/usr/bin/same", "/new", "/pipe", "/usr"}
    assert changes["/new"].old is None and changes["/pipe"].new is None
    assert new.digest() != old.digest()


def test_changes_survive_a_file(tree: Path, tmp_path: Path) -> None:
    old = survey(tree, {}).manifest
    (tree / "new").touch()
    changes = survey(tree, {}).manifest.changes_from(old)
    manifest.save_changes(tmp_path / "c.gz", changes)
    assert manifest.load_changes(tmp_path / "c.gz") == changes != []


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no gzip", gzip.compress(b"no json"), gzip.compress(b"{}"), gzip.compress(b"[]"),
        gzip.compress(b'{"schema": 99, "rows": []}'), gzip.compress(b'{"schema": 1, "rows": {}}'),
        gzip.compress(b'{"schema": 1, "rows": [[]]}'), gzip.compress(b'{"schema": 1, "rows": []}')[:-9],
    ],
)  # fmt: skip
def test_damage_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.gz").write_bytes(data)
    with pytest.raises(CorruptState, match="damaged"):
        manifest.load(tmp_path / "m.gz")


@pytest.mark.parametrize(
    ("path", "head", "code"),
    [
        ("/usr/bin/x", b"\x7fELF", True),
        ("/home/x", b"#!/bin/sh", True),
        ("/etc/ld.so.cache", b"glibc-ld.so.cache1.1", True),
        ("/usr/lib/python3/x.py", b"import os", True),
        ("/usr/lib/ruby/x.rb", b"", True),
        ("/usr/share/perl5/x.pm", b"", True),
        ("/usr/lib/libx.so.1.2", b"", True),
        ("/usr/share/doc/x/example.py", b"", False),
        ("/etc/x.conf", b"x", False),
        ("/var/lib/x.py", b"x", False),
        ("/usr/share/x/data.txt", b"", False),
    ],
)
def test_what_is_code(path: str, head: bytes, code: bool) -> None:
    assert is_code(path, head) is code


def test_one_path_can_be_looked_at(tree: Path) -> None:
    made = survey(tree, {}).manifest
    for path in ("/", "/usr/bin", "/usr/bin/tool", "/bin", "/pipe"):
        seen, known = look(str(tree), path), made.get(path)
        assert known is not None
        assert dataclasses.replace(seen, code=known.code) == known


def test_rows_and_entries_are_the_same(tree: Path) -> None:
    for row in survey(tree, {}).manifest.rows():
        entry = manifest.from_row(row)
        assert isinstance(entry, Entry)
        assert tuple(manifest.to_row(entry)) == tuple(row)


def test_an_empty_manifest() -> None:
    assert len(Manifest([])) == 0
