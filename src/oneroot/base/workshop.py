"""Where packages are fetched for a base: apt's area, the store's cache of package files, the logs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from oneroot.base.generation import BaseSpec
from oneroot.errors import CommandFailed, NoSpace
from oneroot.platform import apt, dpkg
from oneroot.platform.packages import Archive
from oneroot.settings import Paths, Settings
from oneroot.work import killpoint
from oneroot.work.progress import Progress

_KEPT_LOGS = 50
_ROOM = 64 << 20
"""Bytes left free on top of what a build is estimated to need."""
_FULL = 1 << 20
_UNPACKED_PER_ARCHIVE_BYTE = 4


def area(settings: Settings, spec: BaseSpec, *, status: Path | None, lists: str = "") -> apt.Area:
    """Return the area of a base, ready for use; its lists outlive it, so that a check costs little.

    :param status: dpkg's status file of the tree that is to be changed; None for an empty tree.
    :param lists: names another area, for a base whose first generation has other sources.
    """
    mount_point = settings.paths.run / "apt"
    mount_point.mkdir(mode=0o755, parents=True, exist_ok=True)
    private_directory(settings.paths.store / "cache")
    known = dpkg.architectures(status.parents[3]) if status else []
    made = apt.Area(
        directory=private_directory(settings.paths.store / "cache/apt") / f"{spec.name}{lists}",
        mount_point=mount_point,
        repositories=spec.repositories,
        architectures=tuple(known) or (spec.architecture,),
        status=status,
    )
    apt.clean(made)
    apt.prepare(made)
    return made


def pool(paths: Paths) -> Path:
    """Return the directory of package files that all bases share."""
    return private_directory(paths.store / "cache/packages")


def private_directory(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def fetch(
    settings: Settings, area: apt.Area, words: Sequence[str], *, log: Path, progress: Progress
) -> list[Path]:
    """Bring the package files that a sub-command needs into the area, and keep them in the pool.

    :returns: the files.
    :raises NoSpace: there is no room for them.
    """
    kept = pool(settings.paths)
    missing = []
    for archive in apt.archives(area, words):
        if not _take(kept / archive.name, area.archives / archive.name, archive):
            missing.append(archive)
    if missing:
        size = sum(archive.size for archive in missing)
        require_room(area.directory, size + _ROOM, "The packages cannot be fetched")
        progress.note(f"fetch {len(missing)} packages, {megabytes(size)}")
        apt.download(area, words, log=log, timeout=settings.timeouts.package_manager)
        killpoint.reach("packages are fetched")
    files = sorted(area.archives.glob("*.deb"))
    for file in files:
        with contextlib.suppress(FileExistsError):
            os.link(file, kept / file.name)
    return files


def _take(kept: Path, target: Path, wanted: Archive) -> bool:
    """Link a package file out of the pool, if it is there and is the one that the lists name."""
    try:
        with kept.open("rb") as file:
            if os.fstat(file.fileno()).st_size != wanted.size:
                raise FileNotFoundError
            if not wanted.digest or hashlib.file_digest(file, "sha256").hexdigest() != wanted.digest:
                raise FileNotFoundError
    except FileNotFoundError:
        kept.unlink(missing_ok=True)
        return False
    os.utime(kept)
    with contextlib.suppress(FileExistsError):
        os.link(kept, target)
    return True


def clean_pool(paths: Paths, *, older_than: float) -> int:
    """Remove package files that nobody needed for so many seconds; returns the bytes."""
    freed = 0
    for file in pool(paths).glob("*.deb"):
        status = file.stat()
        if status.st_mtime < time.time() - older_than:
            file.unlink(missing_ok=True)
            freed += status.st_size
    return freed


def require_room(place: Path, size: int, what: str) -> None:
    """Refuse, before anything is begun, what the filesystem has no room for.

    :raises NoSpace: says how much is missing.
    """
    free = _free(place)
    if free < size:
        raise NoSpace(
            what,
            why=f"{megabytes(size)} are needed below {place}, {megabytes(free)} are free",
            fix="free space there (oneroot base gc), then run the same command again",
        )


def _free(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def room_for(files: Sequence[Path], tree_directories: int) -> int:
    """Estimate the bytes that a build out of these package files takes."""
    unpacked = sum(file.stat().st_size for file in files) * _UNPACKED_PER_ARCHIVE_BYTE
    return unpacked + tree_directories * 4096 + _ROOM


@contextlib.contextmanager
def no_space_told(what: str, place: Path | None = None) -> Iterator[None]:
    """Turn a full filesystem into an error that says so.

    :param place: where an overlay is written, which the kernel makes read-only when it is full: what
        programs then say is misleading.
    """
    try:
        yield
    except CommandFailed as error:
        if place is None or _free(place) >= _FULL:
            raise
        raise NoSpace(
            what,
            why=f"{place} is full: {error.why}",
            fix="free space below the store (oneroot base gc), then run the same command again",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                what,
                why=f"{error.strerror}: {error.filename or 'the store'}; nothing was changed",
                fix="free space below the store (oneroot base gc), then run the same command again",
            ) from error
        raise


def new_log(paths: Paths, verb: str, base: str) -> Path:
    """Return a new file for what programs say; the oldest ones make room."""
    directory = private_directory(paths.store / "log")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    old = sorted(directory.glob("*.log"), key=lambda file: re.sub(r".*-", "", file.name))
    for file in old[: max(0, len(old) - _KEPT_LOGS)]:
        file.unlink(missing_ok=True)
    path = directory / f"{verb}-{base}-{stamp}.log"
    path.touch(mode=0o600)
    return path


def forget(paths: Paths, base: str) -> None:
    """Remove the areas of a base that is gone."""
    for suffix in ("", ".first"):
        shutil.rmtree(paths.store / "cache/apt" / f"{base}{suffix}", ignore_errors=True)


def megabytes(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
