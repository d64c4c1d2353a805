"""Overrides that need no root to make."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from oneroot.audit import override
from oneroot.audit.basecode import BaseCode
from oneroot.audit.override import Examiner, OverrideKind, Overrides, Severity
from oneroot.base.manifest import Manifest, Row
from oneroot.settings import Paths

LIBRARY = b"\x7fELF library"


def row(path: str, kind: str, content: bytes = b"", package: str | None = "pkg", code: int = 0) -> Row:
    digest = content.decode() if kind == "l" else hashlib.sha256(content).hexdigest() if kind == "f" else ""
    size = len(content) if kind == "f" else 0
    return (path, kind, 0o644, 0, 0, size, 0, digest, None if kind == "d" else package, code, None)


ROWS = [
    *(row(path, "d") for path in ("/usr", "/usr/lib", "/usr/lib/app", "/etc", "/var/log", "/var/lib/dpkg")),
    row("/usr/lib/libx.so.1.2", "f", LIBRARY, code=1),
    row("/usr/lib/libx.so.1", "l", b"libx.so.1.2"),
    row("/usr/lib/app/a.py", "f", b"print()", code=1),
    row("/usr/lib/app/data", "f", b"data"),
    row("/usr/lib/app/__pycache__/a.pyc", "f", b"pyc", package=None, code=1),
    row("/lib", "l", b"usr/lib", package=None),
    row("/etc/app.conf", "f", b"conf"),
    row("/etc/passwd", "f", b"root", package=None),
    row("/etc/hosts", "f", b"hosts", package=None),
    row("/etc/ld.so.cache", "f", b"cache", package=None, code=1),
    row("/var/lib/dpkg/status", "f", b"status", package=None),
    row("/var/log/dpkg.log", "f", b"log", package=None),
    row("/loop", "l", b"loop"),
]  # fmt: skip


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(store=tmp_path / "store", lxc=tmp_path / "lxc")
    generation = made.bases / "core/generations/1"
    (generation / "root").mkdir(parents=True)
    (made.bases / "core/current").symlink_to("generations/1")
    Manifest(ROWS).save(generation / "manifest.gz")
    (made.lxc / "web/overlay/upper").mkdir(parents=True)
    return made


@pytest.fixture
def upper(paths: Paths) -> Path:
    return paths.lxc / "web/overlay/upper"


def look(paths: Paths) -> Overrides:
    return Examiner(paths, BaseCode(paths, "core")).examine("web", unprivileged=True)


def put(upper: Path, path: str, data: bytes) -> None:
    (upper / path).parent.mkdir(parents=True, exist_ok=True)
    (upper / path).write_bytes(data)


@pytest.mark.parametrize(
    ("path", "data", "expected"),
    [
        ("usr/lib/libx.so.1.2", LIBRARY, (OverrideKind.EQUIVALENT, Severity.CODE)),
        ("usr/lib/libx.so.1.2", b"\x7fELF_library", (OverrideKind.OVERRIDDEN, Severity.CODE)),
        ("usr/lib/libx.so.1.2", b"", (OverrideKind.OVERRIDDEN, Severity.CODE)),
        ("usr/lib/libx.so.1", LIBRARY, (OverrideKind.OVERRIDDEN, Severity.CODE)),
        ("usr/lib/app/a.py", b"print(1)", (OverrideKind.OVERRIDDEN, Severity.CODE)),
        ("usr/lib/app/data", b"other", (OverrideKind.OVERRIDDEN, Severity.DATA)),
        ("usr/lib/app/__pycache__/a.pyc", b"anew", (OverrideKind.OVERRIDDEN, Severity.DATA)),
        ("etc/app.conf", b"other", (OverrideKind.OVERRIDDEN, Severity.CONFIGURATION)),
        ("etc/passwd", b"other", (OverrideKind.OVERRIDDEN, Severity.CONFIGURATION)),
        ("etc/ld.so.cache", b"other", (OverrideKind.OVERRIDDEN, Severity.CODE)),
        ("var/lib/dpkg/status", b"other", (OverrideKind.OVERRIDDEN, Severity.DATABASE)),
        ("etc/hosts", b"other", None),
        ("var/log/dpkg.log", b"other", None),
        ("usr/lib/own/thing.so", b"other", None),
        ("loop", b"other", (OverrideKind.OVERRIDDEN, Severity.DATA)),
    ],
)
def test_kind_and_severity(
    paths: Paths, upper: Path, path: str, data: bytes, expected: tuple[OverrideKind, Severity] | None
) -> None:
    put(upper, path, data)
    found = look(paths)
    assert [(one.kind, one.severity) for one in found.found] == ([expected] if expected else [])
    assert found.unknown == ""


def test_links_are_compared_by_their_target(paths: Paths, upper: Path) -> None:
    (upper / "usr/lib").mkdir(parents=True)
    (upper / "usr/lib/libx.so.1").symlink_to("libx.so.1.2")
    (upper / "lib").symlink_to("/usr/lib")
    found = {one.path: (one.kind, one.severity) for one in look(paths).found}
    assert found == {
        "/usr/lib/libx.so.1": (OverrideKind.EQUIVALENT, Severity.CODE),
        "/lib": (OverrideKind.OVERRIDDEN, Severity.CODE),
    }


def test_file_in_place_of_a_directory_masks_all_in_it(paths: Paths, upper: Path) -> None:
    put(upper, "usr/lib/app", b"")
    (one,) = look(paths).found
    assert (one.path, one.kind, one.severity, one.package) == (
        "/usr/lib/app", OverrideKind.MASKED, Severity.CODE, "pkg",
    )  # fmt: skip


def test_opaque_directory_hides_what_it_does_not_show(paths: Paths, upper: Path) -> None:
    put(upper, "usr/lib/app/a.py", b"print()")
    os.setxattr(upper / "usr/lib/app", "trusted.overlay.opaque", b"y") if os.geteuid() == 0 else None
    assert [one.kind for one in look(paths).found] == [OverrideKind.EQUIVALENT]
    os.setxattr(upper / "usr/lib/app", "user.overlay.opaque", b"y")
    found = {one.path: (one.kind, one.severity) for one in look(paths).found}
    assert found == {
        "/usr/lib/app/a.py": (OverrideKind.EQUIVALENT, Severity.CODE),
        "/usr/lib/app": (OverrideKind.MASKED, Severity.DATA),
    }


def test_bounds_make_unknown(paths: Paths, upper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(upper, "usr/lib/libx.so.1.2", b"other")
    for number in range(20):
        put(upper, f"usr/lib/own{number}", b"")
    monkeypatch.setattr(override, "MOST_ENTRIES", 10)
    assert "more than 10 files" in look(paths).unknown
    monkeypatch.setattr(override, "MOST_ENTRIES", 100)
    assert look(paths).unknown == ""
    monkeypatch.setattr(override, "MOST_SECONDS", -1)
    assert "takes more than" in look(paths).unknown


def test_long_list_is_cut_and_says_so(paths: Paths, upper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(upper, "etc/app.conf", b"other")
    put(upper, "usr/lib/libx.so.1.2", b"other")
    monkeypatch.setattr(override, "MOST_LISTED", 1)
    found = look(paths)
    assert found.found[0].keeps_fixes_out and found.unlisted == 1


def test_digests_are_remembered_only_for_the_same_file(paths: Paths, upper: Path) -> None:
    put(upper, "usr/lib/libx.so.1.2", LIBRARY)
    examiner = Examiner(paths, BaseCode(paths, "core"))
    assert examiner.examine("web", unprivileged=True).found[0].kind is OverrideKind.EQUIVALENT
    put(upper, "usr/lib/libx.so.1.2", b"\x7fELF_library")
    assert examiner.examine("web", unprivileged=True).found[0].kind is OverrideKind.OVERRIDDEN
