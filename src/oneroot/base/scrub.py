"""Takes out of a new generation what must be each container's own, and finds what slipped in.

Works on a tree in the stage whose files may be hard links into an older generation: so nothing is
ever written in place. A file is removed, or replaced by a new one.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from oneroot.errors import OnerootError
from oneroot.kernel import tree

REMOVED = (
    "etc/ssh/ssh_host_*",
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    "etc/mailname",
    "etc/mysql/debian.cnf",
    "etc/adjtime",
    "etc/.pwd.lock",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/subuid-",
    "etc/subgid-",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "root/.bash_history",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/urandom/random-seed",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers/Lock",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/cache/apt/*.bin",
    "var/log/**/*.gz",
    "var/log/**/*.[0-9]",
)
"""Patterns of files that a container must not share: identity, secrets, backups, locks."""

EMPTIED_DIRECTORIES = (
    "dev",
    "run",
    "tmp",
    "var/tmp",
    "var/backups",
    "var/cache/apt/archives/partial",
    "var/cache/apt/archives",
    "var/lib/apt/lists/partial",
    "var/lib/apt/lists",
    "var/log/journal",
)
"""Whatever is in these is made anew by each container, or is ours to keep outside."""

_KEPT_DIRECTORY = "partial"
"""apt's package ships it, with an owner of its own."""
_EMPTIED_FILES = ("var/cache/debconf/passwords.dat",)
_SNAKEOIL = "ssl-cert-snakeoil.pem"
_DOCUMENTATION = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/info/")
_COMPILED = (".pyc", ".pyo", ".elc")
_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\r?\n"
    rb"(?:[\x20-\x7e]*\r?\n){0,6}?[A-Za-z0-9+/=]{16,}\r?\n"
    rb"|^PuTTY-User-Key-File-[0-9]|^AGE-SECRET-KEY-1",
    re.MULTILINE,
)
_LARGEST_KEY_FILE = 16 << 20


def scrub(root: Path) -> frozenset[str]:
    """Take out what must not be shared; returns the absolute paths of files that it touched."""
    touched: set[str] = set()

    def note(path: Path) -> None:
        touched.add(f"/{path.relative_to(root)}")

    for pattern in REMOVED:
        for path in _matching(root, pattern):
            note(path)
            tree.remove_tree(path)
    for directory in EMPTIED_DIRECTORIES:
        _empty(root / directory, note)
    for file in (*(root / name for name in _EMPTIED_FILES), *_logs(root)):
        if file.is_file() and not file.is_symlink() and file.lstat().st_size:
            note(file)
            _replace_by_empty(file)
    _snakeoil_links(root, note)
    _machine_ids(root, note)
    return frozenset(touched)


def _matching(root: Path, pattern: str) -> list[Path]:
    found = list(root.glob(pattern))
    return [path for path in found if not any(parent.is_symlink() for parent in _parents(path, root))]


def _parents(path: Path, root: Path) -> Iterable[Path]:
    return (parent for parent in path.parents if parent != root and root in parent.parents)


def _empty(directory: Path, note: Callable[[Path], None]) -> None:
    if directory.is_symlink() or not directory.is_dir():
        return
    before = directory.lstat()
    for entry in list(directory.iterdir()):
        if entry.name == _KEPT_DIRECTORY and not entry.is_symlink() and entry.is_dir():
            continue
        for file in [entry, *entry.rglob("*")] if entry.is_dir() and not entry.is_symlink() else [entry]:
            note(file)
        tree.remove_tree(entry)
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def _logs(root: Path) -> list[Path]:
    logs = root / "var/log"
    return (
        [] if logs.is_symlink() else [path for path in logs.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    )


def _replace_by_empty(file: Path) -> None:
    """Put an empty file of the same owner and mode in its place: another inode."""
    status = file.lstat()
    file.unlink()
    file.touch(mode=0o600)
    os.chown(file, status.st_uid, status.st_gid)
    file.chmod(stat.S_IMODE(status.st_mode))


def _snakeoil_links(root: Path, note: Callable[[Path], None]) -> None:
    certificates = root / "etc/ssl/certs"
    if certificates.is_dir() and not certificates.is_symlink():
        for entry in list(certificates.iterdir()):
            if entry.is_symlink() and entry.readlink().name == _SNAKEOIL:
                note(entry)
                entry.unlink()


def _machine_ids(root: Path, note: Callable[[Path], None]) -> None:
    """Leave an empty /etc/machine-id: a missing one would mean a first boot to systemd."""
    bus = root / "var/lib/dbus/machine-id"
    if bus.is_file() and not bus.is_symlink():
        note(bus)
        bus.unlink()
    own = root / "etc/machine-id"
    if own.is_symlink() or not own.is_file() or own.lstat().st_size:
        if not (root / "etc").is_dir():
            return
        note(own)
        own.unlink(missing_ok=True)
        own.touch(mode=0o444)
        own.chmod(0o444)


def private_keys(
    root: Path, suspects: Sequence[str], pristine: Callable[[Sequence[str]], Mapping[str, str]]
) -> list[str]:
    """Return those of the suspected files that hold a private key no package shipped.

    :param suspects: absolute paths of files that speak of private keys.
    :param pristine: returns the MD5 digests that packages shipped for paths.
    """
    found = []
    for path in suspects:
        if path.startswith(_DOCUMENTATION) or path.endswith(_COMPILED):
            continue
        with open(root / path[1:], "rb") as file:
            data = file.read(_LARGEST_KEY_FILE)
        if _KEY.search(data):
            found.append((path, data))
    if not found:
        return []
    shipped = pristine([path for path, _ in found])
    return [
        path
        for path, data in found
        if shipped.get(path) != hashlib.md5(data, usedforsecurity=False).hexdigest()
    ]


def refuse_private_keys(keys: Sequence[str]) -> None:
    """Fail a commit that would share private keys among all containers.

    :raises OnerootError: names them.
    """
    if keys:
        raise OnerootError(
            f"A private key would be shared by all containers: {keys[0]}",
            why=f"made while packages were installed: {', '.join(keys[:10])}",
            fix="leave out the package that makes it, or report it: each container should make its own",
        )
