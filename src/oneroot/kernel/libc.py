"""The only ctypes of oneroot: system calls that Python's ``os`` does not have.

Each function raises ``OSError(errno, strerror, path)``. glibc 2.36 (Debian 12) exports all that
are called by name here; ``openat2`` has no wrapper in any glibc and goes through ``syscall``.
"""

from __future__ import annotations

import ctypes
import errno
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
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
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
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

FICLONE = 0x40049409

_SYS_OPENAT2 = 437
_OPENAT2_TRIES = 1000
_CAPABILITY_VERSION_3 = 0x20080522

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


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


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
_pivot_root = _declare("pivot_root", ctypes.c_char_p, ctypes.c_char_p)
_capget = _declare("capget", ctypes.c_void_p, ctypes.c_void_p)
_capset = _declare("capset", ctypes.c_void_p, ctypes.c_void_p)
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


def move_mount(descriptor: int, target: Path | int) -> None:
    """move_mount(2) of a mount that a descriptor holds; a link as the target's last name is refused."""
    place, name = (target, b"") if isinstance(target, int) else (AT_FDCWD, os.fsencode(target))
    flags = MOVE_MOUNT_F_EMPTY_PATH | (MOVE_MOUNT_T_EMPTY_PATH if isinstance(target, int) else 0)
    _check(
        _move_mount(descriptor, b"", place, name, flags), str(target) if isinstance(target, int) else target
    )


def mount_setattr(
    descriptor: int, *, set_: int = 0, clear: int = 0, userns: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2) on the mount that a descriptor holds."""
    attributes = _MountAttr(attr_set=set_, attr_clr=clear, propagation=0, userns_fd=userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.sizeof(attributes)
    _check(_mount_setattr(descriptor, b"", flags, ctypes.byref(attributes), size))


def pivot_root(new: Path, old: Path) -> None:
    """pivot_root(2)."""
    _check(_pivot_root(os.fsencode(new), os.fsencode(old)), new)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _check(_prctl(option, value, 0, 0, 0))


def drop_capabilities(keep: frozenset[int], last: int) -> None:
    """Leave this thread's next program no capability but *keep*, whatever it executes.

    :param last: the highest capability of this kernel, /proc/sys/kernel/cap_last_cap.
    """
    for capability in set(range(last + 1)) - keep:
        prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    # Root's programs get the inheritable set too, whatever the bounding set says.
    header = _CapHeader(version=_CAPABILITY_VERSION_3, pid=0)
    data = (_CapData * 2)()
    _check(_capget(ctypes.byref(header), ctypes.byref(data)))
    for word in data:
        word.inheritable = 0
    _check(_capset(ctypes.byref(header), ctypes.byref(data)))


def rename(old: Path, new: Path, flags: int) -> None:
    """renameat2(2) with `RENAME_NOREPLACE` or `RENAME_EXCHANGE`."""
    _check(_renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), new)


def syncfs(descriptor: int) -> None:
    """syncfs(2)."""
    _check(_syncfs(descriptor))


def openat2(directory: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); returns a descriptor that is closed on exec.

    :raises BlockingIOError: somebody renames so fast that the kernel could not tell, a thousand
        times, whether ".." stays inside.
    """
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    name = ctypes.c_char_p(path)
    result = -1
    for _ in range(_OPENAT2_TRIES):
        result = _syscall(_SYS_OPENAT2, ctypes.c_int(directory), name, ctypes.byref(how), size)
        # EAGAIN: something was renamed or mounted while ".." was checked; the kernel asks for a retry.
        if result >= 0 or ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    return _check(result, os.fsdecode(path))
