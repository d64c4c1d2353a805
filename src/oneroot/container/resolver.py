"""The resolver: one dnsmasq that knows the names of containers and asks the host's own for the rest.

It listens on the gateway's address alone, reads ``RUN/names`` (one hosts file per container,
seen 40 ms after it is written) and nothing else of the host's: no /etc/hosts, no configuration.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from oneroot.container.spec import ContainerSpec
from oneroot.errors import CommandFailed, HostError
from oneroot.host import sockets
from oneroot.run import SAFE_PATH, run
from oneroot.settings import Settings
from oneroot.work import files

_HOSTS_DIRECTORY = "--hostsdir="
_STUB = Path("/run/systemd/resolve/resolv.conf")
PATIENCE = 5.0
"""Seconds for dnsmasq to end when asked."""


def pid_file(settings: Settings) -> Path:
    return settings.paths.run / "resolver.pid"


def command(settings: Settings, others: Sequence[str] = ()) -> list[str]:
    """Return the command that runs the resolver; the one place that knows it.

    :param others: name directories of further stores on this host that share the gateway.
    """
    network = settings.network
    return [
        "dnsmasq",
        "--conf-file=/dev/null",
        f"--pid-file={pid_file(settings)}",
        f"--user={_user()}",
        "--bind-interfaces",
        f"--listen-address={network.gateway}",
        f"{_HOSTS_DIRECTORY}{settings.paths.names}",
        *(f"{_HOSTS_DIRECTORY}{directory}" for directory in others),
        f"--resolv-file={_upstream()}",
        # Answers about this host, or for a neighbour's misuse, that no container has to get:
        "--no-hosts",
        "--no-ident",
        "--bogus-priv",
        "--domain-needed",
        f"--local=/{network.domain}/",
        "--local=//",
        "--dns-loop-detect",
        "--local-ttl=5",
        "--cache-size=10000",
        "--dns-forward-max=5000",
    ]


def ensure(settings: Settings) -> bool:
    """Start the resolver if it does not run as it should; the caller holds the network's lock.

    :returns: whether it had to be started.
    :raises HostError: its address and port are somebody else's.
    """
    if running(settings):
        return False
    settings.paths.names.mkdir(mode=0o755, parents=True, exist_ok=True)
    others = []
    for pid in _at(settings.network.gateway):
        others += _live_directories(pid, but=settings.paths.names)
        _end(pid)
    try:
        run(command(settings, sorted(set(others))), timeout=30)
    except CommandFailed as error:
        raise _refused(settings, error) from error
    return True


def running(settings: Settings) -> bool:
    """Tell whether the resolver runs with the settings of now."""
    pid = _read_pid(settings)
    if pid is None:
        return False
    found = _words(pid)
    own = f"{_HOSTS_DIRECTORY}{settings.paths.names}"
    shared = [word for word in found if not word.startswith(_HOSTS_DIRECTORY) or word == own]
    return shared == command(settings)


def pid(settings: Settings) -> int | None:
    """Return the resolver's process, None if it does not run."""
    return _read_pid(settings) if running(settings) else None


def stop(settings: Settings) -> None:
    """End the resolver; it may not run."""
    found = _read_pid(settings)
    if found is not None and f"{_HOSTS_DIRECTORY}{settings.paths.names}" in _words(found):
        _end(found)
    pid_file(settings).unlink(missing_ok=True)


def write_names(settings: Settings, specs: Iterable[ContainerSpec]) -> None:
    """Let the names of containers be found; those that are known already cost nothing."""
    directory = settings.paths.names
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for spec in specs:
        text = "".join(
            f"{address} {spec.name} {spec.name}.{settings.network.domain}\n" for address in spec.addresses
        ).encode("ascii")
        path = directory / spec.name
        with contextlib.suppress(OSError):
            if path.read_bytes() == text:
                continue
        files.write_atomic(path, text, mode=0o644, durable=False)


def forget_names(settings: Settings, names: Iterable[str]) -> None:
    """Let names of containers be found no more."""
    for name in names:
        (settings.paths.names / name).unlink(missing_ok=True)


def _user() -> str:
    try:
        return pwd.getpwnam("dnsmasq").pw_name
    except KeyError:
        return "nobody"


def _upstream() -> Path:
    """Return the file that names the host's resolvers.

    Not systemd-resolved's stub: that one would tell containers what is in the host's /etc/hosts.
    """
    with contextlib.suppress(OSError):
        if "127.0.0.53" in Path("/etc/resolv.conf").read_text(encoding="utf-8") and _STUB.exists():
            return _STUB
    return Path("/etc/resolv.conf")


def _read_pid(settings: Settings) -> int | None:
    try:
        return int(pid_file(settings).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _words(pid: int) -> list[str]:
    """Return a resolver's command line; empty if the process is gone or no resolver of ours.

    Its user and network namespace are looked at first: nobody else may make us believe, end or
    wait for a process (reading a command line takes the target's own lock).
    """
    process = Path(f"/proc/{pid}")
    try:
        status = (process / "status").read_text(encoding="utf-8", errors="replace")
        uid = int(status.partition("\nUid:")[2].split(maxsplit=1)[0])
        here = (process / "ns" / "net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
        if not here or uid != pwd.getpwnam(_user()).pw_uid:
            return []
        words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except (OSError, ValueError, IndexError):
        return []
    return words if words[:1] == ["dnsmasq"] else []


def _at(gateway: str) -> list[int]:
    """Return the resolvers of oneroot, any store's, that listen on an address."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            words = _words(int(process.name))
            if f"--listen-address={gateway}" in words and "--conf-file=/dev/null" in words:
                found.append(int(process.name))
    return found


def _live_directories(pid: int, *, but: Path) -> list[str]:
    named = [word.removeprefix(_HOSTS_DIRECTORY) for word in _words(pid) if word.startswith(_HOSTS_DIRECTORY)]
    return [directory for directory in named if directory != str(but) and _is_roots(Path(directory))]


def _is_roots(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o022


def _end(pid: int) -> None:
    """End a resolver, and wait until its port is free."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while _lives(pid):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.005)


def _lives(pid: int) -> bool:
    """Tell whether a process still holds its sockets; its command line is gone before they are."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "\nState:\tZ" not in status and "\nState:\tX" not in status


def _refused(settings: Settings, error: CommandFailed) -> HostError:
    gateway = settings.network.gateway
    if shutil.which("dnsmasq", path=SAFE_PATH) is None:
        return HostError("The resolver cannot run", why=str(error), fix="apt-get install dnsmasq-base")
    for listener in sockets.listeners():
        if listener.port == 53 and listener.covers(gateway):
            return HostError(
                f"The resolver of the containers cannot listen on {gateway}, port 53",
                why=f"{sockets.holder(listener)} listens on {listener.address}, port 53",
                fix="let that program listen on its own addresses only (bind-interfaces, listen-on)",
            )
    return HostError(
        f"The resolver of the containers cannot listen on {gateway}",
        why=error.why,
        fix="oneroot doctor",
    )
