"""One run of patch or rollback: its phases, its entry in the journal, its result."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence

from oneroot.audit import proof as proofs
from oneroot.audit.proof import BaseProof
from oneroot.base import layout
from oneroot.base import upgrade as upgrades
from oneroot.base.generation import PackageChange
from oneroot.base.store import Store
from oneroot.container import lifecycle, spec
from oneroot.container.state import ContainerState, read_states
from oneroot.errors import CorruptState, ExitCode, Interrupted, NoSpace, OnerootError
from oneroot.names import BaseName
from oneroot.rollout import plan as plans
from oneroot.rollout import requests
from oneroot.rollout.engine import Rollout
from oneroot.rollout.health import patience, probe
from oneroot.rollout.mover import LxcMover, seen
from oneroot.rollout.orders import Direction, RolloutResult, orders_from, steps_of
from oneroot.settings import Settings
from oneroot.work import files, interrupt, killpoint
from oneroot.work.journal import Journal, Run, RunId, RunState, RunStep, StepState
from oneroot.work.progress import Progress

VERBS = ("patch", "rollback")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """Seconds that each part took; None: there was no such part."""

    upgrade: float | None = None
    rollout: float | None = None
    verify: float | None = None
    total: float = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchResult:
    """What a patch or a rollback did, and what is proven now."""

    verb: str
    base: str
    run: int
    state: RunState
    from_generation: int | None
    to_generation: int
    changes: tuple[PackageChange, ...]
    """Packages that differ between the two generations."""
    rollout: RolloutResult
    proven: bool
    proof: BaseProof | None
    timeline: Timeline
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        if self.rollout.failures or self.state is not RunState.DONE:
            return ExitCode.FAILED
        return ExitCode.DONE if self.proven else ExitCode.NOT_PROVEN


class Job:
    """Does one run, or what is left of it. The caller holds the base's lock."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        base: BaseName,
        journal: Journal,
        progress: Progress,
        *,
        tolerant: bool = False,
    ) -> None:
        self.journal = journal
        self._settings = settings
        self._store = store
        self._base = base
        self._progress = progress
        self._tolerant = tolerant
        self._seconds: dict[str, float] = {}
        self._notes: list[str] = []
        self._planned: list[RunStep] = []

    def resume(self, found: Run) -> PatchResult:
        """Go on with a run whose process has ended."""
        self._tolerant = self._tolerant or found.verb == "rollback"
        self._take_over(found)
        self.end_older(found.id)
        return self.run(found.id, found.verb, found.data, why=found.why)

    def abort(self, found: Run) -> PatchResult:
        """Take back what a run has moved."""
        self._take_over(found)
        data = dict(found.data)
        if data.get("to") is None:
            data |= {"to": data.get("from") or 0}  # it was killed before it had made a generation
        data |= {"phase": "rollout", "direction": Direction.BACK.value, "ending": RunState.ABORTED.value}
        if found.verb == "rollback" and data.get("pinned"):
            self._store.unpin(self._base)
        with self._writing():
            self.journal.set_data(found.id, **data)
        return self.run(found.id, found.verb, data, why=found.why)

    def newest(store: Store, base: BaseName) -> int:
    """Return the newest generation that is not marked bad.

    :raises OnerootError: there is none.
    """
    numbers = _good(store, base)
    if not numbers:
        raise OnerootError(f"The base {base} has no generation to run on", fix=f"oneroot base upgrade {base}")
    return max(numbers)


def previous(store: Store, base: BaseName) -> int:
    """Return the generation before the current one, bad ones left out.

    :raises OnerootError: there is none.
    """
    current = layout.current_number(store.settings.paths, base)
    numbers = _good(store, base)
    before = [number for number in numbers if current is not None and number < current]
    if not before:
        raise OnerootError(
            f"The base {base} has no generation before {current}",
            why=f"it has {', '.join(map(str, numbers)) or 'none'}, those marked bad left out",
            fix=f"oneroot base show {base}",
        )
    return max(before)


def current_or_none(store: Store, base: BaseName) -> int | None:
    """Return the current generation; None also when its directory is gone."""
    try:
        return store.current(base)
    except CorruptState:
        return None


def _good(store: Store, base: BaseName) -> list[int]:
    bad = store.spec(base).bad
    return [number for number in store.numbers(base) if number not in bad]
