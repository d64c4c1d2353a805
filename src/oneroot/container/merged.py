"""A stopped container's files: its upper over its base's current generation, without a mount.

The container's root has made the upper as it likes. Links are followed here, one by one and in the
merged view, and mean nothing but paths in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from oneroot.kernel.tree import Tree

_MOST_LINKS = 40
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Something in the merged view."""

    path: str
    """Without a leading slash, and without a link in any part but the last."""
    tree: Tree
    """The layer that it comes from."""
    status: os.stat_result
    shifted: bool
    """It lies in the upper: its owner is a host id."""


class Merged:
    """The merged view of an upper and a base; neither may be mounted for writing meanwhile."""

    def __init__(self, upper: Path, base: Path) -> None:
        with contextlib.ExitStack() as stack:
            self.upper = stack.enter_context(Tree(upper))
            self.base = stack.enter_context(Tree(base))
            self._stack = stack.pop_all()

    def __enter__(self) -> Merged:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def find(self, path: str) -> Found | None:
        """Return what stands at a path that has no links in it."""
        if not path:
            return self._in(self.upper, path, shifted=True)
        covered = False
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            prefix = "/".join(parts[:depth])
            own = self._in(self.upper, prefix, shifted=True)
            if own is None:
                break
            if _is_whiteout(own.status):
                return None
            if depth == len(parts):
                return own
            if not stat.S_ISDIR(own.status.st_mode):
                return None
            covered = covered or self._opaque(prefix)
        return None if covered else self._in(self.base, path, shifted=False)

    def resolve(self, path: str, *, last: bool = True) -> str:
        """Follow links, and return the path without them; what does not exist stays as it is.

        :param last: follow a link at the very end, too.
        :raises OSError: ELOOP for a circle of links.
        """
        waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        done: list[str] = []
        links = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                done = done[:-1]
                continue
            found = self.find("/".join([*done, part]))
            if found is None or not stat.S_ISLNK(found.status.st_mode) or (not waiting and not last):
                done.append(part)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = found.tree.readlink(found.path)
            if target.startswith("/"):
                done = []
            waiting += [step for step in reversed(target.split("/")) if step not in ("", ".")]
        return "/".join(done)

    def walk(self, top: str) -> Iterator[Found]:
        """Yield what stands at a path, and everything below it, parents first."""
        waiting = [top]
        while waiting:
            found = self.find(waiting.pop())
            if found is None:
                continue
            yield found
            if stat.S_ISDIR(found.status.st_mode):
                prefix = f"{found.path}/" if found.path else ""
                waiting += [f"{prefix}{name}" for name in self.names(found.path)]

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, whited-out ones included."""
        names: set[str] = set()
        for tree in (self.upper, self.base):
            try:
                names.update(tree.listdir(directory))
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise
        return sorted(names, reverse=True)

    def make_directories(self, path: str, shift: int, *, mode: int = 0o755) -> None:
        """Make a directory in the upper and those above it, each as the merged view has it.

        :param mode: of those that the merged view does not have.
        """
        parts = path.split("/") if path else []
        for depth in range(1, len(parts) + 1):
            prefix = "/".join(parts[:depth])
            found = self.find(prefix)
            if found is None:
                # What was deleted hides what the base has there, and must go on to do so.
                fresh = self._in(self.upper, prefix, shifted=True) is None
                if not fresh:
                    raise OSError(errno.ENOTDIR, "it was deleted inside the container", f"/{prefix}")
                self.upper.makedirs(prefix, mode=mode, uid=shift, gid=shift)
            elif not stat.S_ISDIR(found.status.st_mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), f"/{prefix}")
            elif not found.shifted:
                status = found.status
                self.upper.makedirs(
                    prefix,
                    mode=stat.S_IMODE(status.st_mode),
                    uid=shift + status.st_uid,
                    gid=shift + status.st_gid,
                )

    def _opaque(self, directory: str) -> bool:
        return any(self.upper.getxattr(directory, name) == b"y" for name in _OPAQUE)

    def _in(self, tree: Tree, path: str, *, shifted: bool) -> Found | None:
        try:
            return Found(path=path, tree=tree, status=tree.lstat(path), shifted=shifted)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
