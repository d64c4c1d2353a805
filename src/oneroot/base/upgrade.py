"""Patches a base: a new generation with every update that its sources have.

What the package manager does happens in a temporary overlay over the current generation, which
nobody writes to; the fold of that overlay is the new generation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from oneroot.base import build, changelog, workshop
from oneroot.base.changelog import Candidate
from oneroot.base.fold import Folded, fold
from oneroot.base.generation import BaseSpec, Generation, PackageChange, SourceCheck
from oneroot.base.store import Store, now
from oneroot.errors import CorruptState, OnerootError, UsageError
from oneroot.kernel import sandbox, tree
from oneroot.platform import apt, dpkg
from oneroot.platform.packages import Plan
from oneroot.settings import Settings
from oneroot.work import steps
from oneroot.work.progress import SILENT, Progress

_UPGRADE = ("dist-upgrade",)


def check_sources(
    settings: Settings, name: str, progress: Progress = SILENT, *, cves: bool = True
) -> SourceCheck:
    """Ask a base's sources what they have, and record the answer.

    :param cves: fetch the packages that wait, to read in their changelogs which CVEs they fix.
    :raises OnerootError: they could not be asked. That is recorded too: the time of the last good
        answer stays as it was.
    """
    with Store(settings).holding(name, "check the sources of"):
        return _look(settings, name, progress, cves=cves)[1]


def upgrade(
    settings: Settings,
    name: str,
    *,
    reason: str = "",
    switch: bool = True,
    progress: Progress = SILENT,
) -> Generation | None:
    """Make a generation with all pending updates.

    :param switch: make it the current one.
    :returns: None if nothing is pending. If a generation with just these packages exists already,
        that one.
    :raises OnerootError: the base is pinned; or it failed, and nothing is left but a log.
    """
    store = Store(settings)
    with store.holding(name, "upgrade"):
        _require_upgradable(store, name)
        store.sweep(name)
        area, check, log = _look(settings, name, progress, cves=True)
        if not check.pending:
            progress.note(f"base {name}: nothing to do, no update is pending")
            return None
        current = _current(store, name)
        _require_declared_stay(store.spec(name), check.pending)
        existing = _existing(store, name, _after(current.packages, check.pending))
        work = _Upgrade(settings, current, area, check, log, reason, progress)
        try:
            if existing:
                progress.note(f"base {name}: generation {existing.number} has just these packages")
                work.generation = existing
            todo = [] if existing else work.building()
            steps.apply_all([*todo, *(work.switching() if switch else [])], progress=progress)
        finally:
            store.sweep(name)
            apt.clean(area)
        if switch:
            store.save_check(name, dataclasses.replace(check, pending=()))
        return work.generation


def plan(settings: Settings, name: str, check: SourceCheck) -> list[str]:
    """Return what `upgrade` would do, a line a step, given the answer of the sources."""
    if not check.pending:
        return []
    store = Store(settings)
    current = _current(store, name)
    area = apt.Area(directory=Path(), mount_point=Path(), repositories=(), architectures=())
    work = _Upgrade(settings, current, area, check, Path(), "", SILENT)
    return steps.describe_all([*work.building(), *work.switching()])


def _current(store: Store, name: str) -> Generation:
    number = store.current(name)
    if number is None:
        raise CorruptState(
            f"The base {name} has no current generation",
            why="its link “current” is missing",
            fix=f"oneroot base use {name} N, one of: {', '.join(map(str, store.numbers(name)))}",
        )
    return store.generation(name, number)


def _require_upgradable(store: Store, name: str) -> None:
    spec = store.spec(name)
    if ":" not in spec.source:
        raise UsageError(
            f"The base {name} has no distribution to take updates from",
            why=f"its source is {spec.source or spec.parent}",
            fix=f"oneroot base capture {name}",
        )
    store.require_unpinned(name)


def _require_declared_stay(spec: BaseSpec, pending: Iterable[PackageChange]) -> None:
    """Refuse an upgrade that would take a declared package away."""
    lost = [change.package for change in pending if change.new is None and change.package in spec.packages]
    if lost:
        raise OnerootError(
            f"The pending updates would remove {lost[0]}, which the base {spec.name} declares",
            why=f"apt finds no other way: {', '.join(lost)}",
            fix="wait for a fitting update of it, or make a new base without it",
        )


def _existing(store: Store, name: str, packages: Mapping[str, str]) -> Generation | None:
    """Return the generation that has just these packages.

    :raises OnerootError: such a one is marked bad, so that it would only be made again.
    """
    spec = store.spec(name)
    for number in (*reversed(store.numbers(name)), *reversed(store.collected(name))):
        generation = store.generation(name, number)
        if generation.packages != packages:
            continue
        if number in spec.bad:
            raise OnerootError(
                f"The pending updates lead to the packages of generation {number} again, which is marked bad",
                why=f"the base {name} was taken back from it",
                fix=f"wait for newer updates, or take it nevertheless: oneroot base use {name} {number}",
            )
        if number in store.numbers(name):
            return generation
    return None


def _after(packages: Mapping[str, str], pending: Iterable[PackageChange]) -> dict[str, str]:
    result = dict(packages)
    for change in pending:
        if change.new is None:
            result.pop(change.package, None)
        else:
            result[change.package] = change.new
    return result


def _look(
    settings: Settings, name: str, progress: Progress, *, cves: bool
) -> tuple[apt.Area, SourceCheck, Path]:
    store = Store(settings)
    store.require_lock(name)
    spec = store.spec(name)
    if not spec.repositories:
        raise UsageError(f"The base {name} has no package sources", fix=f"oneroot base show {name}")
    root = store.root(name, _current(store, name).number)
    log = workshop.new_log(settings.paths, "upgrade", name)
    earlier = store.check(name)
    try:
        with workshop.no_space_told("The package sources could not be checked"):
            area = workshop.area(settings, spec, status=root / "var/lib/dpkg/status")
            progress.note(f"base {name}: check its package sources")
            apt.update(area, log=log, timeout=settings.timeouts.package_manager)
            found = apt.simulate(area, _UPGRADE)
            known = earlier.pending if earlier else ()
            pending = _with_cves(settings, area, root, found, known, log, progress) if cves else found.changes
    except OnerootError as error:
        _record_failure(store, name, earlier, error)
        raise
    time = now()
    check = SourceCheck(checked=time, attempted=time, pending=pending, kept_back=found.kept_back)
    store.save_check(name, check)
    if found.kept_back:
        progress.note(f"base {name}: kept back: {', '.join(found.kept_back)}")
    return area, check, log


def _record_failure(store: Store, name: str, earlier: SourceCheck | None, error: OnerootError) -> None:
    check = earlier or SourceCheck(checked=None, attempted="")
    try:
        store.save_check(name, dataclasses.replace(check, attempted=now(), error=str(error)))
    except OSError as second:
        error.add_note(f"that could not be recorded: {second}")
    except OnerootError as second:
        error.add_note(f"that could not be recorded: {second}")


def _with_cves(
    settings: Settings,
    area: apt.Area,
    root: Path,
    found: Plan,
    known: Sequence[PackageChange],
    log: Path,
    progress: Progress,
) -> tuple[PackageChange, ...]:
    """Return the plan's changes with the CVEs that they fix; what is known is not fetched again."""
    told = {(change.package, change.old, change.new): change for change in known}
    merged = [
        dataclasses.replace(change, cves=told[key].cves) if key in told else change
        for change in found.changes
        for key in [(change.package, change.old, change.new)]
    ]
    if all((change.package, change.old, change.new) in told for change in found.changes):
        return tuple(merged)
    files = workshop.fetch(settings, area, _UPGRADE, log=log, progress=progress)
    progress.note(f"read the changelogs of {len(files)} packages")
    candidates = [Candidate(file=file, package=dpkg.archive_package(file)) for file in files]
    return changelog.with_cves(found.changes, candidates, {one.name: one for one in dpkg.packages(root)})


class _Upgrade:
    def __init__(
        self,
        settings: Settings,
        current: Generation,
        area: apt.Area,
        check: SourceCheck,
        log: Path,
        reason: str,
        progress: Progress,
    ) -> None:
        self.generation: Generation | None = None
        self._settings = settings
        self._store = Store(settings)
        self._name = current.base
        self._current = current
        self._lower = self._store.root(self._name, current.number)
        self._area = area
        self._check = check
        self._log = log
        self._reason = reason or _summary(check.pending)
        self._progress = progress
        self._stage = self._store.directory(self._name) / "stage"
        self._prepared = self._stage / "generation"
        self._folded: Folded | None = None

    def building(self) -> list[steps.Step]:
        pending = len(self._check.pending)
        return [
            build.Act(f"fetch {pending} updates", self._fetch, self._sweep),
            build.Act(f"install {pending} updates in a temporary overlay, without network", self._install),
            build.Act("fold the overlay into a new tree", self._fold),
            build.Act("scrub the tree, and describe what changed", self._describe),
            build.Act(f"commit a new generation of {self._name}", self._commit),
        ]

    def switching(self) -> list[steps.Step]:
        return [build.Act(f"make it the current generation of {self._name}", self._switch, self._switch_back)]

    def _sweep(self) -> None:
        tree.remove_tree(self._stage)

    def _fetch(self) -> None:
        self._store.stage(self._name)
        files = workshop.fetch(self._settings, self._area, _UPGRADE, log=self._log, progress=self._progress)
        directories = self._current.files // 8
        workshop.require_room(
            self._stage, workshop.room_for(files, directories), f"The base {self._name} cannot be upgraded"
        )

    def _install(self) -> None:
        for name in ("upper", "work", "merged"):
            (self._stage / name).mkdir(mode=0o755)
        # The merged root shows the upper's attributes: they must be the lower's.
        status = self._lower.lstat()
        (self._stage / "upper").chmod(status.st_mode & 0o7777)
        overlay = sandbox.Overlay(
            lower=str(self._lower),
            upper=str(self._stage / "upper"),
            work=str(self._stage / "work"),
            target=str(self._stage / "merged"),
        )
        with workshop.no_space_told("The updates could not be installed", self._stage):
            apt.run_in_tree(
                self._area, self._stage / "merged", _UPGRADE,
                mounts=(overlay,), log=self._log, timeout=self._settings.timeouts.package_manager,
            )  # fmt: skip

    def _fold(self) -> None:
        self._prepared.mkdir(mode=0o700)
        self._folded = fold(self._lower, self._stage / "upper", self._prepared / "root")

    def _describe(self) -> None:
        if self._folded is None:
            raise CorruptState("The overlay was not folded", fix="report this")
        parent = build.Parent(
            generation=self._current,
            manifest=self._store.manifest(self._name, self._current.number),
            linked=self._folded.linked,
        )
        self.generation = build.describe(
            self._prepared,
            spec=self._store.spec(self._name),
            number=self._store.next_number(self._name),
            parent=parent,
            releases=apt.releases(self._area),
            told=self._check.pending,
            reason=self._reason,
        )
        if not self.generation.changes:
            raise OnerootError(
                f"The updates of {self._name} changed nothing",
                why="apt announced updates and installed none",
                fix=f"read {self._log}",
            )

    def _commit(self) -> None:
        if self.generation is None:
            raise CorruptState("The generation was not described", fix="report this")
        self._store.commit(self._prepared, self.generation)

    def _switch(self) -> None:
        if self.generation is None:
            raise CorruptState("There is no generation to switch to", fix="report this")
        self._store.set_current(self._name, self.generation.number)

    def _switch_back(self) -> None:
        self._store.set_current(self._name, self._current.number)


def _summary(pending: Sequence[PackageChange]) -> str:
    security = sum(change.security for change in pending)
    return f"{len(pending)} updates" + (f", {security} of them for security" if security else "")
