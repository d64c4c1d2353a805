"""Mounts and namespaces, as verbs."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from oneroot.kernel import libc

OVERLAY_OPTIONS: Mapping[str, str | None] = {
    "index": "off",
    "metacopy": "off",
    "redirect_dir": "nofollow",
    "xino": "off",
    "nfs_export": "off",
}
"""For an upper that moves between lowers (overlayfs.rst); always given, since the defaults are
module parameters that anybody may have changed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MountEntry:
    """One line of /proc/PID/mountinfo."""

    mount_id: int
    parent_id: int
    device: str
    """``major:minor``, st_dev of what lies on it (not so with btrfs)."""
    root: str
    """The directory of the filesystem that is shown."""
    target: str
    options: str
    """Of this mount: ``ro,nosuid,idmapped``."""
    propagation: str
    """``shared:N``, ``master:N``; empty when it is private."""
    kind: str
    source: str
    super_options: str
    """Of the filesystem; an overlay's layers stand here, commas and colons escaped."""


def new_namespace() -> None:
    """Move this process into a mount namespace of its own, from which nothing comes back."""
    libc.unshare(libc.CLONE_NEWNS)
    make_private()


def make_private() -> None:
    """Stop mounts from propagating between this namespace and others."""
    libc.mount("none", Path("/"), None, libc.MS_REC | libc.MS_PRIVATE)


def bind(source: Path, target: Path, *, recursive: bool = False) -> None:
    """Show *source* at *target* too."""
    libc.mount(str(source), target, None, libc.MS_BIND | (libc.MS_REC if recursive else 0))


def bind_restricted(
    source: Path, target: Path | int, *, read_only: bool = False, recursive: bool = False
) -> None:
    """Show *source* at *target* too, nosuid and nodev, restricted before anybody can see it.

    :param target: a path whose last name is no link, or a descriptor of what shall be mounted over.
    """
    recursion = libc.AT_RECURSIVE if recursive else 0
    descriptor = libc.open_tree(source, libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC | recursion)
    try:
        flags = libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV
        flags |= libc.MOUNT_ATTR_RDONLY if read_only else 0
        libc.mount_setattr(descriptor, set_=flags, recursive=recursive)
        libc.move_mount(descriptor, target)
    finally:
        os.close(descriptor)


def set_flags(
    target: Path,
    *,
    read_only: bool = False,
    nosuid: bool = False,
    nodev: bool = False,
    noexec: bool = False,
    recursive: bool = False,
) -> None:
    """Restrict the mount at *target*; what is not named stays as it is.

    :param recursive: and every mount below it, all or none (Linux 5.12).
    """
    wanted = (
        (libc.MOUNT_ATTR_RDONLY if read_only else 0)
        | (libc.MOUNT_ATTR_NOSUID if nosuid else 0)
        | (libc.MOUNT_ATTR_NODEV if nodev else 0)
        | (libc.MOUNT_ATTR_NOEXEC if noexec else 0)
    )
    descriptor = libc.open_tree(target, libc.OPEN_TREE_CLOEXEC)
    try:
        libc.mount_setattr(descriptor, set_=wanted, recursive=recursive)
    finally:
        os.close(descriptor)


def idmapped_bind(source: Path, target: Path, *, userns: int) -> None:
    """Show *source* at *target* with its owners shifted into a user namespace, read-only.

    nosuid and nodev too: what a container mounts over it is a mount of its own, where setuid
    works; a host user who finds this one gains nothing by it.
    """
    descriptor = libc.open_tree(source, libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC)
    try:
        flags = (
            libc.MOUNT_ATTR_IDMAP | libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV
        )
        libc.mount_setattr(descriptor, set_=flags, userns=userns)
        libc.move_mount(descriptor, target)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def user_namespace(first: int, count: int) -> Iterator[int]:
    """Yield a descriptor of a user namespace that maps 0 … count-1 to *first* … on the host.

    :raises OSError: the kernel refuses new user namespaces, or the ids.
    """
    descriptor = _make_user_namespace(first, count)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_user_namespace(first: int, count: int) -> int:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _live_in_user_namespace(writing)
    try:
        os.close(writing)
        said = os.read(reading, 16)
        if said != b"0":
            number = int(said or errno.ECHILD)
            raise OSError(number, os.strerror(number), "new user namespace")
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{kind}", "w", encoding="ascii") as file:
                file.write(f"0 {first} {count}")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(reading)
        # Killed, not told by a pipe: the children of other threads hold copies of every pipe's end.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _live_in_user_namespace(writing: int) -> None:
    """Be a user namespace's only process until killed; nothing else may run after the fork."""
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.unshare(libc.CLONE_NEWUSER)
        os.write(writing, b"0")
        # Not for ever: had our parent died before the prctl, nobody would kill us.
        time.sleep(60)
    except OSError as error:
        os.write(writing, str(error.errno).encode("ascii"))
    finally:
        os._exit(0)


def overlay(
    lowers: Sequence[Path],
    target: Path,
    *,
    upper: Path | None = None,
    work: Path | None = None,
    options: Mapping[str, str | None] = OVERLAY_OPTIONS,
) -> None:
    """Mount an overlay; without an upper it is read-only.

    mount(2) cuts options at one page, silently; a longer line is refused here.
    """
    parts: dict[str, str | None] = {"lowerdir": ":".join(_escaped(lower) for lower in lowers)}
    if upper is not None and work is not None:
        parts |= {"upperdir": _escaped(upper), "workdir": _escaped(work)}
    parts |= options
    data = ",".join(name if value is None else f"{name}={value}" for name, value in parts.items())
    if len(os.fsencode(data)) >= os.sysconf("SC_PAGE_SIZE"):
        raise OSError(errno.E2BIG, "the overlay's options do not fit into one page", str(target))
    libc.mount("overlay", target, "overlay", 0, data)


def filesystem(kind: str, target: Path, *, options: str | None = None, flags: int = 0) -> None:
    """Mount a filesystem without a source: tmpfs, proc, sysfs.

    :param flags: ``libc.MS_…``.
    """
    libc.mount(kind, target, kind, flags, options)


def unmount(target: Path, *, detach: bool = False) -> None:
    """Take the topmost mount off *target*; detached, it ends with its last user."""
    libc.umount(target, libc.MNT_DETACH if detach else 0)


def table(pid: int | str = "self") -> list[MountEntry]:
    """Return the mounts that a process sees, in the order in which they were made."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return parse_mountinfo(os.fsdecode(file.read()))


def parse_mountinfo(text: str) -> list[MountEntry]:
    """Parse /proc/PID/mountinfo (proc(5)); paths are unescaped."""
    # Not splitlines, nor text mode: the kernel escapes blank, tab, newline and backslash alone, so
    # a container could begin a line of its own with a carriage return or form feed in a name.
    return [_parse_line(line) for line in text.split("\n") if line]


def _parse_line(line: str) -> MountEntry:
    before, _, after = line.partition(" - ")
    number, parent, device, root, target, options, *tags = before.split(" ")
    kind, source, super_options = [*after.split(" ", 2), "", ""][:3]
    return MountEntry(
        mount_id=int(number),
        parent_id=int(parent),
        device=device,
        root=_unescaped(root),
        target=_unescaped(target),
        options=options,
        propagation=" ".join(tags),
        kind=kind,
        source=_unescaped(source),
        super_options=super_options,
    )


def _escaped(path: Path) -> str:
    return re.sub(r"([\\:,])", r"\\\1", str(path))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
