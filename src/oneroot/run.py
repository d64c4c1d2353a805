"""The one way out to another program.

Every call has a timeout, empty standard input unless given, a C.UTF-8 locale, an explicit
environment and one error that carries the whole story. The doors (``lxc``, ``apt``, ``nft`` …)
are built on it and give each sub-command one function.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from oneroot.errors import CommandFailed, HostError

log = logging.getLogger(__name__)

SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("HOME", "TERM", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completed:
    """What a program did."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the clean environment that outside programs get, with *extra* on top."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": SAFE_PATH, "LC_ALL": "C.UTF-8", **kept, **(extra or {})}


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    cwd: Path | None = None,
    check: bool = True,
    ok: Sequence[int] = (0,),
    container: str | None = None,
) -> Completed:
    """Run a program to its end and return what it said.

    :param timeout: seconds until it and everything it started is killed.
    :param env: added to the clean environment.
    :param check: raise `CommandFailed` when its exit status is not in *ok*.
    :raises HostError: the program is not installed.
    :raises CommandFailed: it failed or took too long.
    """
    words = tuple(str(word) for word in argv)
    log.debug("run %s", shlex.join(words))
    child = _start(words, env, cwd, container, stdin=input is not None)
    try:
        stdout, stderr = child.communicate(input, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        _kill_group(child)
        raise CommandFailed(
            f"{words[0]} did not finish within {timeout:g} s",
            argv=words,
            returncode=None,
            why=shlex.join(words),
            container=container,
        ) from error
    except BaseException:
        _kill_group(child)
        raise
    if check and child.returncode not in ok:
        raise CommandFailed(
            f"{words[0]} failed with {_status(child.returncode)}",
            argv=words,
            returncode=child.returncode,
            stdout=stdout,
            stderr=stderr,
            why=_tail(stderr) or _tail(stdout) or shlex.join(words),
            container=container,
        )
    return Completed(argv=words, returncode=child.returncode, stdout=stdout, stderr=stderr)


def _start(
    words: tuple[str, ...],
    env: Mapping[str, str] | None,
    cwd: Path | None,
    container: str | None,
    *,
    stdin: bool,
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(env),
            cwd=cwd,
            text=True,
            errors="backslashreplace",
            start_new_session=True,  # so that a timeout can kill all that it started
        )
    except FileNotFoundError as error:
        raise HostError(
            f"The program {words[0]} is not installed",
            why=str(error),
            fix="oneroot doctor",
            container=container,
        ) from error


def _kill_group(child: subprocess.Popen[str]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def _status(returncode: int) -> str:
    if returncode < 0:
        return signal.Signals(-returncode).name
    return f"exit status {returncode}"


def _tail(text: str, lines: int = 5) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
