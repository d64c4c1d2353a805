"""Real mounts, each in a namespace that ends with the test."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from oneroot.kernel import mount
from oneroot.kernel.tree import Tree, remove_tree
from tests.root.kernel.conftest import Apart

pytestmark = pytest.mark.timeout(60)


def _directories(place: Path, *names: str) -> list[Path]:
    for name in names:
        (place / name).mkdir()
    return [place / name for name in names]


def test_an_overlay_with_odd_names_and_our_options(place: Path, apart: Apart) -> None:
    one, other, upper, work, merged = _directories(place, "a:b", "c,d\\e f", "up:,\\per", "wo,rk:", "m\n x")
    (one / "file").write_text("one")
    (other / "file").write_text("other")
    (other / "below").write_text("other")

    def check() -> None:
        mount.overlay([one, other], merged, upper=upper, work=work)
        assert (merged / "file").read_text() == "one"
        assert (merged / "below").read_text() == "other"
        (merged / "new").write_text("new")
        assert (upper / "new").read_text() == "new"
        (entry,) = [entry for entry in mount.table() if entry.target == str(merged)]
        assert entry.kind == "overlay"
        for option in ("redirect_dir=nofollow", "xino=off"):
            assert option in entry.super_options or option == "xino=off"
        assert "metacopy=on" not in entry.super_options
        assert "index=on" not in entry.super_options
        mount.unmount(merged)
        mount.overlay([one, other], merged)
        with pytest.raises(OSError, match="Read-only"):
            (merged / "new").write_text("")

    apart(check)
    assert not any(entry.target == str(merged) for entry in mount.table())


def test_an_overlay_whose_options_would_be_cut(place: Path) -> None:
    with pytest.raises(OSError, match="one page") as caught:
        mount.overlay([place / ("x" * 200)] * 30, place)
    assert caught.value.errno == errno.E2BIG


def test_an_idmapped_bind_shows_shifted_owners_and_is_restricted(place: Path, apart: Apart) -> None:
    base, target = _directories(place, "base", "target")
    (base / "file").write_text("x")
    (base / "user").write_text("x")
    os.chown(base / "user", 1000, 1001)

    def check() -> None:
        with mount.user_namespace(700_000, 65_536) as userns:
            mount.idmapped_bind(base, target, userns=userns)
        assert ((target / "file").stat().st_uid, (target / "file").stat().st_gid) == (700_000, 700_000)
        assert ((target / "user").stat().st_uid, (target / "user").stat().st_gid) == (701_000, 701_001)
        (entry,) = [entry for entry in mount.table() if entry.target == str(target)]
        assert {"ro", "nosuid", "nodev", "idmapped"} <= set(entry.options.split(","))

    apart(check)


def test_many_user_namespaces_at_a_time() -> None:
    """A pipe's end in another thread's child once kept each waiting for the other."""
    made: list[int] = []

    def make(first: int) -> None:
        for _ in range(10):
            with mount.user_namespace(first, 65_536) as descriptor:
                made.append(os.fstat(descriptor).st_ino)

    threads = [threading.Thread(target=make, args=(100_000 * n,), daemon=True) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 80


def test_a_user_namespace_that_cannot_be(place: Path) -> None:
    with pytest.raises(OSError, match="Invalid"), mount.user_namespace(0, 0):
        pass


def test_a_bind_that_is_never_writable(place: Path, apart: Apart) -> None:
    source, target = _directories(place, "source", "target")

    def check() -> None:
        mount.bind_restricted(source, target, read_only=True)
        with pytest.raises(OSError, match="Read-only"):
            (target / "x").write_text("")
        (entry,) = [entry for entry in mount.table() if entry.target == str(target)]
        assert {"ro", "nosuid", "nodev"} <= set(entry.options.split(","))
        mount.unmount(target)
        mount.bind(source, target)
        mount.set_flags(target, noexec=True, nosuid=True)
        (entry,) = [entry for entry in mount.table() if entry.target == str(target)]
        assert {"rw", "noexec", "nosuid"} <= set(entry.options.split(","))

    apart(check)


def test_a_mount_in_a_tree_is_neither_walked_nor_removed(place: Path, apart: Apart) -> None:
    tree, other = _directories(place, "tree", "other")
    (other / "precious").write_text("x")
    (tree / "a/mounted").mkdir(parents=True)
    (tree / "file").write_text("")

    def check() -> None:
        mount.bind(other, tree / "a/mounted")
        with Tree(tree) as held:
            for action in (lambda: list(held.walk()), lambda: held.read_bytes("a/mounted/precious", 1)):
                with pytest.raises(OSError, match=rf"\[Errno {errno.EXDEV}\]"):
                    action()
        with pytest.raises(OSError, match=r"Errno (16|18)"):
            remove_tree(tree)
        with pytest.raises(OSError, match=r"Errno (16|18)"):
            remove_tree(tree / "a/mounted")
        mount.unmount(tree / "a/mounted")
        (tree / "again").touch()
        mount.bind(other / "precious", tree / "again")
        with pytest.raises(OSError, match=rf"\[Errno {errno.EBUSY}\]"):
            remove_tree(tree / "again")

    apart(check)
    assert (other / "precious").read_text() == "x"
    remove_tree(tree)
    assert not tree.exists()
