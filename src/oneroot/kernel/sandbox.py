"""Run a program of a tree in namespaces of its own, with as little power as it needs.

For package managers, whose maintainer scripts are arbitrary code: own mount, pid, IPC and UTS
namespace, no network unless asked for, a reduced capability bounding set, a fresh ``/run`` and
``/dev``, ``/sys`` and ``/proc/sys`` read-only. The host's root is not only out of sight but out of
the namespace (``pivot_root``), since root leaves a mere ``chroot`` with a second one. The namespaces
end with the program, and the program ends with us (PDEATHSIG), so a kill at any point leaves no
mount and no process.

`run` starts `main` as a child process, because namespaces cannot be entered by one thread of a
process that has several. Three processes then stand between us and the program's end::

    us ── main (in the host's pid namespace) ── init (pid 1) ── the program

`main` dies with us, `init` with `main`, and everything else with `init`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from oneroot.kernel import libc, mount
from oneroot.kernel.tree import Tree

_CAPABILITIES = {
    "chown": 0, "dac_override": 1, "fowner": 3, "fsetid": 4, "kill": 5, "setgid": 6, "setuid": 7,
    "sys_chroot": 18, "mknod": 27, "audit_write": 29, "setfcap": 31,
}  # fmt: skip
"""What dpkg and maintainer scripts need; nothing that reaches the kernel or the host. Not
dac_read_search: open_by_handle_at(2) would open any file of the filesystem that the tree lies on."""

_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
_READ_ONLY_PROC = ("sys", "bus", "fs", "irq", "acpi", "scsi", "sysrq-trigger")
_HIDDEN_PROC = ("kcore", "keys", "latency_stats", "sched_debug", "timer_list")
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_SECONDS_TO_DIE = 5.0


@dataclasses.dataclass(frozen=True)
class Bind:
    """Show a file or directory of the host inside; the target is made if it is missing."""

    source: str
    target: str
    read_only: bool = False

    def describe(self) -> str:
        """Say what `apply` does."""
        return f"show {self.source} at {self.target}{' (read-only)' if self.read_only else ''}"

    def apply(self, root: str | None) -> None:
        """Mount it; see `_place` for *root*."""
        with _place(self.target, root, directory=Path(self.source).is_dir()) as place:
            mount.bind_restricted(Path(self.source), place, read_only=self.read_only)


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
        """Say what `apply` does."""
        return f"mount an overlay of {self.lower} at {self.target}"

    def apply(self, root: str | None) -> None:
        """Mount it, at a path of ours: this is the root itself or has nothing to do with it."""
        options = {**mount.OVERLAY_OPTIONS, "redirect_dir": "on"}
        mount.overlay(
            [Path(self.lower)], Path(self.target),
            upper=Path(self.upper), work=Path(self.work), options=options,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tmpfs:
    """Mount an empty tmpfs; the target is made if it is missing."""

    target: str
    mode: str = "755"

    def describe(self) -> str:
        """Say what `apply` does."""
        return f"mount a tmpfs at {self.target}"

    def apply(self, root: str | None) -> None:
        """Mount it; see `_place` for *root*."""
        with _place(self.target, root, directory=True) as place:
            _tmpfs(Path(f"/proc/self/fd/{place}"), self.mode)


Mount = Bind | Overlay | Tmpfs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What to run, and in what surroundings.

    :param root: the program's root directory; None leaves it the host's root.
    :param mounts: done in this order, in the new mount namespace, before entering the root; targets
        are paths as the host sees them.
    :param network: False gives it an empty network namespace with only ``lo``.
    :param confined: reduce the capability bounding set, and protect what /proc offers to root.
    :param hostname: what it sees; the host's own must not enter a generation.
    """

    argv: tuple[str, ...]
    root: str | None = None
    mounts: tuple[Mount, ...] = ()
    network: bool = False
    confined: bool = True
    hostname: str = "localhost"
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Write it down for `main`."""
        plain = dataclasses.asdict(self)
        plain["mounts"] = [{"kind": type(item).__name__, **dataclasses.asdict(item)} for item in self.mounts]
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> Sandbox:
        """Read what `to_json` wrote."""
        plain = json.loads(text)
        kinds: dict[str, Any] = {"Bind": Bind, "Overlay": Overlay, "Tmpfs": Tmpfs}
        plain["mounts"] = tuple(kinds[item.pop("kind")](**item) for item in plain["mounts"])
        plain["argv"] = tuple(plain["argv"])
        return cls(**plain)

    def describe(self) -> list[str]:
        """Return what will be done, a line each."""
        network = "with the host's network" if self.network else "without network"
        where = f"in {self.root}, {network}" if self.root else network
        return [*describe(self.mounts), f"run {' '.join(self.argv)} {where}"]


def describe(mounts: Sequence[Mount]) -> list[str]:
    """Return what will be mounted, a line each."""
    return [item.describe() for item in mounts]


def run(
    sandbox: Sandbox,
    *,
    log: IO[bytes] | int,
    timeout: float,
    stdout: IO[bytes] | int | None = None,
    input: bytes | None = None,
) -> int:
    """Run a program in a sandbox until it ends, and return its exit status (128 + N after a signal N).

    :param log: where its output goes, standard error alone if *stdout* is given.
    :param input: what it reads; /dev/null without.
    :raises OSError: the sandbox could not be set up, or the program not be executed: nothing ran.
    :raises TimeoutError: it took longer than *timeout* seconds; everything of it is dead.
    """
    source = str(Path(__file__).resolve().parents[2])
    start = f"import sys; sys.path.insert(0, {source!r}); from oneroot.kernel import sandbox; sandbox.main()"
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(open(os.memfd_create("report"), "rb"))
        order = stack.enter_context(open(os.memfd_create("order"), "wb"))
        order.write(sandbox.to_json().encode("ascii"))
        order.flush()
        child = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                start,
                *map(str, (os.getpid(), order.fileno(), report.fileno())),
            ],
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=log if stdout is None else stdout,
            stderr=log,
            pass_fds=(order.fileno(), report.fileno()),
            start_new_session=True,
        )
        try:
            child.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                errno.ETIMEDOUT, f"did not finish within {timeout:g} s", sandbox.argv[0]
            ) from None
        finally:
            _stop(child)
        report.seek(0)
        if failure := report.read():
            raise OSError(*json.loads(failure))
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End `main` and wait; asked politely, it waits for all that is in the namespaces."""
    for end in (child.terminate, child.kill):
        if child.poll() is not None:
            return
        end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_SECONDS_TO_DIE)


def main() -> None:
    """The child: make the surroundings, run the program, pass its exit status on."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    parent, order, report = map(int, sys.argv[1:])
    if os.getppid() != parent:
        os._exit(137)  # our parent died before PDEATHSIG was set
    for descriptor in (order, report):
        os.set_inheritable(descriptor, False)
    with _reported(report):
        sandbox = Sandbox.from_json(os.pread(order, os.fstat(order).st_size, 0).decode("ascii"))
        flags = libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWPID
        libc.unshare(flags | (0 if sandbox.network else libc.CLONE_NEWNET))
        mount.make_private()
        socket.sethostname(sandbox.hostname)
        if not sandbox.network:
            _raise_loopback()
        for item in sandbox.mounts:
            item.apply(sandbox.root)
        alive, held = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        init = os.fork()
        if init == 0:
            os.close(held)
            with _reported(report):
                _be_init(sandbox, alive, report)
        signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGKILL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os._exit(_exit_code(os.waitpid(init, 0)[1]))


@contextlib.contextmanager
def _reported(report: int) -> Iterator[None]:
    """End this process on any error, and write it where `run` finds it."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - a fork must never return into the code it was forked from
        number = getattr(error, "errno", None) or errno.EINVAL
        text = getattr(error, "strerror", None) or repr(error)
        where = getattr(error, "filename", None)
        os.pwrite(report, json.dumps([number, f"sandbox: {text}", where and os.fsdecode(where)]).encode(), 0)
    os._exit(125)


def _be_init(sandbox: Sandbox, alive: int, report: int) -> NoReturn:
    """Pid 1 of the new pid namespace: its end kills all that the program left running."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:
        os._exit(137)  # `main` died before PDEATHSIG was set
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_bytes())
    # From here on Python must load nothing: it would load, with all our power, what lies in the tree.
    sys.meta_path.clear()
    if sandbox.root is not None:
        _enter(Path(sandbox.root))
        _furnish()
    mount.filesystem("proc", Path("/proc"), flags=libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    if sandbox.confined:
        _protect_proc()
    os.chdir("/")
    program = os.fork()
    if program == 0:
        with _reported(report):
            _become(sandbox, last)
    while True:
        pid, status = os.wait()
        if pid == program:
            os._exit(_exit_code(status))


def _become(sandbox: Sandbox, last_capability: int) -> None:
    """Give up what is not needed, and become the program."""
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if sandbox.confined:
        os.setgroups([])
        libc.drop_capabilities(frozenset(_CAPABILITIES.values()), last_capability)
    try:
        os.execvpe(sandbox.argv[0], sandbox.argv, {**sandbox.environment})
    except OSError as error:
        raise OSError(error.errno, error.strerror, sandbox.argv[0]) from error


def _enter(root: Path) -> None:
    """Make *root* the namespace's root and let go of the old one, with everything below it.

    nodev: the program may make device nodes, which packages hold, and must not open them.
    """
    mount.bind(root, root, recursive=True)
    mount.set_flags(root, nodev=True, recursive=True)
    os.chdir(root)
    libc.pivot_root(Path(), Path())
    mount.unmount(Path(), detach=True)
    os.chdir("/")


def _furnish() -> None:
    """Mount what a program expects: /sys, /dev and /run, none of them the host's."""
    with contextlib.suppress(PermissionError):  # inside a container without the right to a new sysfs
        flags = libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
        mount.filesystem("sysfs", Path("/sys"), flags=flags)
    _tmpfs(Path("/run"), "755")
    Path("/run/lock").mkdir()
    dev = Path("/dev")
    mount.filesystem("tmpfs", dev, options="mode=755", flags=libc.MS_NOSUID | libc.MS_NOEXEC)
    for name, (major, minor) in _DEVICES.items():
        os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (dev / name).chmod(0o666)
    for name, target in _LINKS.items():
        (dev / name).symlink_to(target)
    (dev / "shm").mkdir()
    # Read-only, or a node of a disk could be made here, where nodev does not hold.
    mount.set_flags(dev, read_only=True)
    _tmpfs(dev / "shm", "1777")


def _protect_proc() -> None:
    """Take from root's hands in /proc what acts on the host; permission bits do not stop uid 0."""
    proc = Path("/proc")
    for name in _READ_ONLY_PROC:
        if (proc / name).exists():
            mount.bind_restricted(proc / name, proc / name, read_only=True)
    for name in _HIDDEN_PROC:
        if (proc / name).exists():
            mount.bind(Path("/dev/null"), proc / name)


def _tmpfs(target: Path, mode: str) -> None:
    mount.filesystem("tmpfs", target, options=f"mode={mode}", flags=libc.MS_NOSUID | libc.MS_NODEV)


@contextlib.contextmanager
def _place(target: str, root: str | None, *, directory: bool) -> Iterator[int]:
    """Yield a descriptor of a mount's target, made if it is missing.

    Below *root* links are followed as the program would follow them: a tree's ``/var/cache -> /etc``
    must not lead to the host's ``/etc``.
    """
    below = root is not None and target.startswith(root.rstrip("/") + "/")
    top, path = (str(root), target[len(str(root).rstrip("/")) + 1 :]) if below else ("/", target.lstrip("/"))
    holder = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            place = libc.openat2(holder, os.fsencode(path), os.O_PATH, libc.RESOLVE_IN_ROOT)
        except FileNotFoundError:
            with Tree(Path(top)) as tree:
                tree.makedirs(path if directory else os.path.dirname(path))
                if not directory:
                    tree.write_file(path, b"")
            place = libc.openat2(holder, os.fsencode(path), os.O_PATH, libc.RESOLVE_IN_ROOT)
    finally:
        os.close(holder)
    try:
        yield place
    finally:
        os.close(place)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
