"""What is put into every new container's upper, as values; `upper` writes it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from oneroot.container.spec import ContainerSpec
from oneroot.errors import UsageError
from oneroot.kernel.tree import Tree
from oneroot.settings import Network

TARGET = "oneroot.target"
COMMAND_SCRIPT = "etc/oneroot/command"
TINI = "usr/bin/tini"
UNIT_DIRECTORIES = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_SYSTEMD = ("usr/lib/systemd/systemd", "lib/systemd/systemd")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}")
_SUFFIXES = ("service", "socket", "target", "timer", "path", "mount", "automount", "slice")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[A-Za-z0-9_@%+:,./ -][A-Za-z0-9_@%+:,./= -]*")
_BUILTIN = re.compile(  # what a shell understands by itself cannot be executed
    r"\.|:|\[|alias|bg|break|case|cd|command|continue|do|done|echo|elif|else|esac|eval|exec|exit|export"
    r"|false|fg|fi|for|function|getopts|hash|if|in|jobs|kill|let|local|printf|pwd|read|readonly|return"
    r"|select|set|shift|source|test|then|time|times|trap|true|type|ulimit|umask|unalias|unset|until"
    r"|wait|while"
)
_COMMAND_BYTES = 64 << 10

MASKED = (
    # Mounts that a user namespace may not make, or that show the host's hardware.
    *("dev-hugepages.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("sys-fs-fuse-connections.mount", "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount"),
    *("systemd-remount-fs.service", "tmp.mount"),
    # Hardware, kernel, clock and console are the host's.
    *("systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"),
    *("systemd-udev-trigger.service", "systemd-udev-settle.service", "systemd-hwdb-update.service"),
    *("systemd-modules-load.service", "systemd-binfmt.service", "systemd-sysctl.service", "kmod.service"),
    *("modprobe@.service", "systemd-journal-flush.service", "systemd-update-utmp.service"),
    *("systemd-update-utmp-runlevel.service", "systemd-boot-system-token.service", "quotaon.service"),
    *("systemd-pstore.service", "systemd-random-seed.service", "systemd-firstboot.service"),
    *("systemd-journald-audit.socket", "systemd-timesyncd.service", "apparmor.service", "procps.service"),
    *("keyboard-setup.service", "console-setup.service", "systemd-vconsole-setup.service"),
    *("systemd-ask-password-console.path", "systemd-ask-password-wall.path", "getty.target"),
    *("lvm2-monitor.service", "lvm2-lvmpolld.socket", "blk-availability.service", "mdmonitor.service"),
    # LXC has configured the network before init runs; waiting for it again can take minutes.
    *("networking.service", "ifupdown-pre.service", "ifup@.service", "systemd-networkd.service"),
    *("systemd-networkd.socket", "systemd-networkd-wait-online.service", "systemd-network-generator.service"),
    *("systemd-resolved.service", "NetworkManager.service", "NetworkManager-wait-online.service"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """A regular file; owner and group are the container's own."""

    path: str
    data: bytes
    mode: int = 0o644
    gid: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A symbolic link."""

    path: str
    target: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What all containers of one declaration share."""

    files: tuple[File, ...]
    links: tuple[Link, ...]


def checked_units(base: Tree, units: Sequence[str], base_name: str) -> tuple[str, ...]:
    """Return the units' full names, each once.

    :raises UsageError: a name that cannot be, or a unit that the base does not have.
    """
    if units and not any(base.exists(path) for path in _SYSTEMD):
        raise UsageError(
            f"The base {base_name} has no systemd",
            why="units are run by the base's own systemd",
            fix="make the base with --package systemd-sysv, or use --command",
        )
    return tuple(dict.fromkeys(_checked_unit(base, unit, base_name) for unit in units))


def checked_command(base: Tree, command: str, base_name: str) -> str:
    """Return the command as it is.

    :raises UsageError: it is empty, has a control character, or the base cannot run it.
    """
    if not command.strip():
        raise UsageError("The command is empty", fix="give --command what to run")
    control = _CONTROL.search(command)
    if control:
        raise UsageError(
            f"The command has a control character at position {control.start() + 1}",
            fix="put several lines into a script, and run that",
        )
    if len(command.encode()) > _COMMAND_BYTES:
        raise UsageError(f"The command is longer than {_COMMAND_BYTES} bytes", fix="put it into a script")
    for path in (TINI, "bin/sh"):
        if not base.exists(path) and not base.exists(f"usr/{path}"):
            raise UsageError(
                f"The base {base_name} has no /{path}",
                why="commands run in a shell under tini, both of the base",
                fix="make the base with --package tini",
            )
    return command


def of(base: Tree, *, units: Sequence[str], command: str | None) -> Layout:
    """Return what all containers with these units or this command share."""
    links = []
    if base.exists("var/lib/dbus"):
        links.append(Link(path="var/lib/dbus/machine-id", target="/etc/machine-id"))
    if command is not None:
        script = _text("command.sh").replace("@COMMAND@", _executable(command))
        return Layout(
            files=(File(path=COMMAND_SCRIPT, data=script.encode(), mode=0o755),), links=tuple(links)
        )
    links.append(Link(path="etc/systemd/system/default.target", target=TARGET))
    links += [
        Link(path=f"etc/systemd/system/{name}", target="/dev/null")
        for name in MASKED
        if name not in units and _has_unit(base, name)
    ]
    return Layout(
        files=(
            File(path=f"etc/systemd/system/{TARGET}", data=_target(units).encode()),
            File(path="etc/systemd/journald.conf.d/oneroot.conf", data=_text("journald.conf").encode()),
        ),
        links=tuple(links),
    )


def identity(spec: ContainerSpec, network: Network, machine_id: str) -> list[File]:
    """Return the files by which a container knows itself."""
    own = [f"{address} {spec.name}.{network.domain} {spec.name}" for address in spec.addresses]
    hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", *own]
    if not own:
        hosts.append(f"127.0.1.1 {spec.name}.{network.domain} {spec.name}")
    resolv = [f"nameserver {network.gateway}", f"search {network.domain}"]
    return [
        File(path="etc/hostname", data=f"{spec.name}\n".encode()),
        File(path="etc/hosts", data=_lines(hosts)),
        File(path="etc/resolv.conf", data=_lines(resolv)),
        File(path="etc/machine-id", data=f"{machine_id}\n".encode(), mode=0o444),
    ]


def _checked_unit(base: Tree, unit: str, base_name: str) -> str:
    if not _UNIT.fullmatch(unit) or unit.startswith(("-", ".")):
        raise UsageError(
            f"{unit[:80]!r} is not a name for a unit",
            fix="name one like apache2.service or postgresql@15-main.service",
        )
    full = unit if unit.rpartition(".")[2] in _SUFFIXES else f"{unit}.service"
    if not _has_unit(base, full):
        raise UsageError(
            f"The base {base_name} has no unit {full}",
            why="it is in none of its packages",
            fix="make the base with the package that has it",
        )
    return full


def _has_unit(base: Tree, unit: str) -> bool:
    stem, _, suffix = unit.rpartition(".")
    template, at, _ = stem.partition("@")
    names = [unit, f"{template}@.{suffix}"] if at else [unit]
    if any(base.exists(f"{directory}/{name}") for directory in UNIT_DIRECTORIES for name in names):
        return True
    return suffix == "service" and not at and base.exists(f"etc/init.d/{stem}")


def _executable(command: str) -> str:
    """Return what the script ends in: the command itself where a shell would do nothing but start it."""
    words = command.split()
    if words and _PLAIN.fullmatch(command) and "=" not in words[0] and not _BUILTIN.fullmatch(words[0]):
        return shlex.join(words)
    return f"/bin/sh -c {shlex.quote(command)}"


def _target(units: Iterable[str]) -> str:
    wants = "".join(f"Wants={unit}\n" for unit in units)
    return _text("oneroot.target").replace("@WANTS@\n", wants)


def _text(name: str) -> str:
    return (Path(__file__).with_name("data") / name).read_text(encoding="utf-8")


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")
