"""Which package sources a base takes: the host's own, in both of apt's formats, or named ones."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from oneroot.errors import UsageError
from oneroot.platform.packages import Repository

APT = Path("/etc/apt")

_SCHEMES = ("http:", "https:", "file:", "copy:", "ftp:", "tor+http:", "tor+https:", "mirror+", "mirror:")
_PATH = re.compile(r"/[\w.+~/-]*", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_~/-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A source as a file states it."""

    repository: Repository
    architectures: tuple[str, ...] = ()
    trusted: bool = False
    """``trusted=yes``: apt would not ask for a signature."""
    embedded_key: bool = False


def codename_matches(suite: str, codename: str) -> bool:
    """Whether a suite belongs to a release: ``bookworm``, ``bookworm-security``, ``bookworm/updates``."""
    return suite == codename or suite.startswith((f"{codename}-", f"{codename}/"))


def host_repositories(
    codename: str,
    *,
    suites: Sequence[str] = (),
    architecture: str,
    apt: Path = APT,
    allow_unsigned: bool = False,
    allow_expired: bool = False,
) -> tuple[Repository, ...]:
    """Return those of the host's own sources that belong to a release.

    :param suites: only these suites; empty takes all of the release.
    :raises UsageError: there are none, a wanted suite is missing, or one is not signed.
    """
    chosen: list[Repository] = []
    for entry in read(apt):
        wanted = tuple(suite for suite in entry.repository.suites if _wanted(suite, codename, suites))
        if not wanted or not entry.repository.uri.startswith(_SCHEMES):
            continue  # of another release, or on a disc that nobody will insert
        if entry.architectures and architecture not in entry.architectures:
            continue
        _check_trust(entry, allow_unsigned)
        chosen.append(
            dataclasses.replace(
                entry.repository,
                suites=wanted,
                allow_unsigned=entry.trusted and allow_unsigned,
                allow_expired=allow_expired,
            )
        )
    found = {suite for repository in chosen for suite in repository.suites}
    missing = [suite for suite in suites or (codename,) if suite not in found]
    if missing:
        raise UsageError(
            f"No package source of this host has the suite {missing[0]}",
            why=f"looked through {apt}/sources.list and {apt}/sources.list.d",
            fix="name one: --mirror URL --keyring FILE, or --repository 'deb [signed-by=…] URL SUITE main'",
        )
    return tuple(dict.fromkeys(chosen))


def _wanted(suite: str, codename: str, suites: Sequence[str]) -> bool:
    return suite in suites if suites else codename_matches(suite, codename)


def _check_trust(entry: Entry, allow_unsigned: bool) -> None:
    source = f"{entry.repository.uri} {' '.join(entry.repository.suites)}"
    if entry.trusted and not allow_unsigned:
        raise UsageError(
            f"The source {source} is not verified",
            why="it is marked trusted=yes, so nobody's signature vouches for its packages",
            fix="remove that mark, or say --allow-unsigned",
        )
    if entry.embedded_key:
        raise UsageError(
            f"The source {source} has its key inside the sources file",
            why="oneroot records which keyring file a base trusts",
            fix="put the key into a file below /etc/apt/keyrings and name it in Signed-By",
        )


def mirror_repository(
    uri: str,
    *,
    suites: Sequence[str],
    components: Sequence[str],
    keyring: Path | None,
    allow_unsigned: bool,
    allow_expired: bool,
) -> Repository:
    """Return a source that a person named.

    :raises UsageError: it is none, or has no keyring.
    """
    repository = Repository(
        uri=uri,
        suites=tuple(suites),
        components=tuple(components),
        signed_by=str(keyring) if keyring else "",
        allow_unsigned=allow_unsigned,
        allow_expired=allow_expired,
    )
    _check(repository)
    return repository


def parse_repository(text: str, *, allow_unsigned: bool = False, allow_expired: bool = False) -> Repository:
    """Parse a ``deb`` line that a person gave.

    :raises UsageError: it is none, or not signed.
    """
    entry = next(_one_line([text], "the given repository"), None)
    if entry is None:
        raise UsageError(
            f"{text[:80]!r} is not a package source",
            fix="write it like 'deb [signed-by=/usr/share/keyrings/x.gpg] http://host/debian bookworm main'",
        )
    _check_trust(entry, allow_unsigned)
    if "signed-by" in text and not entry.repository.signed_by:
        raise UsageError(
            f"{text[:80]!r} names no keyring file",
            why="with a fingerprint alone every key that the host trusts would do",
            fix="give the whole path of a keyring: signed-by=/usr/share/keyrings/x.gpg",
        )
    repository = dataclasses.replace(
        entry.repository, allow_unsigned=allow_unsigned, allow_expired=allow_expired
    )
    _check(repository)
    return repository


def _check(repository: Repository) -> None:
    fix = "give a URL such as http://deb.debian.org/debian or file:/srv/packages"
    if not repository.uri.startswith(_SCHEMES) or any(
        char.isspace() or not char.isprintable() for char in repository.uri
    ):
        raise UsageError(f"{repository.uri[:80]!r} is not the address of a package source", fix=fix)
    for word in (*repository.suites, *repository.components):
        if not _WORD.fullmatch(word) and word not in ("./", "/"):
            raise UsageError(
                f"{word[:80]!r} is not the name of a suite or component", fix="for example bookworm main"
            )
    keyring = repository.signed_by
    if keyring and not (_PATH.fullmatch(keyring) and Path(keyring).is_file()):
        raise UsageError(
            f"There is no keyring {keyring[:200]!r}", fix="name an existing file, with its whole path"
        )


def read(apt: Path = APT) -> list[Entry]:
    """Read the host's sources, as apt would; sources of source packages are left out."""
    entries: list[Entry] = []
    files = [apt / "sources.list"]
    parts = apt / "sources.list.d"
    if parts.is_dir():
        files += sorted(file for file in parts.iterdir() if file.suffix in (".list", ".sources"))
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        one_line = file.suffix != ".sources"
        entries += _one_line(text.splitlines(), str(file)) if one_line else _deb822(text)
    return entries


def _one_line(lines: Iterable[str], where: str) -> Iterator[Entry]:
    for line in lines:
        match = re.fullmatch(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)((?:\s+[^#\s]+)*)\s*(?:#.*)?", line)
        if match is None:
            continue
        options = _options(match[1] or "")
        yield Entry(
            repository=Repository(
                uri=match[2],
                suites=(match[3],),
                components=tuple(match[4].split()),
                signed_by=_keyring(options.get("signed-by", "")),
            ),
            architectures=tuple(options.get("arch", "").replace(",", " ").split()),
            trusted=options.get("trusted", "").lower() in ("yes", "true", "1") or _insecure(options),
        )


def _options(text: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in shlex.split(text))
    return {name.rstrip("+-").lower(): value for name, _, value in pairs}


def _insecure(options: dict[str, str]) -> bool:
    return options.get("allow-insecure", "").lower() in ("yes", "true", "1")


def _keyring(value: str) -> str:
    """Return the first keyring file; a list of fingerprints means the host's trusted keys."""
    return next((word for word in re.split(r"[,\s]+", value) if word.startswith("/")), "")


def _deb822(text: str) -> Iterator[Entry]:
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields = _paragraph(paragraph)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in (
            "no",
            "false",
            "0",
        ):
            continue
        key = fields.get("signed-by", "")
        embedded = "BEGIN PGP" in key
        for uri in fields.get("uris", "").split():
            yield Entry(
                repository=Repository(
                    uri=uri,
                    suites=tuple(fields.get("suites", "").split()),
                    components=tuple(fields.get("components", "").split()),
                    signed_by="" if embedded else _keyring(key),
                ),
                architectures=tuple(fields.get("architectures", "").split()),
                trusted=fields.get("trusted", "").lower() in ("yes", "true", "1")
                or fields.get("allow-insecure", "").lower() in ("yes", "true", "1"),
                embedded_key=embedded,
            )


def _paragraph(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t") and name:
            fields[name] += "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def lines(repositories: Iterable[Repository], *, keyring: Callable[[str], str] | None) -> str:
    """Return the sources as ``deb`` lines.

    :param keyring: tells where a keyring is to be named; None leaves out how to verify.
    """
    text = ""
    for repository in repositories:
        options = []
        if keyring and repository.signed_by:
            options.append(f"signed-by={keyring(repository.signed_by)}")
        if repository.allow_unsigned:
            options.append("trusted=yes")
        if keyring and repository.allow_expired:
            options.append("check-valid-until=no")
        # A file: source is used where it lies, which no chroot can see; copy: fetches like a mirror.
        uri = re.sub(r"^file:/*", "copy:/", repository.uri)
        shown = f"[{' '.join(options)}] " if options else ""
        for suite in repository.suites:
            text += f"deb {shown}{uri} {' '.join((suite, *repository.components))}\n"
    return text


def without_password(uri: str) -> str:
    """Return an address without the name and password that may stand in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


def local_directories(repositories: Iterable[Repository]) -> list[Path]:
    """Return the directories of sources that lie on this host."""
    found = (re.fullmatch(r"(?:file|copy):/*(/.*)", repository.uri) for repository in repositories)
    return [Path(match[1]) for match in found if match]
