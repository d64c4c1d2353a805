"""SECURITY.md, rule 1: a tree whose owner swaps names for links while we work in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import signal
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oneroot.kernel import copy, xattr
from oneroot.kernel.tree import Tree, remove_tree

pytestmark = pytest.mark.timeout(120)

SECONDS = 3.0
REFUSED = {errno.ELOOP, errno.EXDEV, errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.EEXIST, errno.EISDIR}
REFUSED |= {errno.ENOTEMPTY, errno.EAGAIN, errno.EPERM}  # EPERM: a link takes no user attribute


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """What fails fails with an error that says why; nothing else may go wrong."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise


def _snapshot(place: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for directory, _, files in os.walk(place):
        for name in ("", *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content = Path(path).read_bytes() if name else b""
            found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
    return found


@pytest.fixture
def host(place: Path) -> Iterator[Path]:
    """Stands for the host's /: what must be neither read nor changed."""
    made = place / "host"
    (made / "etc/ssh").mkdir(parents=True)
    (made / "etc/hosts").write_text("SECRET of the host")
    (made / "etc/ssh/key").write_text("SECRET of the host")
    before = _snapshot(made)
    yield made
    assert _snapshot(made) == before


@contextlib.contextmanager
def swapping(upper: Path, host: Path, name: str) -> Iterator[None]:
    """A process that makes *name* by turns what it should be and a link to the host, without a pause."""
    good, bad = upper / f"{name}.good", upper / f"{name}.bad"
    bad.symlink_to(host / name)
    (upper / name).rename(good)
    child = os.fork()
    if child == 0:
        target = upper / name
        while True:
            with contextlib.suppress(OSError):
                good.rename(target)
            with contextlib.suppress(OSError):
                target.rename(good)
            with contextlib.suppress(OSError):
                bad.rename(target)
            with contextlib.suppress(OSError):
                target.rename(bad)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _actions(tree: Tree) -> list[Callable[[], object]]:
    def read(path: str) -> None:
        assert b"SECRET" not in tree.read_bytes(path, 100)

    def read_following(path: str) -> None:
        assert b"SECRET" not in tree.read_bytes(path, 100, follow=True)

    return [
        lambda: read("etc/hosts"),
        lambda: read("etc/ssh/key"),
        lambda: read_following("etc/hosts"),
        lambda: [read(entry.path) for entry in tree.walk() if entry.is_file],
        lambda: tree.write_file("etc/hosts", b"ours"),
        lambda: tree.write_file("etc/ssh/key", b"ours"),
        lambda: tree.makedirs("etc/ssh/more", uid=100_000, gid=100_000),
        lambda: tree.symlink("x", "etc/ssh/link", uid=5, gid=5),
        lambda: tree.remove("etc/ssh/link"),
        lambda: tree.setxattr("etc/hosts", "user.x", b"1"),
        lambda: tree.chown_all(100_000, 100_000),
        lambda: tree.listdir("etc/ssh"),
        lambda: tree.whiteout("etc/ssh/gone"),
        lambda: tree.remove("etc/ssh/more"),
    ]


@pytest.mark.parametrize("name", ["etc", "etc/hosts", "etc/ssh", "etc/ssh/key"])
def test_nothing_outside_is_read_or_changed(place: Path, host: Path, name: str) -> None:
    upper = place / "upper"
    (upper / "etc/ssh").mkdir(parents=True)
    (upper / "etc/hosts").write_text("inside")
    (upper / "etc/ssh/key").write_text("inside")
    done = 0
    with swapping(upper, host, name), Tree(upper) as tree:
        actions = _actions(tree)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with refused():
                random.choice(actions)()
                done += 1
    assert done > 50
    remove_tree(upper)
    assert not upper.exists()


def test_removing_while_links_are_swapped(place: Path, host: Path) -> None:
    upper = place / "upper"
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        (upper / "etc/ssh").mkdir(parents=True)
        (upper / "etc/hosts").write_text("inside")
        with swapping(upper, host, "etc"):
            for _ in range(20):
                with refused():
                    remove_tree(upper)
        remove_tree(upper)


def test_device_nodes_and_fifos(place: Path) -> None:
    upper = place / "upper"
    upper.mkdir()
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(upper / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 200))
    os.mknod(upper / "tty", stat.S_IFCHR | 0o666, os.makedev(5, 0))
    os.mkfifo(upper / "fifo")
    os.mknod(upper / "socket", stat.S_IFSOCK | 0o666)
    with Tree(upper) as tree:
        tree.whiteout("hidden")
        assert {entry.path for entry in tree.walk() if entry.is_whiteout} == {"hidden"}
        for name in tree.listdir():
            with pytest.raises(OSError, match="not a regular file"):
                tree.read_bytes(name, 1)
            tree.write_file(name, b"plain")
            assert tree.read_bytes(name, 10) == b"plain"
    copy.copy_tree(upper, place / "copy")


def test_attributes_of_links_are_their_own(place: Path) -> None:
    upper = place / "upper"
    upper.mkdir()
    (place / "host").write_text("x")
    os.setxattr(place / "host", "trusted.x", b"host")
    (upper / "link").symlink_to(place / "host")
    with Tree(upper) as tree:
        assert tree.getxattr("link", "trusted.x") is None
        tree.setxattr("link", "trusted.x", b"link")
        assert tree.getxattr("link", "trusted.x") == b"link"
        assert tree.listxattr("link") == ["trusted.x"]
        tree.chown_all(7, 8)
    assert os.getxattr(place / "host", "trusted.x") == b"host"
    assert (place / "host").stat().st_uid == 0
    assert (upper / "link").lstat().st_uid == 7


def test_chown_all_keeps_setuid_bits(place: Path) -> None:
    (place / "u").mkdir()
    with Tree(place / "u") as tree:
        tree.write_file("su", b"", mode=0o4755, uid=3, gid=3)
        tree.chown_all(100_000, 100_000)
        assert stat.S_IMODE(tree.lstat("su").st_mode) == 0o4755


def test_immutable_files_are_removed(place: Path) -> None:
    upper = place / "upper"
    (upper / "directory/sub").mkdir(parents=True)
    (upper / "directory/file").write_text("")
    for path, flag in (
        (upper / "directory/file", 0x10),
        (upper / "directory/sub", 0x10),
        (upper / "directory", 0x20),
    ):
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.ioctl(descriptor, 0x40086602, struct.pack("l", flag | 0x80000))
        os.close(descriptor)
    with pytest.raises(PermissionError):
        (upper / "directory/file").unlink()
    remove_tree(upper)
    assert not upper.exists()


def test_a_copied_tree_is_the_same(place: Path) -> None:
    source = place / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/su").write_text("x")
    (source / "d/su").chmod(0o4755)
    os.link(source / "d/su", source / "d/su2")
    os.mknod(source / "d/white", stat.S_IFCHR, 0)
    (source / "d/link").symlink_to("/nowhere")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    (source / "ping").write_text("x")
    os.setxattr(source / "ping", "security.capability", capability)
    os.setxattr(source / "d", "trusted.overlay.opaque", b"y")
    os.chown(source / "d/link", 5, 6, follow_symlinks=False)
    os.utime(source / "d", ns=(1, 2))
    copy.copy_tree(source, place / "copy")
    made = place / "copy"
    assert os.getxattr(made / "ping", "security.capability") == capability
    assert (made / "d/su").stat().st_ino == (made / "d/su2").stat().st_ino
    assert (made / "d/su").stat().st_mode == (source / "d/su").stat().st_mode
    assert (made / "d/link").lstat().st_uid == 5
    assert (made / "d").stat().st_mtime_ns == 2
    assert xattr.is_opaque(str(source / "d"))
    assert not xattr.is_opaque(str(made / "d"))
    assert xattr.is_whiteout((made / "d/white").lstat())
