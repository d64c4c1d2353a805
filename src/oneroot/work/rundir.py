"""The run directory: empty after each boot, and made with its modes before anything is started.

The start hook makes the same directories for whoever starts a container without us.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from oneroot.settings import Paths

Wanted = tuple[Path, int]
"""A directory, and the mode that it must not exceed."""


def wanted(paths: Paths) -> list[Wanted]:
    """Return the directories, those above first."""
    return [
        (paths.run, 0o711),
        (paths.locks, 0o700),
        (paths.leases, 0o700),
        (paths.hook_reports, 0o700),
        (paths.lower, 0o711),
        (paths.overlay, 0o711),
        (paths.names, 0o755),
    ]


def make(directories: Iterable[Wanted]) -> None:
    """Make the directories that are missing, and take from the others what others must not do there."""
    for path, mode in directories:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        if _too_open(path, mode):
            path.chmod(mode)


def lacking(directories: Iterable[Wanted]) -> bool:
    """Tell whether `make` would do something."""
    return any(not path.is_dir() or _too_open(path, mode) for path, mode in directories)


def _too_open(path: Path, mode: int) -> bool:
    return bool(path.stat().st_mode & 0o777 & ~mode)
