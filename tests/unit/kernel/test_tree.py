"""Trees that somebody else controls; what needs no root."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.kernel import copy
from oneroot.kernel.tree import Tree, remove_tree

ME = {"uid": os.geteuid(), "gid": os.getegid()}

pytestmark = pytest.mark.timeout(60)


@contextlib.contextmanager
def fails_with(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=rf"\[Errno {number}\]"):
        yield


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "root").mkdir()
    try:
        with Tree(tmp_path / "root") as made:
            yield made
    finally:
        remove_tree(tmp_path / "root")  # pytest's own removal cannot go 4,000 levels deep


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "hosts").write_text("the host's")
    return place


def test_write_read_replace(tree: Tree) -> None:
    tree.makedirs("a/b", mode=0o750, **ME)
    tree.write_file("/a/b/c", b"one", mode=0o4711, **ME)
    tree.write_file("a/b/c", b"two", mode=0o640, durable=True, **ME)
    assert tree.read_bytes("a/b/c", 100) == b"two"
    assert tree.read_bytes("a/b/c", 2) == b"tw"
    assert stat.S_IMODE(tree.lstat("a/b/c").st_mode) == 0o640
    assert stat.S_IMODE(tree.lstat("a").st_mode) == 0o750
    tree.symlink("/elsewhere", "a/b/c", **ME)
    assert tree.readlink("a/b/c") == "/elsewhere"
    tree.symlink("/other", "a/b/c", **ME)
    tree.write_file("a/b/c", b"three", mode=0o4711, **ME)
    assert stat.S_IMODE(tree.lstat("a/b/c").st_mode) == 0o4711
    assert tree.listdir("a/b") == ["c"]
    tree.remove("a")
    tree.remove("a/b/c/d")
    assert tree.listdir() == []


def test_a_link_is_never_followed(tree: Tree, outside: Path) -> None:
    (tree.root / "etc").symlink_to(outside)
    (tree.root / "hosts").symlink_to(outside / "hosts")
    for action in (
        lambda: tree.read_bytes("etc/hosts", 10),
        lambda: tree.listdir("etc"),
        lambda: list(tree.walk("etc")),
        lambda: tree.write_file("etc/hosts", b"x", **ME),
        lambda: tree.makedirs("etc/new", **ME),
        lambda: tree.symlink("x", "etc/new", **ME),
        lambda: tree.remove("etc/hosts"),
        lambda: tree.getxattr("etc/hosts", "user.x"),
        lambda: tree.setxattr("etc/hosts", "user.x", b""),
    ):
        with fails_with(errno.ELOOP):
            action()
    with pytest.raises(OSError, match="not a regular file"):
        tree.read_bytes("hosts", 10)
    assert not tree.exists("etc/hosts")
    assert tree.exists("hosts")
    tree.remove("hosts")
    tree.remove("etc")
    assert (outside / "hosts").read_text() == "the host's"
    assert sorted(os.listdir(outside)) == ["hosts"]


def test_links_are_followed_within_the_root_when_asked(tree: Tree, outside: Path) -> None:
    (tree.root / "usr").mkdir()
    (tree.root / "usr/file").write_text("inside")
    (tree.root / "absolute").symlink_to("/usr/file")
    (tree.root / "up").symlink_to("../../../usr/file")
    (tree.root / "out").symlink_to(outside / "hosts")
    for name in ("absolute", "up"):
        assert tree.read_bytes(name, 100, follow=True) == b"inside"
    with pytest.raises(FileNotFoundError):
        tree.read_bytes("out", 100, follow=True)


@pytest.mark.parametrize("path", ["..", "../outside/hosts", "a/../../outside/hosts", "/.."])
def test_a_path_that_leads_out_is_refused(tree: Tree, outside: Path, path: str) -> None:
    with pytest.raises(OSError, match="leads out"):
        tree.lstat(path)


def test_a_failed_write_leaves_nothing(tree: Tree) -> None:
    (tree.root / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        tree.write_file("directory", b"x", **ME)
    with open("/dev/zero", "rb") as endless, fails_with(errno.EFBIG):
        tree.write_from("file", endless.fileno(), limit=1 << 21, **ME)
    assert tree.listdir() == ["directory"]


def test_copy_out_is_bounded(tree: Tree, tmp_path: Path) -> None:
    tree.write_file("file", b"0123456789", **ME)
    with open(tmp_path / "copy", "wb") as target:
        assert tree.copy_out("file", target.fileno(), limit=10) == 10
        with fails_with(errno.EFBIG):
            tree.copy_out("file", target.fileno(), limit=9)
    assert (tmp_path / "copy").read_bytes() == b"0123456789012345678"


def test_a_fifo_blocks_nobody(tree: Tree) -> None:
    os.mkfifo(tree.root / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        tree.open_read("fifo")
    with pytest.raises(NotADirectoryError):
        tree.listdir("fifo")
    tree.getxattr("fifo", "user.x")
    assert [entry.path for entry in tree.walk()] == ["fifo"]
    tree.write_file("fifo", b"x", **ME)
    assert tree.read_bytes("fifo", 10) == b"x"


def test_names_of_any_bytes(tree: Tree) -> None:
    names = [b"new\nline", b"\x1b[31mred", b"latin-\xe9", b" ", b"\\012", b"-rf", b"\xe2\x80\xa8"]
    for name in names:
        os.close(os.open(bytes(tree.root) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    found = {entry.path for entry in tree.walk()}
    assert found == {os.fsdecode(name) for name in names}
    for path in found:
        assert tree.read_bytes(path, 1) == b""
        tree.remove(path)
    assert tree.listdir() == []


def _nest(root: Path, name: str, levels: int) -> None:
    """Nested directories, each with a file and an empty directory beside the next one."""
    current = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=current)
        os.mkdir("b", dir_fd=current)
        below = os.open(name, os.O_RDONLY, dir_fd=current)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(current)
        current = below
    os.close(current)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 80, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
def test_four_thousand_nested_directories(tree: Tree) -> None:
    name = "deep"
    _nest(tree.root, name, 4000)
    (tree.root / "late").write_text("")
    entries = [entry.path for entry in tree.walk()]
    assert len(entries) == 12_001
    deepest = max(entries, key=len)
    assert deepest.count("/") == 4000
    assert tree.read_bytes(deepest, 1) == b""
    tree.write_file(deepest, b"deep", **ME)
    assert tree.read_bytes(deepest, 10) == b"deep"
    tree.remove(name)
    assert sorted(tree.listdir()) == ["b", "late"]


@pytest.mark.usefixtures("few_descriptors")
def test_paths_that_would_fill_the_memory_end_the_walk(tree: Tree) -> None:
    _nest(tree.root, "d" * 255, 2000)
    with fails_with(errno.EFBIG):
        for _ in tree.walk():
            pass
    remove_tree(tree.root)
    assert not tree.root.exists()


def test_walk_has_a_limit_and_a_top(tree: Tree) -> None:
    tree.makedirs("a/b", **ME)
    tree.write_file("a/b/c", b"", **ME)
    tree.write_file("d", b"", **ME)
    assert [entry.path for entry in tree.walk("a")] == ["a/b", "a/b/c"]
    with fails_with(errno.EFBIG):
        list(tree.walk(limit=3))
    with pytest.raises(FileNotFoundError):
        list(tree.walk("absent"))


def test_a_descriptor_as_root(tree: Tree) -> None:
    tree.write_file("x", b"1", **ME)
    holder = os.open(tree.root, os.O_RDONLY)
    with Tree(holder) as same:
        assert same.read_bytes("x", 1) == b"1"
    os.fstat(holder)
    os.close(holder)
    with Tree.of_process(os.getpid(), str(tree.root)) as same:
        assert same.read_bytes("x", 1) == b"1"


def test_attributes(tree: Tree) -> None:
    tree.write_file("x", b"1", **ME)
    assert tree.getxattr("x", "user.a") is None
    tree.setxattr("x", "user.a", b"\0b")
    assert tree.getxattr("x", "user.a") == b"\0b"
    assert "user.a" in tree.listxattr("x")
    tree.removexattr("x", "user.a")
    assert tree.getxattr("x", "user.a") is None


def test_a_removed_tree_leaves_what_its_links_name(tmp_path: Path, outside: Path) -> None:
    place = tmp_path / "place"
    (place / "a/b").mkdir(parents=True)
    (place / "a/link").symlink_to(outside)
    remove_tree(place)
    assert not place.exists()
    remove_tree(place)
    remove_tree(place / "below/nothing")
    link = tmp_path / "link"
    link.symlink_to(outside)
    remove_tree(link)
    assert (outside / "hosts").read_text() == "the host's"


def test_copies_keep_holes_times_and_modes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.write(b"begin")
        file.seek(1 << 30)
        file.write(b"middle")
        file.truncate(3 << 30)
    source.chmod(0o4750)
    os.utime(source, ns=(1, 123456789))
    copy.copy_file(str(source), str(tmp_path / "copy"))
    status, found = source.stat(), (tmp_path / "copy").stat()
    assert (found.st_size, found.st_mode, found.st_mtime_ns) == (3 << 30, status.st_mode, 123456789)
    assert found.st_blocks * 512 < 1 << 20
    with open(tmp_path / "copy", "rb") as file:
        assert file.read(5) == b"begin"
        file.seek(1 << 30)
        assert file.read(6) == b"middle"
    with pytest.raises(FileExistsError):
        copy.copy_file(str(source), str(tmp_path / "copy"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        copy.copy_file(str(tmp_path / "fifo"), str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


def test_renames_that_replace_nothing_or_swap(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.mkdir()
    with pytest.raises(FileExistsError):
        copy.rename_new(one, other)
    copy.exchange(one, other)
    assert one.is_dir()
    assert other.read_text() == "1"
    link = tmp_path / "current"
    for target in ("one", "other"):
        copy.replace_symlink(link, target)
        assert os.readlink(link) == target
    copy.sync_filesystem(tmp_path)
