"""What a rollout would do: which containers move, in which batches, and by which rules.

A plan is a value. It says everything that will be done and touches nothing, so a dry run and
the real run show the same.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

from oneroot.errors import UsageError


class OnFailure(enum.Enum):
    """What becomes of the containers that were moved when one of a batch fails."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    CONTINUE = "continue"
    """Move the others all the same; for a rollback by hand, which must reach all it can."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutPolicy:
    """By which rules containers are moved.

    :raises UsageError: a number or share that cannot be.
    """

    batch: str = "25%"
    """A number of containers or a share of those that move; a failure stops after its batch."""
    canary: int = 1
    """Containers in a first batch of their own; 0 for none. One container alone has no canary."""
    max_unavailable: str | None = None
    """Number or share of the moving containers that may be down at once; None: a batch."""
    on_failure: OnFailure = OnFailure.ROLLBACK
    min_healthy_time: float = 0
    """Seconds that a batch must stay alive before the next one begins."""
    timeout: float | None = None
    """Seconds until a started container must be alive and healthy; None: as the settings say."""

    def __post_init__(self) -> None:
        count_of(self.batch, 1, "--batch")
        if self.max_unavailable is not None:
            count_of(self.max_unavailable, 1, "--max-unavailable")
        if self.canary < 0:
            raise UsageError(f"--canary {self.canary} cannot be", fix="give 0 or more")
        for option, value in (("--min-healthy-time", self.min_healthy_time), ("--timeout", self.timeout)):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{option} {value} cannot be", fix="give seconds, 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """A container as it was observed."""

    name: str
    running: bool | None
    """None: could not be found out."""
    generation: int | None
    """What it has mounted, by its lease; None: not running, or not known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """One running container that is to take another generation."""

    container: str
    from_generation: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """Everything that a rollout will do."""

    base: str
    from_generation: int | None
    """The base's current generation before; a rollback on failure returns to it."""
    to_generation: int
    batches: tuple[tuple[Move, ...], ...]
    stopped: tuple[str, ...]
    """Stay stopped; take the new generation at their next start."""
    already: tuple[str, ...]
    """Run on the target already."""
    unknown: tuple[str, ...]
    """Their state could not be read; not touched, and not proven."""
    max_unavailable: int
    """At most so many are down at once."""
    policy: RolloutPolicy

    @property
    def moving(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def describe(self) -> list[str]:
        """Return the plan as text, a line a step."""
        before = "no generation" if self.from_generation is None else f"generation {self.from_generation}"
        lines = [f"base {self.base}: {before} → generation {self.to_generation}"]
        for place, batch in enumerate(self.batches):
            kind = "canary" if is_canary(self, place) else f"batch {place + 1} of {len(self.batches)}"
            lines.append(f"{kind}: stop, start and check {_names([move.container for move in batch])}")
        if self.moving:
            lines.append(
                f"at most {self.max_unavailable} down at once; on failure: {self.policy.on_failure.value}"
            )
        else:
            lines.append("no running container is outdated")
        if self.already:
            lines.append(f"already on generation {self.to_generation}: {_names(self.already)}")
        if self.stopped:
            lines.append(f"stay stopped, take it at their next start: {_names(self.stopped)}")
        if self.unknown:
            lines.append(f"not touched, their state cannot be read: {_names(self.unknown)}")
        return lines


def make(
    base: str,
    *,
    from_generation: int | None,
    to_generation: int,
    seen: Sequence[Seen],
    policy: RolloutPolicy,
) -> RolloutPlan:
    """Plan the move of a base's containers to a generation.

    :param seen: the base's containers, running or not.
    """
    running = [one for one in seen if one.running]
    moves = [
        Move(container=one.name, from_generation=one.generation)
        for one in sorted(running, key=lambda one: one.name)
        if one.generation != to_generation
    ]
    return RolloutPlan(
        base=base,
        from_generation=from_generation,
        to_generation=to_generation,
        batches=_batches(moves, policy),
        stopped=tuple(sorted(one.name for one in seen if one.running is False)),
        already=tuple(sorted(one.name for one in running if one.generation == to_generation)),
        unknown=tuple(sorted(one.name for one in seen if one.running is None)),
        max_unavailable=unavailable_limit(policy, len(moves)),
        policy=policy,
    )


def unavailable_limit(policy: RolloutPolicy, moving: int) -> int:
    """Return how many of *moving* containers may be down at once, at least 1."""
    total = max(1, moving)
    batch = count_of(policy.batch, total, "--batch")
    if policy.max_unavailable is None:
        return batch
    return min(batch, count_of(policy.max_unavailable, total, "--max-unavailable"))


def is_canary(plan: RolloutPlan, batch: int) -> bool:
    """Tell whether a batch of the plan is the canary's."""
    return batch == 0 and plan.policy.canary > 0 and len(plan.batches) > 1


def count_of(text: str, total: int, option: str) -> int:
    """Turn ``25%`` or ``10`` into a number of containers, at least 1, at most *total*.

    :raises UsageError: it is neither, is nothing, or is more than 100 %.
    """
    share = text.endswith("%")
    digits = text.removesuffix("%").strip()
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 9:
        raise UsageError(
            f"{option} {text[:40]!r} is not a number or a share",
            fix=f"for example {option} 25% or {option} 10",
        )
    value = int(digits)
    if value == 0 or (share and value > 100):
        raise UsageError(f"{option} {text} cannot be", fix=f"{option} takes 1% to 100%, or a number from 1")
    return max(1, min(total, math.ceil(total * value / 100) if share else value))


def policy_to_data(policy: RolloutPolicy) -> dict[str, object]:
    """Return the policy as plain JSON data, for the journal."""
    return {**dataclasses.asdict(policy), "on_failure": policy.on_failure.value}


def policy_from_data(data: object) -> RolloutPolicy:
    """Read what `policy_to_data` wrote; keys of another version are left out."""
    if not isinstance(data, Mapping):
        return RolloutPolicy()
    known = {field.name for field in dataclasses.fields(RolloutPolicy)}
    values = {key: value for key, value in data.items() if key in known}
    if "on_failure" in values:
        values["on_failure"] = OnFailure(values["on_failure"])
    return RolloutPolicy(**values)


def _batches(moves: list[Move], policy: RolloutPolicy) -> tuple[tuple[Move, ...], ...]:
    if not moves:
        return ()
    size = count_of(policy.batch, len(moves), "--batch")
    canary = min(policy.canary, len(moves)) if len(moves) > 1 else 0
    rest = moves[canary:]
    cut = [tuple(rest[first : first + size]) for first in range(0, len(rest), size)]
    return tuple([tuple(moves[:canary]), *cut] if canary else cut)


def _names(names: Sequence[str], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
