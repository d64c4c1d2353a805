"""The only way into a tree that a container controls.

Root inside a container can make any name anything at any moment: a link to a host path, a FIFO, a
device, a directory 4,000 levels deep, and swap them while we look. So nothing here resolves a path
twice: every path is resolved by the kernel in one call that refuses links, mounts and leaving the
tree (``openat2``), a file is opened without effect first (``O_PATH``), its type is checked, and what
is read, written or removed is reached through that descriptor.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from oneroot.kernel import libc, xattr

_STRICT = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS | libc.RESOLVE_NO_XDEV
_FOLLOWING = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS | libc.RESOLVE_NO_XDEV
_LONGEST_RELATIVE = 3000
"""Bytes of a path below one descriptor; the kernel takes 4,095."""
_DEEPEST_REMOVAL = 64

_temporary = itertools.count()


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something in the tree, as `Tree.walk` finds it."""

    path: str
    """Relative to the root, without a leading slash; undecodable bytes are surrogates."""
    status: os.stat_result

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.status.st_mode)

    @property
    def is_whiteout(self) -> bool:
        return xattr.is_whiteout(self.status)


class Tree:
    """A directory tree, held by a descriptor of its root.

    Paths are relative to the root; a leading slash is ignored, ``..`` is refused. Every method
    raises ``OSError``: ELOOP where a link stands in the way, EXDEV for a mount or a way out.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(root, flags)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def lstat(self, path: str) -> os.stat_result:
        """Return the status of what stands at a path, a link itself included."""
        descriptor = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def exists(self, path: str) -> bool:
        """Whether anything stands at a path; a link on the way counts as nothing."""
        try:
            self.lstat(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        return True

    def readlink(self, path: str) -> str:
        """Return a link's target, which means nothing outside the container."""
        parent, name = self._parent(path)
        try:
            return os.readlink(name, dir_fd=parent)
        finally:
            os.close(parent)

    def open_read(self, path: str, *, follow: bool = False) -> int:
        """Open a regular file for reading and return the descriptor; never blocks.

        :param follow: follow links, as a process with this root would.
        :raises OSError: EINVAL if it is not a regular file.
        """
        found = self._open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW), follow=follow)
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{found}", flags)
        finally:
            os.close(found)

    def read_bytes(self, path: str, limit: int, *, follow: bool = False) -> bytes:
        """Return a regular file's content, at most *limit* bytes of it."""
        descriptor = self.open_read(path, follow=follow)
        with open(descriptor, "rb") as file:
            return file.read(limit)

    def getxattr(self, path: str, name: str) -> bytes | None:
        """Return an attribute of a file or directory, or None."""
        descriptor = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                return None  # the magic link would be followed through to the target
            return _getxattr(f"/proc/self/fd/{descriptor}", name)
        finally:
            os.close(descriptor)

    def listdir(self, path: str = "") -> list[str]:
        descriptor = self._open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.listdir(descriptor)
        finally:
            os.close(descriptor)

    def walk(self, *, limit: int = 1_000_000) -> Iterator[Entry]:
        """Yield everything below the root, directories before what they hold; crosses no mount.

        What is changed meanwhile may or may not be seen; what vanishes is left out.

        :raises OSError: EFBIG after *limit* entries.
        """
        seen = 0
        waiting = [_Place(_Anchor(os.dup(self._fd)), "", "")]
        while waiting:
            place = waiting.pop()
            try:
                descriptor = place.open()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            anchor = _Anchor(descriptor)
            with os.scandir(descriptor) as entries:
                for item in entries:
                    try:
                        status = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    seen += 1
                    if seen > limit:
                        raise OSError(errno.EFBIG, f"more than {limit} files", str(self.root))
                    entry = Entry(f"{place.path}{item.name}", status)
                    yield entry
                    if entry.is_dir:
                        waiting.append(place.below(item.name, anchor))

    def makedirs(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Make a directory and those above it that are missing, all with this mode and owner."""
        current = os.dup(self._fd)
        try:
            for name in _parts(path):
                try:
                    os.mkdir(name, mode, dir_fd=current)
                except FileExistsError:
                    created = False
                else:
                    created = True
                below = libc.openat2(current, os.fsencode(name), os.O_PATH | os.O_DIRECTORY, _STRICT)
                os.close(current)
                current = below
                if created:
                    os.chown(f"/proc/self/fd/{current}", uid, gid)
                    os.chmod(f"/proc/self/fd/{current}", mode)
        finally:
            os.close(current)

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """Put a file at a path, whole or not at all, in place of whatever file or link stands there."""
        self._replace(path, lambda descriptor: _write_all(descriptor, data), mode, uid, gid)

    def write_from(self, path: str, source: int, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """Like `write_file`, with what can be read from a descriptor."""
        self._replace(path, lambda descriptor: _pump(source, descriptor), mode, uid, gid)

    def symlink(self, target: str, path: str, *, uid: int = 0, gid: int = 0) -> None:
        """Put a symbolic link at a path, in place of whatever file or link stands there."""
        parent, name = self._parent(path)
        try:
            temporary = _temporary_name()
            os.symlink(target, temporary, dir_fd=parent)
            os.chown(temporary, uid, gid, dir_fd=parent, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            os.close(parent)

    def remove(self, path: str) -> None:
        """Remove a file, link or whole directory; nothing there is fine."""
        try:
            parent, name = self._parent(path)
        except FileNotFoundError:
            return
        try:
            _remove_entry(parent, name)
        finally:
            os.close(parent)

    def chown_all(self, uid: int, gid: int) -> None:
        """Give everything in the tree, the root included, to one owner."""
        os.chown(f"/proc/self/fd/{self._fd}", uid, gid)
        for entry in self.walk():
            parent, name = self._parent(entry.path)
            try:
                os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(parent)

    def _replace(self, path: str, fill: object, mode: int, uid: int, gid: int) -> None:
        parent, name = self._parent(path)
        temporary = _temporary_name()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
            try:
                fill(descriptor)  # type: ignore[operator]
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            try:
                os.unlink(temporary, dir_fd=parent)
            except OSError:
                pass
            raise
        finally:
            os.close(parent)

    def _parent(self, path: str) -> tuple[int, str]:
        parts = _parts(path)
        if not parts:
            raise OSError(errno.EINVAL, "the root itself", path)
        return self._open("/".join(parts[:-1]) or ".", os.O_PATH | os.O_DIRECTORY), parts[-1]

    def _open(self, path: str, flags: int, *, follow: bool = False) -> int:
        relative = os.fsencode("/".join(_parts(path)) or ".")
        return libc.openat2(self._fd, relative, flags, _FOLLOWING if follow else _STRICT)


class _Anchor:
    """A descriptor that is closed with the last place that needs it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


@dataclasses.dataclass(frozen=True)
class _Place:
    """A directory still to be read: a path below an open one, since paths may be longer than the
    kernel takes, and there may be more directories on the way than descriptors.
    """

    anchor: _Anchor
    relative: str
    path: str

    def open(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        return libc.openat2(self.anchor.descriptor, os.fsencode(self.relative or "."), flags, _STRICT)

    def below(self, name: str, opened: _Anchor) -> _Place:
        if len(os.fsencode(self.relative)) + len(os.fsencode(name)) < _LONGEST_RELATIVE:
            relative = f"{self.relative}/{name}" if self.relative else name
            return _Place(self.anchor, relative, f"{self.path}{name}/")
        return _Place(opened, name, f"{self.path}{name}/")


def remove_tree(path: Path) -> None:
    """Remove a tree, whatever is in it; what a killed removal left can be removed again.

    :raises OSError: EXDEV if something is mounted in it: then that is not touched.
    """
    try:
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove_entry(parent, path.name)
    finally:
        os.close(parent)


def _remove_entry(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        top = libc.openat2(parent, os.fsencode(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, _STRICT)
        try:
            while _empty(top, top, 0):
                pass
        finally:
            os.close(top)
        os.rmdir(name, dir_fd=parent)


def _empty(top: int, directory: int, depth: int) -> bool:
    """Empty a directory. Directories that lie too deep are moved up to *top*, so that no depth needs
    more descriptors or stack than we have; returns whether that happened.
    """
    moved = False
    with os.scandir(directory) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in names:
        if not is_dir:
            os.unlink(name, dir_fd=directory)
            continue
        try:
            os.rmdir(name, dir_fd=directory)
            continue
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if depth >= _DEEPEST_REMOVAL:
            os.rename(name, _temporary_name(), src_dir_fd=directory, dst_dir_fd=top)
            moved = True
            continue
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        below = libc.openat2(directory, os.fsencode(name), flags, _STRICT)
        try:
            moved |= _empty(top, below, depth + 1)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=directory)
    return moved


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(errno.EXDEV, "a path that leads out", path)
    return parts


def _temporary_name() -> str:
    return f".oneroot-{os.getpid()}-{next(_temporary)}"


def _getxattr(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _pump(source: int, target: int) -> None:
    while data := os.read(source, 1 << 20):
        _write_all(target, data)
