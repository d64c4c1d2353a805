"""What runs are doing and did, read from the journal alone: no locks, nothing changed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import UTC, datetime

from oneroot.errors import OnerootError
from oneroot.rollout import requests
from oneroot.rollout.job import VERBS, unfinished
from oneroot.settings import Settings
from oneroot.work.journal import Journal, Run, RunState, RunStep, StepState

_LATEST = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trouble:
    """A container that failed in a run."""

    container: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutStatus:
    """How far a base's rollout is: the unfinished one, or else the last."""

    base: str
    run: int
    verb: str
    state: str
    in_progress: bool
    """Its process lives."""
    person: str
    why: str
    started: str
    seconds: float
    phase: str
    direction: str
    from_generation: int | None
    to_generation: int | None
    counts: dict[str, int]
    """Containers by the state of their step."""
    moving: tuple[str, ...]
    """Between stop and healthy, or left there by a run that was killed."""
    failed: tuple[Trouble, ...]
    requested: str | None
    """What another terminal has asked of it, and it has not done yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One line of the history."""

    id: int
    verb: str
    subject: str
    person: str
    why: str
    started: str
    ended: str | None
    seconds: float
    state: str
    in_progress: bool
    from_generation: int | None
    to_generation: int | None
    proven: bool | None
    moved: int | None
    failed: int | None
    error: str


def status(settings: Settings, base: str) -> RolloutStatus | None:
    """Return how far a base's rollout is; None if there never was one."""
    if not settings.paths.journal.exists():
        return None
    with Journal(settings.paths) as journal:
        found = unfinished(journal, base) or _last(journal, base)
        return _status(settings, found, journal.steps(found.id)) if found else None


def history(settings: Settings, *, base: str | None = None, limit: int = 50) -> list[RunRecord]:
    """Return runs, newest first."""
    if limit < 1:
        raise OnerootError(f"A history of {limit} runs cannot be", fix="give --limit 1 or more")
    if not settings.paths.journal.exists():
        return []
    with Journal(settings.paths) as journal:
        return [_record(run) for run in journal.history(limit=limit, subject=base)]


def _last(journal: Journal, base: str) -> Run | None:
    return next((run for run in journal.history(limit=_LATEST, subject=base) if run.verb in VERBS), None)


def _status(settings: Settings, found: Run, steps: list[RunStep]) -> RolloutStatus:
    asked = requests.asked(settings.paths, found.id)
    return RolloutStatus(
        base=found.subject,
        run=found.id,
        verb=found.verb,
        state=_said(found),
        in_progress=found.ended is None and found.alive,
        person=found.person,
        why=found.why,
        started=found.started,
        seconds=_seconds(found),
        phase=str(found.data.get("phase", "")),
        direction=str(found.data.get("direction", "forward")),
        from_generation=_number(found.data.get("from")),
        to_generation=_number(found.data.get("to")),
        counts=dict(Counter(step.state.value for step in steps)),
        moving=tuple(step.container for step in steps if step.state is StepState.DOING),
        failed=tuple(
            Trouble(container=step.container, message=step.message)
            for step in steps
            if step.state is StepState.FAILED
        ),
        requested=asked.value if asked else None,
    )


def _said(run: Run) -> str:
    """Say how far a run is; the journal of one that was killed still has it running."""
    return "killed" if run.state is RunState.RUNNING and not run.alive else run.state.value


def _record(run: Run) -> RunRecord:
    proven = run.data.get("proven")
    return RunRecord(
        id=run.id,
        verb=run.verb,
        subject=run.subject,
        person=run.person,
        why=run.why,
        started=run.started,
        ended=run.ended,
        seconds=_seconds(run),
        state=_said(run),
        in_progress=run.ended is None and run.alive,
        from_generation=_number(run.data.get("from")),
        to_generation=_number(run.data.get("to")),
        proven=proven if isinstance(proven, bool) else None,
        moved=_number(run.data.get("moved")),
        failed=_number(run.data.get("failed")),
        error=str(run.data.get("error", "")),
    )


def _seconds(run: Run) -> float:
    ended = datetime.fromisoformat(run.ended) if run.ended else datetime.now(UTC)
    return round((ended - datetime.fromisoformat(run.started)).total_seconds(), 3)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
