"""Patch and rollback as a whole: upgrade, roll out, prove; or back to an earlier generation.

Each is one run in the journal, in phases: ``upgrade``, ``plan``, ``rollout``, ``verify``. The same
command again goes on with a run that was killed, interrupted or paused, from the phase and the
containers where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses

from oneroot.audit.override import examine_all
from oneroot.base import upgrade as upgrades
from oneroot.base.generation import PackageChange
from oneroot.base.store import Store
from oneroot.errors import Interrupted, OnerootError
from oneroot.names import BaseName
from oneroot.rollout import plan as plans
from oneroot.rollout import requests
from oneroot.rollout.job import (
    Job,
    PatchResult,
    current_or_none,
    left_behind,
    newest,
    previous,
    require_unfinished,
    states_of,
    unfinished,
)
from oneroot.rollout.mover import seen
from oneroot.rollout.orders import Request
from oneroot.rollout.plan import OnFailure, RolloutPlan, RolloutPolicy
from oneroot.settings import Settings
from oneroot.work import locks
from oneroot.work.journal import Journal, Run, RunStep, free_ballast
from oneroot.work.progress import SILENT, Progress

ROLLBACK_POLICY = RolloutPolicy(batch="100%", canary=0, on_failure=OnFailure.CONTINUE)
"""A rollback by hand must reach all that it can, and soon."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptOut:
    """A file in a container that stands before the base's code."""

    container: str
    path: str
    package: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchPlan:
    """What a patch would do; nothing of the base or its containers was touched."""

    base: str
    current: int | None
    newest: int | None
    pinned: str | None
    """Why the base is pinned, which makes a patch refuse; None when it is not."""
    sources_checked: str | None
    sources_error: str
    pending: tuple[PackageChange, ...]
    rollout: RolloutPlan
    kept_out: tuple[KeptOut, ...] = ()
    """What will keep fixes of code out of containers, whatever is rolled out."""
    unfinished: str = ""
    """A run that a patch would go on with first."""


def patch(
    settings: Settings,
    name: BaseName,
    *,
    policy: RolloutPolicy,
    why: str = "",
    upgrade: bool = True,
    progress: Progress = SILENT,
) -> PatchResult:
    """Upgrade a base, roll the new generation out, prove it; or go on with such a run.

    :param upgrade: False rolls out the newest generation as it is.
    :raises OnerootError: the base is pinned, or something other is unfinished; nothing was changed.
    :raises Busy: another run works on this base.
    :raises Interrupted: a signal came; the same command again goes on.
    """
    store = Store(settings)
    store.spec(name)
    with locks.base(settings.paths, name, verb=f"patch {name}"), Journal(settings.paths) as journal:
        job = Job(settings, store, name, journal, progress)
        found = unfinished(journal, name)
        if found is None or found.verb == "patch":
            store.require_unpinned(name)
        if found is not None and found.verb != "patch":
            raise OnerootError(
                f"A {found.verb} of {name} is unfinished",
                why=f"{found.person} began it {found.started}; it is {found.state.value}",
                fix=f"oneroot {found.verb} {name} goes on, oneroot rollout abort {name} takes it back",
            )
        if found is None:
            data: dict[str, object] = {
                "phase": "upgrade" if upgrade else "plan",
                "from": store.current(name),
                "to": None if upgrade else newest(store, name),
                "policy": plans.policy_to_data(policy),
            }
            run = journal.begin("patch", name, why=why, data=data)
            return job.run(run, "patch", data, why=why)
        progress.note(f"going on with the {found.verb} that {found.person} began {found.started}")
        return job.resume(found)


def rollback(
    settings: Settings,
    name: BaseName,
    *,
    to: int | None = None,
    why: str = "",
    bad: bool = False,
    policy: RolloutPolicy = ROLLBACK_POLICY,
    progress: Progress = SILENT,
) -> PatchResult:
    """Pin a base to an earlier generation, move its containers there, and prove it.

    A full disk does not stop it. An unfinished patch is superseded: what it left stopped is started.

    :param to: a generation; None is the one before the current one.
    :param bad: mark the generation that is left, so that it is not rolled out again.
    :raises OnerootError: there is no such generation.
    """
    store = Store(settings)
    store.spec(name)
    with locks.base(settings.paths, name, verb=f"rollback {name}"), contextlib.ExitStack() as stack:
        job, left = _rollback_job(settings, store, name, stack, progress)
        found = unfinished(job.journal, name)
        if found is not None and found.verb == "rollback" and to in (None, found.data.get("to")):
            progress.note(f"going on with the rollback that {found.person} began {found.started}")
            return job.resume(found)
        target = previous(store, name) if to is None else store.generation(name, to).number
        data: dict[str, object] = {
            "phase": "plan",
            "from": current_or_none(store, name),
            "to": target,
            "policy": plans.policy_to_data(policy),
            "pin": why or "rollback",
            "bad": bad,
        }
        try:
            run = job.journal.begin("rollback", name, why=why, data=data, steps=left)
        except OnerootError as error:
            progress.note(f"this rollback is not kept in the history: {error}")
            job = _without_disk(settings, store, name, stack, progress)
            run = job.journal.begin("rollback", name, why=why, data=data, steps=left)
        job.end_older(run)
        return job.run(run, "rollback", data, left, why=why)


def _rollback_job(
    settings: Settings, store: Store, name: BaseName, stack: contextlib.ExitStack, progress: Progress
) -> tuple[Job, list[RunStep]]:
    """Open the journal for a rollback; returns also what an unfinished run may have left stopped."""
    free_ballast(settings.paths)
    try:
        journal = stack.enter_context(Journal(settings.paths))
        found = unfinished(journal, name)
        left = left_behind(journal, found) if found is not None else []
    except OnerootError as error:
        progress.note(f"this rollback is not kept in the history: {error}")
        return _without_disk(settings, store, name, stack, progress), []
    return Job(settings, store, name, journal, progress, tolerant=True), left


def _without_disk(
    settings: Settings, store: Store, name: BaseName, stack: contextlib.ExitStack, progress: Progress
) -> Job:
    """Keep the run in RUN, which is memory: it can be gone on with until the host is restarted."""
    place = dataclasses.replace(settings.paths, store=settings.paths.run / "journal")
    journal = stack.enter_context(Journal(place))
    return Job(settings, store, name, journal, progress, tolerant=True)


def resume(settings: Settings, name: BaseName, *, progress: Progress = SILENT) -> PatchResult:
    """Go on with a base's unfinished run, whichever it is.

    :raises OnerootError: there is none.
    """
    Store(settings).spec(name)
    with (
        locks.base(settings.paths, name, verb=f"rollout resume {name}"),
        Journal(settings.paths) as journal,
    ):
        found = require_unfinished(journal, name)
        return Job(settings, Store(settings), name, journal, progress).resume(found)


def abort(settings: Settings, name: BaseName, *, progress: Progress = SILENT) -> PatchResult | None:
    """Take back what a base's unfinished run has moved.

    :returns: None when the run is in progress in another process, which was asked to go back.
    :raises OnerootError: there is no unfinished run.
    """
    free_ballast(settings.paths)
    with Journal(settings.paths) as journal:
        found = require_unfinished(journal, name)
        if found.alive:
            requests.ask(settings.paths, found.id, Request.ABORT)
            return None
        with locks.base(settings.paths, name, verb=f"rollout abort {name}"):
            found = require_unfinished(journal, name)
            return Job(settings, Store(settings), name, journal, progress, tolerant=True).abort(found)


def pause(settings: Settings, name: BaseName) -> Run:
    """Ask a base's run in progress to wait after the containers that it is at.

    :raises OnerootError: no run is in progress.
    """
    with Journal(settings.paths) as journal:
        found = require_unfinished(journal, name)
        if not found.alive:
            raise OnerootError(
                f"The {found.verb} of {name} does not run",
                why=f"it is {found.state.value}; its process {found.pid} has ended",
                fix=f"oneroot rollout resume {name}, or oneroot rollout abort {name}",
            )
        requests.ask(settings.paths, found.id, Request.PAUSE)
        return found


def plan(
    settings: Settings, name: BaseName, *, policy: RolloutPolicy, progress: Progress = SILENT
) -> PatchPlan:
    """Say what a patch would do. Looks for pending updates; touches neither base nor containers."""
    store = Store(settings)
    declared = store.spec(name)
    with locks.base(settings.paths, name, verb=f"plan {name}"):
        error = _look_for_updates(settings, name, progress)
    check = store.check(name)
    pending = check.pending if check else ()
    current = store.current(name)
    latest = newest(store, name)
    states = states_of(settings, name)
    with Journal(settings.paths) as journal:
        found = unfinished(journal, name)
    return PatchPlan(
        base=name,
        current=current,
        newest=latest,
        pinned=declared.pin.reason if declared.pin else None,
        sources_checked=check.checked if check else None,
        sources_error=error,
        pending=pending,
        rollout=plans.make(
            name,
            from_generation=current,
            to_generation=store.next_number(name) if pending else latest,
            seen=[seen(state) for state in states],
            policy=policy,
        ),
        kept_out=tuple(
            KeptOut(container=container, path=one.path, package=one.package)
            for container, overrides in examine_all(settings, states).items()
            for one in overrides.found
            if one.keeps_fixes_out
        ),
        unfinished=f"{found.verb} of {found.started}, {found.state.value}" if found else "",
    )


def _look_for_updates(settings: Settings, name: BaseName, progress: Progress) -> str:
    """Ask the package sources; returns why they could not be asked, or nothing."""
    try:
        upgrades.check_sources(settings, name, progress)
    except Interrupted:
        raise
    except OnerootError as error:  # the rest of the plan is worth seeing, with the last answer
        return str(error)
    return ""


def plan_rollback(
    settings: Settings, name: BaseName, *, to: int | None = None, policy: RolloutPolicy = ROLLBACK_POLICY
) -> RolloutPlan:
    """Say which containers a rollback would move.

    :raises OnerootError: there is no such generation.
    """
    store = Store(settings)
    return plans.make(
        name,
        from_generation=current_or_none(store, name),
        to_generation=previous(store, name) if to is None else store.generation(name, to).number,
        seen=[seen(state) for state in states_of(settings, name)],
        policy=policy,
    )
