"""Folds the upper of an overlay and its lower into one new tree: what a container would have seen.

One pass over both together. What the upper holds is moved into the new tree; what it does not is
hard-linked from the lower, a generation that nobody writes to. Whiteouts, opaque directories and
redirects (``redirect_dir=on``, one lower) are resolved; ``trusted.overlay.*`` is stripped.
The upper is used up by it.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from pathlib import Path

from oneroot.errors import CorruptState
from oneroot.kernel import copy, xattr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folded:
    """What the fold did."""

    linked: frozenset[str]
    """Absolute paths, not directories, that are hard links to the same path of the lower."""
    moved: int
    """Files that came from the upper."""


def fold(lower: Path, upper: Path, target: Path) -> Folded:
    """Make *target* equal to the merged view of *upper* over *lower*.

    All three lie on one filesystem, and nothing else uses *upper*. *target* must not exist.

    :raises CorruptState: the upper was written by an overlay with other options.
    """
    work = _Fold(str(lower), str(upper), str(target))
    work.merged("", "")
    return Folded(linked=frozenset(work.linked), moved=work.moved)


class _Fold:
    """Paths are relative to the trees' roots and begin with a slash; the root is empty."""

    def __init__(self, lower: str, upper: str, target: str) -> None:
        self.linked: list[str] = []
        self.moved = 0
        self._lower = lower
        self._upper = upper
        self._target = target

    def merged(self, path: str, lower: str | None) -> None:
        """Make a directory that the upper has.

        :param lower: the path of its lower part in the lower, which a rename may have changed;
            None if it has none.
        """
        source = self._upper + path
        status = os.lstat(source)
        os.mkdir(self._target + path, 0o700)  # noqa: PTH102  paths are strings, for speed
        above = _listed(source)
        beneath = _listed(self._lower + lower) if lower is not None else {}
        for name, entry in above.items():
            self._upper_entry(f"{path}/{name}", entry, lower, name)
        for name, entry in beneath.items():
            if name not in above:
                self._lower_entry(f"{path}/{name}", f"{lower}/{name}", entry)
        copy.copy_attributes(source, self._target + path, status)

    def lower_only(self, path: str, lower: str) -> None:
        """Make a directory that only the lower has, under its own name or one it was moved to."""
        source = self._lower + lower
        status = os.lstat(source)
        os.mkdir(self._target + path, 0o700)  # noqa: PTH102  paths are strings, for speed
        for name, entry in _listed(source).items():
            self._lower_entry(f"{path}/{name}", f"{lower}/{name}", entry)
        copy.copy_attributes(source, self._target + path, status)

    def _upper_entry(self, path: str, entry: os.DirEntry[str], lower: str | None, name: str) -> None:
        if entry.is_dir(follow_symlinks=False):
            self.merged(path, self._lower_part(path, lower, name))
            return
        status = entry.stat(follow_symlinks=False)
        if xattr.is_whiteout(status):
            return
        _refuse_unknown(entry.path)
        xattr.strip_overlay(entry.path)
        os.rename(entry.path, self._target + path)  # noqa: PTH104
        self.moved += 1

    def _lower_entry(self, path: str, lower: str, entry: os.DirEntry[str]) -> None:
        if entry.is_dir(follow_symlinks=False):
            self.lower_only(path, lower)
            return
        target = self._target + path
        try:
            os.link(entry.path, target, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            regular = entry.is_file(follow_symlinks=False)
            (copy.copy_file if regular else copy.copy_node)(entry.path, target)
            return
        if path == lower:
            self.linked.append(path)

    def _lower_part(self, path: str, parent: str | None, name: str) -> str | None:
        """Return where the lower part of a directory of the upper lies (overlayfs.rst, redirects)."""
        source = self._upper + path
        if xattr.is_opaque(source):
            return None
        redirect = xattr.redirect(source)
        if redirect is not None and redirect.startswith("/"):
            candidate = redirect
        elif parent is None:
            return None
        else:
            candidate = f"{parent}/{redirect or name}"
        try:
            status = os.lstat(self._lower + candidate)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return candidate if stat.S_ISDIR(status.st_mode) else None


def _listed(directory: str) -> dict[str, os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return {entry.name: entry for entry in entries}


def _refuse_unknown(path: str) -> None:
    for name in ("trusted.overlay.metacopy", "trusted.overlay.whiteout"):
        if xattr.get(path, name) is not None:
            raise CorruptState(
                f"The temporary overlay wrote {name}, which a fold cannot resolve",
                why=path,
                fix="report this; the older generation is untouched",
            )
