"""Which LXC monitors need to be read at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.audit import stale
from oneroot.container.lease import Lease
from oneroot.kernel import proc


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stale, "_FEW_MONITORS", 1)
    monkeypatch.setattr(stale, "_CLOCK_SLACK", 0.0)
    return Path(shutil.copy("/usr/bin/sleep", tmp_path / "monitor"))


@pytest.fixture
def monitors() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for one in started:
        one.kill()
        one.wait()


def start(program: Path, monitors: list[subprocess.Popen[bytes]]) -> Lease:
    monitors.append(subprocess.Popen([program, "1000"]))
    pid = monitors[-1].pid
    while (
        str(program) not in Path(f"/proc/{pid}/maps").read_text()
        or "libc" not in Path(f"/proc/{pid}/maps").read_text()
    ):
        time.sleep(0.01)
    return Lease(
        schema=1, container=f"c{pid}", base="core", generation=1, boot_id="", monitor=pid,
        monitor_start=proc.start_time(pid), taken="",
    )  # fmt: skip


def test_only_monitors_older_than_the_last_change_are_read(
    program: Path, monitors: list[subprocess.Popen[bytes]]
) -> None:
    old = start(program, monitors)
    time.sleep(0.05)
    os.chmod(program, 0o700)  # a change of the inode, as by a rename over it
    time.sleep(0.05)
    young = start(program, monitors)
    assert stale._doubtful_monitors([old, young]) == [old.monitor]


def test_all_are_read_once_the_program_is_another(
    program: Path, monitors: list[subprocess.Popen[bytes]]
) -> None:
    time.sleep(0.05)
    leases = [start(program, monitors), start(program, monitors)]
    assert stale._doubtful_monitors(leases) == []
    shutil.copy("/usr/bin/sleep", program.with_name("new"))
    program.with_name("new").rename(program)
    assert len(stale._doubtful_monitors(leases)) == 2
    program.unlink()
    assert len(stale._doubtful_monitors(leases)) == 2
