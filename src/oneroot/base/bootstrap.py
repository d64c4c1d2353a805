"""Makes a base from a distribution: the first generation, out of declared packages.

mmdebstrap makes the smallest tree with apt; the declared packages, whose maintainer scripts are
anybody's, are then installed as every later update is: without network, with few capabilities.
Everything is made beside the other bases under a hidden name and appears by one rename.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from oneroot.base import build, layout, upgrade, workshop
from oneroot.base.generation import SCHEMA, BaseSpec, Generation, GenerationNumber, Repository
from oneroot.base.store import Store, now
from oneroot.errors import CorruptState, OnerootError, UsageError
from oneroot.kernel import copy, tree
from oneroot.names import base_name
from oneroot.platform import apt, mmdebstrap, sources
from oneroot.platform.packages import Plan
from oneroot.settings import Settings
from oneroot.work import files, killpoint, steps
from oneroot.work.progress import SILENT, Progress

ALWAYS = ("dbus", "systemd-sysv", "tini")
"""tini runs a container's command, so that it is patched with the base; systemd-sysv and dbus
are what the units of a container need to be started and asked."""

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+(?::[a-z0-9]+)?")
_SOURCE = re.compile(r"([a-z][a-z0-9-]*):([a-z][a-z0-9.-]*)")
_TREE_BYTES = 150_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a person asked for."""

    name: str
    source: str
    """``debian:bookworm``: a distribution and the code name of its release."""
    packages: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    mirror: str | None = None
    components: tuple[str, ...] = ("main",)
    keyring: Path | None = None
    repositories: tuple[str, ...] = ()
    """``deb`` lines, added to the mirror's or the host's own sources; one that has the release itself
    stands in place of the host's."""
    initial_suites: tuple[str, ...] = ()
    """The first generation comes from these suites alone; the others bring its first updates."""
    allow_unsigned: bool = False
    allow_expired: bool = False
    architecture: str


def specify(declaration: Declaration, *, host_sources: Path = sources.APT) -> BaseSpec:
    """Turn a declaration into what the store keeps; refuses everything that cannot be.

    :raises UsageError: says what is wrong, and how to say it right.
    """
    name = base_name(declaration.name)
    codename = _codename(declaration.source)
    for package in declaration.packages:
        if not _PACKAGE.fullmatch(package):
            raise UsageError(f"{package[:80]!r} is not the name of a package", fix="for example apache2")
    repositories = _repositories(declaration, codename, host_sources)
    known = {suite for repository in repositories for suite in repository.suites}
    for suite in declaration.initial_suites:
        if suite not in known:
            raise UsageError(
                f"The initial suite {suite[:80]!r} is not among the suites of the base",
                fix=f"there are: {', '.join(sorted(known))}",
            )
    return BaseSpec(
        name=name,
        source=declaration.source,
        packages=tuple(sorted({*declaration.packages, *ALWAYS})),
        repositories=repositories,
        architecture=declaration.architecture,
        created=now(),
    )


def _codename(source: str) -> str:
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise UsageError(
            f"{source[:80]!r} is not a source that a base can be bootstrapped from",
            fix="name a distribution and the code name of its release, such as debian:bookworm",
        )
    return match[2]


def _repositories(declaration: Declaration, codename: str, host_sources: Path) -> tuple[Repository, ...]:
    spoken = [
        sources.parse_repository(
            line, allow_unsigned=declaration.allow_unsigned, allow_expired=declaration.allow_expired
        )
        for line in declaration.repositories
    ]
    if declaration.mirror:
        main = sources.mirror_repository(
            declaration.mirror,
            suites=declaration.suites or (codename,),
            components=() if any(s.endswith("/") for s in declaration.suites) else declaration.components,
            keyring=declaration.keyring,
            allow_unsigned=declaration.allow_unsigned,
            allow_expired=declaration.allow_expired,
        )
        return (main, *spoken)
    if any(codename in repository.suites for repository in spoken):
        return tuple(spoken)
    own = sources.host_repositories(
        codename,
        suites=declaration.suites,
        architecture=declaration.architecture,
        apt=host_sources,
        allow_unsigned=declaration.allow_unsigned,
        allow_expired=declaration.allow_expired,
    )
    return (*own, *spoken)


def spoken_repositories(declaration: Declaration) -> bool:
    """Whether the person named sources, rather than leaving that to the host."""
    return bool(declaration.mirror or declaration.suites or declaration.repositories)


def same_declaration(existing: BaseSpec, declaration: Declaration, wanted: BaseSpec) -> bool:
    """Whether a base that exists is the one that is asked for."""
    return (
        existing.source == wanted.source
        and existing.packages == wanted.packages
        and existing.architecture == wanted.architecture
        and (not spoken_repositories(declaration) or existing.repositories == wanted.repositories)
    )


def create(
    settings: Settings,
    declaration: Declaration,
    *,
    reason: str = "",
    progress: Progress = SILENT,
    host_sources: Path = sources.APT,
) -> Generation | None:
    """Make a base and its first generation, and look what updates wait for it.

    :returns: the generation; None if just this base exists already.
    :raises UsageError: the declaration cannot be, or the base exists and is another.
    :raises OnerootError: it failed; nothing is left of it but a log, which the error names.
    """
    store = Store(settings)
    wanted = specify(declaration, host_sources=host_sources)
    with store.holding(wanted.name, "create"):
        if refuse_other(store, declaration, wanted):
            return None
        work = _Creation(settings, declaration, wanted, reason, progress)
        try:
            steps.apply_all(work.steps(), progress=progress)
        finally:
            work.sweep()
        try:
            upgrade.check_sources(settings, wanted.name, progress)
        except OnerootError as error:  # the base is there; that its sources are not is recorded
            progress.note(f"base {wanted.name}: {error}")
    return work.generation


def plan(settings: Settings, declaration: Declaration, *, host_sources: Path = sources.APT) -> list[str]:
    """Return what `create` would do, a line a step; empty if the base exists."""
    wanted = specify(declaration, host_sources=host_sources)
    if refuse_other(Store(settings), declaration, wanted):
        return []
    work = _Creation(settings, declaration, wanted, "", SILENT)
    suites = ", ".join(f"{one.uri} {' '.join(one.suites)}" for one in work.first.repositories)
    return [
        f"sources: {suites}",
        f"packages: {', '.join(wanted.packages)}",
        *steps.describe_all(work.steps()),
    ]


def refuse_other(store: Store, declaration: Declaration, wanted: BaseSpec) -> bool:
    """Whether the base exists as declared.

    :raises UsageError: another base of this name exists.
    """
    if not store.exists(wanted.name):
        return False
    existing = store.spec(wanted.name)
    if same_declaration(existing, declaration, wanted):
        return True
    raise UsageError(
        f"There is another base {wanted.name}",
        why=f"it is made of {existing.source} with {', '.join(existing.packages)}",
        fix=f"choose another name, or remove it with oneroot base rm {wanted.name}",
    )


class _Creation:
    def __init__(
        self, settings: Settings, declaration: Declaration, spec: BaseSpec, reason: str, progress: Progress
    ) -> None:
        self.generation: Generation | None = None
        self.first = spec
        self._settings = settings
        self._spec = spec
        self._reason = reason or "created"
        self._progress = progress
        self._codename = _codename(spec.source)
        if declaration.initial_suites:
            self.first = dataclasses.replace(
                spec, repositories=_only(spec.repositories, declaration.initial_suites)
            )
        self._build = settings.paths.bases / f".{spec.name}.new"
        self._prepared = self._build / "generations/1"
        self._tree = self._prepared / "root"
        self._area: apt.Area | None = None
        self._log: Path | None = None

    def steps(self) -> list[steps.Step]:
        name = self._spec.name
        return [
            build.Act(f"check the package sources of {name}", self._check, self.sweep),
            build.Act(f"make a minimal tree of {self._codename} with mmdebstrap", self._bootstrap),
            build.Act("install the declared packages, without network", self._install),
            build.Act("scrub the tree, and describe every path", self._describe),
            build.Act(f"commit base {name} with generation 1", self._commit),
        ]

    def sweep(self) -> None:
        """Remove what this build, or a killed one before it, left."""
        tree.remove_tree(self._build)
        if self._area:
            shutil.rmtree(self._area.directory.with_name(f"{self._spec.name}.first"), ignore_errors=True)

    def _check(self) -> None:
        Store(self._settings).require_lock(self._spec.name)
        paths = self._settings.paths
        workshop.private_directory(paths.store)
        workshop.private_directory(paths.bases)
        tree.remove_tree(self._build)
        for directory in (self._build, self._prepared.parent, self._prepared):
            directory.mkdir(mode=0o700)
        self._log = workshop.new_log(paths, "create", self._spec.name)
        workshop.require_room(paths.bases, _TREE_BYTES, "The base cannot be made")
        self._area = self._area_of(None)
        apt.update(self._area, log=self._log, timeout=self._settings.timeouts.package_manager)
        self._require_installable(apt.simulate(self._area, ("install", *self._spec.packages)))

    def _require_installable(self, plan: Plan) -> None:
        """Refuse a package that apt would only have installed something else for."""
        there = {change.package.partition(":")[0] for change in plan.changes}
        missing = [package for package in self._spec.packages if package.partition(":")[0] not in there]
        if missing:
            raise UsageError(
                f"There is no package {missing[0]} in the package sources",
                why="it is provided by other packages only",
                fix="name one of those",
            )

    def _area_of(self, status: Path | None) -> apt.Area:
        initial = ".first" if self.first is not self._spec else ""
        return workshop.area(self._settings, self.first, status=status, lists=initial)

    def _bootstrap(self) -> None:
        area, log = self._ready()
        downloaded = workshop.fetch(self._settings, area, ("dist-upgrade",), log=log, progress=self._progress)
        room = workshop.room_for(downloaded, 2000)
        workshop.require_room(self._build, room, "The base cannot be made")
        self._tree.mkdir(mode=0o755)
        timeout = self._settings.timeouts.package_manager
        mmdebstrap.bootstrap(area, self._codename, self._tree, log=log, timeout=timeout)
        build.write_sources(self._tree, self._spec)

    def _install(self) -> None:
        _, log = self._ready()
        self._area = area = self._area_of(self._tree / "var/lib/dpkg/status")
        words = ("install", *self._spec.packages)
        downloaded = workshop.fetch(self._settings, area, words, log=log, progress=self._progress)
        workshop.require_room(self._build, workshop.room_for(downloaded, 0), "The base cannot be made")
        timeout = self._settings.timeouts.package_manager
        apt.run_in_tree(area, self._tree, words, log=log, timeout=timeout)

    def _describe(self) -> None:
        area, _ = self._ready()
        self.generation = build.describe(
            self._prepared,
            spec=self._spec,
            number=GenerationNumber(1),
            parent=None,
            releases=apt.releases(area),
            reason=self._reason,
        )

    def _commit(self) -> None:
        if self.generation is None:
            raise CorruptState("The generation was not described", fix="report this")
        target = layout.base_directory(self._settings.paths, self._spec.name)
        copy.sync_filesystem(self._build)
        files.save(self._prepared / "generation.json", self.generation, schema=SCHEMA)
        files.save(self._build / "base.json", self._spec, schema=SCHEMA)
        copy.replace_symlink(self._build / "current", "generations/1")
        copy.sync_directory(self._build)
        killpoint.reach(f"base {self._spec.name}: is described")
        copy.rename_new(self._build, target)
        copy.sync_directory(target.parent)

    def _ready(self) -> tuple[apt.Area, Path]:
        if self._area is None or self._log is None:
            raise OnerootError("A step was left out", fix="report this")
        return self._area, self._log


def _only(repositories: Sequence[Repository], suites: Sequence[str]) -> tuple[Repository, ...]:
    chosen = []
    for repository in repositories:
        wanted = tuple(suite for suite in repository.suites if suite in suites)
        if wanted:
            chosen.append(dataclasses.replace(repository, suites=wanted))
    return tuple(chosen)
