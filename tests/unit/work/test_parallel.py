from __future__ import annotations

import threading
import time

import pytest

from oneroot.errors import CommandFailed, OnerootError, SomeFailed
from oneroot.work.parallel import for_each, raise_failures


def test_all_are_done_in_order_and_a_failure_stops_only_itself() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise OnerootError("three")
        if number == 4:
            raise FileNotFoundError(2, "gone")
        return number * 2

    outcomes = for_each(range(6), work, workers=3, title="t")
    assert [outcome.value for outcome in outcomes] == [0, 2, 4, None, None, 10]
    assert [outcome.name for outcome in outcomes if not outcome.ok] == ["3", "4"]
    with pytest.raises(SomeFailed) as caught:
        raise_failures(outcomes, "doubling")
    assert [failure.container for failure in caught.value.failures] == ["3", "4"]


def test_never_more_at_once_than_the_bound() -> None:
    running = 0
    most = 0
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    for_each(range(20), work, workers=4, title="t")
    assert most == 4


def test_one_alone_raises_its_own_error() -> None:
    def work(_: str) -> None:
        raise CommandFailed("it failed", argv=["x"], returncode=9)

    with pytest.raises(CommandFailed):
        raise_failures(for_each(["web001"], work, workers=1, title="t"), "x")
