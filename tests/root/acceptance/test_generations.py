"""A generation never changes, whatever is done over it; and its setuid programs are for insiders alone."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from tests.root.acceptance.world import CONTAINERS, PATCH, ROLLBACK, base, inside, running, states
from tests.root.base.treeview import snapshot
from tests.root.scene import Scene

SETUID = ("usr/bin/passwd", "usr/bin/su", "usr/bin/mount", "usr/bin/gpasswd", "usr/bin/chsh")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", 'exec "$0" "$@"')
"""Through a shell: setpriv itself still has root's capabilities when it looks for the program."""


def root_of(scene: Scene, number: int) -> Path:
    return scene.place / f"store/bases/core/generations/{number}/root"


def without_link_counts(seen: dict[str, list[object]]) -> dict[str, list[object]]:
    return {path: facts[:8] for path, facts in seen.items()}


def work_as_a_user(scene: Scene, name: str) -> None:
    """Change a password and become a user with it, which needs working setuid programs inside."""
    script = (
        "set -e\n"
        "id ann >/dev/null 2>&1 || useradd -m -s /bin/sh ann\n"
        "echo 'ann:first' | chpasswd\n"
        "su ann -c 'printf \"first\\nsEcond-4-word\\nsEcond-4-word\\n\" | passwd' >/tmp/passwd.log 2>&1"
        " || { cat /tmp/passwd.log; exit 1; }\n"
        "su ann -c 'id -un; echo sEcond-4-word | su ann -c \"id -u\"' 2>/dev/null\n"
    )
    said = scene.run("exec", name, "--", "sh", "-c", script, ok=None)
    assert said.code == 0, said.out + said.err
    assert said.out.split() == ["ann", said.out.split()[1]]
    assert int(said.out.split()[1]) >= 1000


class Watch:
    """Looks at files again and again while something else goes on."""

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self._root, self._names = root, names
        self._stop = threading.Event()
        self.seen: set[tuple[str, int, int, int]] = set()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.is_set():
            self.once()
            self._stop.wait(0.005)

    def once(self) -> None:
        for name in self._names:
            status = (self._root / name).lstat()
            self.seen.add((name, status.st_mode, status.st_size, status.st_mtime_ns))

    def __enter__(self) -> Watch:
        self.once()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def test_the_older_generation_is_unchanged(scene: Scene) -> None:
    scene.run("start", "ac*")
    root = root_of(scene, 1)
    for name in SETUID:
        assert (root / name).lstat().st_mode & stat.S_ISUID, f"{name} is not setuid: this test shows nothing"
    work_as_a_user(scene, "ac001")
    before = snapshot(str(root))
    assert len(before) > 3000

    with Watch(root, SETUID) as watch:
        patched = scene.run(*PATCH, "--format", "json").json
    assert len(watch.seen) == len(SETUID), f"changed meanwhile: {sorted(watch.seen)}"
    assert {change["package"] for change in patched[0]["changes"]} >= {"probe", "passwd", "util-linux"}
    assert running(scene) == dict.fromkeys(CONTAINERS, 2)
    for name in ("usr/bin/passwd", "usr/bin/su"):
        new = (root_of(scene, 2) / name).lstat()
        assert new.st_ino != (root / name).lstat().st_ino, f"{name} was not replaced: nothing was tried"
    # hard links to the new generation change nothing but the list of links, which is not the old tree's
    assert without_link_counts(snapshot(str(root))) == without_link_counts(before)
    work_as_a_user(scene, "ac001")

    scene.run(*ROLLBACK, ok=(0, 3))
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)
    for name in CONTAINERS:
        assert inside(scene, name, "probe") == "1"
        work_as_a_user(scene, name)
        listed = inside(scene, name, "stat", "-c", "%a %u", "/usr/bin/passwd", "/usr/bin/su").split()
        assert listed == ["4755", "0", "4755", "0"]
    assert without_link_counts(snapshot(str(root))) == without_link_counts(before)
    assert scene.run("base", "fsck", "core").code == 0
    assert base(scene)["pinned"]["generation"] == 1


def test_root_inside_cannot_change_it(scene: Scene) -> None:
    scene.run("start", "ac001", "ac002")
    before = snapshot(str(root_of(scene, 1)))
    script = (
        "chmod 0777 /usr/bin/su; rm -rf /usr/share/doc /usr/bin/probe; echo evil > /etc/passwd;"
        " chown -R 1:1 /usr/sbin; mknod /dev/x c 1 3; mount -o remount,rw / ; touch /usr/lib/x;"
        " mount --bind /usr /mnt && mount -o remount,rw,bind /mnt; echo y > /mnt/bin/mount; true"
    )
    scene.run("exec", "ac001", "--", "sh", "-c", script)
    assert snapshot(str(root_of(scene, 1))) == before
    assert inside(scene, "ac002", "probe") == "1"
    assert scene.run("exec", "ac001", "--", "/usr/bin/probe", ok=None).code in (126, 127)


@pytest.fixture
def setuid_in_upper(scene: Scene) -> Path:
    """A setuid shell of root, in a running container's upper."""
    scene.run("start", "ac001")
    scene.run("exec", "ac001", "--", "sh", "-c", "cp /bin/dash /evil && chmod 4755 /evil")
    file = scene.place / "lxc/ac001/overlay/upper/evil"
    assert file.lstat().st_mode & 0o7777 == 0o4755
    return file


def as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NOBODY, *words], capture_output=True, text=True, check=False, cwd="/")


def test_nobody_executes_no_setuid_file(scene: Scene, setuid_in_upper: Path) -> None:
    candidates = [setuid_in_upper, *(root_of(scene, 1) / name for name in SETUID)]
    # and by every way around: the link to the current one, the containers' processes, our run directory
    pid = states(scene)["ac001"]["pid"]
    candidates += [scene.place / "store/bases/core/current/root/usr/bin/su", Path(f"/proc/{pid}/root/evil")]
    candidates += [Path(f"/proc/{pid}/cwd/evil"), scene.place / "run/overlay/upper/evil"]
    candidates += [scene.place / "run/lower/usr/bin/su"]
    probe = scene.place / "lxc/may-run"
    try:
        # the control: the very same file, where nobody may search, does run
        shutil.copy(setuid_in_upper, probe)
        probe.chmod(0o755)
        assert as_nobody(str(probe), "-c", "echo run").stdout == "run\n"
    finally:
        probe.unlink(missing_ok=True)
    for file in candidates:
        done = as_nobody(str(file), "-p", "-c", "id -u")
        assert done.returncode in (126, 127) and not done.stdout, f"{file}: {done}"
        assert as_nobody("cat", str(file)).returncode != 0
        assert as_nobody("ls", str(file)).returncode != 0


def test_nobody_executes_no_setuid_file_of_the_trash(scene: Scene, setuid_in_upper: Path) -> None:
    scene.run("rm", "--force", "ac001")
    [there] = (scene.place / "store/trash").glob("ac001-*/overlay/upper/evil")
    assert there.lstat().st_mode & stat.S_ISUID
    assert as_nobody(str(there), "-p", "-c", "id -u").returncode in (126, 127)


def test_a_user_of_the_host_with_a_descriptor(scene: Scene, setuid_in_upper: Path) -> None:
    """Who was handed the directory itself still gets no root of the host out of it."""
    descriptor = os.open(setuid_in_upper.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        done = subprocess.run(
            [*NOBODY, f"/proc/self/fd/{descriptor}/evil", "-p", "-c", "id -u"],
            pass_fds=(descriptor,), capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
    finally:
        os.close(descriptor)
    # setuid to the id that is root inside, which is nobody's on the host
    assert done.stdout.strip() != "0", done
    assert setuid_in_upper.lstat().st_uid >= 65536
