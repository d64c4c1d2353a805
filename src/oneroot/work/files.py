"""State files: JSON with a schema number, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from oneroot.errors import CorruptState, NoSpace
from oneroot.kernel import copy

if TYPE_CHECKING:
    import cattrs

T = TypeVar("T")


@functools.cache
def converter() -> cattrs.Converter:
    """Return the converter between values and plain JSON data; refuses unknown keys."""
    import cattrs  # slow to import, and not every command reads a state file

    made = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
    made.register_unstructure_hook(Path, str)
    made.register_structure_hook(Path, lambda value, _: Path(value))
    return made


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace *path* by *data*: readers see the old content or the new, also after a crash.

    :param durable: survive a power loss too (fsync of file and directory).
    :raises NoSpace: the filesystem is full; the old file stands.
    """
    descriptor, name = -1, ""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).rename(path)
        name = ""
        if durable:
            copy.sync_directory(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"{path} could not be written", why=str(error), fix=f"free space below {path.parent}"
            ) from error
        raise
    finally:
        if name:
            with contextlib.suppress(OSError):
                Path(name).unlink()


def save(path: Path, value: object, *, schema: int, mode: int = 0o600, durable: bool = True) -> None:
    """Write a value as JSON with its schema number."""
    plain: dict[str, Any] = {"schema": schema, **converter().unstructure(value)}
    text = json.dumps(plain, indent=1, sort_keys=False)
    write_atomic(path, text.encode("ascii") + b"\n", mode=mode, durable=durable)


def load(path: Path, cls: type[T], *, schema: int) -> T:
    """Read a value that `save` wrote.

    :raises FileNotFoundError: there is none.
    :raises CorruptState: it is not JSON, of another schema, or not of this type.
    """
    try:
        plain = json.loads(path.read_bytes())
        found = plain.pop("schema")
        if found != schema:
            raise CorruptState(
                f"{path} has schema {found}, this oneroot knows {schema}",
                fix="use the oneroot that wrote it, or a newer one",
            )
        return converter().structure(plain, cls)
    except (OSError, CorruptState):
        raise
    except Exception as error:  # whatever JSON or the converter raise: the file is not ours
        raise CorruptState(
            f"{path} is damaged",
            why=f"{type(error).__name__}: {error}",
            fix="restore it from a backup, or remove it and create the object again",
        ) from error
