"""Removing trees, whatever a container left in them.

Every name is removed through its directory's descriptor, so a link is removed and never followed.
Depth costs neither stack nor descriptors: directories that lie too deep are first moved up. A removal
that was killed has removed a part, and the same call again finishes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from oneroot.kernel import libc

_STRICT = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS | libc.RESOLVE_NO_XDEV
_DEEPEST = 64
"""Levels below the top that are entered in one descent, with one descriptor each."""
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_IMMUTABLE_OR_APPEND = 0x10 | 0x20


def remove_tree(path: Path) -> None:
    """Remove a file, a link itself, or a directory and all that is in it; nothing there is fine.

    The directories above *path* must be ours: they are looked up as usual.

    :raises OSError: EXDEV or EBUSY if something is mounted in it; what is mounted is not touched.
    """
    try:
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_entry(parent, path.name)
    finally:
        os.close(parent)


def remove_entry(parent: int, name: str) -> None:
    """Remove one name of a directory that a descriptor holds, with all that is in it."""
    try:
        if not _is_directory(parent, name):
            _forced(parent, name, lambda: os.unlink(name, dir_fd=parent))
            return
        top = _enter(parent, name)
    except FileNotFoundError:
        return
    try:
        while _empty(top, top, 0):
            pass
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):  # another process removes it too, and was faster
        _forced(parent, name, lambda: os.rmdir(name, dir_fd=parent))


def _empty(top: int, directory: int, depth: int) -> bool:
    """Empty a directory; returns whether something was moved up to *top*, which then is not empty."""
    moved = False
    with os.scandir(directory) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in names:
        try:
            if is_dir:
                moved |= _remove_directory(top, directory, name, depth)
            else:
                _unlink(directory, name)
        except FileNotFoundError:
            continue
    return moved


def _remove_directory(top: int, directory: int, name: str, depth: int) -> bool:
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EPERM):
            raise
    else:
        return False
    if depth >= _DEEPEST:
        # A random name: a name that can be guessed could already be there.
        up = f".oneroot-{os.urandom(8).hex()}"
        _forced(directory, name, lambda: os.rename(name, up, src_dir_fd=directory, dst_dir_fd=top))
        return True
    below = _enter(directory, name)
    try:
        moved = _empty(top, below, depth + 1)
    finally:
        os.close(below)
    _forced(directory, name, lambda: os.rmdir(name, dir_fd=directory))
    return moved


def _unlink(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except PermissionError:
        _forced(directory, name, lambda: os.unlink(name, dir_fd=directory))


def _enter(parent: int, name: str) -> int:
    return libc.openat2(parent, os.fsencode(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, _STRICT)


def _is_directory(parent: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _forced(parent: int, name: str, action: Callable[[], None]) -> None:
    """Do *action*; if it is refused, take the immutable and append-only marks away and do it again.

    Root in a privileged container can set them, and root on the host must obey them.
    """
    try:
        action()
    except PermissionError:
        _unprotect(parent, ".")
        _unprotect(parent, name)
        action()


def _unprotect(parent: int, name: str) -> None:
    found = libc.openat2(parent, os.fsencode(name), os.O_PATH | os.O_NOFOLLOW, _STRICT)
    try:
        mode = os.fstat(found).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return  # others cannot be marked, and opening them might have an effect
        descriptor = os.open(
            f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        )
    finally:
        os.close(found)
    try:
        flags = struct.unpack("l", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, struct.pack("l", 0)))[0]
        if flags & _IMMUTABLE_OR_APPEND:
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("l", flags & ~_IMMUTABLE_OR_APPEND))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
