"""The door to dpkg: its database in a tree, read by us, and the files of its packages."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from oneroot import run
from oneroot.errors import CommandFailed, CorruptState

DATABASE = "var/lib/dpkg"
_GOOD_STATES = {"installed", "config-files", "not-installed"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """A paragraph of dpkg's status file, or of a package file's control file."""

    name: str
    """As generations name it: ``name:arch`` for a foreign architecture."""
    version: str
    source: str
    source_version: str
    state: str
    held: bool = False
    installed_size: int = 0
    """Bytes, as the packager estimated."""


def packages(root: Path) -> list[Package]:
    """Return every package that a tree's dpkg knows.

    :raises CorruptState: there is no dpkg database.
    """
    try:
        text = (root / DATABASE / "status").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise CorruptState(
            f"The package database of {root} cannot be read",
            why=str(error),
            fix="oneroot base fsck, then choose another generation with oneroot base use",
        ) from error
    paragraphs = [_fields(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]
    native = next(
        (fields.get("Architecture", "") for fields in paragraphs if fields["Package"] == "dpkg"), ""
    )
    return [_package(fields, native) for fields in paragraphs]


def _fields(paragraph: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in paragraph.splitlines():
        if line[:1] not in (" ", "\t"):
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


def _package(fields: Mapping[str, str], native: str) -> Package:
    version = fields.get("Version", "")
    source, _, rest = fields.get("Source", fields["Package"]).partition(" ")
    foreign = native and fields.get("Architecture", native) not in (native, "all")
    wanted, *_, state = [*fields.get("Status", "install ok installed").split(), ""][:3]
    size = fields.get("Installed-Size", "0")
    return Package(
        name=f"{fields['Package']}:{fields['Architecture']}" if foreign else fields["Package"],
        version=version,
        source=source,
        source_version=rest.strip("() ") or version,
        state=state,
        held=wanted == "hold",
        installed_size=int(size) * 1024 if size.isdecimal() else 0,
    )


def architectures(root: Path) -> list[str]:
    """Return a tree's architectures, the native one first."""
    native = ""
    with contextlib.suppress(OSError):
        text = (root / DATABASE / "status").read_text(encoding="utf-8", errors="surrogateescape")
        place = text.find("Package: dpkg\n")
        if place >= 0:
            native = _fields(text[place:].split("\n\n", 1)[0]).get("Architecture", "")
    try:
        known = (root / DATABASE / "arch").read_text(encoding="ascii").split()
    except OSError:
        known = []
    return list(dict.fromkeys([native, *known] if native else known))


def host_architecture() -> str:
    """Return the architecture of this host's packages."""
    return run.run(["dpkg", "--print-architecture"]).stdout.strip()


class Dpkg:
    """`oneroot.platform.packages.PackageManager` for trees of dpkg."""

    def installed(self, root: Path) -> dict[str, str]:
        found = {one.name: one.version for one in packages(root) if one.state == "installed"}
        return dict(sorted(found.items()))

    def broken(self, root: Path) -> list[str]:
        return [f"{one.name} ({one.state})" for one in packages(root) if one.state not in _GOOD_STATES]

    def owners(self, root: Path) -> dict[str, str]:
        names = _Places(root)
        diverted = {names.on_disk(path): aside for path, aside in _diversions(root).items()}
        native = set(architectures(root)[:1])
        owned: dict[str, str] = {}
        info = root / DATABASE / "info"
        for entry in sorted(os.listdir(info)):  # noqa: PTH208  names only, there are hundreds
            if not entry.endswith(".list"):
                continue
            package = _listed_name(entry.removesuffix(".list"), native)
            text = (info / entry).read_text(encoding="utf-8", errors="surrogateescape")
            for path in map(names.on_disk, text.splitlines()):
                aside = diverted.get(path)
                moved = aside is not None and aside[1] != package.partition(":")[0]
                owned[names.on_disk(aside[0]) if aside and moved else path] = package
        return owned

    def pristine(self, root: Path, paths: Sequence[str]) -> Mapping[str, str]:
        wanted = set(paths)
        names = _Places(root)
        shipped: dict[str, str] = {}
        for file in sorted((root / DATABASE / "info").glob("*.md5sums")):
            for line in file.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
                digest, _, path = line.partition("  ")
                place = names.on_disk(f"/{path}")
                if place in wanted:
                    shipped[place] = digest
        for path, digest in _conffiles(root):
            if path in wanted:
                shipped.setdefault(path, digest)
        return shipped


class _Places:
    """Turns a listed path into where it lies: ``/lib/x`` of a merged-usr tree is ``/usr/lib/x``."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._directories: dict[str, str] = {"": "", "/": ""}

    def on_disk(self, path: str) -> str:
        parent, _, name = path.rpartition("/")
        return f"{self._directory(parent)}/{name}"

    def _directory(self, path: str, depth: int = 0) -> str:
        found = self._directories.get(path)
        if found is not None:
            return found
        parent, _, name = path.rpartition("/")
        here = f"{self._directory(parent, depth)}/{name}"
        try:
            target = os.readlink(self._root + here)  # noqa: PTH115  strings, for speed
        except OSError:
            target = ""
        if target and depth < 40:
            joined = target if target.startswith("/") else f"{here.rpartition('/')[0]}/{target}"
            here = self._directory(os.path.normpath(joined).rstrip("/"), depth + 1)
        self._directories[path] = here
        return here


def _listed_name(name: str, native: set[str]) -> str:
    package, _, architecture = name.partition(":")
    return package if not architecture or architecture in native else name


def _diversions(root: Path) -> dict[str, tuple[str, str]]:
    """Return, by diverted path, where others' files go and for whose sake (dpkg-divert(1))."""
    try:
        text = (root / DATABASE / "diversions").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return {}
    lines = text.splitlines()
    triples = zip(lines[::3], lines[1::3], lines[2::3], strict=False)
    return {path: (target, package) for path, target, package in triples}


def _conffiles(root: Path) -> Iterator[tuple[str, str]]:
    text = (root / DATABASE / "status").read_text(encoding="utf-8", errors="surrogateescape")
    inside = False
    for line in text.splitlines():
        if line.startswith(" ") and inside:
            path, _, rest = line.strip().partition(" ")
            yield path, rest.split(" ")[0]
        else:
            inside = line.startswith("Conffiles:")


def archive_package(archive: Path) -> Package:
    """Return what a package file's control file says.

    :raises CommandFailed: it is no package file.
    """
    text = run.run(["dpkg-deb", "--field", archive]).stdout
    return _package(_fields(text), "")


@contextlib.contextmanager
def archive_files(archive: Path) -> Iterator[tarfile.TarFile]:
    """Open what a package file would install, as a stream; leaving early is cheap.

    :raises CommandFailed: it is no package file.
    """
    argv = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=run.environment(),
    ) as child:  # fmt: skip
        try:
            with tarfile.open(fileobj=child.stdout, mode="r|", errors="surrogateescape") as files:
                yield files
        except tarfile.TarError as error:
            raise CommandFailed(
                f"{archive.name} cannot be read", argv=argv, returncode=child.poll(), why=str(error),
                fix=f"remove {archive}, so that it is fetched again",
            ) from error  # fmt: skip
        finally:
            child.kill()
