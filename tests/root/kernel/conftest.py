"""What tests of the kernel room need: a place on a real filesystem, and code run apart from us."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oneroot.kernel import mount
from oneroot.kernel.tree import remove_tree
from tests.conftest import skip_or_fail

Apart = Callable[[Callable[[], None]], None]


@pytest.fixture(scope="session", autouse=True)
def as_root() -> None:
    """Stands for the one above: these tests need root, but none of its programs."""
    if os.geteuid() != 0:
        skip_or_fail("not root")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a disk, not on a tmpfs, which behaves differently."""
    made = Path(tempfile.mkdtemp(prefix="oneroot-kernel-", dir="/var/tmp"))
    try:
        yield made
    finally:
        remove_tree(made)


@pytest.fixture
def apart() -> Apart:
    """Run a function in a child with a mount namespace of its own, so that nothing can be left."""

    def run(action: Callable[[], None]) -> None:
        child = os.fork()
        if child == 0:
            try:
                mount.new_namespace()
                action()
            except BaseException:  # noqa: BLE001 - a fork must never return into pytest
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(123)  # a silent death is no success
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 123

    return run
