"""Tar streams to and from a container's own ``tar``.

What comes out of a container is hostile. Nothing of it is believed: header by header is read with a
bound, names that lead out are refused, and everything is written through `kernel.tree`, which does
not leave its directory whatever a link says. Owners, set-id bits and device nodes stay inside.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from oneroot.errors import OnerootError
from oneroot.kernel.tree import Tree

_BLOCK = 512
_LONGEST_NAME = 16 << 10
_MOST_ENTRIES = 1_000_000
_CHUNK = 1 << 20
_WITH_DATA = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)


def write(stream: IO[bytes], source: Path, name: str) -> int:
    """Write a file or directory tree of the host as a tar stream; return how many files it has.

    :param name: what its top is called in the stream.
    """
    count = 0

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        nonlocal count
        if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
            return None
        count += 1
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(mode="w|", fileobj=stream, format=tarfile.GNU_FORMAT) as archive:
        archive.add(source, arcname=name, filter=plain)
    return count


def extract(stream: IO[bytes], target: Tree, rename: Callable[[str], str]) -> int:
    """Unpack a hostile stream below a directory; return how many files were made.

    :param rename: turns a name in the stream into one below *target*.
    :raises OnerootError: the stream is damaged, or has a name that leads out.
    """
    reader = _Reader(stream)
    count = 0
    for entry in reader.entries():
        count += 1
        if count > _MOST_ENTRIES:
            raise OnerootError(f"The container sends more than {_MOST_ENTRIES} files")
        path = rename(entry.name)
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in path:
            raise OnerootError("The container sends a name that leads out", why=repr(entry.name[:200]))
        path = "/".join(parts)
        mode = entry.mode & 0o777
        if entry.isdir():
            if path:
                target.makedirs(path, mode=mode | stat.S_IRWXU)
        elif entry.issym():
            target.symlink(entry.linkname, path)
        elif entry.isreg():
            _write_file(reader, target, path, mode)
        else:
            count -= 1
    return count


def _write_file(reader: _Reader, target: Tree, path: str, mode: int) -> None:
    # Whole before it gets its name: a stream that ends too early leaves no half of a file.
    parent = path.rpartition("/")[0]
    if parent:
        target.makedirs(parent)
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    small = reader.left <= _CHUNK
    descriptor = os.memfd_create("oneroot-cp") if small else os.open(target.root, flags, 0o600)
    try:
        while data := reader.data():
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        target.write_from(path, descriptor, mode=mode)
    finally:
        os.close(descriptor)


class _Reader:
    """Reads headers with a bound, which `tarfile` does not."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.left = 0
        """Bytes of the current file that were not read yet."""
        self._padding = 0

    def entries(self) -> Iterator[tarfile.TarInfo]:
        """Yield the entries; the data of each is read with `data` before the next is asked for."""
        name = link = ""
        while (entry := self._header()) is not None:
            self.left = entry.size if entry.isreg() or entry.type in _WITH_DATA else 0
            self._padding = -self.left % _BLOCK
            if entry.type == tarfile.GNUTYPE_LONGNAME:
                name = self._long()
            elif entry.type == tarfile.GNUTYPE_LONGLINK:
                link = self._long()
            else:
                entry.name, entry.linkname = name or entry.name, link or entry.linkname
                name = link = ""
                yield entry
                while self.data():
                    pass
            self._exactly(self._padding)

    def data(self) -> bytes:
        """Return the next piece of the current file; empty at its end."""
        piece = self._exactly(min(self.left, _CHUNK))
        self.left -= len(piece)
        return piece

    def _header(self) -> tarfile.TarInfo | None:
        block = self._exactly(_BLOCK)
        if not block.strip(b"\0"):
            while self._stream.read(_CHUNK):
                pass
            return None
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _damaged(str(error)) from error
        if entry.size < 0:
            raise _damaged("a negative size")
        return entry

    def _long(self) -> str:
        if self.left > _LONGEST_NAME:
            raise _damaged(f"a name of {self.left} bytes")
        text = self.data()
        return text.rstrip(b"\0").decode("utf-8", "surrogateescape")

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._stream.read(count - len(data))
            if not piece:
                raise _damaged("it ends too early")
            data += piece
        return data


def _damaged(why: str) -> OnerootError:
    return OnerootError("What the container sends is no tar stream", why=why)
