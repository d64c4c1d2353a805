"""Containers that exist in memory only, under an engine that may die between any two operations."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

from oneroot.container.liveness import Liveness
from oneroot.errors import CommandFailed, NoSpace
from oneroot.rollout import plan as plans
from oneroot.rollout.engine import Rollout
from oneroot.rollout.health import Probe
from oneroot.rollout.orders import Orders, Request, RolloutResult, orders_from, steps_of
from oneroot.rollout.plan import RolloutPolicy, Seen
from oneroot.settings import Paths
from oneroot.work.journal import Journal, RunState, StepState


class Died(BaseException):
    """The process was killed: nothing that it would have done afterwards happens."""


@dataclasses.dataclass
class Fake:
    running: bool
    generation: int | None
    starts: int = 0
    ended: bool = False


@dataclasses.dataclass
class World:
    """The mover. ``ill`` are (container, generation) that do not come alive, ``broken`` do not start."""

    containers: dict[str, Fake]
    current: int = 1
    ill: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    broken: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    die_at: int | None = None
    operations: int = 0
    down: int = 0
    most_down: int = 0
    needless: list[str] = dataclasses.field(default_factory=list)
    order: list[str] = dataclasses.field(default_factory=list)
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)
    currents: list[int] = dataclasses.field(default_factory=list)
    slow: int = 0
    """Looks that a started container needs before it is alive; down until then."""
    looks: dict[str, int] = dataclasses.field(default_factory=dict)

    def tick(self) -> None:
        with self.lock:
            self.operations += 1
            if self.die_at is not None and self.operations >= self.die_at:
                raise Died

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        yield

    def observe(self, name: str) -> Seen:
        one = self.containers[name]
        generation = one.generation if one.running or one.ended else None
        return Seen(name=name, running=one.running, generation=generation)

    def stop(self, name: str) -> None:
        self.tick()
        with self.lock:
            one = self.containers[name]
            if one.running and one.generation == self.current and (name, self.current) not in self.ill:
                self.needless.append(name)
            self.down += one.running
            self.most_down = max(self.most_down, self.down)
            one.running, one.generation, one.ended = False, None, False
            self.order.append(name)
        self.tick()

    def start(self, name: str) -> None:
        self.tick()
        if (name, self.current) in self.broken:
            raise CommandFailed("lxc-start failed", argv=["lxc-start"], returncode=1, container=name)
        with self.lock:
            one = self.containers[name]
            assert not one.running, f"{name} was started twice"
            one.running, one.generation = True, self.current
            one.starts += 1
            self.looks[name] = 0
            self.down -= not self.slow
        self.tick()

    def set_current(self, generation: int) -> None:
        self.tick()
        self.current = generation
        self.currents.append(generation)
        self.tick()

    def last_words(self, name: str) -> tuple[str, ...]:
        return (f"{name} said this",)

    def look(self, name: str) -> Liveness:
        one = self.containers[name]
        if not one.running:
            return Liveness(container=name, alive=False, running=False, reasons=("it is not running",))
        if (name, one.generation) in self.ill:
            return Liveness(container=name, alive=False, reasons=("its command does not run",))
        if self.slow:
            self.looks[name] += 1
            if self.looks[name] < self.slow:
                return Liveness(container=name, alive=False, reasons=("not yet",))
            with self.lock:
                self.down -= self.looks[name] == self.slow
        return Liveness(container=name, alive=True)

    @property
    def probe(self) -> Probe:
        return Probe(look=self.look, ask=self.look)

    def seen(self) -> list[Seen]:
        return [self.observe(name) for name in self.containers]


class DyingJournal(Journal):
    """A journal whose process may die before and after each write, or whose disk may be full."""

    def __init__(self, paths: Paths, world: World) -> None:
        super().__init__(paths)
        self.world = world
        self.full = False

    def mark(self, run, container, state, message="") -> None:  # type: ignore[no-untyped-def]
        self.world.tick()
        if self.full:
            raise NoSpace("the disk is full")
        super().mark(run, container, state, message)
        self.world.tick()

    def set_data(self, run, **values) -> None:  # type: ignore[no-untyped-def]
        self.world.tick()
        if self.full:
            raise NoSpace("the disk is full")
        super().set_data(run, **values)
        self.world.tick()


def begin(world: World, journal: Journal, policy: RolloutPolicy, *, to: int = 2) -> Orders:
    plan = plans.make(
        "core", from_generation=world.current, to_generation=to, seen=world.seen(), policy=policy
    )
    draft = Orders(run=0, base="core", from_generation=world.current, to_generation=to, policy=policy)  # type: ignore[arg-type]
    run = journal.begin("patch", "core", data=draft.data(), steps=steps_of(plan))
    return dataclasses.replace(draft, run=run)


def go_on(
    world: World,
    journal: Journal,
    orders: Orders,
    *,
    patience: float = 0.0,
    workers: int = 1,
    requested=lambda: None,  # type: ignore[no-untyped-def]
) -> RolloutResult:
    found = next(run for run in journal.history() if run.id == orders.run)
    return Rollout(
        orders_from(found.id, "core", found.data),
        journal.steps(found.id),
        mover=world,
        probe=world.probe,
        journal=journal,
        patience=patience,
        workers=workers,
        requested=requested,
    ).run()


def paths(place: Path) -> Paths:
    return Paths(store=place / "store", run=place / "run", lxc=place / "lxc")


__all__ = [
    "Died",
    "DyingJournal",
    "Fake",
    "Request",
    "RunState",
    "StepState",
    "World",
    "begin",
    "go_on",
    "paths",
]
