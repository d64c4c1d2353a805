"""Removing containers: into the trash, out of it again, and for good.

Removing is one rename, after the host has stopped telling of the container. Its ids and addresses
stay its own as long as it is in the trash. What is deleted for good is first moved to where nothing
is taken back from, so that a killed deletion leaves nothing half that could be.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from oneroot.base import layout as base_layout
from oneroot.container import announce, lease, lifecycle, places, spec
from oneroot.container.places import Trashed
from oneroot.container.spec import ContainerSpec
from oneroot.container.state import State, read_state, read_states
from oneroot.errors import CorruptState, Interrupted, NoSpace, OnerootError, UnknownName, UsageError
from oneroot.kernel import copy
from oneroot.kernel.tree import remove_tree
from oneroot.names import select
from oneroot.settings import Settings
from oneroot.work import killpoint, locks
from oneroot.work.journal import Journal, Run, RunState, RunStep, StepState, free_ballast
from oneroot.work.parallel import Outcome, for_each, raise_failures
from oneroot.work.progress import SILENT, Progress
from oneroot.work.steps import Rename, Step, apply_all, describe_all

_LOCK_PATIENCE = 10.0
_VERB = "rm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Removal:
    """What became of a container, or would."""

    steps: tuple[str, ...] = ()
    trash: Path | None = None
    """Where it lies; None: it is deleted for good, or this was only planned."""


def chosen(settings: Settings, patterns: Sequence[str]) -> list[str]:
    """Return the names that a removal is about.

    Those that the same command removed before it was killed are among them: they are done.

    :raises UnknownName: a pattern matches nothing.
    """
    existing = spec.names(settings.paths)
    return select(patterns, {*existing, *_left_over(settings, patterns)})


def remove(
    settings: Settings,
    patterns: Sequence[str],
    *,
    force: bool = False,
    purge: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> list[Outcome[Removal]]:
    """Move containers to the trash.

    :param force: stop those that run.
    :param purge: delete them for good instead.
    :raises UnknownName: a pattern matches nothing; nothing was done.
    """
    names = chosen(settings, patterns)
    if dry_run:
        return [_planned(settings, name, force=force, purge=purge) for name in names]
    if purge:
        free_ballast(settings.paths)  # on a full disk this makes room
    with Journal(settings.paths) as journal:
        run = _begin(journal, patterns, names)
        hidden = _hide(settings, names, force=force)
        try:
            outcomes = for_each(
                names,
                lambda name: _remove_one(settings, journal, run, name, force=force, purge=purge),
                workers=settings.workers,
                title="rm",
                progress=progress,
            )
        except Interrupted:
            journal.end(run.id, RunState.INTERRUPTED)
            raise
        finally:
            _show_again(settings, hidden)
        failed = any(not outcome.ok for outcome in outcomes)
        journal.end(run.id, RunState.FAILED if failed else RunState.DONE)
    copy.sync_directory(settings.paths.lxc)
    try:
        sweep_trash(settings)
    except Interrupted:
        raise
    except OnerootError as error:  # those of today are removed
        progress.note(str(error))
    return outcomes


def undelete(
    settings: Settings, patterns: Sequence[str], *, dry_run: bool = False, progress: Progress = SILENT
) -> list[Outcome[Removal]]:
    """Take containers out of the trash, each as it was removed last.

    :raises UnknownName: a pattern matches nothing in the trash; nothing was done.
    """
    latest: dict[str, Trashed] = {}
    for item in places.trashed(settings.paths):
        latest.setdefault(item.name, item)
    left = _left_over(settings, patterns, verb="undelete")
    try:
        names = select(patterns, {*latest, *left}, what="removed container")
    except UnknownName as error:
        error.fix = "oneroot undelete --list"
        raise
    if dry_run:
        return [
            Outcome(name=name, value=Removal(steps=(f"{name}: take it out of the trash",))) for name in names
        ]
    with Journal(settings.paths) as journal:
        run = _begin(journal, patterns, names, verb="undelete")
        try:
            outcomes = for_each(
                names,
                lambda name: _undelete_one(settings, journal, run, name, latest.get(name), left.get(name)),
                workers=settings.workers,
                title="undelete",
                progress=progress,
            )
        except Interrupted:
            journal.end(run.id, RunState.INTERRUPTED)
            raise
        failed = any(not outcome.ok for outcome in outcomes)
        journal.end(run.id, RunState.FAILED if failed else RunState.DONE)
    back = [outcome.name for outcome in outcomes if outcome.ok]
    announce.tell(settings, [one for one in announce.declared(settings) if one.name in back])
    return outcomes


def sweep_trash(settings: Settings, *, everything: bool = False, progress: Progress = SILENT) -> list[str]:
    """Delete for good what has been in the trash for longer than the settings say.

    :param everything: what has not, too.
    :returns: the names of what was deleted.
    :raises OnerootError: some of it cannot be deleted; it is not taken back, and tried again next time.
    """
    limit = datetime.now(UTC) - timedelta(days=settings.policy.trash_days)
    old = [item for item in places.trashed(settings.paths) if everything or item.removed < limit]
    for item in old:
        _doom(item.path)
    leftovers = [
        place
        for directory in places.trashes(settings.paths)
        for place in places.listing(places.doomed(directory))
    ]
    outcomes = for_each(
        leftovers,
        _delete,
        name=lambda place: place.name,
        workers=settings.workers,
        title="empty the trash",
        progress=progress if leftovers else SILENT,
    )
    raise_failures(outcomes, "The trash could not be emptied")
    return [item.name for item in old]


def _hide(settings: Settings, names: Sequence[str], *, force: bool) -> list[str]:
    """Let resolver and published ports tell no more of what will be removed; once for all.

    :returns: whom they tell of no more.
    """
    listed = [
        state
        for state in read_states(
            settings, [name for name in names if settings.paths.container(name).exists()]
        )
        if force or state.state is State.STOPPED
    ]
    # Those that a killed command has removed are among *names*: their names may still be told.
    hidden = {state.name for state in listed} | {
        name for name in names if not settings.paths.container(name).exists()
    }
    announce.removing(settings, [state.spec for state in listed], hidden)
    killpoint.reach("after: names and ports are taken back")
    return sorted(hidden)


def _show_again(settings: Settings, hidden: Sequence[str]) -> None:
    """Tell again of those that could not be removed."""
    staying = [_declaration(settings, name) for name in hidden]
    known = [found for found in staying if found is not None]
    if known:
        announce.tell(settings, known)


def _remove_one(
    settings: Settings, journal: Journal, run: Run, name: str, *, force: bool, purge: bool
) -> Removal:
    if not settings.paths.container(name).exists():
        journal.mark(run.id, name, StepState.DONE, "was removed already")
        return Removal()
    journal.mark(run.id, name, StepState.DOING)
    try:
        with locks.container(settings.paths, name, verb=_VERB, wait=_LOCK_PATIENCE):
            if read_state(settings, name).state is not State.STOPPED:
                if not force:
                    raise OnerootError(
                        f"The container {name} runs",
                        fix=f"oneroot stop {name}, or oneroot rm --force {name}",
                        container=name,
                    )
                lifecycle.stop_locked(settings, name)
            destination = _destination(settings, purge=purge)
            target = destination / places.trash_name(destination, name)
            apply_all(_steps(settings, name, target))
        if purge:
            _delete(target)
    except OnerootError as error:
        journal.mark(run.id, name, StepState.FAILED, str(error))
        raise
    journal.mark(run.id, name, StepState.DONE)
    return Removal(trash=None if purge else target)


def _destination(settings: Settings, *, purge: bool) -> Path:
    trash = places.make(places.trash(settings.paths))
    doomed = places.make(places.doomed(trash))  # made early: a full disk must not stop the emptying
    return doomed if purge else trash


def _steps(settings: Settings, name: str, target: Path) -> list[Step]:
    return [
        _Forget(settings=settings, name=name),
        Rename(
            description=f"{name}: move it to the trash",
            source=settings.paths.container(name),
            target=target,
        ),
    ]


def _planned(settings: Settings, name: str, *, force: bool, purge: bool) -> Outcome[Removal]:
    runs = settings.paths.container(name).exists() and read_state(settings, name).state is not State.STOPPED
    if runs and not force:
        error = OnerootError(
            f"The container {name} runs", fix=f"oneroot stop {name}, or say --force", container=name
        )
        return Outcome(name=name, error=error)
    lines = [f"{name}: take back its name and ports"]
    lines += [f"{name}: stop it"] if runs else []
    lines += describe_all(_steps(settings, name, settings.paths.trash))
    lines += [f"{name}: delete it for good"] if purge else []
    return Outcome(name=name, value=Removal(steps=tuple(lines)))


def _undelete_one(
    settings: Settings, journal: Journal, run: Run, name: str, item: Trashed | None, begun: str | None
) -> Removal:
    """Take one back.

    :param begun: from where a killed command was taking it back.
    """
    if begun and not Path(begun).exists() and spec.spec_file(settings.paths, name).exists():
        journal.mark(run.id, name, StepState.DONE, begun)
        return Removal()
    try:
        if item is None:
            raise UnknownName(f"There is no removed container {name}", container=name)
        journal.mark(run.id, name, StepState.DOING, str(item.path))
        _check_base(settings, item)
        with locks.container(settings.paths, name, verb="undelete", wait=_LOCK_PATIENCE):
            _take_back(item, settings.paths.container(name))
    except OnerootError as error:
        journal.mark(run.id, name, StepState.FAILED, str(error))
        raise
    journal.mark(run.id, name, StepState.DONE, str(item.path))
    return Removal()


def _take_back(item: Trashed, target: Path) -> None:
    step = Rename(description=f"{item.name}: take it out of the trash", source=item.path, target=target)
    try:
        apply_all([step])
    except FileExistsError as error:
        raise UsageError(
            f"The container {item.name} cannot be taken back",
            why="another container has its name now",
            fix=f"remove that one for good first: oneroot rm --purge {item.name}",
            container=item.name,
        ) from error


def _check_base(settings: Settings, item: Trashed) -> None:
    try:
        base = spec.load_from(item.path).base
    except (CorruptState, FileNotFoundError):
        return  # it comes back as damaged as it was
    if not base_layout.base_directory(settings.paths, base).exists():
        raise UsageError(
            f"The container {item.name} cannot be taken back",
            why=f"its base {base} does not exist any more",
            fix=f"first make a base {base}",
            container=item.name,
        )


def _begin(journal: Journal, patterns: Sequence[str], names: Sequence[str], *, verb: str = _VERB) -> Run:
    steps = [
        RunStep(container=name, was_running=False, from_generation=None, to_generation=None) for name in names
    ]
    left = journal.unfinished(subject=_subject(patterns), verb=verb)
    if left is None or left.alive:
        journal.begin(verb, _subject(patterns), steps=steps)
    else:
        journal.take_over(left.id)
        known = {step.container for step in journal.steps(left.id)}
        journal.add_steps(left.id, [step for step in steps if step.container not in known])
    run = journal.unfinished(subject=_subject(patterns), verb=verb)
    assert run is not None
    return run


def _left_over(settings: Settings, patterns: Sequence[str], *, verb: str = _VERB) -> dict[str, str]:
    """Return the containers that the same command was about when it was killed, each with a note."""
    if not settings.paths.journal.exists():
        return {}
    try:
        with Journal(settings.paths) as journal:
            run = journal.unfinished(subject=_subject(patterns), verb=verb)
            if run is None or run.alive:
                return {}
            return {step.container: step.message for step in journal.steps(run.id)}
    except NoSpace:  # SQLite needs room even to read; what is there can still be removed
        return {}


def _subject(patterns: Sequence[str]) -> str:
    return " ".join(sorted(patterns))


def _doom(place: Path) -> Path:
    doomed = places.make(places.doomed(place.parent)) / place.name
    with contextlib.suppress(FileNotFoundError):  # another command was faster
        place.rename(doomed)
    killpoint.reach(f"after: {place.name} can not be taken back")
    return doomed


def _delete(place: Path) -> None:
    # The declaration goes last: as long as a file has one of its ids, it says that they are in use.
    remove_tree(place / "overlay")
    killpoint.reach(f"after: delete the files of {place.name}")
    remove_tree(place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Forget:
    """What /run still says of it."""

    settings: Settings
    name: str

    def describe(self) -> str:
        return f"{self.name}: forget its lease"

    def apply(self) -> None:
        lease.drop(self.settings.paths, self.name)
        for suffix in ("error", "log"):
            (self.settings.paths.hook_reports / f"{self.name}.{suffix}").unlink(missing_ok=True)

    def undo(self) -> None:
        pass


def _declaration(settings: Settings, name: str) -> ContainerSpec | None:
    try:
        return spec.load(settings.paths, name)
    except (OnerootError, OSError):
        return None
