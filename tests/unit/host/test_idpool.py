from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.errors import Busy
from oneroot.host import idpool, subids
from oneroot.host.check import Status
from oneroot.host.idpool import Entry
from oneroot.settings import IdPool

POOL = IdPool(first=1000, count=100, each=10)


def entry(first: int, count: int, owner: str = "root") -> Entry:
    return Entry(owner=owner, first=first, count=count)


def test_lines_that_are_no_entries_are_left_out() -> None:
    text = "root:1:2\n\n# no\nroot:x:5\na:5\nsomeone:7:0\n0:10:20\n"
    assert idpool.parse(text) == [entry(1, 2), entry(10, 20, "0")]


@pytest.mark.parametrize(
    ("entries", "gaps"),
    [
        ([], [(1000, 100)]),
        ([entry(1000, 100)], []),
        ([entry(0, 5000)], []),
        ([entry(1050, 50), entry(1000, 50)], []),
        ([entry(1000, 50), entry(1060, 40)], [(1050, 10)]),
        ([entry(900, 110), entry(1090, 500)], [(1010, 80)]),
        ([entry(1000, 100, "alice")], [(1000, 100)]),
        ([entry(1000, 100, "0")], []),
        ([entry(1100, 100), entry(900, 100)], [(1000, 100)]),
    ],
)
def test_what_root_may_not_give_yet(entries: list[Entry], gaps: list[tuple[int, int]]) -> None:
    assert idpool.missing(entries, POOL) == gaps


@given(st.lists(st.tuples(st.integers(900, 1200), st.integers(1, 150)), max_size=6))
def test_gaps_are_exactly_the_ids_that_no_entry_covers(ranges: list[tuple[int, int]]) -> None:
    entries = [entry(first, count) for first, count in ranges]
    covered = {number for item in entries for number in range(item.first, item.last + 1)}
    gaps = idpool.missing(entries, POOL)
    missing = {number for first, count in gaps for number in range(first, first + count)}
    assert missing == set(range(1000, 1100)) - covered


def test_another_users_range_in_the_pool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "subuid"
    file.write_text("alice:1099:5\nbob:1100:5\nroot:1000:100\n")
    monkeypatch.setattr(idpool, "FILES", (file,))
    pool = IdPool(first=1000 + 2**20, count=100)
    assert idpool.overlaps(idpool.read(file), POOL) == [entry(1099, 5, "alice")]
    file.write_text(f"alice:{pool.first}:5\n")
    by_id = {check.id: check for check in idpool.check_all(pool, 1)}
    assert by_id["ids.alone"].status is Status.FAIL
    assert "alice" in by_id["ids.alone"].found
    assert by_id["ids.subuid"].status is Status.FAIL
    assert f"--add-subuids {pool.first}-{pool.first + 99} root" in by_id["ids.subuid"].fix_command


@pytest.mark.parametrize("first", [0, 60_000, 0x7FFE_0000, 0x8000_0000])
def test_reserved_ids_are_refused(first: int) -> None:
    pool = IdPool(first=first, count=65536)
    alone = next(check for check in idpool.check_all(pool, 1) if check.id == "ids.alone")
    assert alone.status is Status.FAIL


def test_the_default_pool_touches_no_reserved_range_and_holds_what_its_comment_says() -> None:
    alone = next(check for check in idpool.check_all(IdPool(), 4094) if check.id == "ids.alone")
    assert "systemd" not in alone.found and "negative" not in alone.found
    size = {check.id: check for check in idpool.check_all(IdPool(), 4094)}["ids.size"]
    assert size.status is Status.OK
    assert {check.id: check for check in idpool.check_all(IdPool(), 4095)}["ids.size"].status is Status.FAIL


def test_ranges_are_given_and_taken_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subids, "LOCK", tmp_path / "lock")
    file = tmp_path / "subuid"
    file.write_text("# ours\nalice:1:2")
    file.chmod(0o640)
    assert subids.give(file, 5, 6)
    assert not subids.give(file, 5, 6)
    assert file.read_text() == "# ours\nalice:1:2\nroot:5:6\n"
    assert subids.give(file, 5, 60)
    assert subids.take(file, 5, 6)
    assert not subids.take(file, 5, 6)
    assert not subids.take(file, 1, 2), "that one is not root's"
    assert file.read_text() == "# ours\nalice:1:2\nroot:5:60\n"
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_lock_that_another_process_holds_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subids, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(subids, "PATIENCE", 0.1)
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(Busy):
            subids.give(tmp_path / "subuid", 1, 2)
        other.kill()
    assert subids.give(tmp_path / "subuid", 1, 2)
