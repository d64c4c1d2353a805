"""What apt says is understood: plans, and the reasons of failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneroot.errors import CommandFailed, NoSpace, OnerootError, UsageError
from oneroot.platform import apt, gpgv
from oneroot.platform.packages import PackageChange

SAID = """\
NOTE: This is only a simulation!
Reading package lists...
Calculating upgrade...
The following packages will be REMOVED:
  old
The following packages have been kept back:
  linux-image-amd64 held-one
  wrapped
The following packages will be upgraded:
  libssl3
4 upgraded, 1 newly installed, 1 to remove and 3 not upgraded.
Remv old [1.0]
Inst libssl3 [3.0.15-1~deb12u1] (3.0.17-1~deb12u2 Debian-Security:12/oldstable-security [amd64])
Inst tzdata [2024a-0] (2026f-0 Debian:12/oldstable, Debian-Security:12/oldstable-security [all]) []
Inst libc6:i386 [2.36-9] (2.36-10 Debian:12.9/oldstable [i386])
Inst fresh (1:2.0-1 Debian:12.9/oldstable [amd64])
Inst local [1] (2 [amd64])
Conf libssl3 (3.0.17-1~deb12u2 Debian-Security:12/oldstable-security [amd64])
"""


def test_a_plan_is_read() -> None:
    plan = apt.parse_plan(SAID, "amd64")
    assert plan.kept_back == ("linux-image-amd64", "held-one", "wrapped")
    assert plan.changes == (
        PackageChange(package="fresh", old=None, new="1:2.0-1"),
        PackageChange(package="libc6:i386", old="2.36-9", new="2.36-10"),
        PackageChange(package="libssl3", old="3.0.15-1~deb12u1", new="3.0.17-1~deb12u2", security=True),
        PackageChange(package="local", old="1", new="2"),
        PackageChange(package="old", old="1.0", new=None),
        PackageChange(package="tzdata", old="2024a-0", new="2026f-0", security=True),
    )


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert apt.parse_plan("0 upgraded, 0 newly installed\n", "amd64").changes == ()


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("E: Unable to locate package nope\n", UsageError, "nope"),
        ("E: Package 'nope' has no installation candidate\n", UsageError, "nope"),
        ("E: You don't have enough free space in /x.\n", NoSpace, "free space"),
        ("tar: x: No space left on device\nE: Sub-process failed\n", NoSpace, "free space"),
        ("E: Release file for copy:/x is expired (invalid since 1d).\n", CommandFailed, "--allow-expired"),
        ("W: GPG error: x: NO_PUBKEY 1\nE: The repository 'x' is not signed.\n", CommandFailed, "--keyring"),
        ("E: The repository 'x' is not signed.\n", CommandFailed, "--allow-unsigned"),
        ("E: The repository 'x' does not have a Release file.\n", CommandFailed, "suite"),
        ("E: Failed to fetch http://x  Could not connect to x:80\n", CommandFailed, "network"),
        ("sandbox: [Errno 1] Operation not permitted\n", CommandFailed, "log"),
        ("", CommandFailed, "log"),
    ],
)
def test_a_failure_says_what_to_do(said: str, kind: type[OnerootError], words: str) -> None:
    error = apt.explain(said, "It failed", ("apt-get",), 100, Path("/store/log/x.log"))
    assert type(error) is kind
    assert words in error.fix + error.what
    assert "/store/log/x.log" in error.fix
    for line in said.splitlines():
        if line.startswith("E: "):
            assert line[3:] in error.why


def test_a_broken_package_is_named_with_its_reason() -> None:
    said = (
        "Setting up tini\ndpkg: error processing package tini (--configure):\n"
        " installed tini package post-installation script subprocess returned error exit status 1\n"
        "Errors were encountered while processing:\n tini\nE: Sub-process returned an error code (1)\n"
    )
    error = apt.explain(said, "It failed", ("apt-get",), 100, None)
    assert "package tini" in error.why and "exit status 1" in error.why


def test_keyrings_in_ascii_are_read_too() -> None:
    line = b"PGP PUBLIC KEY BLOCK-----\n"
    armoured = b"-----BEGIN " + line + b"Comment: x\n\nAAEC\nAwQF\n=abcd\n-----END " + line
    assert gpgv._dearmored(armoured + armoured) == bytes(range(6)) * 2
    assert gpgv._dearmored(b"\x99binary") == b"\x99binary"
