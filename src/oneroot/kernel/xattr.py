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


def all_of(path: str) -> dict[str, bytes]:
    """Return every attribute of a file (links are not followed)."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def copy(source: str, target: str) -> None:
    """Copy every attribute but those of an overlay; ``security.capability`` included."""
    for name, value in all_of(source).items():
        if not name.startswith(OVERLAY_PREFIXES):
            os.setxattr(target, name, value, follow_symlinks=False)


def strip_overlay(path: str) -> None:
    """Remove what an overlay wrote about a file of its upper."""
    for name in all_of(path):
        if name.startswith(OVERLAY_PREFIXES):
            os.removexattr(path, name, follow_symlinks=False)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a file in an upper hides the lower's file of that name (character device 0/0)."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: str | int, *, user: bool = False) -> bool:
    """Whether a directory in an upper hides the whole lower directory.

    :param user: the overlay was mounted with ``userxattr``.
    """
    return get(path, f"{'user' if user else 'trusted'}.overlay.opaque") == b"y"


def redirect(path: str) -> str | None:
    """Return where a renamed directory's lower part lies: absolute in the layer, or a sibling's name."""
    value = get(path, "trusted.overlay.redirect")
    return None if value is None else os.fsdecode(value)
