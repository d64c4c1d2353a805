"""The only way into a tree that a container controls.

Root inside a container can make any name anything at any moment: a link to a host path, a FIFO, a
device, a directory 4,000 levels deep, and swap them while we look. So nothing here resolves a path
twice: every path is resolved by the kernel in one call that refuses links, mounts and leaving the
tree (``openat2``), a file is opened without effect first (``O_PATH``), its type is checked, and what
is read, written or removed is reached through that descriptor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from oneroot.kernel import libc, xattr
from oneroot.kernel.removal import remove_entry, remove_tree

__all__ = ["Entry", "Tree", "remove_tree"]

_STRICT = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS | libc.RESOLVE_NO_XDEV
_FOLLOWING = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS | libc.RESOLVE_NO_XDEV
_LONGEST_RELATIVE = 3000
"""Bytes of a path that are resolved in one call; the kernel takes 4,095."""
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """Something in the tree, as `Tree.walk` finds it."""

    path: str
    """Relative to the root, without a leading slash; undecodable bytes are surrogates."""
    status: os.stat_result

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_whiteout(self) -> bool:
        """Whether it hides the lower's file of that name."""
        return xattr.is_whiteout(self.status)


class Tree:
    """A directory tree, held by a descriptor of its root.

    Paths are relative to the root; a leading slash is ignored, ``..`` is refused. Every method
    raises ``OSError``: ELOOP where a link stands in the way, EXDEV for a mount or a way out.

    :param root: a directory that is reached by names of ours (its last name is not followed if it
        is a link), or a descriptor of a directory, which stays the caller's.
    """

    def __init__(self, root: Path | int) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        if isinstance(root, int):
            self.root = Path(f"/proc/self/fd/{root}")
            self._fd = os.open(".", flags, dir_fd=root)
        else:
            self.root = root
            self._fd = os.open(root, flags)

    @classmethod
    def of_process(cls, pid: int, path: str = "") -> Tree:
        """The tree below a directory as a process sees it, through whatever its namespace mounts there.

        Unlike a path below ``/proc/PID/root``, no link on the way is followed: an absolute one would
        lead to the host's root. The pid may be another process's by then: compare start times
        before and after.
        """
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            relative = os.fsencode("/".join(_parts(path)) or ".")
            top = libc.openat2(root, relative, os.O_PATH | os.O_DIRECTORY, _STRICT & ~libc.RESOLVE_NO_XDEV)
        finally:
            os.close(root)
        try:
            return cls(top)
        finally:
            os.close(top)

    def close(self) -> None:
        """Let go of the root; closing twice is fine."""
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
            if error.errno in _NOTHING_THERE:
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

    def copy_out(self, path: str, target: int, *, limit: int, follow: bool = False) -> int:
        """Write a regular file's content to a descriptor and return how many bytes that was.

        :raises OSError: EFBIG if there are more than *limit* bytes; so many were written.
        """
        descriptor = self.open_read(path, follow=follow)
        try:
            return _pump(descriptor, target, limit)
        finally:
            os.close(descriptor)

    def getxattr(self, path: str, name: str) -> bytes | None:
        """Return an attribute of whatever stands at a path (a link itself), or None."""
        with self._magic(path) as place:
            return xattr.get_through(place, name)

    def listxattr(self, path: str) -> list[str]:
        """Return the names of the attributes of whatever stands at a path (a link itself)."""
        with self._magic(path) as place:
            return xattr.names_through(place)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        """Set an attribute of whatever stands at a path (a link itself)."""
        with self._magic(path) as place:
            os.setxattr(place, name, value)

    def removexattr(self, path: str, name: str) -> None:
        """Remove an attribute; ENODATA if it is not there."""
        with self._magic(path) as place:
            os.removexattr(place, name)

    def listdir(self, path: str = "", *, limit: int = 1_000_000) -> list[str]:
        """Return the names in a directory.

        :raises OSError: EFBIG if there are more than *limit*.
        """
        descriptor = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        names: list[str] = []
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    names.append(entry.name)
                    if len(names) > limit:
                        raise OSError(errno.EFBIG, f"more than {limit} names", path)
        finally:
            os.close(descriptor)
        return names

    def walk(self, top: str = "", *, limit: int = 1_000_000, path_bytes: int = 256 << 20) -> Iterator[Entry]:
        """Yield everything below a directory, directories before what they hold.

        What is changed meanwhile may or may not be seen; what vanishes is left out. At most two
        descriptors are held, however deep the tree is.

        :param limit: entries to yield at most.
        :param path_bytes: length of all yielded paths together at most; 4,000 nested directories
            with names of 15 bytes make 130 million.
        :raises OSError: EFBIG when one of both is exceeded, EXDEV where something is mounted on a
            directory of the tree: what cannot be seen must not count as absent.
        """
        start = "".join(f"{part}/" for part in _parts(top))
        waiting = [start]
        while waiting:
            place = waiting.pop()
            try:
                descriptor = self._open_clean(os.fsencode(place), os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                if error.errno in _NOTHING_THERE and place != start:
                    continue
                raise
            try:
                with os.scandir(descriptor) as entries:
                    for item in entries:
                        try:
                            status = item.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        path = place + item.name
                        limit -= 1
                        path_bytes -= len(path)
                        if limit < 0 or path_bytes < 0:
                            raise OSError(errno.EFBIG, "too many files, or too deep", str(self.root))
                        yield Entry(path, status)
                        if stat.S_ISDIR(status.st_mode):
                            waiting.append(path + "/")
            finally:
                os.close(descriptor)

    def makedirs(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Make a directory and those above it that are missing, all with this mode and owner."""
        current = os.dup(self._fd)
        try:
            for name in _parts(path):
                try:
                    os.mkdir(name, 0o700, dir_fd=current)
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

    def write_file(
        self, path: str, data: bytes, *, mode: int = 0o644, uid: int = 0, gid: int = 0, durable: bool = False
    ) -> None:
        """Put a file at a path, whole or not at all, in place of whatever file or link stands there.

        :param durable: it survives a power loss from then on.
        """
        self._replace(path, lambda descriptor: _write_all(descriptor, data), mode, uid, gid, durable)

    def write_from(
        self,
        path: str,
        source: int,
        *,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        limit: int = 1 << 62,
        durable: bool = False,
    ) -> None:
        """Like `write_file`, with what can be read from a descriptor, EFBIG if it is more than *limit*."""
        self._replace(path, lambda descriptor: _pump(source, descriptor, limit), mode, uid, gid, durable)

    def symlink(self, target: str, path: str, *, uid: int = 0, gid: int = 0) -> None:
        """Put a symbolic link at a path, in place of whatever file or link stands there."""

        def make(name: str, parent: int) -> None:
            os.symlink(target, name, dir_fd=parent)
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)

        self._put(path, make)

    def whiteout(self, path: str) -> None:
        """Hide the lower's file or directory of that path; what the upper has there must be removed before.

        The container must be stopped: an upper that is mounted must not be changed from outside.
        """
        self._put(path, lambda name, parent: os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent))

    def remove(self, path: str) -> None:
        """Remove a file, link or whole directory; nothing there is fine."""
        try:
            parent, name = self._parent(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            remove_entry(parent, name)
        finally:
            os.close(parent)

    def chown_all(self, uid: int, gid: int) -> None:
        """Give everything in the tree, the root included, to one owner.

        Modes stay, setuid bits too; file capabilities are lost, as the kernel wants it.
        """
        os.chown(f"/proc/self/fd/{self._fd}", uid, gid)
        for entry in self.walk():
            with self._magic(entry.path) as place:
                os.chown(place, uid, gid)
                if entry.is_file and entry.status.st_mode & (stat.S_ISUID | stat.S_ISGID):
                    os.chmod(place, stat.S_IMODE(entry.status.st_mode))

    def _replace(
        self, path: str, fill: Callable[[int], object], mode: int, uid: int, gid: int, durable: bool
    ) -> None:
        def make(name: str, parent: int) -> None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                fill(descriptor)
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)  # after chown, which clears setuid
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)

        self._put(path, make)
        if durable:
            self._sync_parent(path)

    def _put(self, path: str, make: Callable[[str, int], None]) -> None:
        """Make something under a name that cannot be guessed, then rename it over what stands there."""
        parent, name = self._parent(path)
        temporary = f".oneroot-{os.urandom(8).hex()}"
        try:
            try:
                make(temporary, parent)
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                try:
                    os.unlink(temporary, dir_fd=parent)
                except OSError:
                    pass
                raise
        finally:
            os.close(parent)

    def _sync_parent(self, path: str) -> None:
        above = "/".join(_parts(path)[:-1])
        descriptor = self._open(above, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _magic(self, path: str) -> Iterator[str]:
        """Yield a path by which the kernel finds just what stands there now, a link itself too.

        Calls that take no O_PATH descriptor take this: the kernel jumps to the inode that the
        descriptor holds and follows nothing from there, so even a link is not followed.
        """
        descriptor = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)

    def _parent(self, path: str) -> tuple[int, str]:
        parts = _parts(path)
        if not parts:
            raise OSError(errno.EINVAL, "the root itself", path)
        return self._open("/".join(parts[:-1]), os.O_PATH | os.O_DIRECTORY), parts[-1]

    def _open(self, path: str, flags: int, *, follow: bool = False) -> int:
        relative = os.fsencode("/".join(_parts(path)))
        if follow:
            return libc.openat2(self._fd, relative or b".", flags, _FOLLOWING)
        return self._open_clean(relative, flags)

    def _open_clean(self, relative: bytes, flags: int) -> int:
        """Open a relative path without ``..``, of any length: in pieces that the kernel takes."""
        if len(relative) <= _LONGEST_RELATIVE:
            return libc.openat2(self._fd, relative or b".", flags, _STRICT)
        current = os.dup(self._fd)
        try:
            begin = 0
            while len(relative) - begin > _LONGEST_RELATIVE:
                end = relative.rfind(b"/", begin + 1, begin + _LONGEST_RELATIVE)
                if end < 0:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), os.fsdecode(relative))
                below = libc.openat2(current, relative[begin:end], os.O_PATH | os.O_DIRECTORY, _STRICT)
                os.close(current)
                current = below
                begin = end + 1
            return libc.openat2(current, relative[begin:] or b".", flags, _STRICT)
        finally:
            os.close(current)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(errno.EXDEV, "a path that leads out", path)
    return parts


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _pump(source: int, target: int, limit: int) -> int:
    done = 0
    while data := os.read(source, 1 << 20):
        _write_all(target, data[: limit - done])
        done += len(data)
        if done > limit:
            raise OSError(errno.EFBIG, f"more than {limit} bytes")
    return done
