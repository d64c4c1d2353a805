"""Many at once: the same work on many containers, bounded, each failure kept by name."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from oneroot.errors import OnerootError, SomeFailed
from oneroot.work import interrupt
from oneroot.work.progress import SILENT, Progress

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome(Generic[R]):
    """What became of one of them: a value, or the error that stopped it."""

    name: str
    value: R | None = None
    error: OnerootError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


def for_each(
    items: Iterable[T],
    work: Callable[[T], R],
    *,
    name: Callable[[T], str] = str,
    workers: int,
    title: str,
    progress: Progress = SILENT,
) -> list[Outcome[R]]:
    """Do *work* on every item, at most *workers* at once, and return all outcomes in order.

    A failure stops its own item only. A signal lets what has begun finish, begins nothing
    more, and raises `Interrupted`.
    """
    listed = list(items)
    task = progress.begin(title, len(listed))

    def one(item: T) -> Outcome[R]:
        label = name(item)
        try:
            interrupt.check()
            outcome = Outcome(name=label, value=work(item))
        except OnerootError as error:
            error.container = error.container or label
            outcome = Outcome[R](name=label, error=error)
        except OSError as error:
            wrapped = OnerootError(f"{title}: {label} failed", why=str(error), container=label)
            wrapped.__cause__ = error
            outcome = Outcome[R](name=label, error=wrapped)
        message = str(outcome.error) if outcome.error else ""
        task.done(label, failed=not outcome.ok, message=message)
        return outcome

    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        futures = [pool.submit(one, item) for item in listed]
        try:
            outcomes = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    interrupt.check()
    return outcomes


def raise_failures(outcomes: Sequence[Outcome[R]], what: str) -> None:
    """Raise one error that carries every failure, if there is any; a lone one as it is."""
    failures = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(failures) == 1 and len(outcomes) == 1:
        raise failures[0]
    if failures:
        raise SomeFailed(f"{what}: {len(failures)} of {len(outcomes)} failed", failures)
