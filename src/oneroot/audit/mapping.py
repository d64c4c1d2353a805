"""Which file a mapping is, and whether that file was replaced since.

A mapping is placed by its inode first and its path second: ``/proc/PID/maps`` shows the real inode
of a generation's file whatever its path is by now, as long as store and LXC path share a filesystem.
Its content is then compared with what the current generation has at that path. Names and numbers
that only look alike (a file on a tmpfs, a container inside the container) must not be taken for
the base's, nor excuse anything.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from oneroot.audit.basecode import CODE, DIGEST, KIND, PACKAGE, BaseCode, GenerationCode
from oneroot.audit.digest import digest_of
from oneroot.kernel.proc import MappedFile
from oneroot.kernel.tree import Tree

_NO_FILES = ("/memfd:", "/dev/", "/SYSV", "/anon_hugepage", "/[", "/drm ", "/i915 ", "/dmabuf:")
_INSIDE = "replaced or removed inside the container"
_MOST_FILES = 20_000
_MOST_MOUNTS_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replaced:
    """The mapped file is code that was replaced."""

    package: str | None
    why: str
    certain: bool = True
    """False: known by its inode number alone, which a file of another filesystem may have too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unplaced:
    """The mapped file is neither a generation's nor the upper's own."""

    replaced: Replaced | None
    """What it means in the container's own root: something else stands for code of a package."""


Verdict = Replaced | Unplaced | None
"""None: current code, or the container's own business."""


class BaseJudge:
    """Judges mappings of files of one mounted generation, for all containers that mount it."""

    def __init__(self, code: BaseCode, number: int) -> None:
        self.code = code
        self.mounted = code.generation(number)
        self._fine: dict[int, tuple[MappedFile, ...]] = {}
        self._verdicts: dict[tuple[int, str], Verdict] = {}

    def all_fine(self, mapped: tuple[MappedFile, ...]) -> bool:
        """Whether every mapping is current code of the generation; sets that many share cost little."""
        if id(mapped) in self._fine:
            return True
        for file in mapped:
            if file.deleted or self.mounted.inode(file.path) != file.inode:
                return False
            if self.verdict(file) is not None:
                return False
        self._fine[id(mapped)] = mapped  # kept alive, so that nothing else gets its id
        return True

    def verdict(self, file: MappedFile) -> Verdict:
        """Judge a mapping whose path in the generation has the mapped inode."""
        key = (file.inode, file.path)
        if key not in self._verdicts:
            self._verdicts[key] = self.content(self.mounted, file.path)
        return self._verdicts[key]

    def content(self, generation: GenerationCode, path: str) -> Replaced | None:
        """Compare a generation's file with what the current generation has at its path."""
        if self.code.current is None:
            return Replaced(package=None, why="the base has no current generation")
        if generation.number == self.code.current:
            return None
        current = self.code.generation(self.code.current)
        if current.inode(path) == generation.inode(path):
            return None
        old, new = generation.manifest.row(path), self.code.row(path)
        if old and new and old[KIND] == new[KIND] and old[DIGEST] == new[DIGEST]:
            return None
        package = (old and old[PACKAGE]) or (new and new[PACKAGE]) or None
        why = "replaced" if new else "removed"
        return Replaced(
            package=package,
            why=f"generation {self.code.current} {why} it; this is generation {generation.number}'s",
        )


class ContainerJudge:
    """Judges what the processes of one container map. Close it."""

    def __init__(self, upper: Tree, base: BaseJudge, init: int) -> None:
        self._upper = upper
        self._base = base
        self._init = init
        self._verdicts: dict[MappedFile, Verdict] = {}
        self._mounts: dict[int, list[tuple[str, str]] | None] = {}

    @property
    def exhausted(self) -> bool:
        """It maps more different files of its own than we are willing to look at."""
        return len(self._verdicts) > _MOST_FILES

    def verdict(self, file: MappedFile) -> Verdict:
        """Judge one mapping, as far as that does not depend on the process."""
        if file not in self._verdicts:
            self._verdicts[file] = self._judge(file)
        return self._verdicts[file]

    def is_nested(self, pid: int) -> bool:
        """Whether a process has another root filesystem than the container's init."""
        try:
            if _namespace(pid) == _namespace(self._init):
                return False
        except OSError:
            return True
        return self._device(pid, "/") != self._device(self._init, "/")

    def is_on_root(self, pid: int, path: str) -> bool:
        """Whether a path as a process sees it lies on the container's own root filesystem."""
        device = self._device(pid, path)
        return device is None or device == self._device(self._init, "/")

    def _judge(self, file: MappedFile) -> Verdict:
        base = self._base
        if base.mounted.inode(file.path) == file.inode:
            replaced = base.verdict(file)
            return replaced or (self._replaced_inside(file) if file.deleted else None)
        if self._is_own(file):
            return self._copied(file)
        elsewhere = self._elsewhere(file)
        if elsewhere is not None:
            generation, path = elsewhere
            found = base.content(generation, path)
            return found and dataclasses.replace(found, certain=file.path.endswith(path))
        if file.path.startswith(_NO_FILES):
            return None
        return Unplaced(replaced=self._in_place_of_code(file))

    def _elsewhere(self, file: MappedFile) -> tuple[GenerationCode, str] | None:
        """Find a mapped inode under another name, or in another generation."""
        others = [number for number in self._base.code.kept() if number != self._base.mounted.number]
        for generation in (self._base.mounted, *map(self._base.code.generation, others)):
            path = generation.path_of(file.inode)
            if path is not None:
                return generation, path
        return None

    def _is_own(self, file: MappedFile) -> bool:
        for path in (file.path, f"{file.path} (deleted)") if file.deleted else (file.path,):
            status = self._status(path)
            if status is not None and status.st_ino == file.inode:
                return path != file.path or not file.deleted
        return False

    def _copied(self, file: MappedFile) -> Replaced | None:
        """Recognise a copy of replaced code that the container keeps under a name of its own."""
        status = self._status(file.path)
        digests = self._base.code.replaced_sizes().get(status.st_size) if status else None
        if not status or not digests:
            return None
        if self._base.code.row(file.path) is not None:
            return None  # an override, which is judged as such
        if digest_of(self._upper, file.path, status.st_size) not in digests:
            return None
        return Replaced(package=None, why="a copy of code that the current generation replaced")

    def _replaced_inside(self, file: MappedFile) -> Replaced:
        """Judge a mapping that shows a generation's inode, whose name is another file's by now.

        A copied-up file keeps the number of the one it was copied from: it cannot be told whether
        the mapping is of the generation's content or of what the container made of it. So even if
        the path shows the current code again, the process may not run it.
        """
        row = self._base.mounted.manifest.row(file.path)
        return Replaced(package=row[PACKAGE] if row else None, why=_INSIDE)

    def _in_place_of_code(self, file: MappedFile) -> Replaced | None:
        row = self._base.code.row(file.path) or self._base.mounted.manifest.row(file.path)
        if row is None or not (row[CODE] or row[PACKAGE]):
            return None
        why = _INSIDE if file.deleted else "another file is mounted in place of the base's"
        return Replaced(package=row[PACKAGE], why=why)

    def _status(self, path: str) -> os.stat_result | None:
        try:
            return self._upper.lstat(path)
        except OSError:
            return None

    def _device(self, pid: int, path: str) -> str | None:
        """Return the device of the mount on which a path lies, as a process sees it; None: unknown."""
        if pid not in self._mounts:
            self._mounts[pid] = _mounts(pid)
        found = None
        longest = -1
        for target, device in self._mounts[pid] or ():
            inside = path == target or path.startswith(target.rstrip("/") + "/")
            if inside and len(target) >= longest:  # of two on one place, the later is on top
                found, longest = device, len(target)
        return found


def _namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/mnt").readlink())


def _mounts(pid: int) -> list[tuple[str, str]] | None:
    """Return target and device of every mount of a process; None if they cannot be read, or are too many."""
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            data = file.read(_MOST_MOUNTS_BYTES)
    except OSError:
        return None
    if len(data) == _MOST_MOUNTS_BYTES:
        return None
    rows = (line.split(b" ", 6) for line in data.split(b"\n"))
    return [(_unescaped(row[4]), row[2].decode("ascii")) for row in rows if len(row) == 7]


def _unescaped(field: bytes) -> str:
    return _octal_undone(field).decode("utf-8", "surrogateescape")


def _octal_undone(field: bytes) -> bytes:
    """Undo the octal escapes of /proc/PID/mountinfo."""
    for code in (b"040", b"011", b"012", b"134"):
        field = field.replace(b"\\" + code, bytes([int(code, 8)]))
    return field
