"""Mounts and namespaces, as verbs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
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
    root: str
    target: str
    options: str
    kind: str
    source: str
    super_options: str


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


def set_flags(
    target: Path,
    *,
    read_only: bool = False,
    nosuid: bool = False,
    nodev: bool = False,
    recursive: bool = False,
) -> None:
    """Restrict the mount at *target*."""
    wanted = (
        (libc.MOUNT_ATTR_RDONLY if read_only else 0)
        | (libc.MOUNT_ATTR_NOSUID if nosuid else 0)
        | (libc.MOUNT_ATTR_NODEV if nodev else 0)
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
    """Yield a descriptor of a user namespace that maps 0 … count-1 to *first* … on the host."""
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            libc.unshare(libc.CLONE_NEWUSER)
            os.write(ready_write, b"x")
            os.close(done_write)
            os.read(done_read, 1)
        finally:
            os._exit(0)
    os.close(ready_write)
    os.close(done_read)
    try:
        if os.read(ready_read, 1) != b"x":
            raise OSError(1, "the kernel refuses new user namespaces")
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{kind}", "w", encoding="ascii") as file:
                file.write(f"0 {first} {count}")
        descriptor = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.close(done_write)
        os.waitpid(child, 0)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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
        raise OSError(7, "the overlay's options do not fit into one page", str(target))
    libc.mount("overlay", target, "overlay", 0, data)


def filesystem(kind: str, target: Path, *, options: str | None = None, flags: int = 0) -> None:
    """Mount a filesystem without a source: tmpfs, proc, sysfs."""
    libc.mount(kind, target, kind, flags, options)


def unmount(target: Path, *, detach: bool = False) -> None:
    """Take the topmost mount off *target*; detached, it ends with its last user."""
    libc.umount(target, libc.MNT_DETACH if detach else 0)


def table(pid: int | str = "self") -> list[MountEntry]:
    """Return the mounts that a process sees."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def parse_mountinfo(text: str) -> list[MountEntry]:
    """Parse /proc/PID/mountinfo (proc(5)); paths are unescaped."""
    entries = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        kind, source, super_options = [*after.split(" ", 2), "", ""][:3]
        entries.append(
            MountEntry(
                mount_id=int(fields[0]),
                root=_unescaped(fields[3]),
                target=_unescaped(fields[4]),
                options=fields[5],
                kind=kind,
                source=_unescaped(source),
                super_options=super_options,
            )
        )
    return entries


def _escaped(path: Path) -> str:
    return re.sub(r"([\\:,])", r"\\\1", str(path))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
