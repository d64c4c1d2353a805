from __future__ import annotations

import dataclasses

import pytest

from oneroot.work.steps import apply_all


@dataclasses.dataclass(frozen=True)
class Recorded:
    name: str
    log: list[str]
    fails: bool = False
    undo_fails: bool = False

    def describe(self) -> str:
        return self.name

    def apply(self) -> None:
        self.log.append(f"+{self.name}")
        if self.fails:
            raise RuntimeError("first")

    def undo(self) -> None:
        self.log.append(f"-{self.name}")
        if self.undo_fails:
            raise RuntimeError("second")


def test_steps_are_done_in_order() -> None:
    log: list[str] = []
    apply_all([Recorded("a", log), Recorded("b", log)])
    assert log == ["+a", "+b"]


def test_a_failure_undoes_backwards_the_failed_one_too() -> None:
    log: list[str] = []
    with pytest.raises(RuntimeError, match="first"):
        apply_all([Recorded("a", log), Recorded("b", log, fails=True), Recorded("c", log)])
    assert log == ["+a", "+b", "-b", "-a"]


def test_a_failing_undo_never_hides_the_first_error() -> None:
    log: list[str] = []
    with pytest.raises(RuntimeError, match="first") as caught:
        apply_all([Recorded("a", log, undo_fails=True), Recorded("b", log, fails=True)])
    assert any("second" in note for note in caught.value.__notes__)
