"""A container's LXC configuration: plain text, written once, understood by every ``lxc-*`` program.

It names no generation. The start hook mounts the current one at a path that is the same for every
container, so that plain ``lxc-start``, ``lxc-autostart`` and a reboot from inside take it too.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from oneroot.container import contents
from oneroot.container.spec import ContainerSpec, Limits
from oneroot.errors import UsageError
from oneroot.kernel.mount import OVERLAY_OPTIONS
from oneroot.names import LINK_PREFIX
from oneroot.run import SAFE_PATH
from oneroot.settings import Settings

LXC_CONFIG = Path("/usr/share/lxc/config")
_CPU_PERIOD = 100_000
_SHELL_SAFE = re.compile(r"[A-Za-z0-9/._:+-]+")
_PRIVILEGED_DROPS = "sys_boot syslog mknod dac_read_search"


def render(settings: Settings, spec: ContainerSpec) -> str:
    """Return the configuration's text.

    :raises UsageError: a value has a control character, which could end its line and begin another key.
    """
    return "".join(f"{key} = {_checked(key, value)}\n" for key, value in _lines(settings, spec))


def interface(address: str) -> str:
    """Return the name of the host's end of the link to an address: unique, and at most 15 characters."""
    return f"{LINK_PREFIX}{int(_ipv4(address)):08x}"


def _lines(settings: Settings, spec: ContainerSpec) -> Iterator[tuple[str, str]]:
    paths = settings.paths
    yield "lxc.include", str(LXC_CONFIG / "common.conf")
    if spec.ids is not None:
        yield "lxc.include", str(LXC_CONFIG / "userns.conf")
        yield "lxc.idmap", f"u 0 {spec.ids.first} {spec.ids.count}"
        yield "lxc.idmap", f"g 0 {spec.ids.first} {spec.ids.count}"
    else:
        yield "lxc.cap.drop", _PRIVILEGED_DROPS
        yield "lxc.mount.auto", "cgroup:ro proc:mixed sys:ro"
    yield "lxc.uts.name", spec.name
    yield "lxc.rootfs.path", f"overlay:{paths.lower}:{paths.overlay / 'upper'}"
    options = ",".join(f"{name}={value}" for name, value in OVERLAY_OPTIONS.items())
    yield "lxc.rootfs.options", options + (",userxattr" if spec.unprivileged else "")
    yield "lxc.rootfs.managed", "0"  # lxc-destroy would delete what the path names
    yield "lxc.monitor.unshare", "1"  # the hook's mounts must stay in the monitor's namespace
    yield "lxc.hook.pre-start", _hook(settings, spec)
    yield "lxc.tty.max", "0"  # 4 ptys less for each container, of 3,072 on a host
    yield "lxc.console.logfile", str(paths.container(spec.name) / "console.log")
    yield "lxc.console.size", str(settings.policy.console_log)
    yield "lxc.console.rotate", "1"
    if _apparmor():
        yield "lxc.apparmor.profile", "generated"
        yield "lxc.apparmor.allow_nesting", "1"  # systemd needs to mount
    yield from _program(spec)
    yield from _network(settings, spec)
    yield from _limits(spec.limits)
    yield "lxc.start.auto", "1" if spec.autostart else "0"


def _hook(settings: Settings, spec: ContainerSpec) -> str:
    paths = settings.paths
    ids = f"{spec.ids.first}:{spec.ids.count}" if spec.ids else "0:0"
    words = (
        *(paths.start_hook, "--store", paths.store, "--run", paths.run, "--lxc", paths.lxc),
        *("--name", spec.name, "--base", spec.base, "--ids", ids),
    )
    for word in words:  # LXC hands the line to a shell
        if not _SHELL_SAFE.fullmatch(str(word)):
            raise UsageError(
                f"{str(word)!r} is empty or has characters that a shell would not leave alone",
                fix="choose paths of letters, digits and / . _ - + in the settings",
            )
    return " ".join(map(str, words))


def _program(spec: ContainerSpec) -> Iterator[tuple[str, str]]:
    if spec.command is None:
        # lxc.signal.halt stays unset: systemd stops cleanly at LXC's default, and hangs at SIGPWR.
        yield "lxc.init.cmd", "/sbin/init"
        return
    # LXC splits this line at blanks and knows no quotes: the command stands in a script.
    yield "lxc.init.cmd", f"/{contents.TINI} -- /{contents.COMMAND_SCRIPT}"
    yield "lxc.signal.halt", "SIGTERM"
    yield "lxc.mount.entry", "tmpfs run tmpfs rw,nosuid,nodev,mode=755 0 0"
    # LXC gives an init nothing but container=lxc; systemd makes an environment for its units, tini does not.
    yield "lxc.environment", f"PATH={SAFE_PATH}"
    yield "lxc.environment", "LANG=C.UTF-8"
    yield "lxc.environment", "HOME=/root"


def _network(settings: Settings, spec: ContainerSpec) -> Iterator[tuple[str, str]]:
    if not spec.addresses:
        yield "lxc.net.0.type", "empty"
        return
    yield "lxc.net.0.type", "veth"
    yield "lxc.net.0.veth.mode", "router"
    yield "lxc.net.0.veth.pair", interface(spec.addresses[0])
    yield "lxc.net.0.name", "eth0"
    yield "lxc.net.0.flags", "up"
    for address in spec.addresses:
        yield "lxc.net.0.ipv4.address", f"{_ipv4(address)}/32"
    yield "lxc.net.0.ipv4.gateway", settings.network.gateway


def _ipv4(text: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not an IPv4 address", why=str(error), fix="give one such as 10.77.0.2"
        ) from error


def _limits(limits: Limits) -> Iterator[tuple[str, str]]:
    """Both families: LXC ignores the one that the host does not have."""
    if limits.memory is not None:
        yield "lxc.cgroup2.memory.max", str(limits.memory)
        yield "lxc.cgroup.memory.limit_in_bytes", str(limits.memory)
    if limits.cpus is not None:
        quota = max(1000, round(limits.cpus * _CPU_PERIOD))
        yield "lxc.cgroup2.cpu.max", f"{quota} {_CPU_PERIOD}"
        yield "lxc.cgroup.cpu.cfs_period_us", str(_CPU_PERIOD)
        yield "lxc.cgroup.cpu.cfs_quota_us", str(quota)
    yield "lxc.cgroup2.pids.max", str(limits.pids)
    yield "lxc.cgroup.pids.max", str(limits.pids)


def _apparmor() -> bool:
    try:
        return Path("/sys/module/apparmor/parameters/enabled").read_text(encoding="ascii").startswith("Y")
    except OSError:
        return False


def _checked(key: str, value: str) -> str:
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in value):
        raise UsageError(
            f"A value for {key} has a control character",
            why=repr(value),
            fix="give a value of printable characters",
        )
    return value
