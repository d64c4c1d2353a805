"""The door to apt: one function for each of its sub-commands.

apt works in an *area*, a directory with all of its state, so that neither the host's package
database nor its configuration, hooks and locks take part; of the host's configuration only how to
reach the network is taken over. With the network, apt runs in a mount namespace in which the area
lies at a place that its unprivileged download user can reach; inside a tree it lies at ``/mnt``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from oneroot import run
from oneroot.errors import CommandFailed, NoSpace, OnerootError, UsageError
from oneroot.kernel import sandbox
from oneroot.platform import gpgv, sources
from oneroot.platform.packages import Archive, PackageChange, Plan, Release, Repository

INSIDE = "/mnt"
"""Where the area is seen in a tree: every Debian has this directory, and packages leave it alone."""

_TAKEN_OVER = re.compile(r"Acquire::(?:(?:http|https|ftp|tor|socks5h?)::|Retries |ForceIPv[46] )")
_INSTALL = re.compile(r"^Inst (\S+)(?: \[([^]]+)\])? \((\S+) ?(.*?) ?\[([^]]+)\]\)", re.MULTILINE)
_REMOVE = re.compile(r"^Remv (\S+)(?: \[([^]]+)\])?", re.MULTILINE)
_KEPT = re.compile(r"^The following packages have been kept back:\n((?: .*\n)+)", re.MULTILINE)
_URI = re.compile(r"^'[^']*' (\S+) (\d+) ?(?:SHA256:([0-9a-f]{64}))?", re.MULTILINE)

_CONFIGURATION = """\
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "{place}/{list}";
Dir::State "{place}/state";
Dir::State::lists "{place}/lists";
Dir::Cache "{place}/cache";
Dir::Cache::archives "{place}/archives";
Dir::Log "{place}/log";
APT::Architecture "{native}";
APT::Architectures {{ {all} }};
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
APT::Get::Assume-Yes "true";
APT::Color "false";
Acquire::Languages "none";
Acquire::Check-Valid-Until "true";
Acquire::Check-Date "true";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
"""
_OUTSIDE = """\
Dir::State::status "{place}/state/status";
Dir::State::extended_states "{place}/state/extended_states";
APT::Sandbox::User "{user}";
"""
_IN_TREE = """\
Dir::State::status "/var/lib/dpkg/status";
Dir::State::extended_states "/var/lib/apt/extended_states";
APT::Sandbox::User "root";
DPkg::Options:: "--force-confdef";
DPkg::Options:: "--force-confold";
DPkg::Options:: "--force-unsafe-io";
DPkg::Options:: "--log=/dev/null";
DPkg::Use-Pty "false";
"""

TREE_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    "DEBIAN_PRIORITY": "critical",
    "APT_CONFIG": f"{INSIDE}/inside.conf",
}

# policy-rc.d is asked before a maintainer script starts a service: 101 says no (invoke-rc.d(8)).
_IN_TREE_SCRIPT = """\
set -e
policy=/usr/sbin/policy-rc.d
[ ! -e $policy ] || mv $policy $policy.oneroot
printf '#!/bin/sh\\nexit 101\\n' > $policy
chmod 0755 $policy
code=0
"$@" || code=$?
rm -f $policy
[ ! -e $policy.oneroot ] || mv $policy.oneroot $policy
exit $code
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Area:
    """Where apt works.

    :param directory: on the host; `prepare` makes it.
    :param mount_point: an existing directory that every user can reach; mounted over in a
        namespace of apt's own.
    :param status: the status file of dpkg whose packages count as installed; None: nothing is.
    """

    directory: Path
    mount_point: Path
    repositories: tuple[Repository, ...]
    architectures: tuple[str, ...]
    status: Path | None = None

    @property
    def lists(self) -> Path:
        return self.directory / "lists"

    @property
    def archives(self) -> Path:
        return self.directory / "archives"


def prepare(area: Area) -> None:
    """Write what apt reads; what an earlier call left stays."""
    user = _download_user(area.repositories)
    area.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in (
        "lists",
        "archives",
        "cache",
        "log",
        "state",
        "lists/partial",
        "archives/partial",
        "lists/auxfiles",
    ):
        directory = area.directory / name
        directory.mkdir(mode=0o755, exist_ok=True)
        if name.endswith(("partial", "auxfiles")):
            os.chown(directory, pwd.getpwnam(user).pw_uid, 0)
    _write(area.directory / "sources.list", sources.lines(area.repositories, keyring=_copy_keyring(area)))
    _write(area.directory / "inside.list", sources.lines(area.repositories, keyring=None))
    _copy_state(area)
    outside = _OUTSIDE.format(place=area.mount_point, user=user) + _network()
    _write(
        area.directory / "outside.conf", _configuration(area, str(area.mount_point), "sources.list") + outside
    )
    _write(area.directory / "inside.conf", _configuration(area, INSIDE, "inside.list") + _IN_TREE)


def _copy_keyring(area: Area) -> Callable[[str], str]:
    """Return a function that copies a keyring to where apt's download user can read it."""
    directory = area.directory / "keys"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o755)

    def copied(keyring: str) -> str:
        name = f"{hashlib.sha256(keyring.encode()).hexdigest()[:16]}{Path(keyring).suffix}"
        try:
            shutil.copyfile(keyring, directory / name)
        except OSError as error:
            raise UsageError(
                f"The keyring {keyring} cannot be read", why=str(error), fix="put it back, or make a new base"
            ) from error
        (directory / name).chmod(0o644)
        return str(area.mount_point / "keys" / name)

    return copied


def _copy_state(area: Area) -> None:
    """Copy what is installed: apt makes lock files beside it, and a generation is never written to."""
    for name in ("status", "extended_states"):
        target = area.directory / "state" / name
        target.unlink(missing_ok=True)
        source = area.status
        if source is not None and name != "status":
            source = source.parents[1] / "apt" / name
        if source is not None and source.is_file():
            shutil.copy2(source, target)  # with its time, so that apt's cache stays valid
        else:
            _write(target, "")


def _configuration(area: Area, place: str, list_: str) -> str:
    known = " ".join(f'"{name}";' for name in area.architectures)
    return _CONFIGURATION.format(place=place, list=list_, native=area.architectures[0], all=known)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)


def _network() -> str:
    """Return what of the host's configuration tells how to reach the network."""
    dumped = run.run(["apt-config", "dump", "Acquire"]).stdout
    return "".join(f"{line}\n" for line in dumped.splitlines() if _TAKEN_OVER.match(line))


def _download_user(repositories: Sequence[Repository]) -> str:
    """Return who downloads: apt's own user, unless a local source can be read by root alone."""
    try:
        pwd.getpwnam("_apt")
    except KeyError:
        return "root"
    for directory in sources.local_directories(repositories):
        for place in (directory, *directory.parents):
            if not place.exists() or not place.stat().st_mode & 0o001:
                return "root"
    return "_apt"


def update(area: Area, *, log: Path, timeout: float) -> None:
    """Fetch the lists of packages; any source that fails is an error.

    :raises OnerootError: says which source, and why.
    """
    _with_network(area, ("update",), log, timeout, "The package sources could not be checked")


def download(area: Area, words: Sequence[str], *, log: Path, timeout: float) -> None:
    """Fetch the package files that a sub-command such as ``dist-upgrade`` needs into the area."""
    _with_network(area, ("--download-only", *words), log, timeout, "The packages could not be fetched")


def _with_network(area: Area, words: Sequence[str], log: Path, timeout: float, what: str) -> None:
    _run_logged(_outside(area, words, network=True), log, timeout, what)


def _outside(area: Area, words: Sequence[str], *, network: bool) -> sandbox.Sandbox:
    """Return how apt runs on the host. Always at the same place: its cache names the lists by path."""
    return sandbox.Sandbox(
        argv=("apt-get", "-q", *words),
        mounts=(sandbox.Bind(str(area.directory), str(area.mount_point)),),
        network=network,
        confined=False,
        environment=run.environment({"APT_CONFIG": str(area.mount_point / "outside.conf")}),
    )


def simulate(area: Area, words: Sequence[str]) -> Plan:
    """Return what a sub-command would do, without doing it.

    :raises OnerootError: it cannot be done; says why.
    """
    said = _asked(area, ("--simulate", *words), "The package manager finds no way to do that")
    return parse_plan(said, area.architectures[0])


def parse_plan(said: str, native: str) -> Plan:
    """Parse what ``apt-get --simulate`` says.

    :param native: the tree's own architecture, which package names leave out.
    """
    changes = [
        PackageChange(
            package=_named(match[1], match[5], native),
            old=match[2],
            new=match[3],
            security=_from_security(match[4]),
        )
        for match in _INSTALL.finditer(said)
    ]
    removed = [PackageChange(package=match[1], old=match[2], new=None) for match in _REMOVE.finditer(said)]
    kept = _KEPT.search(said)
    return Plan(
        changes=tuple(sorted([*changes, *removed], key=lambda change: change.package)),
        kept_back=tuple(kept[1].split()) if kept else (),
    )


def _named(name: str, architecture: str, native: str) -> str:
    plain = name.partition(":")[0]
    return plain if architecture in (native, "all") else f"{plain}:{architecture}"


def _from_security(origins: str) -> bool:
    """Tell from ``Label:Version/Suite, …`` whether a version comes from a security suite."""
    for origin in origins.split(", "):
        label, _, suite = origin.rpartition("/")
        if suite.endswith("-security") or label.partition(":")[0].lower().endswith("-security"):
            return True
    return False


def archives(area: Area, words: Sequence[str]) -> list[Archive]:
    """Return the package files that a sub-command needs and the area does not have."""
    said = _asked(
        area,
        ("--print-uris", "-oAcquire::ForceHash=SHA256", *words),
        "The package manager finds no way to do that",
    )
    return [
        Archive(name=match[1], size=int(match[2]), digest=match[3] or "") for match in _URI.finditer(said)
    ]


def _asked(area: Area, words: Sequence[str], what: str) -> str:
    """Return what apt answers to a question that needs no network."""
    job = _outside(area, words, network=False)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        code = sandbox.run(job, log=errors, stdout=out, timeout=300)
        said, complaints = (_content(file) for file in (out, errors))
    if code:
        raise explain(said + complaints, what, job.argv, code, None)
    return said


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "backslashreplace")


def run_in_tree(
    area: Area,
    root: Path,
    words: Sequence[str],
    *,
    mounts: Sequence[sandbox.Overlay] = (),
    log: Path,
    timeout: float,
) -> None:
    """Let the tree's own apt do a sub-command: no network, few capabilities, nothing of the host.

    :param root: the tree, or where *mounts* makes it appear.
    :raises OnerootError: it failed; names the log.
    """
    job = sandbox.Sandbox(
        argv=("/bin/sh", "-c", _IN_TREE_SCRIPT, "sh", "apt-get", "-q", "--no-download", *words),
        root=str(root),
        mounts=(
            *mounts,
            sandbox.Bind(str(area.directory), f"{root}{INSIDE}"),
            sandbox.Tmpfs(f"{root}/tmp", "1777"),
        ),
        environment=TREE_ENVIRONMENT,
    )
    _run_logged(job, log, timeout, "The packages could not be installed")


def _run_logged(job: sandbox.Sandbox, log: Path, timeout: float, what: str) -> None:
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        start = file.tell()
        try:
            code = sandbox.run(job, log=file, timeout=timeout)
        except TimeoutError as error:
            raise CommandFailed(
                what, argv=job.argv, returncode=None, why=str(error), fix=f"read {log}"
            ) from error
    if code:
        with log.open("rb") as file:
            file.seek(start)
            said = file.read().decode("utf-8", "backslashreplace")
        raise explain(said, what, job.argv, code, log)


def explain(said: str, what: str, argv: Sequence[str], code: int, log: Path | None) -> OnerootError:
    """Turn what apt said when it failed into an error that tells what to do."""
    told = re.findall(r"^(?:E|W: GPG error): (.*)$", said, re.MULTILINE)
    broken = re.findall(r"^(dpkg: error.*(?:\n .*)?|.*sandbox: .*)$", said, re.MULTILINE)
    why = "\n".join(dict.fromkeys([*broken[-3:], *told[-5:]])) or "\n".join(said.strip().splitlines()[-5:])
    where = f"; the whole story is in {log}" if log else ""
    if unknown := re.search(r"E: (?:Unable to locate package|Package '?)\s*([^\s']+)", said):
        return UsageError(
            f"There is no package {unknown[1]} in the package sources",
            why=why, fix=f"check its name, or name the source that has it with --repository{where}",
        )  # fmt: skip
    if "No space left on device" in said or "have enough free space" in said:
        return NoSpace(
            what, why=why, fix=f"free space below the store, then run the same command again{where}"
        )
    fix = f"run the same command again when that is mended{where}"
    for pattern, advice in _ADVICE:
        if re.search(pattern, said):
            fix = f"{advice}{where}"
            break
    return CommandFailed(what, argv=argv, returncode=code, stdout=said, why=why, fix=fix)


_AGAIN = "then run the same command again"
_ADVICE = (
    (
        r"is expired \(|is not valid yet",
        "ask who runs the mirror, check the clock, or say --allow-expired when you create the base",
    ),
    (
        r"NO_PUBKEY|couldn't be verified|BADSIG|EXPKEYSIG",
        "give the right key with --keyring, or with signed-by= in --repository",
    ),
    (
        r"is not signed|unauthenticated",
        "give a signed source, or say --allow-unsigned when you create the base",
    ),
    (r"does not have a Release file|404 +Not Found", "check the suite and the address of the source"),
    (
        r"Could not (?:resolve|connect)|Unable to connect|Connection failed|Failed to fetch|File not found",
        f"check the network and the address of the source, {_AGAIN}",
    ),
    (r"unmet dependencies|Unable to correct problems", "choose packages or sources that fit each other"),
)


def releases(area: Area) -> tuple[Release, ...]:
    """Return the Release files that the area's lists came from, with who signed them."""
    found = []
    for file in sorted(area.lists.glob("*Release")):
        detached = file.with_name(file.name + ".gpg")
        if file.name.endswith("_InRelease") or file.name == "InRelease":
            signers = gpgv.fingerprints(file, _keyrings(area))
        elif detached.exists():
            signers = gpgv.fingerprints(detached, _keyrings(area), content=file)
        else:
            signers = []
        found.append(_release(file, signers))
    return tuple(found)


def _release(file: Path, signers: Sequence[str]) -> Release:
    data = file.read_bytes()
    text = data.decode("utf-8", "replace")
    fields = dict(re.findall(r"^(Suite|Codename|Origin|Date): *(.*)$", text, re.MULTILINE))
    return Release(
        suite=fields.get("Codename") or fields.get("Suite", ""),
        origin=fields.get("Origin", ""),
        digest=hashlib.sha256(data).hexdigest(),
        fingerprint=" ".join(signers),
        date=fields.get("Date", ""),
    )


def _keyrings(area: Area) -> list[Path]:
    named = [Path(one.signed_by) for one in area.repositories if one.signed_by]
    if any(not one.signed_by for one in area.repositories):
        trusted = Path("/etc/apt/trusted.gpg.d")
        named += [
            Path("/etc/apt/trusted.gpg"),
            *sorted(trusted.glob("*.gpg")),
            *sorted(trusted.glob("*.asc")),
        ]
    return [keyring for keyring in dict.fromkeys(named) if keyring.is_file()]


def clean(area: Area) -> None:
    """Remove the package files from the area; its lists stay."""
    shutil.rmtree(area.archives, ignore_errors=True)
