"""Copies that share blocks where the filesystem can, renames that do not replace, durability."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from oneroot.kernel import libc, xattr

_NO_REFLINK = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)


def copy_file(source: str, target: str) -> None:
    """Copy a regular file with mode, owner, times, holes and attributes; *target* must not exist.

    :raises OSError: and then there is no *target*.
    """
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(reading)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_content(reading, writing, status.st_size)
            os.fchown(writing, status.st_uid, status.st_gid)
            os.fchmod(writing, stat.S_IMODE(status.st_mode))  # after chown, which clears setuid
            xattr.copy(reading, writing)  # after chown, which clears security.capability
            os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
        except BaseException:
            os.unlink(target)
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def copy_content(reading: int, writing: int, size: int) -> None:
    """Copy bytes between descriptors, by reference where the filesystem can; holes stay holes."""
    try:
        fcntl.ioctl(writing, libc.FICLONE, reading)
        return
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
    status = os.fstat(reading)
    if status.st_blocks * 512 < status.st_size:
        _copy_sparse(reading, writing, status.st_size)
        return
    while os.sendfile(writing, reading, None, max(size, 1 << 20)):
        pass


def _copy_sparse(reading: int, writing: int, size: int) -> None:
    place = 0
    while True:
        try:
            place = os.lseek(reading, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # there is only a hole left
                raise
            break
        end = os.lseek(reading, place, os.SEEK_HOLE)
        os.lseek(writing, place, os.SEEK_SET)
        while place < end:
            done = os.sendfile(writing, reading, place, end - place)
            if not done:
                break
            place += done
    os.ftruncate(writing, size)


def copy_node(source: str, target: str) -> None:
    """Copy a link, device, FIFO or socket with its attributes; *target* must not exist."""
    status = os.lstat(source)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, status.st_mode, status.st_rdev)
    copy_attributes(source, target, status)


def copy_attributes(source: str, target: str, status: os.stat_result) -> None:
    """Give *target* the owner, mode, attributes and times of *source*."""
    os.lchown(target, status.st_uid, status.st_gid)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    xattr.copy(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree that nobody else can change; hard links within it stay links.

    What is mounted in it is copied too. *target* must not exist.
    """
    links: dict[tuple[int, int], str] = {}
    _copy_directory(str(source), str(target), links)


def _copy_directory(source: str, target: str, links: dict[tuple[int, int], str]) -> None:
    status = os.lstat(source)
    os.mkdir(target, 0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            beneath = f"{target}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                _copy_directory(entry.path, beneath, links)
                continue
            found = entry.stat(follow_symlinks=False)
            key = (found.st_dev, found.st_ino)
            if found.st_nlink > 1 and key in links:
                os.link(links[key], beneath, follow_symlinks=False)
                continue
            if found.st_nlink > 1:
                links[key] = beneath
            (copy_file if stat.S_ISREG(found.st_mode) else copy_node)(entry.path, beneath)
    copy_attributes(source, target, status)


def rename_new(old: Path, new: Path) -> None:
    """Rename, and raise ``FileExistsError`` rather than replace anything."""
    libc.rename(old, new, libc.RENAME_NOREPLACE)


def exchange(one: Path, other: Path) -> None:
    """Swap two names of one filesystem; nobody sees either missing."""
    libc.rename(one, other, libc.RENAME_EXCHANGE)


def replace_symlink(link: Path, target: str) -> None:
    """Point a symbolic link elsewhere: readers see the old target or the new one."""
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)
    sync_directory(link.parent)


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """Write everything of the filesystem that holds *path* to its disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.syncfs(descriptor)
    finally:
        os.close(descriptor)
