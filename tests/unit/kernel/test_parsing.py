"""What /proc says, as hostile as names can make it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.kernel import mapsreader, mount, proc


def _kernel_escapes(name: str) -> str:
    for character in "\\ \t\n":
        name = name.replace(character, f"\\{ord(character):03o}")
    return name


@given(name=st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1))
def test_no_name_of_a_mount_makes_a_second_line_or_another_field(name: str) -> None:
    line = f"36 35 98:0 / /x/{_kernel_escapes(name)} rw,noatime master:1 shared:7 - ext4 /dev/root rw\n"
    (entry, other) = mount.parse_mountinfo(line * 2)
    assert entry == other
    assert entry.target == f"/x/{name}"
    assert (entry.mount_id, entry.parent_id, entry.device) == (36, 35, "98:0")
    assert (entry.kind, entry.source, entry.super_options) == ("ext4", "/dev/root", "rw")
    assert entry.propagation == "master:1 shared:7"


def test_a_mount_without_a_source() -> None:
    (entry,) = mount.parse_mountinfo("1 2 0:3 / /t rw - tmpfs  rw,size=1k\n")
    assert (entry.source, entry.super_options, entry.propagation) == ("", "rw,size=1k", "")


def test_own_table_has_proc() -> None:
    assert any(entry.target == "/proc" and entry.kind == "proc" for entry in mount.table())


def test_start_time_with_a_parenthesis_in_the_name() -> None:
    code = "import ctypes,sys; ctypes.CDLL(None).prctl(15, b') R 1 1 1'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        started = proc.start_time(child.pid)
        assert proc.alive(child.pid, started)
        assert not proc.alive(child.pid, started + 1)
        assert child.pid in proc.children(os.getpid())
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not proc.alive(child.pid, started), "a zombie runs nothing"
    with pytest.raises(ProcessLookupError):
        proc.start_time(child.pid)


def test_maps_with_deleted_files_newlines_and_what_is_no_code() -> None:
    maps = (
        b"55d0-55d1 r-xp 00000000 08:01 11                 /usr/bin/a b\n"
        b"55d1-55d2 r-xp 00001000 08:01 11                 /usr/bin/a b\n"
        b"55d2-55d3 r--p 00000000 08:01 12                 /data\n"
        b"55d3-55d4 rwxp 00000000 00:00 0 \n"
        b"55d4-55d5 r-xs 00000000 00:31 13                 /lib/x\\012y.so (deleted)\n"
        b"55d5-55d6 r-xp 00000000 00:00 0                  [vdso]\n"
        b"55d6-55d7 --xp 00000000 08:01 14                 /only-x\xff\n"
    )
    found = {tuple(mapsreader.plain(*item)) for item in mapsreader._MAPPED.findall(maps)}
    assert found == {
        (11, "/usr/bin/a b", False),
        (13, "/lib/x\ny.so", True),
        (14, "/only-x\udcff", False),
    }


def test_cgroup_processes(tmp_path: Path) -> None:
    for place, members in (("", "1\n2\n"), ("a", "3\n"), ("a/b", "")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "cgroup.procs").write_text(members)
    assert proc.cgroup_processes(tmp_path) == {1, 2, 3}
    with pytest.raises(OSError, match="more than 2"):
        proc.cgroup_processes(tmp_path, limit=2)
    with pytest.raises(FileNotFoundError):
        proc.cgroup_processes(tmp_path / "absent")


def test_namespace() -> None:
    assert proc.namespace(os.getpid(), "mnt") == os.stat("/proc/self/ns/mnt").st_ino
    with pytest.raises(ProcessLookupError):
        proc.namespace(2**22 + 1, "mnt")


@pytest.fixture
def sleepers() -> Iterator[list[int]]:
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(6)]
    # Between fork and exec it still maps what we map.
    while any(b"sleep" not in Path(f"/proc/{child.pid}/cmdline").read_bytes() for child in children):
        time.sleep(0.01)
    yield [child.pid for child in children]
    for child in children:
        child.kill()
        child.wait()


def test_read_processes(sleepers: list[int]) -> None:
    readings = proc.read_processes([*sleepers, 2**22 + 1])
    assert {reading.pid for reading in readings} == set(sleepers)
    for reading in readings:
        assert reading.start_time == proc.start_time(reading.pid)
        assert reading.command == "sleep 60"
        assert not reading.unknown
        assert any(file.path.endswith("/sleep") for file in reading.mapped)
        exe = os.stat(f"/proc/{reading.pid}/exe")
        assert exe.st_ino in {file.inode for file in reading.mapped}


def _reader_that_blocks_at(tmp_path: Path, blocked: list[int]) -> Path:
    """A reader as it behaves when a process holds the lock on its memory map."""
    source = Path(mapsreader.__file__).read_text()
    first = "    started = start_time(pid)\n"
    block = f"    if pid in {blocked}:\n        import time\n        time.sleep(1000)\n"
    script = source.replace(first, block + first, 1)
    assert script != source
    path = tmp_path / "reader.py"
    path.write_text(script)
    return path


def test_a_process_that_blocks_its_reader_is_unknown_and_holds_up_no_other(
    sleepers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [sleepers[0], sleepers[3]]
    monkeypatch.setattr(proc, "_READER", _reader_that_blocks_at(tmp_path, bad))
    began = time.monotonic()
    readings = {reading.pid: reading for reading in proc.read_processes(sleepers, deadline=0.3, workers=1)}
    assert time.monotonic() - began < 5
    assert {pid for pid, reading in readings.items() if reading.unknown} == set(bad)
    assert readings.keys() == set(sleepers)
    assert not [pid for pid in proc.children(os.getpid()) if pid not in sleepers], "a reader is left"


def test_the_total_time_is_bounded_and_the_innocent_come_first(
    sleepers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = sleepers[:5], sleepers[5]
    monkeypatch.setattr(proc, "_READER", _reader_that_blocks_at(tmp_path, bad))
    owners = dict.fromkeys(bad, "hostile") | {good: "good"}
    began = time.monotonic()
    readings = proc.read_processes(sleepers, deadline=0.5, total=1.2, workers=1, owners=owners)
    assert time.monotonic() - began < 4
    assert {reading.pid for reading in readings if reading.unknown} == set(bad)
    assert {reading.pid for reading in readings if not reading.unknown} == {good}


def test_a_reader_that_dies_costs_one_process(
    sleepers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _reader_that_blocks_at(tmp_path, [sleepers[2]])
    reader.write_text(reader.read_text().replace("time.sleep(1000)", "os._exit(9)"))
    monkeypatch.setattr(proc, "_READER", reader)
    readings = {reading.pid: reading for reading in proc.read_processes(sleepers, workers=1)}
    assert [pid for pid, reading in readings.items() if reading.unknown] == [sleepers[2]]
    assert readings.keys() == set(sleepers)
