"""CVEs come from the changelog entries that are newer, and from no others."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from oneroot.base import changelog
from oneroot.base.changelog import Candidate
from oneroot.platform import dpkg
from oneroot.platform.packages import PackageChange

TEXT = """\
openssl (3.0.17-1~deb12u2) bookworm-security; urgency=medium

  * CVE-2025-9230, cve-2025-9231
    and CVE-2025-9230 again; not CVE-20-1

 -- A <a@x>  Mon, 01 Jan 2026 00:00:00 +0000

openssl (3.0.16-1~deb12u1) bookworm; urgency=medium

  * CVE-2024-13176

 -- A <a@x>  Mon, 01 Jan 2025 00:00:00 +0000

openssl (3.0.15-1) bookworm; urgency=medium

  * CVE-2024-6119
"""


def test_entries_newer_than_the_old_version() -> None:
    assert changelog.cves_since(TEXT, "3.0.15-1") == ("CVE-2024-13176", "CVE-2025-9230", "CVE-2025-9231")
    assert changelog.cves_since(TEXT, "3.0.16-1~deb12u1") == ("CVE-2025-9230", "CVE-2025-9231")
    assert changelog.cves_since(TEXT, "3.0.17-1~deb12u2") == ()
    assert changelog.cves_since(TEXT, "4") == ()
    assert changelog.cves_since("no changelog", "1") == ()
    other_branch = TEXT + "\nopenssl (9.0-1) experimental; urgency=low\n\n  * CVE-2000-0001\n"
    assert "CVE-2000-0001" not in changelog.cves_since(other_branch, "3.0.15-1")


def package(place: Path, name: str, version: str, *, source: str = "", text: str | None = None) -> Candidate:
    tree = place / name
    (tree / "DEBIAN").mkdir(parents=True)
    lines = [
        f"Package: {name}",
        f"Version: {version}",
        "Architecture: all",
        "Maintainer: x <x@x>",
        "Description: x",
    ]
    lines += [f"Source: {source}"] if source else []
    (tree / "DEBIAN/control").write_text("\n".join(lines) + "\n")
    if text is not None:
        docs = tree / "usr/share/doc" / name
        docs.mkdir(parents=True)
        (docs / "changelog.Debian.gz").write_bytes(gzip.compress(text.encode()))
    file = place / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, file], check=True, capture_output=True)
    return Candidate(file=file, package=dpkg.archive_package(file))


def test_packages_of_one_source_share_a_changelog(tmp_path: Path) -> None:
    new = "3.0.17-1~deb12u2"
    candidates = [
        package(tmp_path, "libssl3", new, source="openssl"),
        package(tmp_path, "openssl", new, text=TEXT),
        package(tmp_path, "bin", f"{new}+b1", source=f"openssl ({new})"),
        package(tmp_path, "other", "2"),
    ]
    changes = [
        PackageChange(package="libssl3", old="3.0.16-1~deb12u1", new=new),
        PackageChange(package="bin", old="3.0.15-1+b7", new=f"{new}+b1", security=True),
        PackageChange(package="other", old="1", new="2"),
        PackageChange(package="fresh", old=None, new="1"),
        PackageChange(package="gone", old="1", new=None),
    ]
    there = dpkg.Package(
        name="bin", version="3.0.15-1+b7", source="openssl", source_version="3.0.15-1", state="installed"
    )
    found = changelog.with_cves(changes, candidates, {"bin": there})
    assert [change.cves for change in found] == [
        ("CVE-2025-9230", "CVE-2025-9231"),
        ("CVE-2024-13176", "CVE-2025-9230", "CVE-2025-9231"),
        (), (), (),
    ]  # fmt: skip
    assert found[1].security


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b\x08broken", b"plain text", gzip.compress(b"\xff\xfe")])
def test_odd_changelogs_are_no_error(tmp_path: Path, data: bytes) -> None:
    candidate = package(tmp_path, "odd", "1", text="")
    tree = tmp_path / "odd"
    (tree / "usr/share/doc/odd/changelog.Debian.gz").write_bytes(data)
    subprocess.run(["dpkg-deb", "-b", tree, candidate.file], check=True, capture_output=True)
    assert changelog.cves_since(changelog.read(candidate.file), "0") == ()


def test_no_package_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_text("nothing")
    assert changelog.read(tmp_path / "x.deb") == ""
