"""What doctor finds: one value for each thing that this host must offer."""

from __future__ import annotations

import dataclasses
import enum


class Status(enum.StrEnum):
    """How it stands with one thing."""

    OK = "OK"
    WARN = "WARN"
    """It works, but not as well, as safely or as often as it should."""
    FAIL = "FAIL"
    """Something would break: create and start refuse."""
    UNKNOWN = "UNKNOWN"
    """It could not be looked at, mostly because we are not root."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    id: str
    """Stable, for scripts: ``limit.kernel.pty.max``."""
    title: str
    status: Status
    found: str
    needed: str = ""
    why: str = ""
    """What it is needed for, or what goes wrong without."""
    fix_command: str = ""
    """What a person would type; empty if nothing has to be mended."""
    fixable: bool = False
    """``doctor --fix`` mends it."""
