"""The rollout engine: stop, start, wait until alive and healthy; in batches, with a way back.

Every step is in the journal before it is done, so that a run that was killed anywhere goes on
where it was: a container that was between stop and start is started again, one that already runs
on its target is only looked at. Within a batch there is no barrier between the phases: a worker
stops and starts one container after the other, and one watching thread waits for all of them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

from oneroot.container.liveness import Liveness
from oneroot.errors import OnerootError
from oneroot.rollout.health import Probe, Watcher
from oneroot.rollout.orders import Direction, Failure, Orders, Request, RolloutResult
from oneroot.rollout.plan import OnFailure, Seen, unavailable_limit
from oneroot.work import interrupt, killpoint
from oneroot.work.journal import Journal, RunState, RunStep, StepState
from oneroot.work.progress import SILENT, Progress, Task


class Mover(Protocol):
    """What the engine does to containers. Methods may be called from several threads."""

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Hold a container while it is stopped and started."""

    def observe(self, name: str) -> Seen:
        """Look whether it runs, and on which generation.

        A generation beside ``running=False`` means: it was not stopped by request, it ended.
        """

    def stop(self, name: str) -> None:
        """Stop it; one that is stopped is no error."""

    def start(self, name: str) -> None:
        """Start it, on the base's current generation."""

    def set_current(self, generation: int) -> None:
        """Make a generation the base's current one; doing it twice is no error."""

    def last_words(self, name: str) -> tuple[str, ...]:
        """Return the last lines of its console, escaped; empty if there are none."""


CANARY_SECONDS = 0.5
"""That a canary must stay alive, whatever the policy says."""

_OPEN = (StepState.PLANNED, StepState.DOING, StepState.FAILED)
_TOUCHED = (StepState.DONE, StepState.DOING, StepState.FAILED)


class Rollout:
    """One run of the engine over the steps of a journal's run, from wherever they stand.

    :param tolerant: a journal that cannot be written does not stop it, in either direction.
    :param requested: asked between containers what another terminal wants.
    :param patience: seconds until a started container must be alive and healthy.
    :param workers: containers stopped and started at once.
    """

    def __init__(
        self,
        orders: Orders,
        steps: Sequence[RunStep],
        *,
        mover: Mover,
        probe: Probe,
        journal: Journal,
        tolerant: bool = False,
        patience: float,
        workers: int,
        requested: Callable[[], Request | None] = lambda: None,
        progress: Progress = SILENT,
    ) -> None:
        self._orders = orders
        self._steps = {step.container: step for step in steps}
        self._mover = mover
        self._probe = probe
        self._journal = journal
        self._tolerant = tolerant
        self._patience = patience
        self._workers = workers
        self._requested = requested
        self._progress = progress
        self._failures: list[Failure] = []
        self._asked: Request | None = None
        self._stopping = False
        self._fatal: BaseException | None = None

    def run(self) -> RolloutResult:
        """Do what is left of the rollout.

        :raises Interrupted: a signal came; what was begun is finished, the journal knows the rest.
        :raises NoSpace: the journal cannot be written, so nothing more was begun.
        """
        began = time.monotonic()
        # a signal must not tear the main thread out of a step: it is looked for between them
        with interrupt.Shielded():
            state = RunState.RUNNING
            if self._orders.direction is Direction.FORWARD:
                self._forward()
                state = self._verdict()
            if self._orders.direction is Direction.BACK:
                self._back()
                state = self._orders.ending
        return self._result(state, time.monotonic() - began)

    def _forward(self) -> None:
        self._set_current(self._orders.to_generation)
        last = max((step.batch for step in self._steps.values()), default=-1)
        for batch in range(last + 1):
            todo = self._with_state(_OPEN, batch)
            if not todo:
                continue
            self._do_all(f"{self._orders.base}: batch {batch + 1}", todo)
            self._settle(batch)
            if self._halted():
                return

    def _verdict(self) -> RunState:
        self._raise_if_stopped()
        if self._asked is Request.ABORT:
            return self._turn_back(RunState.ABORTED)
        if self._failures:
            match self._orders.policy.on_failure:
                case OnFailure.PAUSE:
                    return RunState.PAUSED
                case OnFailure.CONTINUE:
                    return RunState.PAUSED if self._asked is Request.PAUSE else RunState.FAILED
                case OnFailure.ROLLBACK:
                    return self._turn_back(RunState.ROLLED_BACK)
        return RunState.PAUSED if self._asked is Request.PAUSE else RunState.DONE

    def _turn_back(self, ending: RunState) -> RunState:
        if not self._orders.can_go_back:
            return RunState.FAILED if ending is RunState.ROLLED_BACK else ending
        self._orders = dataclasses.replace(self._orders, direction=Direction.BACK, ending=ending)
        return ending

    def _back(self) -> None:
        before = self._orders.from_generation
        if before is None:
            return
        with self._journal_may_fail():
            self._journal.set_data(self._orders.run, **self._orders.data())
        killpoint.reach("rollout: turned back")
        self._stopping = False
        self._progress.note(f"{self._orders.base}: going back to generation {before}")
        self._set_current(before)
        todo = self._with_state(_TOUCHED)
        self._do_all(f"{self._orders.base}: back to generation {before}", todo)
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        interrupt.check()

    def _set_current(self, generation: int) -> None:
        killpoint.reach(f"rollout: before current → {generation}")
        self._mover.set_current(generation)
        killpoint.reach(f"rollout: after current → {generation}")

    def _with_state(self, states: Sequence[StepState], batch: int | None = None) -> list[RunStep]:
        return [
            step
            for step in self._steps.values()
            if step.was_running and step.state in states and batch in (None, step.batch)
        ]

    @property
    def _target(self) -> int:
        back = self._orders.direction is Direction.BACK and self._orders.from_generation is not None
        return (self._orders.from_generation or 0) if back else self._orders.to_generation

    def _halted(self) -> bool:
        """Whether no further container may be begun."""
        if self._fatal is not None or interrupt.requested():
            return True
        if self._orders.direction is Direction.BACK:
            return False
        self._asked = self._asked or self._requested()
        return self._stopping or self._asked is not None

    def _do_all(self, title: str, todo: Sequence[RunStep]) -> None:
        if not todo:
            return
        moving = sum(step.was_running for step in self._steps.values())
        limit = unavailable_limit(self._orders.policy, moving)
        task = self._progress.begin(title, len(todo))
        workers = max(1, min(self._workers, limit, len(todo)))
        with (
            Watcher(self._probe, halted=self._giving_up) as watcher,
            ThreadPoolExecutor(workers, thread_name_prefix="move") as pool,
        ):
            batch = _Batch(watcher=watcher, task=task, slots=threading.Semaphore(limit))
            moves = [pool.submit(self._guarded, step, batch) for step in todo]
            concurrent.futures.wait([move.result() for move in moves])

    def _giving_up(self) -> bool:
        return self._fatal is not None or interrupt.requested()

    def _guarded(self, step: RunStep, batch: _Batch) -> Future[None]:
        """Move one container; the returned future is done when it is alive, or has failed."""
        landed: Future[None] = Future()
        batch.slots.acquire()
        watched: Future[Liveness] | None = None
        try:
            if not self._halted():
                watched = self._move_or_fail(step, batch)
        except BaseException as error:  # noqa: BLE001  raised again by the main thread
            self._fatal = self._fatal or error
        if watched is None:
            batch.slots.release()
            landed.set_result(None)
        else:
            watched.add_done_callback(lambda done: self._landed(step, done, batch, landed))
        return landed

    def _move_or_fail(self, step: RunStep, batch: _Batch) -> Future[Liveness] | None:
        try:
            return self._move(step, batch)
        except (OnerootError, OSError) as error:
            if error is self._fatal:
                raise
            self._fail(
                step, Liveness(container=step.container, alive=False, reasons=(str(error),)), batch.task
            )
            return None

    def _move(self, step: RunStep, batch: _Batch) -> Future[Liveness] | None:
        name = step.container
        with self._mover.locked(name):
            seen = self._mover.observe(name)
            left = self._leave_alone(step, seen)
            if left is not None:
                self._mark(step, *left)
                batch.task.done(name, message=left[1])
                return None
            if not (seen.running and seen.generation == self._target):
                self._mark(step, StepState.DOING, f"to generation {self._target}")
                if seen.running is not False:
                    killpoint.reach(f"rollout: before stop {name}")
                    self._mover.stop(name)
                killpoint.reach(f"rollout: before start {name}")
                self._mover.start(name)
                killpoint.reach(f"rollout: after start {name}")
        return batch.watcher.watch(name, self._patience)

    def _leave_alone(self, step: RunStep, seen: Seen) -> tuple[StepState, str] | None:
        """Return how a step ends that needs nothing done, or None."""
        if self._orders.direction is Direction.FORWARD:
            if seen.running is False and step.state is StepState.PLANNED:
                return StepState.SKIPPED, "stopped meanwhile"
            return None
        known = (None, self._target, self._orders.to_generation)
        if seen.running and seen.generation not in known:
            return StepState.UNDONE, "never moved"
        if seen.running is False and seen.generation is None and step.state is StepState.DONE:
            return StepState.SKIPPED, "stopped meanwhile"
        return None

    def _landed(self, step: RunStep, watched: Future[Liveness], batch: _Batch, landed: Future[None]) -> None:
        try:
            found = watched.result()
            back = self._orders.direction is Direction.BACK
            if found.ok:
                self._mark(step, StepState.UNDONE if back else StepState.DONE)
                batch.task.done(step.container)
            elif not self._giving_up():
                self._fail(step, found, batch.task)
        except BaseException as error:  # noqa: BLE001  raised again by the main thread
            self._fatal = self._fatal or error
        finally:
            batch.slots.release()
            landed.set_result(None)

    def _fail(self, step: RunStep, found: Liveness, task: Task | None = None) -> None:
        why = "; ".join(found.reasons) or "it did not become alive in time"
        self._stopping = self._orders.policy.on_failure is not OnFailure.CONTINUE
        failure = Failure(
            container=step.container,
            generation=self._target,
            why=why,
            output=found.output,
            console=self._mover.last_words(step.container),
        )
        self._failures.append(failure)
        if task is not None:
            task.done(step.container, failed=True, message=why)
        with contextlib.suppress(OnerootError):  # kept, and raised by the main thread
            self._mark(step, StepState.FAILED, why[:1000])

    def _settle(self, batch: int) -> None:
        """Look once more at a batch before the next one begins, after the time that it must stay alive.

        What has begun to start looks alive for a moment, even if it is about to fail: the canary,
        whose failure is worth most, is given time for that.
        """
        moved = self._with_state((StepState.DONE,), batch)
        last = max(step.batch for step in self._steps.values() if step.was_running)
        canary = batch == 0 and self._orders.policy.canary > 0 and last > 0
        end = time.monotonic() + max(
            self._orders.policy.min_healthy_time, CANARY_SECONDS if canary and moved else 0
        )
        while not self._halted() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        if self._halted() or not moved:
            return
        with Watcher(self._probe, halted=self._giving_up) as watcher:
            looks = [(step, watcher.watch(step.container, 0)) for step in moved]
            for step, look in looks:
                found = look.result()
                if not found.ok and not self._giving_up():
                    self._fail(step, found)

    def _mark(self, step: RunStep, state: StepState, message: str = "") -> None:
        """Write how far a step is. A full disk ends a rollout, but never the way back."""
        if self._tolerant or self._orders.direction is Direction.BACK:
            with self._journal_may_fail():
                self._journal.mark(self._orders.run, step.container, state, message)
        else:
            try:
                self._journal.mark(self._orders.run, step.container, state, message)
            except OnerootError as error:
                self._fatal = self._fatal or error
                raise
        current = self._steps[step.container]
        self._steps[step.container] = dataclasses.replace(current, state=state, message=message)

    @contextlib.contextmanager
    def _journal_may_fail(self) -> Iterator[None]:
        try:
            yield
        except OnerootError as error:
            self._progress.note(f"the journal could not be written: {error}")

    def _result(self, state: RunState, seconds: float) -> RolloutResult:
        def named(*states: StepState) -> tuple[str, ...]:
            return tuple(sorted(step.container for step in self._steps.values() if step.state in states))

        return RolloutResult(
            base=self._orders.base,
            state=state,
            from_generation=self._orders.from_generation,
            to_generation=self._orders.to_generation,
            moved=named(StepState.DONE),
            taken_back=named(StepState.UNDONE),
            skipped=named(StepState.SKIPPED),
            remaining=named(StepState.PLANNED, StepState.DOING),
            failures=tuple(sorted(self._failures, key=lambda failure: failure.container)),
            seconds=round(seconds, 3),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Batch:
    """What the moves of one batch share."""

    watcher: Watcher
    task: Task
    slots: threading.Semaphore
