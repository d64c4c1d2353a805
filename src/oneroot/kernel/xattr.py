"""Extended attributes, and what overlayfs says by them."""

from __future__ import annotations

import errno
import os
import stat

OVERLAY_PREFIXES = ("trusted.overlay.", "user.overlay.")

_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP)


def get(path: str | int, name: str) -> bytes | None:
    """Return an attribute of a file (links are not followed), or None."""
    try:
        return os.getxattr(path, name, follow_symlinks=isinstance(path, int))
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def get_through(place: str, name: str) -> bytes | None:
    """Return an attribute of what an O_PATH descriptor holds, or None.

    :param place: ``/proc/self/fd/N``; fgetxattr(2) itself refuses such descriptors.
    """
    try:
        return os.getxattr(place, name)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def names_through(place: str) -> list[str]:
    """Return the names of the attributes of what an O_PATH descriptor holds; *place* as above."""
    try:
        return os.listxattr(place)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def all_of(path: str | int) -> dict[str, bytes]:
    """Return every attribute of a file (links are not followed)."""
    follow = isinstance(path, int)
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    return {name: os.getxattr(path, name, follow_symlinks=follow) for name in names}


def copy(source: str | int, target: str | int, *, skip_prefixes: tuple[str, ...] = OVERLAY_PREFIXES) -> None:
    """Copy every attribute but those of an overlay; ``security.capability`` included."""
    for name, value in all_of(source).items():
        if not name.startswith(skip_prefixes):
            os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))


def strip_overlay(path: str) -> None:
    """Remove what an overlay wrote about a file of its upper."""
    for name in all_of(path):
        if name.startswith(OVERLAY_PREFIXES):
            os.removexattr(path, name, follow_symlinks=False)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a file in an upper hides the lower's file of that name (character device 0/0).

    The kernel writes no other form into an upper that lies on a plain filesystem; it reads a second
    one, see `is_marked_whiteout`.
    """
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_marked_whiteout(path: str | int, status: os.stat_result, *, user: bool = False) -> bool:
    """Whether an empty regular file is a whiteout by its attribute (since Linux 6.7).

    It counts only in a directory whose ``overlay.opaque`` is ``x``.
    """
    empty = stat.S_ISREG(status.st_mode) and status.st_size == 0
    return empty and get(path, f"{_class(user)}.overlay.whiteout") is not None


def is_opaque(path: str | int, *, user: bool = False) -> bool:
    """Whether a directory in an upper hides the whole lower directory.

    :param user: the overlay was mounted with ``userxattr``.
    """
    return get(path, f"{_class(user)}.overlay.opaque") == b"y"


def redirect(path: str | int, *, user: bool = False) -> str | None:
    """Return where a renamed directory's lower part lies: absolute in the layer, or a sibling's name."""
    value = get(path, f"{_class(user)}.overlay.redirect")
    return None if value is None else os.fsdecode(value)


def _class(user: bool) -> str:
    return "user" if user else "trusted"
