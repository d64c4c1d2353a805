"""The only ctypes of oneroot: system calls that Python's ``os`` does not have.

Each function raises ``OSError(errno, strerror, path)``. glibc 2.36 (Debian 12) exports all that
are called by name here; ``openat2`` has no wrapper in any glibc and goes through ``syscall``.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

FICLONE = 0x40049409

_SYS_OPENAT2 = 437

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _declare(name: str, *argtypes: object, restype: object = ctypes.c_int) -> Any:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    function.restype = restype
    return function


_mount = _declare("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _declare("umount2", ctypes.c_char_p, ctypes.c_int)
_unshare = _declare("unshare", ctypes.c_int)
_setns = _declare("setns", ctypes.c_int, ctypes.c_int)
_open_tree = _declare("open_tree", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_move_mount = _declare(
    "move_mount", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_mount_setattr = _declare(
    "mount_setattr", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.POINTER(_MountAttr), ctypes.c_size_t
)
_prctl = _declare("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_renameat2 = _declare(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_syncfs = _declare("syncfs", ctypes.c_int)
_syscall = _declare("syscall", ctypes.c_long, restype=ctypes.c_long)


def _check(result: int, path: str | os.PathLike[str] | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else os.fspath(path))
    return result


def mount(source: str, target: Path, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    _check(
        _mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode() if kind else None,
            flags,
            os.fsencode(data) if data else None,
        ),
        target,
    )


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_umount2(os.fsencode(target), flags), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_unshare(flags))


def setns(descriptor: int, kind: int) -> None:
    """setns(2)."""
    _check(_setns(descriptor, kind))


def open_tree(path: Path, flags: int) -> int:
    """open_tree(2); returns a descriptor."""
    return _check(_open_tree(AT_FDCWD, os.fsencode(path), flags), path)


def move_mount(descriptor: int, target: Path) -> None:
    """move_mount(2) of a mount that a descriptor holds."""
    _check(_move_mount(descriptor, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH), target)


def mount_setattr(
    descriptor: int, *, set_: int = 0, clear: int = 0, userns: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2) on the mount that a descriptor holds."""
    attributes = _MountAttr(attr_set=set_, attr_clr=clear, propagation=0, userns_fd=userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.sizeof(attributes)
    _check(_mount_setattr(descriptor, b"", flags, ctypes.byref(attributes), size))


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _check(_prctl(option, value, 0, 0, 0))


def rename(old: Path, new: Path, flags: int) -> None:
    """renameat2(2) with `RENAME_NOREPLACE` or `RENAME_EXCHANGE`."""
    _check(_renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), new)


def syncfs(descriptor: int) -> None:
    """syncfs(2)."""
    _check(_syncfs(descriptor))


def openat2(directory: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); returns a descriptor that is closed on exec."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    while True:
        result: int = _syscall(
            _SYS_OPENAT2,
            ctypes.c_int(directory),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if result >= 0:
            return result
        # EAGAIN: something was renamed while ".." or the root was checked; the kernel asks us to retry.
        if ctypes.get_errno() != 11:
            _check(result, os.fsdecode(path))
