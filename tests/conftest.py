"""Options and helpers for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.kernel.tree import remove_tree


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--random-kills", type=int, default=10, help="how many random moments to kill at")


def skip_or_fail(reason: str) -> None:
    """Skip a test that this machine cannot run; where it must run, that is a failure."""
    if os.environ.get("ONEROOT_TESTS_MUST_RUN"):
        pytest.fail(f"this must run here, and cannot: {reason}")
    pytest.skip(reason)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """As pytest has it, but removed by us: pytest's own removal gives up on hostile trees."""
    yield tmp_path
    remove_tree(tmp_path)
