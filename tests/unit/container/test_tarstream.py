"""What comes out of a container is hostile, tar streams too."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.container import tarstream
from oneroot.errors import OnerootError
from oneroot.kernel.tree import Tree


def stream_of(*entries: tarfile.TarInfo, data: bytes = b"x") -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(mode="w|", fileobj=made, format=tarfile.GNU_FORMAT) as archive:
        for entry in entries:
            if entry.isreg():
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
            else:
                archive.addfile(entry)
    made.seek(0)
    return made


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, mode
    return made


@pytest.fixture
def target(tmp_path: Path) -> Tree:
    (tmp_path / "outside").mkdir()
    (tmp_path / "inside").mkdir()
    return Tree(tmp_path / "inside")


def test_a_tree_survives_the_way_out_and_in(target: Tree, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / ("n" * 200)).write_bytes(b"\0\1" * 700)
    (source / "link").symlink_to("deep")
    (source / "run").write_text("#!")
    (source / "run").chmod(0o755)
    stream = io.BytesIO()
    assert tarstream.write(stream, source, "top") == 5
    stream.seek(0)
    assert tarstream.extract(stream, target, str) == 5
    out = tmp_path / "inside" / "top"
    assert (out / "deep" / ("n" * 200)).read_bytes() == b"\0\1" * 700
    assert str((out / "link").readlink()) == "deep"
    assert (out / "run").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["../outside/x", "a/../../outside/x", ".."])
def test_names_that_lead_out(target: Tree, tmp_path: Path, name: str) -> None:
    with pytest.raises(OnerootError, match="leads out"):
        tarstream.extract(stream_of(entry(name)), target, str)
    assert not list((tmp_path / "outside").iterdir())


def test_nothing_is_written_through_a_link(target: Tree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    hostile = stream_of(entry("d", tarfile.SYMTYPE, str(outside)), entry("d/x"))
    with pytest.raises(OSError, match=r"symbolic|link|Not a directory"):
        tarstream.extract(hostile, target, str)
    assert not list(outside.iterdir())


def test_an_absolute_name_stays_inside(target: Tree, tmp_path: Path) -> None:
    tarstream.extract(stream_of(entry("/etc/x")), target, str)
    assert (tmp_path / "inside/etc/x").read_bytes() == b"x"


def test_set_id_bits_and_special_files_stay_behind(target: Tree, tmp_path: Path) -> None:
    hostile = stream_of(
        entry("s", mode=0o6755),
        entry("c", tarfile.CHRTYPE),
        entry("f", tarfile.FIFOTYPE),
        entry("h", tarfile.LNKTYPE, "/etc/shadow"),
    )
    assert tarstream.extract(hostile, target, str) == 1
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["s"]
    assert (tmp_path / "inside/s").stat().st_mode & 0o7777 == 0o755


def test_a_huge_name_is_refused_before_it_is_read(target: Tree) -> None:
    long = entry("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    long.size = 1 << 40
    with pytest.raises(OnerootError, match="bytes"):
        tarstream.extract(io.BytesIO(long.tobuf(tarfile.GNU_FORMAT)), target, str)


def test_a_file_that_ends_too_early_is_not_there(target: Tree, tmp_path: Path) -> None:
    cut = stream_of(entry("x"), data=b"y" * 5000).getvalue()[:2000]
    with pytest.raises(OnerootError, match="too early"):
        tarstream.extract(io.BytesIO(cut), target, str)
    assert not list((tmp_path / "inside").iterdir())


@given(st.binary(max_size=2000))
def test_no_stream_makes_it_fail_otherwise(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place, Tree(Path(place)) as tree:
        try:
            tarstream.extract(io.BytesIO(data), tree, str)
        except OnerootError:
            pass
