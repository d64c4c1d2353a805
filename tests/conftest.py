"""Options and helpers for all tests."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--random-kills", type=int, default=10, help="how many random moments to kill at")


def skip_or_fail(reason: str) -> None:
    """Skip a test that this machine cannot run; where it must run, that is a failure."""
    if os.environ.get("ONEROOT_TESTS_MUST_RUN"):
        pytest.fail(f"this must run here, and cannot: {reason}")
    pytest.skip(reason)
