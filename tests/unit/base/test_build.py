"""The last part of a build, on a small tree."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from oneroot.base import build
from oneroot.base.generation import BaseSpec, Generation, GenerationNumber, PackageChange, Repository
from oneroot.base.survey import survey
from oneroot.errors import NoSpace, OnerootError
from oneroot.names import BaseName

SPEC = BaseSpec(name=BaseName("core"), source="debian:bookworm")


class Manager:
    """Says of any tree that it holds one package."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self._broken = list(broken)

    def installed(self, root: Path) -> dict[str, str]:
        return {"tool": "2"}

    def broken(self, root: Path) -> list[str]:
        return self._broken

    def owners(self, root: Path) -> dict[str, str]:
        return {"/usr/tool": "tool"}

    def pristine(self, root: Path, paths: Sequence[str]) -> Mapping[str, str]:
        return {}


def tree(place: Path) -> Path:
    for name, text in {
        "usr/tool": "#!/bin/sh\n",
        "var/log/x.log": "said",
        "etc/passwd": "root:x:0:0:",
    }.items():
        (place / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "root" / name).write_text(text)
    return place


def describe(prepared: Path, parent: build.Parent | None = None, *, broken: Sequence[str] = ()) -> Generation:
    told = [PackageChange(package="tool", old="1", new="2", cves=("CVE-2030-1",), security=True)]
    return build.describe(
        prepared, spec=SPEC, number=GenerationNumber(2), parent=parent, releases=(), told=told, reason="why",
        manager=Manager(broken),
    )  # fmt: skip


def test_what_the_scrub_replaced_is_looked_at_again(tmp_path: Path) -> None:
    """A file may be a link to the parent's and yet be replaced by the scrub."""
    older, prepared = tree(tmp_path / "older"), tmp_path / "new"
    whole = survey(older / "root", {}).manifest
    for path in whole.paths():
        target = prepared / "root" / path[1:]
        if (older / "root" / path[1:]).is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.link(older / "root" / path[1:], target)
    parent = build.Parent(
        generation=Generation(
            base=SPEC.name, number=GenerationNumber(1), parent=None, created="", reason="", person="",
            packages={"tool": "1"}, changes=(), releases=(), files=1, size=1, digest="",
        ),
        manifest=whole,
        linked=frozenset(path for path in whole.paths() if not (older / "root" / path[1:]).is_dir()),
    )  # fmt: skip
    made = describe(prepared, parent)
    from oneroot.base import manifest

    kept = manifest.load(prepared / "manifest.gz")
    entry = kept.get("/var/log/x.log")
    assert entry is not None and entry.size == 0
    assert list(kept) == list(survey(prepared / "root", {"/usr/tool": "tool"}).manifest)
    assert (older / "root/var/log/x.log").read_text() == "said"
    assert {change.path for change in manifest.load_changes(prepared / "changes.gz")} >= {"/var/log/x.log"}
    [change] = made.changes
    assert (change.old, change.new, change.cves, change.security) == ("1", "2", ("CVE-2030-1",), True)
    assert (made.parent, made.packages) == (1, {"tool": "2"})


def test_half_installed_packages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OnerootError, match="tool"):
        describe(tree(tmp_path), broken=["tool (half-configured)"])


def test_a_step_tells_of_a_full_disk() -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "/x")

    with pytest.raises(NoSpace) as caught:
        build.Act("do it", full).apply()
    assert "do it" in caught.value.what and caught.value.fix


def test_changes_between_package_sets() -> None:
    changes = build.changes_between({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"})
    assert [(one.package, one.old, one.new) for one in changes] == [
        ("b", "1", "2"), ("c", "1", None), ("d", None, "1"),
    ]  # fmt: skip


def test_sources_in_the_tree_hold_no_password_and_nothing_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "etc/apt").mkdir(parents=True)
    (tmp_path / "usr/k.gpg").parent.mkdir()
    (tmp_path / "usr/k.gpg").touch()
    uris = ("http://a/debian", "http://me:secret@b/debian", "file:/srv/c")
    repositories = tuple(
        Repository(uri=uri, suites=("s",), components=("main",), signed_by=f"/usr/{key}.gpg")
        for uri in uris
        for key in ("k", "other")
    )
    build.write_sources(tmp_path, BaseSpec(name=SPEC.name, source="", repositories=repositories))
    assert (tmp_path / "etc/apt/sources.list").read_text() == (
        "deb [signed-by=/usr/k.gpg] http://a/debian s main\ndeb http://a/debian s main\n"
    )
