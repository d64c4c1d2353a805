"""Programs inside running containers: ``exec`` and ``shell``.

Everything goes through ``lxc-attach --clear-env``. No descriptor of the host's terminal gets
inside, since whoever holds one can type into it (TIOCSTI): programs get pipes, and an interactive
one gets a pseudo-terminal of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pty
import selectors
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO

from oneroot.container import lxc
from oneroot.container.state import State, read_state
from oneroot.errors import OnerootError
from oneroot.run import environment
from oneroot.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran:
    """What a program inside a container did."""

    returncode: int
    """128 + N for one that signal N ended; None is never: a timeout raises."""
    stdout: bytes
    stderr: bytes
    truncated: bool = False


def start(
    settings: Settings, name: str, argv: Sequence[str], *, stdin: bool = False
) -> subprocess.Popen[bytes]:
    """Start a program inside a container, with pipes.

    They have no buffers of ours: closing one would wait for whoever inside does not empty it.
    """
    return subprocess.Popen(
        lxc.attach_argv(settings.paths, name, tuple(argv)),
        bufsize=0,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )


def execute(
    settings: Settings,
    name: str,
    argv: Sequence[str],
    *,
    timeout: float | None = None,
    limit: int = 16 << 20,
    stdin: IO[bytes] | None = None,
) -> Ran:
    """Run a program inside a container to its end and return its output.

    :param limit: bytes of output kept; the rest is read and thrown away, so that nothing blocks.
    :raises OnerootError: the container does not run, or the program took too long.
    """
    _require_running(settings, name)
    with start(settings, name, argv, stdin=stdin is not None) as child:
        if stdin is not None:
            _feed_in_background(stdin, child)
        try:
            ran = _collect(child, limit, None if timeout is None else time.monotonic() + timeout)
        except BaseException:
            _kill(child)
            raise
        if ran is None:
            _kill(child)
            raise OnerootError(
                f"A program inside {name} did not finish within {timeout:g} s",
                why=" ".join(argv),
                container=name,
            )
    return ran


def stream(settings: Settings, name: str, argv: Sequence[str]) -> int:
    """Run a program with our standard streams passed through pipes; return its exit status."""
    _require_running(settings, name)
    with start(settings, name, argv, stdin=True) as child:
        try:
            _feed_in_background(sys.stdin.buffer, child)
            _copy_out(child, lambda data, error: _write(2 if error else 1, data))
        except BaseException:
            _kill(child)
            raise
    return _status(child.returncode)


def interactive(settings: Settings, name: str, argv: Sequence[str]) -> int:
    """Run a program on a terminal of its own that follows ours; return its exit status."""
    _require_running(settings, name)
    ours = sys.stdin.fileno()
    before = termios.tcgetattr(ours)
    command = lxc.attach_argv(settings.paths, name, tuple(argv), term=os.environ.get("TERM", "xterm"))
    with contextlib.ExitStack() as stack:
        child, master = _on_own_terminal(command)
        stack.callback(_end, child)  # last: closing the master has told it by SIGHUP
        stack.callback(os.close, master)
        _follow_size(stack, ours, master)
        stack.callback(termios.tcsetattr, ours, termios.TCSAFLUSH, before)
        tty.setraw(ours)
        _relay(ours, master)
        _, status = os.waitpid(child, 0)
        return _status(os.waitstatus_to_exitcode(status))


def _on_own_terminal(command: list[str]) -> tuple[int, int]:
    """Start a program whose controlling terminal is a new one; return its pid and the terminal's master.

    It must be the controlling one: only so a change of size and a hang-up reach the program.
    """
    clean = environment()
    child, master = pty.fork()
    if child == 0:
        try:
            os.closerange(3, 1 << 20)  # what we were started with must not get inside
            os.execvpe(command[0], command, clean)
        finally:
            os._exit(127)
    return child, master


def _end(child: int) -> None:
    """Make sure that a child is gone and reaped."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        for _ in range(100):
            if os.waitpid(child, os.WNOHANG)[0]:
                return
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _require_running(settings: Settings, name: str) -> None:
    found = read_state(settings, name)
    if found.state is not State.RUNNING:
        raise OnerootError(
            f"The container {name} does not run",
            why=f"it is {found.state.value}",
            fix=f"oneroot start {name}",
            container=name,
        )


def _collect(child: subprocess.Popen[bytes], limit: int, end: float | None) -> Ran | None:
    kept = {False: bytearray(), True: bytearray()}
    truncated = False

    def keep(data: bytes, error: bool) -> None:
        nonlocal truncated
        room = limit - len(kept[False]) - len(kept[True])
        truncated = truncated or len(data) > room
        kept[error] += data[: max(0, room)]

    if not _copy_out(child, keep, end):
        return None
    return Ran(
        returncode=_status(child.returncode),
        stdout=bytes(kept[False]),
        stderr=bytes(kept[True]),
        truncated=truncated,
    )


def _copy_out(
    child: subprocess.Popen[bytes], take: Callable[[bytes, bool], None], end: float | None = None
) -> bool:
    """Hand over output until the program has ended; False when the time is over.

    A program may leave others behind that keep its pipes open: its own end is what counts.
    """
    assert child.stdout is not None and child.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ, False)
        selector.register(child.stderr, selectors.EVENT_READ, True)
        while True:
            ended = child.poll() is not None
            ready = selector.select(timeout=0 if ended else 0.05) if selector.get_map() else []
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if data:
                    take(data, key.data)
                else:
                    selector.unregister(key.fileobj)
            if ended and not ready:
                return True
            if not selector.get_map() and not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.05)
            if end is not None and time.monotonic() > end:
                return False


def _feed_in_background(source: IO[bytes], child: subprocess.Popen[bytes]) -> None:
    def feed() -> None:
        assert child.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(source.fileno(), 1 << 16):
                while data:
                    data = data[child.stdin.write(data) :]
        with contextlib.suppress(OSError, ValueError):
            child.stdin.close()

    # A daemon: it may wait for input that never comes when the program has ended already.
    threading.Thread(target=feed, daemon=True).start()


def _relay(ours: int, master: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        selector.register(master, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                try:
                    data = os.read(key.fd, 1 << 16)
                except OSError:  # EIO: the other end of the pseudo-terminal is gone
                    return
                if not data and key.fd == master:
                    return
                if not data:
                    selector.unregister(ours)
                _write(master if key.fd == ours else 1, data)


def _follow_size(stack: contextlib.ExitStack, ours: int, master: int) -> None:
    def follow(_number: int = 0, _frame: FrameType | None = None) -> None:
        size = fcntl.ioctl(ours, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)

    follow()
    former = signal.signal(signal.SIGWINCH, follow)
    stack.callback(signal.signal, signal.SIGWINCH, former)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
