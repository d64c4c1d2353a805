"""What is each container's own leaves the tree, and older generations that share files keep theirs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from oneroot.base import scrub
from oneroot.base.survey import survey
from oneroot.errors import OnerootError

KEY = "-----BEGIN {}PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\nabc=\n-----END\n"
GONE = [
    *(
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssh/ssh_host_rsa_key.pub",
        "etc/ssl/private/ssl-cert-snakeoil.key",
    ),
    *("etc/ssl/certs/ssl-cert-snakeoil.pem", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/shadow-"),
    *(
        "var/lib/dbus/machine-id",
        "var/lib/systemd/random-seed",
        "etc/mysql/debian.cnf",
        "var/cache/apt/pkgcache.bin",
    ),
    *(
        "var/lib/apt/lists/x_InRelease",
        "var/lib/apt/lists/partial/y",
        "var/cache/apt/archives/partial/z",
        "var/cache/apt/archives/x.deb",
        "tmp/x",
        "run/lock/y",
        "var/log/journal/id/s",
    ),
    *("var/log/apt/old.log.1.gz", "var/backups/x", "dev/null", "var/tmp/x", "root/.bash_history"),
]
STAYS = [
    "etc/passwd",
    "etc/shadow",
    "etc/ssh/sshd_config",
    "usr/bin/x",
    "var/lib/dpkg/status",
    "etc/ssl/private/mine",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in (*GONE, *STAYS):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content")
    (root / "etc/ssl/certs/abc.0").symlink_to("ssl-cert-snakeoil.pem")
    (root / "etc/ssl/certs/def.0").symlink_to("other.pem")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "var/log/dpkg.log").write_text("said")
    (root / "var/log/dpkg.log").chmod(0o640)
    return root


def test_everything_listed_is_gone_and_nothing_else(tree: Path) -> None:
    touched = scrub.scrub(tree)
    assert [name for name in GONE if (tree / name).exists()] == []
    assert [name for name in STAYS if not (tree / name).exists()] == []
    assert (tree / "etc/machine-id").read_bytes() == b""
    assert (tree / "etc/machine-id").stat().st_mode & 0o777 == 0o444
    assert (tree / "var/log/dpkg.log").read_bytes() == b""
    assert (tree / "var/log/dpkg.log").stat().st_mode & 0o777 == 0o640
    assert not (tree / "etc/ssl/certs/abc.0").is_symlink() and (tree / "etc/ssl/certs/def.0").is_symlink()
    for directory in scrub.EMPTIED_DIRECTORIES:
        assert (tree / directory).is_dir()
    assert {f"/{name}" for name in GONE} | {"/etc/machine-id", "/var/log/dpkg.log"} <= touched
    assert not touched & {f"/{name}" for name in STAYS}


def test_an_older_generation_keeps_what_it_shares(tree: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    for name in ("etc/machine-id", "var/log/dpkg.log", "etc/hostname"):
        (older / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(tree / name, older / name)
    scrub.scrub(tree)
    assert (older / "etc/machine-id").read_bytes().startswith(b"0123")
    assert (older / "var/log/dpkg.log").read_bytes() == b"said"
    assert (older / "var/log/dpkg.log").stat().st_mode & 0o777 == 0o640


def test_twice_is_as_once(tree: Path) -> None:
    scrub.scrub(tree)
    first = survey(tree, {}).manifest
    assert scrub.scrub(tree) == frozenset()
    assert survey(tree, {}).manifest.changes_from(first) == []


def test_links_lead_nowhere(tree: Path, tmp_path: Path) -> None:
    """A tree's links point into the host when they are followed from outside: they never are."""
    host = tmp_path / "host"
    host.mkdir()
    (host / "precious").write_text("p")
    (host / "machine-id").write_text("host")
    for name in ("tmp", "run", "var/backups"):
        import shutil

        shutil.rmtree(tree / name)
        (tree / name).symlink_to(host)
    (tree / "etc/machine-id").unlink()
    (tree / "etc/machine-id").symlink_to(host / "machine-id")
    (tree / "var/log/dpkg.log").unlink()
    (tree / "var/log/dpkg.log").symlink_to(host / "precious")
    scrub.scrub(tree)
    assert (host / "precious").read_text() == "p" and (host / "machine-id").read_text() == "host"
    assert not (tree / "etc/machine-id").is_symlink()


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED ", "DSA "])
def test_private_keys_are_found(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/secret").write_text("# a comment\n" + KEY.format(kind))
    (root / "etc/public").write_text(KEY.format("").replace("PRIVATE", "PUBLIC"))
    (root / "etc/talk").write_text("It begins with -----BEGIN PRIVATE KEY-----, as you know.\n")
    suspects = survey(root, {}).suspects
    assert scrub.private_keys(root, suspects, lambda paths: {}) == ["/etc/secret"]


def test_keys_that_packages_ship_are_no_secret(tmp_path: Path) -> None:
    root = tmp_path / "root"
    text = KEY.format("RSA ")
    for name in ("usr/share/doc/x/key.pem", "usr/lib/x/test.pem", "usr/lib/x/changed.pem"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "usr/lib/x/changed.pem").write_text(text + "x")
    shipped = hashlib.md5(text.encode()).hexdigest()
    found = scrub.private_keys(root, survey(root, {}).suspects, lambda paths: dict.fromkeys(paths, shipped))
    assert found == ["/usr/lib/x/changed.pem"]
    with pytest.raises(OnerootError, match=r"changed\.pem"):
        scrub.refuse_private_keys(found)
    scrub.refuse_private_keys([])
