"""Tries, in namespaces of its own, what every container's root needs; prints what failed.

Run as a program: ``python -m oneroot.host.trial DIRECTORY FIRST COUNT``. Making the mounts for
real is the one sure answer: versions, modules, filesystems and security modules all have a say.
Ends with its mounts; the caller removes the directory.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from oneroot.kernel import libc, mount
from oneroot.kernel.tree import Tree

_FEATURES = ("openat2", "overlay", "idmapped", "userxattr")


def main() -> None:
    """Print one JSON object: a feature's name to its error, empty when it works."""
    directory, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # Relative paths from here on: mapped ids may not search the directories above.
    os.chdir(directory)
    for name in ("lower", "mapped", "merged", "upper", "work", "own-upper", "own-work"):
        Path(name).mkdir(exist_ok=True)
    Path("lower/file").write_bytes(b"x")
    errors = dict.fromkeys(_FEATURES, "not tried, because what it needs failed")
    errors["openat2"] = _attempt(_open_below)
    errors["namespaces"] = _attempt(mount.new_namespace)
    if not errors["namespaces"]:
        errors["overlay"] = _attempt(lambda: _overlay("lower", "upper", "work", {}))
        errors["idmapped"] = _attempt(lambda: _idmapped(first, count))
    if not errors["idmapped"]:
        errors["userxattr"] = _attempt(lambda: _userxattr(first, count))
    print(json.dumps(errors))  # noqa: T201  (the answer to the parent process)


def _attempt(action: Callable[[], None]) -> str:
    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _open_below() -> None:
    with Tree(Path()) as tree:
        tree.lstat("lower/file")


def _overlay(lower: str, upper: str, work: str, more: dict[str, str | None]) -> None:
    merged = Path("merged")
    options = {**mount.OVERLAY_OPTIONS, **more}
    mount.overlay([Path(lower)], merged, upper=Path(upper), work=Path(work), options=options)
    try:
        # A directory in place of a file of the lower needs a whiteout and the xattr that marks it.
        (merged / "file").unlink()
        (merged / "file").mkdir()
    finally:
        mount.unmount(merged)


def _idmapped(first: int, count: int) -> None:
    with mount.user_namespace(first, count) as userns:
        mount.idmapped_bind(Path("lower"), Path("mapped"), userns=userns)
    if Path("mapped/file").stat().st_uid != first:
        raise OSError(errno.EINVAL, "the owners were not shifted")


def _userxattr(first: int, count: int) -> None:
    for name in ("own-upper", "own-work"):
        os.chown(name, first, first)
    with mount.user_namespace(first, count) as userns:
        libc.setns(userns, libc.CLONE_NEWUSER)
    libc.unshare(libc.CLONE_NEWNS)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _overlay("mapped", "own-upper", "own-work", {"userxattr": None})


if __name__ == "__main__":
    main()
