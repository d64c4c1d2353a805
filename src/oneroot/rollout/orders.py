"""A rollout's orders, which the journal keeps, and its result."""

from __future__ import annotations

import dataclasses
import enum

from oneroot.rollout.plan import RolloutPlan, RolloutPolicy, policy_from_data, policy_to_data
from oneroot.work.journal import RunId, RunState, RunStep, StepState


class Direction(enum.Enum):
    """Whether a run still goes to its target, or takes back what it moved."""

    FORWARD = "forward"
    BACK = "back"


class Request(enum.Enum):
    """What another terminal may ask of a run in progress."""

    PAUSE = "pause"
    ABORT = "abort"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orders:
    """What a run is about; kept in the journal, so that anybody can go on with it."""

    run: RunId
    base: str
    from_generation: int | None
    to_generation: int
    policy: RolloutPolicy = dataclasses.field(default_factory=RolloutPolicy)
    direction: Direction = Direction.FORWARD
    ending: RunState = RunState.ROLLED_BACK
    """How a run that has gone back ends."""

    @property
    def can_go_back(self) -> bool:
        return self.from_generation is not None and self.from_generation != self.to_generation

    def data(self) -> dict[str, object]:
        """Return the orders as the journal keeps them."""
        return {
            "from": self.from_generation,
            "to": self.to_generation,
            "policy": policy_to_data(self.policy),
            "direction": self.direction.value,
            "ending": self.ending.value,
        }


def orders_from(run: RunId, base: str, data: dict[str, object]) -> Orders:
    """Read what `Orders.data` returned.

    :raises KeyError, ValueError: it is not there, or is damaged.
    """
    before = data.get("from")
    return Orders(
        run=run,
        base=base,
        from_generation=None if before is None else int(str(before)),
        to_generation=int(str(data["to"])),
        policy=policy_from_data(data.get("policy")),
        direction=Direction(data.get("direction", "forward")),
        ending=RunState(data.get("ending", RunState.ROLLED_BACK.value)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A container that could not be moved, or is not well where it was moved to."""

    container: str
    generation: int
    """The one it was moved to."""
    why: str
    output: str = ""
    """What its health check last answered; capped, escaped."""
    console: tuple[str, ...] = ()
    """The last lines of its console; capped, escaped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """What a rollout did."""

    base: str
    state: RunState
    """DONE, PAUSED, FAILED (stopped, and there was nothing to go back to), ROLLED_BACK, ABORTED."""
    from_generation: int | None
    to_generation: int
    moved: tuple[str, ...]
    """Run on the target, alive and healthy."""
    taken_back: tuple[str, ...]
    skipped: tuple[str, ...]
    """Not moved: stopped, before or meanwhile."""
    remaining: tuple[str, ...]
    """Not moved yet: the rollout ended, or waits, before their turn."""
    failures: tuple[Failure, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return self.state is RunState.DONE and not self.failures


def steps_of(plan: RolloutPlan) -> list[RunStep]:
    """Return a plan's steps for the journal; stopped containers stand there as skipped."""
    moves = [
        RunStep(
            container=move.container,
            was_running=True,
            from_generation=move.from_generation,
            to_generation=plan.to_generation,
            batch=place,
        )
        for place, batch in enumerate(plan.batches)
        for move in batch
    ]
    stopped = [
        RunStep(
            container=name,
            was_running=False,
            from_generation=None,
            to_generation=plan.to_generation,
            batch=len(plan.batches),
            state=StepState.SKIPPED,
            message="stopped",
        )
        for name in plan.stopped
    ]
    return moves + stopped
