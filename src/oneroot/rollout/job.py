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
    """Does one run, or what is left of it. The caller holds the base's lock.

    :param tolerant: a journal that cannot be written does not stop it: the way back is never blocked.
    """

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

    def end_older(self, run: RunId) -> None:
        """End the unfinished runs whose place a newer one has taken; it has their steps already."""
        with self._writing():
            for verb in VERBS:
                while (found := self.journal.unfinished(self._base, verb)) is not None and found.id < run:
                    self.journal.end(found.id, RunState.ABORTED, superseded=True)

    def run(
        self,
        run: RunId,
        verb: str,
        data: dict[str, object],
        left: Sequence[RunStep] = (),
        *,
        why: str = "",
    ) -> PatchResult:
        """Do the phases from the one that the data names.

        :param left: containers that a superseded run left stopped and that are to be started.
        """
        began = time.monotonic()
        data = dict(data)
        with self._ending(run, data):
            if data["phase"] == "upgrade":
                self._upgrade(run, data, why)
            if data["phase"] == "plan":
                self._plan(run, data, left)
            rollout = self._rollout(run, data)
            interrupt.check()
            proof = None
            if rollout.state is not RunState.PAUSED:
                self._set(run, data, phase="verify")
                proof = self._prove()
            self._seconds["total"] = round(time.monotonic() - began, 3)
            return self._finish(run, verb, rollout, proof)

    def _take_over(self, found: Run) -> None:
        with self._writing():
            self.journal.take_over(found.id)
        requests.forget(self._settings.paths, found.id)

    def _upgrade(self, run: RunId, data: dict[str, object], why: str) -> None:
        with self._timed("upgrade"):
            made = upgrades.upgrade(
                self._settings, self._base, reason=why, switch=False, progress=self._progress
            )
        target = made.number if made is not None else newest(self._store, self._base)
        if made is None:
            self._note(f"no update is pending; generation {target} is the newest")
        self._set(run, data, phase="plan", to=target)

    def _plan(self, run: RunId, data: dict[str, object], left: Sequence[RunStep]) -> None:
        orders = orders_from(run, self._base, data)
        if data.get("pin") is not None:
            self._pin(run, data, orders.to_generation)
        # first the link, then the look: whatever starts after the look takes the new one by itself
        self._mover(data).set_current(orders.to_generation)
        killpoint.reach(f"plan: current → {orders.to_generation}")
        plan = plans.make(
            self._base,
            from_generation=orders.from_generation,
            to_generation=orders.to_generation,
            seen=[seen(state) for state in states_of(self._settings, self._base)],
            policy=orders.policy,
        )
        there = self.journal.steps(run) or list(left)
        names = {step.container for step in there}
        added = [step for step in steps_of(plan) if step.container not in names]
        self._planned = [*there, *added]  # the journal of a full disk does not give them back
        with self._writing():
            self.journal.add_steps(run, added)
        self._set(run, data, phase="rollout")

    def _pin(self, run: RunId, data: dict[str, object], target: int) -> None:
        try:
            before = data.get("from")
            if data.get("bad") and isinstance(before, int) and before != target:
                self._store.mark_bad(self._base, before)
            self._store.pin(self._base, target, reason=str(data["pin"]))
        except NoSpace as error:
            # the way back must not be stopped by a full disk: the pin can be made later
            self._note(f"{self._base} is not pinned: {error}; oneroot base use {self._base} {target} does it")
            return
        self._set(run, data, pinned=True)

    def _rollout(self, run: RunId, data: dict[str, object]) -> RolloutResult:
        orders = orders_from(run, self._base, data)
        steps = self._planned or self.journal.steps(run)
        specs = self._specs(steps)
        with self._timed("rollout"):
            if any(step.was_running for step in steps):
                for refused in lifecycle.prepare(self._settings).values():
                    self._note(str(refused))
            return Rollout(
                orders,
                [step for step in steps if not step.was_running or step.container in specs],
                mover=self._mover(data),
                probe=probe(self._settings, specs),
                journal=self.journal,
                tolerant=self._tolerant,
                patience=patience(self._settings, orders.policy.timeout),
                workers=self._settings.workers,
                requested=lambda: requests.asked(self._settings.paths, run),
                progress=self._progress,
            ).run()

    def _specs(self, steps: Sequence[RunStep]) -> dict[str, spec.ContainerSpec]:
        found: dict[str, spec.ContainerSpec] = {}
        for step in steps:
            if step.was_running:
                try:
                    found[step.container] = spec.load(self._settings.paths, step.container)
                except (OnerootError, OSError) as error:  # removed or damaged since it was planned
                    self._note(f"{step.container} is left out: {error}")
        return found

    def _prove(self) -> BaseProof | None:
        self._progress.note(f"{self._base}: proving")
        with self._timed("verify"):
            found = proofs.prove(self._settings, bases=[self._base], progress=self._progress)
            proof = next((one for one in found if one.base == self._base), None)
            if proof is not None:
                document = files.converter().unstructure(proof)
                with self._tolerating():
                    self.journal.record_proof(self._base, proof.generation, proof.proven, document)
        return proof

    def _finish(self, run: RunId, verb: str, rollout: RolloutResult, proof: BaseProof | None) -> PatchResult:
        proven = proof is not None and proof.proven
        timeline = Timeline(**self._seconds)
        with self._tolerating():
            self.journal.end(
                run,
                rollout.state,
                proven=proven,
                moved=len(rollout.moved),
                failed=len(rollout.failures),
                timeline=dataclasses.asdict(timeline),
            )
        requests.forget(self._settings.paths, run)
        return PatchResult(
            verb=verb,
            base=self._base,
            run=run,
            state=rollout.state,
            from_generation=rollout.from_generation,
            to_generation=rollout.to_generation,
            changes=self._changes(rollout.from_generation, rollout.to_generation),
            rollout=rollout,
            proven=proven,
            proof=proof,
            timeline=timeline,
            notes=tuple(self._notes),
        )

    def _changes(self, before: int | None, after: int) -> tuple[PackageChange, ...]:
        if before is None or before == after:
            return ()
        try:
            new = self._store.generation(self._base, after)
            if new.parent == before:
                return new.changes
            old = self._store.generation(self._base, before).packages
        except OnerootError:  # a damaged description hides what changed, not that it was rolled out
            return ()
        return tuple(
            PackageChange(package=name, old=old.get(name), new=new.packages.get(name))
            for name in sorted({*old, *new.packages})
            if old.get(name) != new.packages.get(name)
        )

    def _mover(self, data: dict[str, object]) -> LxcMover:
        return LxcMover(self._settings, self._store, self._base, f"rollout of {self._base} to {data['to']}")

    @contextlib.contextmanager
    def _ending(self, run: RunId, data: dict[str, object]) -> Iterator[None]:
        """Leave the run open where the same command can go on with it; end it where it cannot."""
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, Interrupted) or not isinstance(error, Exception)
            ends = data["phase"] in ("upgrade", "verify") and not stopped
            state = RunState.FAILED if ends else RunState.INTERRUPTED
            with contextlib.suppress(Exception):
                self.journal.end(run, state, error=str(error)[:1000])
            raise

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[part] = round(time.monotonic() - began, 3)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Write to the journal before something is done; on the way back its failure is only told."""
        if not self._tolerant:
            yield
            return
        with self._tolerating():
            yield

    @contextlib.contextmanager
    def _tolerating(self) -> Iterator[None]:
        """What was done is done: a journal that cannot be written then is only told."""
        try:
            yield
        except OnerootError as error:
            self._note(f"the journal could not be written: {error}")

    def _set(self, run: RunId, data: dict[str, object], **values: object) -> None:
        data |= values
        with self._writing():
            self.journal.set_data(run, **values)
        killpoint.reach(f"run: {', '.join(f'{key} {value}' for key, value in values.items())}")

    def _note(self, message: str) -> None:
        self._notes.append(message)
        self._progress.note(message)


def states_of(settings: Settings, base: str) -> list[ContainerState]:
    """Return the states of a base's containers."""
    return [state for state in read_states(settings, spec.names(settings.paths)) if state.base == base]


def unfinished(journal: Journal, base: str) -> Run | None:
    """Return a base's patch or rollback that has not ended."""
    found = [run for verb in VERBS if (run := journal.unfinished(base, verb)) is not None]
    return max(found, key=lambda run: run.id, default=None)


def require_unfinished(journal: Journal, base: str) -> Run:
    """Return a base's run that has not ended.

    :raises OnerootError: there is none.
    """
    found = unfinished(journal, base)
    if found is None:
        raise OnerootError(
            f"No rollout of {base} is unfinished", fix="oneroot history shows those that have ended"
        )
    return found


def left_behind(journal: Journal, found: Run) -> list[RunStep]:
    """Return the steps of an unfinished run whose containers it may have left stopped."""
    return [
        dataclasses.replace(step, state=StepState.DOING, batch=0)
        for step in journal.steps(found.id)
        if step.was_running and step.state in (StepState.DOING, StepState.FAILED)
    ]


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
