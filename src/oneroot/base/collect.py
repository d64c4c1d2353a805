"""Removes what nobody needs any more: old generations, whole bases, package files.

Of a collected generation its description and its list of changes are kept for ever, so that an
old override can still be judged. A start hook may be about to mount a generation: it holds a
shared lock on ``RUN/lock/mount-BASE`` meanwhile, which we take alone before we look who uses what.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from oneroot.base import build, layout, workshop
from oneroot.base.generation import Generation
from oneroot.base.store import Store
from oneroot.errors import Busy, CorruptState, UsageError
from oneroot.kernel import copy, tree
from oneroot.settings import Paths, Settings
from oneroot.work import killpoint, steps
from oneroot.work.progress import SILENT, Progress

_LOCK_ALL = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_PATIENCE = 10.0
_POOL_AGE = 30 * 86400.0

InUse = set[int] | Callable[[], set[int]]
"""Numbers of the generations that containers run on or are declared for; a function is asked once no
container can start any more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """What gc did, or would do."""

    base: str
    removed: tuple[int, ...]
    kept: dict[int, str]
    """Why each other generation stays."""


def kept(store: Store, name: str, in_use: set[int]) -> dict[int, str]:
    """Return the generations that must stay, each with the reason."""
    reasons: dict[int, str] = {}
    numbers = store.numbers(name)
    current = store.current(name)
    for number in numbers:
        if current is not None and number > current:
            reasons[number] = "newer than the current one"
    before = [number for number in numbers if current is not None and number < current]
    if before:
        reasons[before[-1]] = "the previous one"
    for number in in_use:
        reasons[number] = "containers use it"
    pin = store.spec(name).pin
    if pin:
        reasons[pin.generation] = "pinned"
    if current is not None:
        reasons[current] = "current"
    return {number: reasons[number] for number in numbers if number in reasons}


def plan(settings: Settings, name: str, in_use: InUse) -> Collected:
    """Return what `gc` would do."""
    store = Store(settings)
    stay = kept(store, name, in_use() if callable(in_use) else in_use)
    removed = tuple(number for number in store.numbers(name) if number not in stay)
    return Collected(base=name, removed=removed, kept=stay)


def gc(settings: Settings, name: str, in_use: InUse, *, progress: Progress = SILENT) -> Collected:
    """Remove the generations that nobody needs.

    Kept: the current one, the one before it, newer ones, pinned and used ones.

    :raises Busy: containers are starting on this base all the time.
    """
    store = Store(settings)
    with store.holding(name, "gc"), _mounts_stopped(settings.paths, name):
        store.sweep(name)
        # Looked at only now: a container that began to start before has its lease by now.
        found = plan(settings, name, in_use)
        _move_out(store, name, found.removed, progress)
        store.sweep(name)
    sweep_hidden(settings)
    workshop.clean_pool(settings.paths, older_than=_POOL_AGE)
    return found


def _move_out(store: Store, name: str, numbers: Sequence[int], progress: Progress) -> None:
    if not numbers:
        return
    stage = store.stage(name)
    todo: list[steps.Step] = []
    for number in numbers:
        todo += [
            build.Act(f"keep the description of generation {number}", _keep(store, name, number, stage)),
            build.Act(f"remove generation {number}", _remove(store, name, number, stage)),
        ]
    steps.apply_all(todo, progress=progress)


def _keep(store: Store, name: str, number: int, stage: Path) -> Callable[[], None]:
    def keep() -> None:
        source = layout.generation_directory(store.settings.paths, name, number)
        target = store.directory(name) / "collected" / str(number)
        if target.exists():
            return
        target.parent.mkdir(mode=0o700, exist_ok=True)
        prepared = stage / f"collected-{number}"
        prepared.mkdir(mode=0o700)
        for file in ("generation.json", "changes.gz"):
            shutil.copyfile(source / file, prepared / file)
            (prepared / file).chmod(0o600)
        copy.sync_filesystem(prepared)
        prepared.rename(target)
        copy.sync_directory(target.parent)

    return keep


def _remove(store: Store, name: str, number: int, stage: Path) -> Callable[[], None]:
    def remove() -> None:
        source = layout.generation_directory(store.settings.paths, name, number)
        source.rename(stage / f"removed-{number}")
        copy.sync_directory(source.parent)
        killpoint.reach(f"base {name}: generation {number} is out of sight")
        tree.remove_tree(stage / f"removed-{number}")

    return remove


@contextlib.contextmanager
def _mounts_stopped(paths: Paths, name: str) -> Iterator[None]:
    paths.locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(paths.locks / f"mount-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(descriptor, name)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, name: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK_ALL)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            raise Busy(
                f"Containers of the base {name} are starting",
                why=f"none of {_PATIENCE:g} seconds was without one",
                fix="try again in a while",
            )
        time.sleep(0.02)


def remove_base(settings: Settings, name: str, users: Iterable[str], *, progress: Progress = SILENT) -> None:
    """Remove a base with all of its generations.

    :param users: the containers and derived bases that need it.
    :raises UsageError: there are any.
    """
    store = Store(settings)
    if not store.exists(name):
        store.spec(name)  # says that there is none, and the nearest name
    refuse_used(name, users)
    with store.holding(name, "rm"), _mounts_stopped(settings.paths, name):
        steps.apply_all(removal(settings, name), progress=progress)
    sweep_hidden(settings)


def refuse_used(name: str, users: Iterable[str]) -> None:
    """Refuse to remove a base that something needs.

    :raises UsageError: says what.
    """
    listed = sorted(users)
    if listed:
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise UsageError(
            f"The base {name} is in use",
            why=f"by {', '.join(listed[:5])}{more}",
            fix=f"remove them first: oneroot rm {' '.join(listed[:5])}",
        )


def removal(settings: Settings, name: str) -> list[steps.Step]:
    """Return the steps that remove a base."""
    paths = settings.paths
    gone = paths.bases / f".{name}.removed"

    def hide() -> None:
        tree.remove_tree(gone)
        copy.rename_new(layout.base_directory(paths, name), gone)
        copy.sync_directory(paths.bases)

    def delete() -> None:
        tree.remove_tree(gone)
        workshop.forget(paths, name)

    return [
        build.Act(f"take the base {name} out of the store", hide),
        build.Act(f"delete the files of the base {name}", delete),
    ]


def derived(store: Store, name: str) -> list[str]:
    """Return the bases that are built on a base; damaged ones cannot tell and are left out."""
    found = []
    for other in store.names():
        with contextlib.suppress(CorruptState):
            if store.spec(other).parent == name:
                found.append(str(other))
    return found


def sweep_hidden(settings: Settings) -> None:
    """Remove what killed creations and removals of bases left."""
    store = Store(settings)
    for entry in sorted(settings.paths.bases.glob(".*")):
        name, _, kind = entry.name[1:].rpartition(".")
        if kind in ("new", "removed"):
            with contextlib.suppress(Busy, UsageError), store.holding(name, "sweep"):
                tree.remove_tree(entry)


def history(store: Store, name: str) -> list[tuple[Generation, bool]]:
    """Return every generation that ever was, newest first, and whether its tree is still there."""
    there = set(store.numbers(name))
    numbers = sorted({*there, *store.collected(name)}, reverse=True)
    return [(store.generation(name, number), number in there) for number in numbers]
