"""Which CVEs an update fixes, out of the changelogs in its packages: offline, per version."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from oneroot.errors import CommandFailed
from oneroot.platform import debversion, dpkg
from oneroot.platform.packages import PackageChange

_ENTRY = re.compile(r"^(?P<source>[a-z0-9][a-z0-9.+-]*) \((?P<version>[^)]+)\)", re.MULTILINE)
_CVE = re.compile(r"\bCVE-[0-9]{4}-[0-9]{4,}\b", re.IGNORECASE)
_LARGEST = 32 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A package file that an update would install."""

    file: Path
    package: dpkg.Package


def cves_since(text: str, version: str) -> tuple[str, ...]:
    """Return the CVEs that the entries newer than a version name, sorted.

    Entries stand newest first; reading ends at the first that is not newer, as versions of an
    older branch may follow.
    """
    found: set[str] = set()
    entries = list(_ENTRY.finditer(text))
    for place, entry in enumerate(entries):
        if not debversion.newer(entry["version"], version):
            break
        end = entries[place + 1].start() if place + 1 < len(entries) else len(text)
        found.update(match.upper() for match in _CVE.findall(text, entry.start(), end))
    return tuple(sorted(found, key=_by_number))


def _by_number(cve: str) -> tuple[int, ...]:
    return tuple(int(part) for part in cve.split("-")[1:])


def read(file: Path) -> str:
    """Return the Debian changelog of a package file; empty if it has none of its own."""
    native = ""
    with contextlib.suppress(CommandFailed), dpkg.archive_files(file) as files:
        for member in files:
            directory, _, name = member.name.rpartition("/")
            if not member.isfile() or not directory.startswith("./usr/share/doc/"):
                continue
            if name in ("changelog.Debian.gz", "changelog.gz", "changelog.Debian", "changelog"):
                content = files.extractfile(member)
                text = _unpacked(content.read(_LARGEST) if content else b"")
                if "Debian" in name:
                    return text
                if _ENTRY.match(text):
                    native = text
    return native


def _unpacked(data: bytes) -> str:
    if data.startswith(b"\x1f\x8b"):
        try:
            # Bounded: a changelog that unpacks to gigabytes is no changelog.
            data = zlib.decompressobj(wbits=31).decompress(data, _LARGEST)
        except (zlib.error, gzip.BadGzipFile, EOFError):
            return ""
    return data.decode("utf-8", "replace")


def with_cves(
    changes: Iterable[PackageChange], candidates: Sequence[Candidate], sources: dict[str, dpkg.Package]
) -> tuple[PackageChange, ...]:
    """Return the changes with the CVEs that each fixes.

    Packages of one source share a changelog: the smallest that has it is read, once.

    :param candidates: the package files of the changes, as far as there are any.
    :param sources: the packages that are installed, by name.
    """
    by_source: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        key = (candidate.package.source, candidate.package.source_version)
        by_source.setdefault(key, []).append(candidate)
    of_package = {candidate.package.name: candidate.package for candidate in candidates}
    texts: dict[tuple[str, str], str] = {}
    result = []
    for change in changes:
        package = of_package.get(change.package) or of_package.get(change.package.partition(":")[0])
        if package is None or change.new is None or change.old is None:
            result.append(change)
            continue
        key = (package.source, package.source_version)
        if key not in texts:
            texts[key] = _first_text(by_source[key])
        before = sources.get(change.package)
        version = before.source_version if before else change.old
        result.append(dataclasses.replace(change, cves=cves_since(texts[key], version)))
    return tuple(result)


def _first_text(candidates: Sequence[Candidate]) -> str:
    for candidate in sorted(candidates, key=lambda one: one.file.stat().st_size):
        if text := read(candidate.file):
            return text
    return ""
