"""The disk is full: before, and in the middle of what is done. Old state stands, and there is a way back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.kernel import mount
from oneroot.kernel.tree import remove_tree
from tests.conftest import skip_or_fail
from tests.root.acceptance.begun import Begun
from tests.root.acceptance.world import (
    COMMAND,
    CONTAINERS,
    MORE,
    NETWORK,
    PATCH,
    ROLLBACK,
    base,
    generations,
    inside,
    refuse,
    running,
    states,
    unchanged,
)
from tests.root.scene import Scene

DISK_BYTES = 900 << 20
NO_SPACE = "(?i)no space left|is full|free space|disk is full"


class Disk:
    """A small filesystem for store and LXC path, and what else fills it."""

    def __init__(self, place: Path, run_directory: Path) -> None:
        self.scene = Scene(place, network=NETWORK, more=MORE, run_directory=run_directory)
        self.log = run_directory.with_name("disk-reached")
        self._filler = place / "filler"

    def fill(self, leave: int = 0) -> None:
        """Take all space but so many bytes."""
        descriptor = os.open(self._filler, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            free = self.free()
            size = os.fstat(descriptor).st_size
            if free > leave:
                with contextlib.suppress(OSError):
                    os.posix_fallocate(descriptor, size, free - leave)
            while leave == 0:
                os.lseek(descriptor, 0, os.SEEK_END)
                os.write(descriptor, b"x" * 4096)
        except OSError:
            pass  # full, as is wanted
        finally:
            os.close(descriptor)

    def free(self) -> int:
        status = os.statvfs(self.scene.place)
        return status.f_bavail * status.f_frsize

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def private_mounts() -> Iterator[None]:
    """Be in a mount namespace of our own.

    In the host's, every monitor that anybody starts meanwhile would get a copy of our mount, and keep it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        mount.new_namespace()
        yield
    finally:
        assert libc.setns(host, 0) == 0, os.strerror(ctypes.get_errno())
        os.close(host)


@pytest.fixture
def disk(place: Path, with_containers: Scene) -> Iterator[Disk]:
    """Three containers on a small disk, which run; an update is pending."""
    image, mounted, run_directory = place / "disk.img", place / "disk", place / "disk-run"
    with contextlib.ExitStack() as stack:
        stack.callback(image.unlink, missing_ok=True)
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
        mounted.mkdir(exist_ok=True)
        stack.enter_context(private_mounts())
        if subprocess.run(["mount", "-o", "loop", image, mounted], check=False).returncode != 0:
            skip_or_fail("no loop device")
        mounted.chmod(0o711)
        made = Disk(mounted, run_directory)
        (mounted / "lxc").mkdir()
        made.scene.write_settings()
        made.scene.copy_from(with_containers)
        remove_tree(mounted / "store/cache/packages")
        (mounted / "store/journal.ballast").unlink()  # the copy is sparse
        made.scene.run("history")
        stack.callback(lambda: run_directory.exists() and remove_tree(run_directory))
        stack.callback(made.scene.leave)
        stack.callback(made.empty)
        made.scene.run("start", "ac*")
        yield made


def test_upgrading(disk: Disk) -> None:
    scene = disk.scene
    words = ("base", "upgrade", "core")
    for leave in (0, 20 << 20):
        disk.fill(leave)
        with unchanged(scene):
            refuse(scene, *words, code=1, why=NO_SPACE)
        scene.assert_whole()
        disk.empty()
    for label in ("before: install", "before: fold"):
        begun = Begun(scene, *words, "--format", "json", log=disk.log)
        begun.wait_for(label)
        disk.fill()
        code, _, err = begun.end()
        assert code == 1 and '"code": "no-space"' in err and err.count("\n") == 1, f"{label}: {code}: {err}"
        assert generations(scene) == [1] and base(scene)["current"] == 1
        assert running(scene) == dict.fromkeys(CONTAINERS, 1)
        assert not (scene.place / "store/bases/core/stage").exists(), "it left what it had begun"
        scene.assert_whole()
        disk.empty()
    scene.run(*words)
    assert generations(scene) == [1, 2]
    scene.run("base", "fsck", "core")


def test_creating(disk: Disk) -> None:
    scene = disk.scene
    words = ("create", *COMMAND, "--replicas", "20", "new")
    disk.fill()
    with unchanged(scene):
        refuse(scene, *words, code=1, why=NO_SPACE)
    scene.assert_whole()
    scene.assert_no_orphans()
    disk.empty()
    # in the middle: there is room for some
    begun = Begun(scene, *words, log=disk.log)
    begun.wait_for("after: new003: write its LXC configuration")
    disk.fill()
    code, _, err = begun.end()
    assert code == 1 and "Traceback" not in err and "did not expect" not in err, err
    assert "No space left" in err or "full" in err, err
    scene.assert_whole()
    assert len(states(scene)) < 23
    assert set(running(scene)) == set(CONTAINERS)
    disk.empty()
    scene.run(*words)
    scene.run("start", "new*")
    assert len(running(scene)) == 23
    scene.assert_no_orphans()


def test_patching_and_rolling_back(disk: Disk) -> None:
    scene = disk.scene
    disk.fill()
    with unchanged(scene):
        refuse(scene, *PATCH, code=1, why=NO_SPACE)
    disk.empty()
    # in the middle of the rollout
    begun = Begun(scene, *PATCH, "--batch", "1", log=disk.log)
    begun.wait_for("rollout: before start ac001")
    disk.fill()
    code, out, err = begun.end()
    assert code == 1 and "Traceback" not in err and "did not expect" not in err, f"{code}: {out}{err}"
    found = running(scene)
    assert set(found) == set(CONTAINERS), "somebody was left down"
    scene.assert_whole()

    disk.fill()
    scene.run(*ROLLBACK, ok=(0, 3))
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)
    assert base(scene)["pinned"]["generation"] == 1
    assert inside(scene, "ac001", "probe") == "1"
    # and once more, both ways of saying it, without the space that was kept for the first
    disk.fill()
    scene.run(*ROLLBACK, ok=(0, 3))
    disk.empty()
    scene.run("base", "unpin", "core")
    scene.run(*PATCH)
    assert running(scene) == dict.fromkeys(CONTAINERS, 2)
    scene.assert_no_orphans()


def test_rolling_back_what_is_done(disk: Disk) -> None:
    scene = disk.scene
    scene.run(*PATCH)
    disk.fill()
    (scene.place / "store/journal.ballast").unlink()
    disk.fill()
    assert disk.free() == 0
    said = scene.run(*ROLLBACK, ok=(3,))
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)
    # not one block is left for the pin: it says so, and how it is made later
    assert "core is not pinned" in said.out and "oneroot base use core 1" in said.out
    disk.empty()
    scene.run("base", "use", "core", "1")
    assert base(scene)["pinned"]["generation"] == 1


def test_what_still_works(disk: Disk) -> None:
    """One looks, stops, starts, and above all makes room."""
    scene = disk.scene
    scene.run("create", *COMMAND, "--replicas", "3", "old")
    scene.run("rm", "old001")
    assert (scene.place / "store/journal.ballast").stat().st_blocks > 0
    disk.fill()
    assert len(states(scene)) == 5
    scene.run("verify", ok=(0, 3))
    scene.run("info", "ac001")
    scene.run("stop", "ac001")
    scene.run("start", "ac001")
    scene.run("restart", "ac002")
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)
    scene.run("rm", "--empty-trash", "--yes")
    disk.fill()
    scene.run("base", "gc", "core", "--yes")
    scene.run("rm", "--purge", "--yes", "old002")
    assert "old002" not in states(scene)
    scene.assert_whole()
