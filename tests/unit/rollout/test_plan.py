"""Plans: who moves, in which batches; and every number that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.errors import UsageError
from oneroot.rollout import plan as plans
from oneroot.rollout.plan import OnFailure, RolloutPolicy, Seen


def seen(running: int, generation: int | None = 1, *, first: int = 0) -> list[Seen]:
    return [
        Seen(name=f"web{first + number:03}", running=True, generation=generation) for number in range(running)
    ]


def make(containers: list[Seen], policy: RolloutPolicy) -> plans.RolloutPlan:
    return plans.make("core", from_generation=1, to_generation=2, seen=containers, policy=policy)


def test_canary_then_quarters() -> None:
    found = make(seen(9), RolloutPolicy(batch="25%", canary=1))
    assert [len(batch) for batch in found.batches] == [1, 3, 3, 2]
    assert plans.is_canary(found, 0) and not plans.is_canary(found, 1)
    assert "canary" in "\n".join(found.describe())


def test_one_container_has_no_canary() -> None:
    found = make(seen(1), RolloutPolicy(canary=3))
    assert [len(batch) for batch in found.batches] == [1]
    assert not plans.is_canary(found, 0)


def test_only_what_runs_and_is_outdated_moves() -> None:
    found = make(
        [
            Seen(name="new", running=True, generation=2),
            Seen(name="old", running=True, generation=1),
            Seen(name="odd", running=True, generation=None),
            Seen(name="off", running=False, generation=None),
            Seen(name="lost", running=None, generation=None),
        ],
        RolloutPolicy(canary=0, batch="100%"),
    )
    assert [move.container for batch in found.batches for move in batch] == ["odd", "old"]
    assert (found.already, found.stopped, found.unknown) == (("new",), ("off",), ("lost",))


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-1", "", "%", "1.5", "abc", "٣", "1e3", "9" * 12])
def test_shares_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError):
        RolloutPolicy(batch=text)
    with pytest.raises(UsageError):
        RolloutPolicy(max_unavailable=text)


@pytest.mark.parametrize("number", [-1.0, float("nan"), float("inf")])
def test_times_that_cannot_be(number: float) -> None:
    with pytest.raises(UsageError):
        RolloutPolicy(timeout=number)
    with pytest.raises(UsageError):
        RolloutPolicy(min_healthy_time=number)


@given(
    count=st.integers(0, 60),
    batch=st.one_of(st.integers(1, 100).map(lambda n: f"{n}%"), st.integers(1, 90).map(str)),
    canary=st.integers(0, 70),
    down=st.none() | st.integers(1, 100).map(lambda n: f"{n}%"),
)
def test_every_container_moves_once(count: int, batch: str, canary: int, down: str | None) -> None:
    policy = RolloutPolicy(batch=batch, canary=canary, max_unavailable=down)
    found = make(seen(count), policy)
    moved = [move.container for one in found.batches for move in one]
    assert moved == sorted(one.name for one in seen(count))
    assert all(found.batches) and found.max_unavailable >= 1


def test_a_policy_comes_back_from_the_journal() -> None:
    policy = RolloutPolicy(batch="10", canary=2, on_failure=OnFailure.PAUSE, min_healthy_time=1.5, timeout=3)
    assert plans.policy_from_data({**plans.policy_to_data(policy), "later": 1}) == policy
