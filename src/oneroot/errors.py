"""Every error oneroot raises on purpose: what happened, why, and what to do.

Domain code raises these and never prints; ``cli/`` alone turns them into text or JSON and
into an exit code. One family has one exit code, and this module is the only table of both.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """The contract with scripts: what a command's exit status means."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_PROVEN = 3
    HOST = 4
    BUSY = 5
    INTERRUPTED = 130


class OnerootError(Exception):
    """Something failed; nothing is lost.

    :param what: what happened, one sentence, without a full stop.
    :param why: the cause, as exact as it is known.
    :param fix: what the operator can do, preferably a command.
    :param container: the container concerned, if it is about one.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED
    code: ClassVar[str] = "failed"

    def __init__(self, what: str, *, why: str = "", fix: str = "", container: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.container = container

    def __str__(self) -> str:
        return ": ".join(part for part in (self.what, self.why) if part)


class UsageError(OnerootError):
    """A wrong argument, name or declaration: the caller must say something else."""

    exit_code = ExitCode.USAGE
    code = "usage"


class UnknownName(UsageError):
    """A name or pattern that matches nothing."""

    code = "unknown-name"


class HostError(OnerootError):
    """This host lacks something (or we are not root): ``oneroot doctor`` says what."""

    exit_code = ExitCode.HOST
    code = "host"


class Busy(OnerootError):
    """Somebody else holds the lock; says who, and since when."""

    exit_code = ExitCode.BUSY
    code = "busy"


class Interrupted(OnerootError):
    """A signal asked us to stop; the state is consistent and the journal knows the rest."""

    exit_code = ExitCode.INTERRUPTED
    code = "interrupted"


class CorruptState(OnerootError):
    """A file of ours cannot be read or does not say what it should."""

    code = "corrupt-state"


class NoSpace(OnerootError):
    """A filesystem is full (ENOSPC or EDQUOT)."""

    code = "no-space"


class CommandFailed(OnerootError):
    """An outside program failed, or ran out of its time.

    :param returncode: its exit status, negative for a signal, None for a timeout.
    """

    code = "command-failed"

    def __init__(
        self,
        what: str,
        *,
        argv: Sequence[str],
        returncode: int | None,
        stdout: str = "",
        stderr: str = "",
        why: str = "",
        fix: str = "",
        container: str | None = None,
    ) -> None:
        super().__init__(what, why=why, fix=fix, container=container)
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class SomeFailed(OnerootError):
    """Of many, some failed; the others went on. Carries each failure."""

    code = "some-failed"

    def __init__(self, what: str, failures: Sequence[OnerootError]) -> None:
        names = ", ".join(failure.container or "?" for failure in failures[:5])
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        super().__init__(what, why=f"{names}{more}" if failures else "")
        self.failures = tuple(failures)
