"""The surroundings of a package manager: what it sees, what it may, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oneroot.kernel import mount, sandbox

pytestmark = pytest.mark.timeout(120)

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.fixture
def root(place: Path) -> Path:
    """A root directory with the host's programs in it."""
    made = place / "root"
    for name in ("usr", "proc", "sys", "dev", "run", "etc", "tmp"):
        (made / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (made / name).symlink_to(f"usr/{name}")
    return made


def job(root: Path, script: str, *mounts: sandbox.Mount, network: bool = False) -> sandbox.Sandbox:
    usr = sandbox.Bind("/usr", str(root / "usr"), read_only=True)
    return sandbox.Sandbox(
        argv=("/bin/sh", "-c", script), root=str(root), mounts=(usr, *mounts), network=network,
        environment=ENVIRONMENT,
    )  # fmt: skip


def said(root: Path, script: str, *mounts: sandbox.Mount, network: bool = False) -> str:
    log = root.parent / "log"
    with open(log, "wb") as file:
        code = sandbox.run(job(root, script, *mounts, network=network), log=file, timeout=30)
    text = log.read_text(errors="replace")
    assert code == 0, text
    return text


def test_it_sees_nothing_of_the_host(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "secret")
    text = said(
        root, "env; hostname; echo $$; ls -A /run /dev; cat /proc/net/dev; ls /proc | grep -c '^[0-9]'"
    )
    assert "PLANTED" not in text
    assert os.uname().nodename not in text.split("\n")
    assert "eth0" not in text
    assert "lo:" in text
    assert "vda" not in text
    assert set(said(root, "ls -A /run").split()) == {"lock"}
    table = said(root, "cat /proc/self/mountinfo")
    targets = {entry.target for entry in mount.parse_mountinfo(table)}
    assert {"/", "/usr", "/proc", "/sys", "/dev", "/run"} <= targets
    assert not any(target.startswith(("/work", "/var/tmp")) for target in targets)


def test_what_it_may(root: Path) -> None:
    text = said(root, "grep -E 'Cap(Bnd|Eff|Prm|Inh|Amb)' /proc/self/status")
    sets = {line.split(":")[0]: int(line.split()[1], 16) for line in text.splitlines()}
    allowed = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 18, 27, 29, 31))
    assert sets["CapBnd"] == sets["CapPrm"] == sets["CapEff"] == allowed
    assert sets["CapInh"] == sets["CapAmb"] == 0
    for forbidden in (
        "mount -t tmpfs none /tmp",
        "echo 1 > /proc/sys/kernel/panic",
        "echo x > /sys/kernel/uevent_seqnum",
        "mknod /dev/disk b 8 0",
        "umount /proc/sys",
    ):
        assert "refused" in said(root, f"{{ {forbidden}; }} 2>/dev/null || echo refused"), forbidden
    for allowed_too in (
        "chown 7:7 /tmp",
        "echo x >/dev/null",
        "touch /run/x /dev/shm/x",
        "mknod /tmp/node c 1 3",
    ):
        said(root, allowed_too)
    assert "refused" in said(root, "mknod /tmp/disk c 1 5; head -c1 /tmp/disk 2>/dev/null || echo refused")


def test_a_second_chroot_does_not_lead_out(root: Path) -> None:
    script = (
        "python3 -I -S -c \"import os; os.mkdir('/tmp/x'); os.chroot('/tmp/x');"
        " [os.chdir('..') for _ in range(64)]; os.chroot('.'); print(sorted(os.listdir('/')))\""
    )
    text = said(root, script)
    assert "work" not in text
    assert "'proc'" in text


def test_mounts_and_missing_targets(root: Path, place: Path) -> None:
    (place / "cache").mkdir()
    (place / "file").write_text("a file\n")
    (root / "escape").symlink_to("/tmp")
    text = said(
        root,
        "cat /etc/new/file; touch /var/cache/apt/x; touch /etc/new/file 2>/dev/null || echo ro;"
        " ls -d /mnt; grep -c ' /tmp tmpfs ' /proc/mounts",
        sandbox.Bind(str(place / "cache"), str(root / "var/cache/apt")),
        sandbox.Bind(str(place / "file"), str(root / "etc/new/file"), read_only=True),
        sandbox.Tmpfs(str(root / "mnt")),
        sandbox.Tmpfs(str(root / "escape")),
    )
    assert text == "a file\nro\n/mnt\n1\n", "the link leads to the tree's own /tmp"
    assert (place / "cache/x").exists()


def test_the_overlay_of_a_package_manager(root: Path, place: Path) -> None:
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    (root / "etc/directory").mkdir()
    layer = sandbox.Overlay(str(root), str(place / "upper"), str(place / "work"), str(place / "merged"))
    usr = sandbox.Bind("/usr", str(place / "merged/usr"), read_only=True)
    script = "mv /etc/directory /etc/renamed && echo x > /etc/file"
    one = sandbox.Sandbox(
        argv=("sh", "-c", script), root=str(place / "merged"), mounts=(layer, usr), environment=ENVIRONMENT
    )
    with open(place / "log", "wb") as log:
        assert sandbox.run(one, log=log, timeout=30) == 0, (place / "log").read_text()
    assert (place / "upper/etc/file").read_text() == "x\n"
    assert (root / "etc/directory").exists()
    assert not any(str(place) in entry.target for entry in mount.table())
    assert any("overlay of" in line for line in one.describe())
    assert sandbox.Sandbox.from_json(one.to_json()) == one


def test_input_output_and_status(root: Path, place: Path) -> None:
    with open(place / "out", "wb") as out, open(place / "log", "wb") as log:
        data = b"x" * 1_000_000
        assert sandbox.run(job(root, "cat; echo e >&2"), log=log, stdout=out, input=data, timeout=30) == 0
        assert sandbox.run(job(root, "exit 7"), log=log, timeout=30) == 7
        assert sandbox.run(job(root, "kill -9 $$"), log=log, timeout=30) == 137
    assert (place / "out").read_bytes() == data
    assert (place / "log").read_text() == "e\n"


def test_a_sandbox_that_cannot_be(root: Path) -> None:
    absent = sandbox.Bind("/absent", str(root / "mnt"))
    with pytest.raises(FileNotFoundError, match="absent"):
        sandbox.run(job(root, "true", absent), log=subprocess.DEVNULL, timeout=30)
    program = sandbox.Sandbox(argv=("no-such-program",), root=str(root), environment=ENVIRONMENT)
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        sandbox.run(program, log=subprocess.DEVNULL, timeout=30)


def _marked(mark: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                if mark.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found


def _gone(mark: str) -> bool:
    end = time.monotonic() + 5
    while _marked(mark):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


MARK = f"4242{os.getpid()}"
"""Begins the seconds that this run's programs sleep: what another run left is not ours."""


def _stubborn(mark: str) -> str:
    return f"trap '' TERM HUP INT; setsid sh -c 'sleep {mark} & sleep {mark}' & sleep {mark}; sleep {mark}"


def test_a_timeout_ends_all_of_it(root: Path) -> None:
    with pytest.raises(TimeoutError):
        sandbox.run(job(root, _stubborn(f"{MARK}1")), log=subprocess.DEVNULL, timeout=0.7)
    assert not _marked(f"{MARK}1"), "asked politely, the sandbox waits for all processes"


def test_what_the_program_leaves_running_ends_with_it(root: Path) -> None:
    said(root, f"setsid sleep {MARK}2 & sleep 0.1")
    assert not _marked(f"{MARK}2")


@pytest.mark.parametrize("victim", ["us", "main", "init"])
def test_kill_9_leaves_no_process_and_no_mount(root: Path, place: Path, victim: str) -> None:
    mark = f"{MARK}{len(victim) + 2}"
    (place / "job").write_text(job(root, _stubborn(mark)).to_json())
    code = (
        "import sys; from oneroot.kernel import sandbox as s;"
        f"s.run(s.Sandbox.from_json(open({str(place / 'job')!r}).read()), log=1, timeout=60)"
    )
    us = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 10
    while len(_marked(mark)) < 4 and time.monotonic() < end:
        time.sleep(0.02)
    main = int(Path(f"/proc/{us.pid}/task/{us.pid}/children").read_text())
    init = int(Path(f"/proc/{main}/task/{main}/children").read_text())
    os.kill({"us": us.pid, "main": main, "init": init}[victim], signal.SIGKILL)
    us.wait(20)
    assert _gone(mark)
    assert not Path(f"/proc/{init}").exists() or _gone(f"sandbox.main() {us.pid}")
    assert not any(str(place) in entry.target for entry in mount.table())
