"""The door to the ``lxc-*`` programs: one function for each that we use.

Start and stop go through the programs and not through python3-lxc: the monitor would be a fork of
our interpreter (8.9 MB instead of 3.2), and its calls hold the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from oneroot.container import lease
from oneroot.errors import Busy, CommandFailed, OnerootError
from oneroot.run import SAFE_PATH, run
from oneroot.settings import Paths
from oneroot.work import locks

_SPAWN_PATIENCE = 20.0
"""Seconds that LXC may need beyond the container's own."""

_LOG_BYTES = 1 << 20

_PATH_OF_START = "/usr/sbin:/sbin"

_CLEAN_ENVIRONMENT = {
    "TERM": "xterm",
    "LANG": "C.UTF-8",
    "PATH": SAFE_PATH,
    "HOME": "/root",
}


def start(paths: Paths, name: str, *, timeout: float) -> None:
    """lxc-start; returns when the container runs. The caller holds the container's lock.

    :raises OnerootError: with the cause as far as LXC or our hook tell it.
    """
    refusal = paths.hook_reports / f"{name}.error"
    refusal.unlink(missing_ok=True)
    argv = [_program("lxc-start"), "-P", str(paths.lxc), "-n", name]
    # Without newuidmap in its path LXC writes the id maps itself, which is a tenth faster.
    token = {locks.TOKEN_VARIABLE: locks.TOKEN, "PATH": _PATH_OF_START}
    try:
        run(argv, timeout=timeout + _SPAWN_PATIENCE, env=token, container=name)
    except CommandFailed as error:
        if refused := _refusal(refusal, name):
            raise refused from error
        if error.returncode is None:
            raise
        _start_again_with_log(paths, name, argv, token, timeout)


def _start_again_with_log(
    paths: Paths, name: str, argv: list[str], token: dict[str, str], timeout: float
) -> None:
    """LXC tells the cause of some failures at level INFO only, which costs too much for every start."""
    _let_monitor_end(paths, name, timeout)
    with _log_of_one_start() as log:
        try:
            run(
                [*argv, "-l", "INFO", "-o", f"/proc/{os.getpid()}/fd/{log.fileno()}"],
                timeout=timeout + _SPAWN_PATIENCE,
                env=token,
                container=name,
            )
        except CommandFailed as error:
            if refused := _refusal(paths.hook_reports / f"{name}.error", name):
                raise refused from error
            _let_monitor_end(paths, name, timeout)
            kept = paths.hook_reports / f"{name}.log"
            log.seek(0)
            kept.write_bytes(log.read(_LOG_BYTES))
            raise OnerootError(
                f"The container {name} was not started",
                why=_cause(_read(kept)) or error.why,
                fix=f"read {kept}, and {paths.container(name) / 'console.log'}",
                container=name,
            ) from error


@contextlib.contextmanager
def _log_of_one_start() -> Iterator[IO[bytes]]:
    """Yield a file in memory that takes nothing more afterwards.

    A monitor writes on into its log as long as it lives, at each reboot: one on a disk would grow
    without bound when the second start succeeds.
    """
    descriptor = os.memfd_create("lxc-start.log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "r+b", buffering=0) as log:
        try:
            yield log
        finally:
            log.truncate(0)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)


def _let_monitor_end(paths: Paths, name: str, timeout: float) -> None:
    """LXC reports a failed start while its monitor still takes down what it had set up."""
    failed = lease.read(paths, name)
    end = time.monotonic() + timeout
    while failed is not None and failed.held and time.monotonic() < end:
        time.sleep(0.005)


def stop(paths: Paths, name: str, *, timeout: float) -> None:
    """lxc-stop: the container's own stop signal, and SIGKILL after *timeout* seconds."""
    argv = ["lxc-stop", "-P", str(paths.lxc), "-n", name, "-t", str(max(1, round(timeout)))]
    # Status 2: it was not running any more when lxc-stop looked.
    run(argv, timeout=timeout + _SPAWN_PATIENCE, ok=(0, 2), container=name)


def kill(paths: Paths, name: str) -> None:
    """lxc-stop --kill: SIGKILL to all processes, at once."""
    run(
        ["lxc-stop", "-P", str(paths.lxc), "-n", name, "--kill"],
        timeout=_SPAWN_PATIENCE,
        ok=(0, 2),
        container=name,
    )


def unfreeze(paths: Paths, name: str) -> None:
    """lxc-unfreeze."""
    run(["lxc-unfreeze", "-P", str(paths.lxc), "-n", name], timeout=_SPAWN_PATIENCE, container=name)


def attach_argv(paths: Paths, name: str, argv: tuple[str, ...], *, term: str = "xterm") -> list[str]:
    """Return the command line that runs *argv* inside a running container, as its root, with a clean
    environment: without ``--clear-env`` every variable of ours would be visible inside.
    """
    variables = {**_CLEAN_ENVIRONMENT, "TERM": term}
    settings = [f"--set-var={key}={value}" for key, value in variables.items()]
    return ["lxc-attach", "-P", str(paths.lxc), "-n", name, "--clear-env", *settings, "--", *argv]


def _refusal(file: Path, name: str) -> OnerootError | None:
    """Return why the start hook refused: it writes a code, what and why, and what to do, a line each."""
    code, why, fix = [*_read(file).split("\n", 2), "", "", ""][:3]
    if not code:
        return None
    family = Busy if code == "busy" else OnerootError
    return family(f"The container {name} was not started", why=why, fix=fix, container=name)


@functools.cache
def _program(name: str) -> str:
    return shutil.which(name, path=SAFE_PATH) or name


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="backslashreplace")[:20_000].strip()
    return ""


_LOG_LINE = re.compile(r"^lxc-start \S+ \S+ (\w+)\s+(\w+) - \S+ - (.*)$", re.MULTILINE)
_CONSEQUENCES = (
    "To get more details",
    "Additional information",
    "The container failed to start",
    "Received container state",
    "Failed to receive",
    "An error occurred in another process",
    "Failed to setup",
    "Failed to spawn",
)


def _cause(log: str) -> str:
    """Return what an LXC log tells of a failure's cause.

    When an overlay cannot be mounted, LXC tries again without a work directory, and only that second
    error is an ERROR; the first, an INFO, has the cause.
    """
    lines = [(level, where, text) for level, where, text in _LOG_LINE.findall(log)]
    hidden = [text for level, where, text in lines if level == "INFO" and where == "overlay"]
    errors = [text for level, _, text in lines if level in ("ERROR", "CRIT", "ALERT", "FATAL", "EMERG")]
    causes = [text for text in errors if not text.startswith(_CONSEQUENCES)]
    return "\n".join((hidden + causes or errors)[:3])
