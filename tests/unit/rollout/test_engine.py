"""The engine's promises, over containers in memory: nothing lost, nothing twice, always a way back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oneroot.errors import Interrupted, NoSpace
from oneroot.rollout import engine
from oneroot.rollout.orders import Request
from oneroot.rollout.plan import OnFailure, RolloutPolicy
from oneroot.work import interrupt
from oneroot.work.journal import RunState, StepState
from tests.unit.rollout.world import Died, DyingJournal, Fake, World, begin, go_on, paths


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CANARY_SECONDS", 0)


@pytest.fixture
def world() -> World:
    return World(containers={f"web{number}": Fake(running=True, generation=1) for number in range(6)})


@pytest.fixture
def journal(tmp_path: Path, world: World):  # type: ignore[no-untyped-def]
    made = DyingJournal(paths(tmp_path), world)
    yield made
    made.close()


def test_moves_all_that_run_and_leaves_stopped_ones_stopped(world: World, journal: DyingJournal) -> None:
    world.containers["web5"] = Fake(running=False, generation=None)
    orders = begin(world, journal, RolloutPolicy(batch="2", canary=1))
    result = go_on(world, journal, orders)
    assert result.state is RunState.DONE and result.ok
    assert result.moved == ("web0", "web1", "web2", "web3", "web4")
    assert result.skipped == ("web5",)
    assert world.order == ["web0", "web1", "web2", "web3", "web4"]
    assert [one.running for one in world.containers.values()] == [True] * 5 + [False]
    assert {step.state for step in journal.steps(orders.run)} == {StepState.DONE, StepState.SKIPPED}


def test_a_canary_that_fails_stops_it_and_all_goes_back(world: World, journal: DyingJournal) -> None:
    world.ill.add(("web0", 2))
    result = go_on(world, journal, begin(world, journal, RolloutPolicy(canary=1, batch="100%")))
    assert result.state is RunState.ROLLED_BACK and not result.ok
    assert world.current == 1
    assert world.order == ["web0", "web0"]
    assert result.taken_back == ("web0",)
    (failure,) = result.failures
    assert (failure.container, failure.why) == ("web0", "its command does not run")
    assert failure.console == ("web0 said this",)


def test_a_container_that_does_not_start_is_taken_back_too(world: World, journal: DyingJournal) -> None:
    world.broken.add(("web3", 2))
    result = go_on(world, journal, begin(world, journal, RolloutPolicy(canary=0, batch="2")))
    assert result.state is RunState.ROLLED_BACK
    assert result.taken_back == ("web0", "web1", "web2", "web3")
    assert result.remaining == ("web4", "web5")
    assert all(one.running and one.generation == 1 for one in world.containers.values())
    assert world.containers["web5"].starts == 0


def test_on_failure_pause_leaves_it_and_goes_on_later(world: World, journal: DyingJournal) -> None:
    world.ill.add(("web2", 2))
    orders = begin(world, journal, RolloutPolicy(canary=0, batch="3", on_failure=OnFailure.PAUSE))
    result = go_on(world, journal, orders)
    assert result.state is RunState.PAUSED
    assert world.current == 2 and result.moved == ("web0", "web1")
    world.ill.clear()  # somebody mended it where it runs
    result = go_on(world, journal, orders)
    assert result.state is RunState.DONE and len(result.moved) == 6
    assert world.containers["web2"].starts == 1, "it was alive, and must not be restarted"


def test_ill_on_both_generations_is_told_and_the_rest_goes_back(world: World, journal: DyingJournal) -> None:
    world.ill |= {("web1", 1), ("web1", 2)}
    result = go_on(world, journal, begin(world, journal, RolloutPolicy(canary=0, batch="100%")))
    assert result.state is RunState.ROLLED_BACK
    assert {(failure.container, failure.generation) for failure in result.failures} == {
        ("web1", 2),
        ("web1", 1),
    }
    assert all(one.running and one.generation == 1 for one in world.containers.values())


def test_nothing_to_go_back_to_ends_failed(world: World, journal: DyingJournal) -> None:
    world.current = 2
    world.ill.add(("web0", 2))
    result = go_on(world, journal, begin(world, journal, RolloutPolicy()))
    assert result.state is RunState.FAILED
    assert world.current == 2


def test_never_more_down_than_allowed(world: World, journal: DyingJournal) -> None:
    policy = RolloutPolicy(canary=0, batch="100%", max_unavailable="2")
    world.slow = 5
    result = go_on(world, journal, begin(world, journal, policy), workers=6, patience=10)
    assert result.ok and world.most_down == 2


def test_on_failure_continue_reaches_all_that_it_can(world: World, journal: DyingJournal) -> None:
    world.broken.add(("web0", 2))
    result = go_on(world, journal, begin(world, journal, RolloutPolicy(on_failure=OnFailure.CONTINUE)))
    assert result.state is RunState.FAILED
    assert result.moved == ("web1", "web2", "web3", "web4", "web5")
    assert [failure.container for failure in result.failures] == ["web0"]


def test_pause_is_heard_between_containers(world: World, journal: DyingJournal) -> None:
    orders = begin(world, journal, RolloutPolicy(canary=0, batch="100%"))
    result = go_on(world, journal, orders, requested=lambda: Request.PAUSE if len(world.order) >= 3 else None)
    assert result.state is RunState.PAUSED
    assert result.moved == ("web0", "web1", "web2") and len(result.remaining) == 3
    assert go_on(world, journal, orders).state is RunState.DONE


def test_abort_goes_back(world: World, journal: DyingJournal) -> None:
    orders = begin(world, journal, RolloutPolicy(canary=0, batch="100%"))
    result = go_on(world, journal, orders, requested=lambda: Request.ABORT if len(world.order) >= 3 else None)
    assert result.state is RunState.ABORTED
    assert world.current == 1 and result.taken_back == ("web0", "web1", "web2")
    assert all(one.running and one.generation == 1 for one in world.containers.values())


def test_stopped_by_hand_meanwhile_stays_stopped(world: World, journal: DyingJournal) -> None:
    orders = begin(world, journal, RolloutPolicy(canary=0))
    world.containers["web4"].running = False
    world.containers["web4"].generation = None
    result = go_on(world, journal, orders)
    assert result.state is RunState.DONE and "web4" in result.skipped
    assert not world.containers["web4"].running


def test_a_full_disk_stops_it_before_anything_stops(world: World, journal: DyingJournal) -> None:
    orders = begin(world, journal, RolloutPolicy(canary=0))
    journal.full = True
    with pytest.raises(NoSpace):
        go_on(world, journal, orders)
    assert world.order == []


def test_a_full_disk_never_stops_the_way_back(world: World, journal: DyingJournal) -> None:
    orders = begin(world, journal, RolloutPolicy(canary=0, batch="3"))
    world.ill.add(("web2", 2))
    full_from = world.set_current

    def filled(generation: int) -> None:
        journal.full = generation == 1
        full_from(generation)

    world.set_current = filled  # type: ignore[method-assign]
    result = go_on(world, journal, orders)
    assert result.state is RunState.ROLLED_BACK
    assert all(one.running and one.generation == 1 for one in world.containers.values())


def test_a_signal_ends_it_between_containers(
    world: World, journal: DyingJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = begin(world, journal, RolloutPolicy(canary=0))
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: len(world.order) >= 2)
        patch.setattr(interrupt, "check", lambda: (_ for _ in ()).throw(Interrupted("a signal")))
        with pytest.raises(Interrupted):
            go_on(world, journal, orders)
    assert world.order == ["web0", "web1"]
    assert all(one.running for one in world.containers.values())
    assert go_on(world, journal, orders).state is RunState.DONE
    assert world.needless == [] and all(one.starts == 1 for one in world.containers.values())


def test_a_batch_must_stay_alive(world: World, journal: DyingJournal) -> None:
    looks = dict.fromkeys(world.containers, 0)
    honest = world.look

    def look(name: str):  # type: ignore[no-untyped-def]
        looks[name] += 1
        if looks[name] == 2 and name == "web1":
            world.ill.add(("web1", 2))
        return honest(name)

    world.look = look  # type: ignore[method-assign]
    policy = RolloutPolicy(canary=0, batch="2", min_healthy_time=0.01)
    result = go_on(world, journal, begin(world, journal, policy))
    assert result.state is RunState.ROLLED_BACK
    assert [failure.container for failure in result.failures] == ["web1"]
    assert result.remaining == ("web2", "web3", "web4", "web5")


def test_what_dies_right_after_its_start_does_not_pass(world: World, journal: DyingJournal) -> None:
    honest = world.look
    looks: list[str] = []

    def look(name: str):  # type: ignore[no-untyped-def]
        if name in looks:
            world.ill.add((name, 2))
        looks.append(name)
        return honest(name)

    world.look = look  # type: ignore[method-assign]
    result = go_on(world, journal, begin(world, journal, RolloutPolicy(canary=1)))
    assert world.order[:2] == ["web0", "web0"], "the canary is stopped and taken back, nothing else is"
    assert result.state is RunState.ROLLED_BACK


_names = [f"c{number}" for number in range(5)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    running=st.lists(st.booleans(), min_size=5, max_size=5),
    generations=st.lists(st.sampled_from([1, 1, 1, 2]), min_size=5, max_size=5),
    ill=st.sets(st.sampled_from(_names), max_size=2),
    deaths=st.lists(st.integers(1, 40), max_size=4),
    batch=st.sampled_from(["1", "2", "50%", "100%"]),
    canary=st.integers(0, 2),
    on_failure=st.sampled_from(list(OnFailure)),
    workers=st.integers(1, 3),
)
def test_killed_anywhere_and_run_again_it_ends_well(
    running, generations, ill, deaths, batch, canary, on_failure, workers
) -> None:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as place:
        world = World(
            containers={
                name: Fake(running=runs, generation=generation if runs else None)
                for name, runs, generation in zip(_names, running, generations, strict=True)
            },
            ill={(name, 2) for name in ill},
        )
        before = {name: one.running for name, one in world.containers.items()}
        journal = DyingJournal(paths(Path(place)), world)
        policy = RolloutPolicy(batch=batch, canary=canary, on_failure=on_failure)
        orders = begin(world, journal, policy)
        for death in deaths:
            world.die_at = world.operations + death
            try:
                result = go_on(world, journal, orders, workers=workers)
                break
            except Died:
                pass
        else:
            world.die_at = None
            result = go_on(world, journal, orders, workers=workers)
        journal.close()
        assert {name: one.running for name, one in world.containers.items()} == before
        assert not world.needless
        outdated = {
            name
            for name, runs, generation in zip(_names, running, generations, strict=True)
            if runs and generation == 1
        }
        left = {one.generation for name, one in world.containers.items() if name in outdated}
        if result.state is RunState.DONE:
            assert left <= {2} and world.current == 2 and not (ill & outdated)
        elif result.state is RunState.ROLLED_BACK:
            assert left <= {1} and world.current == 1 and ill & outdated
        elif on_failure is OnFailure.CONTINUE:
            assert result.state is RunState.FAILED and ill & outdated
            assert left <= {2}, "the others must be moved all the same"
        else:
            assert result.state is RunState.PAUSED and ill & outdated
        if 1 in world.currents:
            assert 2 not in world.currents[world.currents.index(1) :], (
                "a run that turned back went forward again"
            )
