from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oneroot.errors import CorruptState
from oneroot.work import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    words: tuple[str, ...] = ()
    place: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    number: int
    inner: Inner = Inner()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    value = Value(number=3, inner=Inner(words=("a", "ü\n"), place=Path("/x")))
    files.save(tmp_path / "f", value, schema=4)
    assert files.load(tmp_path / "f", Value, schema=4) == value
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "f").read_bytes())["schema"] == 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"number": 1}',
        b'{"schema": 5, "number": 1}',
        b'{"schema": 4}',
        b'{"schema": 4, "number": 1, "more": 1}',
        b'{"schema": 4, "number": [], "inner": 3}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "f"
    file.write_bytes(content)
    with pytest.raises(CorruptState) as caught:
        files.load(file, Value, schema=4)
    assert str(file) in caught.value.what
    assert caught.value.fix


def test_readers_see_old_or_new_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "f"
    files.save(file, Value(number=0), schema=1)
    program = (
        "import sys, dataclasses\nfrom pathlib import Path\nfrom oneroot.work import files\n"
        "n = 0\nwhile True:\n    n += 1\n"
        "    files.write_atomic(Path(sys.argv[1]), (b'%d' % (n % 10)) * 100000, durable=False)\n"
    )
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", program, str(file)])
        for _ in range(200):
            content = file.read_bytes()
            assert len(set(content)) == 1 or content.startswith(b"{")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        content = file.read_bytes()
        assert (len(content) == 100000 and len(set(content)) == 1) or content.startswith(b"{")
