"""Run a program of a tree in namespaces of its own, with as little power as it needs.

For package managers, whose maintainer scripts are arbitrary code: own mount, pid, IPC and UTS
namespace, no network unless asked for, a reduced capability bounding set, a fresh ``/run`` and
``/dev``, ``/sys`` and ``/proc/sys`` read-only. The namespaces end with the program, and the program
ends with us (PDEATHSIG), so a kill at any point leaves no mount and no process.

`run` starts this module again as a child process, because namespaces cannot be entered by one
thread of a process that has several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from oneroot.kernel import libc, mount

_CAPABILITIES = {
    "chown": 0, "dac_override": 1, "dac_read_search": 2, "fowner": 3, "fsetid": 4, "kill": 5,
    "setgid": 6, "setuid": 7, "sys_chroot": 18, "mknod": 27, "audit_write": 29, "setfcap": 31,
}  # fmt: skip
"""What dpkg and maintainer scripts need; nothing that reaches the kernel or the host."""

_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


@dataclasses.dataclass(frozen=True)
class Bind:
    """Show a file or directory of the host inside; the target is made if it is missing."""

    source: str
    target: str
    read_only: bool = False

    def describe(self) -> str:
        return f"show {self.source} at {self.target}{' (read-only)' if self.read_only else ''}"

    def apply(self) -> None:
        mount.bind(Path(self.source), Path(self.target))
        mount.set_flags(Path(self.target), read_only=self.read_only, nosuid=True, nodev=True)


@dataclasses.dataclass(frozen=True)
class Overlay:
    """Mount an overlay for a package manager: ``redirect_dir=on``, since with ``nofollow`` dpkg
    fails with EXDEV where a package turns a directory into something else.
    """

    lower: str
    upper: str
    work: str
    target: str

    def describe(self) -> str:
        return f"mount an overlay of {self.lower} at {self.target}"

    def apply(self) -> None:
        options = {**mount.OVERLAY_OPTIONS, "redirect_dir": "on"}
        mount.overlay(
            [Path(self.lower)], Path(self.target),
            upper=Path(self.upper), work=Path(self.work), options=options,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tmpfs:
    """Mount an empty tmpfs."""

    target: str
    mode: str = "755"

    def describe(self) -> str:
        return f"mount a tmpfs at {self.target}"

    def apply(self) -> None:
        mount.filesystem("tmpfs", Path(self.target), options=f"mode={self.mode}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What to run, and in what surroundings.

    :param root: the program's root directory; None leaves it the host's root.
    :param mounts: done in this order, in the new mount namespace, before entering the root.
    :param network: False gives it an empty network namespace with only ``lo``.
    :param confined: reduce the capability bounding set.
    """

    argv: tuple[str, ...]
    root: str | None = None
    mounts: tuple[Bind | Overlay | Tmpfs, ...] = ()
    network: bool = False
    confined: bool = True
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        plain = dataclasses.asdict(self)
        plain["mounts"] = [{"kind": type(item).__name__, **dataclasses.asdict(item)} for item in self.mounts]
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> Sandbox:
        plain = json.loads(text)
        kinds: dict[str, Any] = {"Bind": Bind, "Overlay": Overlay, "Tmpfs": Tmpfs}
        plain["mounts"] = tuple(kinds[item.pop("kind")](**item) for item in plain["mounts"])
        plain["argv"] = tuple(plain["argv"])
        return cls(**plain)


def run(sandbox: Sandbox, *, log: IO[bytes] | int, timeout: float) -> int:
    """Run a program in a sandbox until it ends, and return its exit status.

    :param log: where its output and the sandbox's own errors go.
    :raises TimeoutError: it took longer than *timeout* seconds; everything of it is dead.
    """
    source = str(Path(__file__).resolve().parents[2])
    start = f"import sys; sys.path.insert(0, {source!r}); from oneroot.kernel import sandbox; sandbox.main()"
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", start, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        child.communicate(sandbox.to_json().encode("ascii"), timeout=timeout)
    except subprocess.TimeoutExpired:
        raise TimeoutError(110, f"did not finish within {timeout:g} s", sandbox.argv[0]) from None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return child.returncode


def main() -> None:
    """The child: make the surroundings, run the program, pass its exit status on."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        os._exit(137)  # our parent died before PDEATHSIG was set
    sandbox = Sandbox.from_json(sys.stdin.read())
    try:
        flags = libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWPID
        libc.unshare(flags | (0 if sandbox.network else libc.CLONE_NEWNET))
        mount.make_private()
        if not sandbox.network:
            _raise_loopback()
        for item in sandbox.mounts:
            item.apply()
        first = os.fork()
        if first == 0:
            _be_init(sandbox)
    except OSError as error:
        sys.stderr.write(f"sandbox: {error}\n")
        sys.stderr.flush()
        os._exit(125)
    os._exit(_wait(first))


def _be_init(sandbox: Sandbox) -> None:
    """Pid 1 of the new pid namespace: its end kills all that the program left running."""
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if sandbox.root is not None:
            _furnish(Path(sandbox.root))
            os.chroot(sandbox.root)
        else:
            mount.filesystem("proc", Path("/proc"))
        os.chdir("/")
        program = os.fork()
        if program == 0:
            _become(sandbox)
        while True:
            pid, status = os.wait()
            if pid == program:
                os._exit(_exit_code(status))
    except OSError as error:
        sys.stderr.write(f"sandbox: {error}\n")
        sys.stderr.flush()
    os._exit(125)


def _become(sandbox: Sandbox) -> None:
    """Give up what is not needed, and become the program."""
    os.umask(0o022)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    descriptor = os.open("/dev/null", os.O_RDONLY)
    os.dup2(descriptor, 0)
    if sandbox.confined:
        last = int(_read("/proc/sys/kernel/cap_last_cap"))
        for capability in set(range(last + 1)) - set(_CAPABILITIES.values()):
            libc.prctl(libc.PR_CAPBSET_DROP, capability)
    os.execvpe(sandbox.argv[0], sandbox.argv, {**sandbox.environment})


def _furnish(root: Path) -> None:
    """Mount what a program expects: /proc, /sys, /dev and /run, none of them the host's."""
    proc, sys_, dev, run_ = (root / name for name in ("proc", "sys", "dev", "run"))
    mount.filesystem("proc", proc)
    mount.bind(proc / "sys", proc / "sys")
    mount.set_flags(proc / "sys", read_only=True)
    with contextlib.suppress(PermissionError):  # inside a container without the right to a new sysfs
        mount.filesystem("sysfs", sys_)
        mount.set_flags(sys_, read_only=True)
    mount.filesystem("tmpfs", run_, options="mode=755")
    (run_ / "lock").mkdir()
    mount.filesystem("tmpfs", dev, options="mode=755")
    for name, (major, minor) in _DEVICES.items():
        node = dev / name
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        node.chmod(0o666)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (dev / name).symlink_to(target)
    (dev / "shm").mkdir(mode=0o1777)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _wait(pid: int) -> int:
    return _exit_code(os.waitpid(pid, 0)[1])


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def describe(mounts: Sequence[Bind | Overlay | Tmpfs]) -> list[str]:
    """Return what will be mounted, a line each."""
    return [item.describe() for item in mounts]
