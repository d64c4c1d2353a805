"""The door to kernel parameters: /proc/sys, read and written without a process.

Those below ``net`` belong to the network namespace of the reader; a namespace that is not the
first one lacks some of them, which reads as None.
"""

from __future__ import annotations

from pathlib import Path

from oneroot.errors import HostError

ROOT = Path("/proc/sys")


def file(name: str) -> Path:
    """Return where a parameter lies; an interface's name may contain dots, so slashes are kept."""
    return ROOT / (name if "/" in name else name.replace(".", "/"))


def read(name: str) -> str | None:
    """Return a parameter's value, None if this kernel or namespace has no such parameter."""
    try:
        return file(name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def read_int(name: str) -> int | None:
    """Return a number, None if it cannot be read or is not one number."""
    value = read(name)
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def write(name: str, value: int | str) -> None:
    """Set a parameter now, until the next boot.

    :raises HostError: the kernel refuses.
    """
    try:
        file(name).write_text(f"{value}\n", encoding="ascii")
    except OSError as error:
        raise HostError(
            f"The kernel parameter {name} could not be set to {value}",
            why=str(error),
            fix=f"sysctl -w {name}={value}, as root on the host itself",
        ) from error


def ensure(name: str, value: int) -> int | None:
    """Set a parameter if it has another value, and return the value it had then.

    :returns: None if nothing had to be done, or there is no such parameter.
    """
    found = read_int(name)
    if found is None or found == value:
        return None
    write(name, value)
    return found
