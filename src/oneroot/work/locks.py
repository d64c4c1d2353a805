"""Locks: who changes a base, a container or the pools. Readers never lock.

A lock is an open-file-description lock on a file in ``RUN/lock``: it ends with its holder,
however that ends, and threads exclude each other too. The file says who holds it. Order, to
rule out deadlock: base, container, pools, announcements; several of a kind by name.

The start hook takes a container's lock as well. When we start a container ourselves we hold
it already, and tell the hook by ``ONEROOT_LOCK_TOKEN`` that it works for us.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pwd
import secrets
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from oneroot.errors import Busy
from oneroot.settings import Paths

TOKEN_VARIABLE = "ONEROOT_LOCK_TOKEN"  # noqa: S105  the name of a variable, no secret
TOKEN = secrets.token_hex(16)
"""Names this process in the locks that it holds."""

_UNSET_UID = 0xFFFF_FFFF
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock."""

    pid: int
    person: str
    verb: str
    since: str
    token: str


def person() -> str:
    """Return who is at work: the one who became root, if sudo or login tell."""
    if sudo := os.environ.get("SUDO_USER"):
        return sudo
    uid = _login_uid()
    uid = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _login_uid() -> int | None:
    """Return who logged in, as the kernel remembers it; None for a service, or where it does not."""
    try:
        uid = int(Path("/proc/self/loginuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if uid == _UNSET_UID else uid


@contextlib.contextmanager
def base(paths: Paths, name: str, *, verb: str, wait: float = 0) -> Iterator[None]:
    """Hold a base: its generations, its ``current`` and what rolls out from it."""
    with _hold(paths, f"base-{name}", f"The base {name}", verb, wait):
        yield


@contextlib.contextmanager
def group(paths: Paths, name: str, *, verb: str, wait: float = 0) -> Iterator[None]:
    """Hold the name that containers are made under, so that nobody makes the same ones at once."""
    with _hold(paths, f"group-{name}", f"The making of {name}", verb, wait):
        yield


@contextlib.contextmanager
def container(paths: Paths, name: str, *, verb: str, wait: float = 0) -> Iterator[None]:
    """Hold a container: its upper, its declaration, its being started or stopped."""
    with _hold(paths, f"container-{name}", f"The container {name}", verb, wait):
        yield


@contextlib.contextmanager
def pools(paths: Paths, *, verb: str, wait: float = 30) -> Iterator[None]:
    """Hold the ledger of id ranges and addresses, for as long as an allocation takes."""
    with _hold(paths, "pools", "The pool of ids and addresses", verb, wait):
        yield


@contextlib.contextmanager
def announcements(paths: Paths, *, verb: str, wait: float = 30) -> Iterator[None]:
    """Hold what the host tells of its containers, from reading the declarations to publishing their ports."""
    with _hold(paths, "announcements", "The list of published ports", verb, wait):
        yield


def holder(paths: Paths, lock: str) -> Holder | None:
    """Return who holds a lock (``base-core``, ``container-web001``), without taking it."""
    try:
        descriptor = os.open(paths.locks / lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
        if struct.unpack("hhqqi4x", answer)[0] == fcntl.F_UNLCK:
            return None
        return _read_holder(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _hold(paths: Paths, lock: str, what: str, verb: str, wait: float) -> Iterator[None]:
    paths.locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(paths.locks / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(descriptor, what, wait)
        info = Holder(
            pid=os.getpid(),
            person=person(),
            verb=verb,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            token=TOKEN,
        )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(dataclasses.asdict(info)).encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, what: str, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            found = _read_holder(descriptor)
            who = (
                f"{found.person} (process {found.pid}) does “{found.verb}” since {found.since}"
                if found
                else "another process holds its lock"
            )
            raise Busy(f"{what} is busy", why=who, fix="wait until that has ended, then try again")
        time.sleep(0.02)


def _read_holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None
