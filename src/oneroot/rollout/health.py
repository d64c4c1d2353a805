"""Waiting until what was started is alive and healthy: one thread for all, never one for each.

Looks are cheap and begin 2 ms after the start, at growing distances up to 50 ms; a declared check
is asked beside them in a few threads, because its answer may take its whole timeout.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from oneroot.container import healthcheck, liveness, spec
from oneroot.container.liveness import Liveness
from oneroot.settings import Settings

FIRST_WAIT = 0.002
LONGEST_WAIT = 0.05
_GROWTH = 1.6
_ASK_WAIT = 0.05
_LONGEST_ASK_WAIT = 0.5
_ASKERS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """How to look at containers; tests put another in its place."""

    look: Callable[[str], Liveness]
    """Cheap, never blocks; says whether the declared units or command run."""
    ask: Callable[[str], Liveness]
    """Asks the declared check too, and may take its timeout."""
    has_check: Callable[[str], bool] = lambda _: False
    retries: Callable[[str], int] = lambda _: 0
    """Failed answers allowed before it is given up; 0: any number until the time is over."""


@dataclasses.dataclass(kw_only=True)
class _Watch:
    name: str
    deadline: float
    future: Future[Liveness]
    wait: float = FIRST_WAIT
    refusals: int = 0
    gone: int = 0


class Watcher:
    """Watches many containers become alive. `watch` may be called from any thread.

    :param halted: asked all the time; when it says yes, what is being watched is given back as
        it is, unknown.
    """

    def __init__(self, probe: Probe, *, halted: Callable[[], bool] = lambda: False) -> None:
        self._probe = probe
        self._halted = halted
        self._queue: list[tuple[float, int, _Watch]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._askers = concurrent.futures.ThreadPoolExecutor(_ASKERS, thread_name_prefix="ask")
        self._thread = threading.Thread(target=self._loop, name="watcher", daemon=True)
        self._thread.start()

    def watch(self, name: str, timeout: float) -> Future[Liveness]:
        """Look until the container is alive and healthy, or time is over; never raises by itself.

        :param timeout: seconds; 0 looks (and asks) once.
        """
        future: Future[Liveness] = Future()
        self._put(_Watch(name=name, deadline=time.monotonic() + timeout, future=future), 0.0)
        return future

    def close(self) -> None:
        """End the thread; what is still watched is given back as it is."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._askers.shutdown(wait=True)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _put(self, watch: _Watch, wait: float) -> None:
        with self._changed:
            heapq.heappush(self._queue, (time.monotonic() + wait, next(self._order), watch))
            self._changed.notify()

    def _loop(self) -> None:
        while (watch := self._next()) is not None:
            try:
                self._look(watch)
            except BaseException as error:  # noqa: BLE001  the waiting thread must hear of it
                watch.future.set_exception(error)

    def _next(self) -> _Watch | None:
        with self._changed:
            while True:
                if self._queue and (self._closed or self._halted()):
                    return heapq.heappop(self._queue)[2]
                if self._closed:
                    return None
                wait = self._queue[0][0] - time.monotonic() if self._queue else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._queue)[2]
                self._changed.wait(wait)

    def _look(self, watch: _Watch) -> None:
        found = self._probe.look(watch.name)
        if not found.running:
            watch.gone += 1
        if not found.ok:
            self._again(watch, found, LONGEST_WAIT)
        elif not self._probe.has_check(watch.name):
            watch.future.set_result(found)
        elif self._ending():
            self._again(watch, found, LONGEST_WAIT)
        else:
            asking = self._askers.submit(self._probe.ask, watch.name)
            asking.add_done_callback(lambda done: self._asked(watch, done))

    def _asked(self, watch: _Watch, done: Future[Liveness]) -> None:
        try:
            found = done.result()
        except BaseException as error:  # noqa: BLE001  the waiting thread must hear of it
            watch.future.set_exception(error)
            return
        if found.ok:
            watch.future.set_result(found)
            return
        watch.refusals += found.healthy is False
        watch.wait = max(watch.wait, _ASK_WAIT)
        retries = self._probe.retries(watch.name)
        if 0 < retries < watch.refusals:
            watch.future.set_result(found)
        else:
            self._again(watch, found, _LONGEST_ASK_WAIT)

    def _again(self, watch: _Watch, found: Liveness, longest: float) -> None:
        if self._ending():
            watch.future.set_result(dataclasses.replace(found, alive=None, reasons=("interrupted",)))
        elif watch.gone > 1 or time.monotonic() >= watch.deadline:
            watch.future.set_result(found)
        else:
            self._put(watch, min(watch.wait, max(0.0, watch.deadline - time.monotonic())))
            watch.wait = min(watch.wait * _GROWTH, longest)

    def _ending(self) -> bool:
        return self._closed or self._halted()


def probe(settings: Settings, specs: dict[str, spec.ContainerSpec]) -> Probe:
    """Return how the real containers of these declarations are looked at."""

    def ask(name: str) -> Liveness:
        return healthcheck.check(settings, specs[name])

    def retries(name: str) -> int:
        health = specs[name].health
        return health.retries if health else 0

    return Probe(
        look=lambda name: liveness.look(settings.paths, specs[name]),
        ask=ask,
        has_check=lambda name: healthcheck.has_question(specs[name]),
        retries=retries,
    )


def wait_alive(settings: Settings, name: str, *, timeout: float | None = None) -> Liveness:
    """Wait until one container is alive and healthy, or until time is over.

    :param timeout: seconds; None as the settings say.
    :raises CorruptState: its declaration cannot be read.
    """
    declared = spec.load(settings.paths, name)
    with Watcher(probe(settings, {name: declared})) as watcher:
        return watcher.watch(name, patience(settings, timeout)).result()


def patience(settings: Settings, timeout: float | None) -> float:
    """Return how long a started container may take to be alive and healthy, in seconds."""
    return settings.timeouts.alive + settings.timeouts.health if timeout is None else timeout
