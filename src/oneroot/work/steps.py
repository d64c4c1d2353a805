"""Plan, show, apply: a change is a list of small steps that describe, do and undo themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from oneroot.kernel import copy
from oneroot.work import killpoint
from oneroot.work.progress import SILENT, Progress


class Step(Protocol):
    """One small change. ``apply`` is idempotent: done twice, it is as if done once."""

    def describe(self) -> str:
        """Say in one line what will be done, for plans, logs and the journal."""

    def apply(self) -> None:
        """Do it. Raises, and leaves nothing half, when it cannot."""

    def undo(self) -> None:
        """Take it back, as far as it was done; doing nothing is right for a harmless step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rename:
    """Let something appear at, or vanish from, its place."""

    description: str
    source: Path
    target: Path

    def describe(self) -> str:
        return self.description

    def apply(self) -> None:
        """Rename it; a target that exists is never replaced.

        :raises FileExistsError: there is a target.
        """
        copy.rename_new(self.source, self.target)

    def undo(self) -> None:
        if self.target.exists() and not self.source.exists():
            self.target.rename(self.source)


def describe_all(steps: Iterable[Step]) -> list[str]:
    """Return the plan as text, a line a step."""
    return [step.describe() for step in steps]


def apply_all(steps: Sequence[Step], *, progress: Progress = SILENT) -> None:
    """Do the steps in order; when one fails, undo what was done, last first, and raise its error.

    An undo that fails too is added to the first error as a note and never hides it.
    """
    done: list[Step] = []
    for step in steps:
        description = step.describe()
        killpoint.reach(f"before: {description}")
        progress.note(description)
        done.append(step)
        try:
            step.apply()
        except BaseException as first:
            _undo(done, first)
            raise
        killpoint.reach(f"after: {description}")


def _undo(done: list[Step], first: BaseException) -> None:
    for step in reversed(done):
        try:
            step.undo()
        except Exception as second:  # noqa: BLE001  kept as a note of the first error
            first.add_note(f"could not undo “{step.describe()}”: {second}")
