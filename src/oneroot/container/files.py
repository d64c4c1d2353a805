"""``cp``: files into containers and out of them.

A link that is named is followed, as cp(1) does: what it leads to is written or read. Below a directory
that is copied links are copied as links, and what stands in the way of a file or link is replaced.

A running container reads and writes through its own mount, by its own ``tar`` inside. A stopped one
is locked; files go into its upper and come from the merged view of upper and current generation,
through `kernel.tree`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from oneroot.base import layout
from oneroot.container import attach, spec, tarstream
from oneroot.container.merged import Found, Merged
from oneroot.container.state import State, read_state
from oneroot.errors import OnerootError, UsageError
from oneroot.kernel.tree import Tree
from oneroot.settings import Settings
from oneroot.work import locks

_FIND_PLACE = """
place=$1
if [ -n "$2" ] && [ -d "$place" ]; then place=${place%/}/$2; fi
if [ -n "$3" ] && [ -h "$place" ]; then place=$(readlink -f -- "$place") || exit 1; fi
printf %s "$place"
"""
"""Arguments: a path; what goes into it if it is a directory; whether to follow a link at the end."""
_INSIDE = re.compile(r"([^/:]+):(/.*)", re.DOTALL)
_LOCK_PATIENCE = 10.0
_QUESTION_SECONDS = 20.0
_ERROR_BYTES = 4096
_PATH_BYTES = 16 << 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inside:
    """``NAME:/PATH``."""

    name: str
    path: str


def parse(text: str) -> Inside | None:
    """Read ``NAME:/PATH``; None: it is a path of the host.

    :raises UsageError: the path has a NUL.
    """
    if "\0" in text:
        raise UsageError("A path cannot have a NUL character")
    match = _INSIDE.fullmatch(text)
    return Inside(name=match[1], path=match[2]) if match else None


def copy_in(settings: Settings, source: Path, name: str, target: str) -> int:
    """Copy a file or directory of the host into a container; return how many files that were.

    Where *target* is a directory it goes into it, otherwise it gets that name; the directory above
    must exist. It is owned by the container's root.

    :raises OnerootError: says what cannot be read or written.
    """
    if not source.exists() and not source.is_symlink():
        raise UsageError(f"There is no {source}", fix="name an existing file or directory")
    if read_state(settings, name).state is State.RUNNING:
        return _into_running(settings, source, name, target)
    with _stopped(settings, name) as (merged, shift), _explained(name, target):
        return _into_upper(merged, source, _place_for(merged, source, target), shift)


def copy_out(settings: Settings, name: str, source: str, target: Path) -> int:
    """Copy a file or directory of a container to the host; return how many files that were.

    They belong to whoever calls, without set-id bits; device nodes, sockets and FIFOs stay behind.

    :raises OnerootError: says what cannot be read or written.
    """
    last = [part for part in source.split("/") if part not in ("", ".", "..")][-1:]
    if target.is_dir():
        parent, top = target, (last[0] if last else name)
    else:
        parent, top = target.parent, target.name
    if not parent.is_dir() or top in ("", "..", "."):
        raise UsageError(f"There is no directory {parent}", fix="make it first")
    with Tree(parent) as tree:
        if read_state(settings, name).state is State.RUNNING:
            return _from_running(settings, name, source, tree, top)
        with _stopped(settings, name) as (merged, _), _explained(name, source):
            return _from_merged(merged, merged.resolve(source), tree, top)


def _into_running(settings: Settings, source: Path, name: str, target: str) -> int:
    place = _find_place(settings, name, target, source)
    inside, _, top = place.rstrip("/").rpartition("/")
    count = 0
    failed: list[BaseException] = []
    reading, writing = os.pipe()

    def send() -> None:
        nonlocal count
        try:
            with open(writing, "wb") as stream:
                count = tarstream.write(stream, source, top)
        except BrokenPipeError:
            pass  # tar inside says why it stopped reading
        except OSError as error:
            failed.append(error)

    sender = threading.Thread(target=send, daemon=True)
    with open(reading, "rb") as stream:
        sender.start()
        argv = ("tar", "-x", "-f", "-", "--no-same-owner", "-p", "-C", inside or "/")
        ran = attach.execute(settings, name, argv, stdin=stream)
    sender.join()
    if failed:
        raise OnerootError(f"{source} cannot be read", why=str(failed[0]), container=name)
    if ran.returncode:
        raise _refused(name, target, ran.stderr)
    return count


def _from_running(settings: Settings, name: str, source: str, target: Tree, top: str) -> int:
    path = _find_place(settings, name, source).rstrip("/") or "/."
    directory, _, last = path.rpartition("/")
    argv = ("tar", "-c", "-f", "-", "--format=gnu", "-C", directory or "/", "--", last)
    with attach.start(settings, name, argv) as child:
        assert child.stdout is not None and child.stderr is not None
        said: list[bytes] = []
        errors = child.stderr
        listener = threading.Thread(target=lambda: said.append(_drain(errors.fileno())), daemon=True)
        listener.start()
        try:
            count = tarstream.extract(child.stdout, target, lambda member: _renamed(member, last, top))
        except OnerootError as error:
            child.kill()
            child.wait()
            listener.join(1)
            if child.returncode > 0 and said and said[0]:
                raise _refused(name, source, said[0]) from error
            error.container = name
            raise
        except BaseException:
            child.kill()
            raise
        child.wait()
        listener.join(1)
    if child.returncode:
        raise _refused(name, source, said[0] if said else b"")
    return count


def _find_place(settings: Settings, name: str, path: str, source: Path | None = None) -> str:
    """Ask a running container where a path leads; only it knows what its links mean.

    :param source: what goes there, into it if it is a directory.
    """
    below = "" if source is None else _base_name(source)
    words = ("/bin/sh", "-c", _FIND_PLACE, "sh", path.rstrip("/") or "/", below, _follows(source))
    ran = attach.execute(settings, name, words, timeout=_QUESTION_SECONDS, limit=_PATH_BYTES)
    place = os.fsdecode(ran.stdout)
    if ran.returncode or not place.startswith("/") or "\0" in place:
        raise _refused(name, path, ran.stderr)
    return place


def _place_for(merged: Merged, source: Path, target: str) -> str:
    """Return where something goes in a stopped container."""
    found = merged.find(merged.resolve(target))
    if found is not None and stat.S_ISDIR(found.status.st_mode):
        target = f"{target}/{_base_name(source)}"
    place = merged.resolve(target, last=bool(_follows(source)))
    parent = merged.find(place.rpartition("/")[0])
    if parent is None or not stat.S_ISDIR(parent.status.st_mode):
        raise UsageError(f"There is no directory above /{place} in the container", fix="make it first")
    return place


def _follows(source: Path | None) -> str:
    """Say whether a link where *source* goes is followed; a link replaces a link."""
    return "" if source is not None and source.is_symlink() else "yes"


def _renamed(member: str, last: str, top: str) -> str:
    if member.rstrip("/") == last:
        return top
    if member.startswith(f"{last}/"):
        return f"{top}/{member[len(last) + 1 :]}"
    raise OnerootError("The container sends what was not asked for", why=repr(member[:200]))


def _drain(descriptor: int) -> bytes:
    kept = b""
    while data := os.read(descriptor, 1 << 16):
        kept = (kept + data)[:_ERROR_BYTES]
    return kept


def _into_upper(merged: Merged, source: Path, place: str, shift: int) -> int:
    if not place:
        raise UsageError("The root directory itself cannot be replaced")
    merged.make_directories(place.rpartition("/")[0], shift)
    status = source.lstat()
    if stat.S_ISLNK(status.st_mode):
        merged.upper.symlink(str(source.readlink()), place, uid=shift, gid=shift)
        return 1
    if stat.S_ISREG(status.st_mode):
        found = merged.find(place)
        if found is not None and stat.S_ISDIR(found.status.st_mode):
            raise UsageError(f"/{place} is a directory")
        with open(source, "rb") as file:
            mode = stat.S_IMODE(status.st_mode) & 0o777
            merged.upper.write_from(place, file.fileno(), mode=mode, uid=shift, gid=shift)
        return 1
    if not stat.S_ISDIR(status.st_mode):
        return 0
    merged.make_directories(place, shift, mode=stat.S_IMODE(status.st_mode) & 0o777)
    return 1 + sum(
        _into_upper(merged, entry, f"{place}/{entry.name}", shift) for entry in sorted(source.iterdir())
    )


def _from_merged(merged: Merged, source: str, target: Tree, top: str) -> int:
    if merged.find(source) is None:
        raise UsageError(f"There is no /{source} in the container")
    count = 0
    for found in merged.walk(source):
        place = top + found.path[len(source) :] if source else f"{top}/{found.path}"
        count += _one_out(found, target, place)
    return count


def _one_out(found: Found, target: Tree, place: str) -> int:
    mode = found.status.st_mode
    if stat.S_ISDIR(mode):
        target.makedirs(place, mode=stat.S_IMODE(mode) & 0o777 | stat.S_IRWXU)
    elif stat.S_ISLNK(mode):
        target.symlink(found.tree.readlink(found.path), place)
    elif stat.S_ISREG(mode):
        descriptor = found.tree.open_read(found.path)
        try:
            target.write_from(place, descriptor, mode=stat.S_IMODE(mode) & 0o777)
        finally:
            os.close(descriptor)
    else:
        return 0
    return 1


@contextlib.contextmanager
def _stopped(settings: Settings, name: str) -> Iterator[tuple[Merged, int]]:
    with locks.container(settings.paths, name, verb="cp", wait=_LOCK_PATIENCE):
        state = read_state(settings, name).state
        if state is not State.STOPPED:
            raise OnerootError(
                f"The container {name} is {state.value}", fix="start or stop it first", container=name
            )
        found = spec.load(settings.paths, name)
        number = layout.current_number(settings.paths, found.base) or 0
        upper = settings.paths.container(name) / "overlay" / "upper"
        with Merged(upper, layout.root(settings.paths, found.base, number)) as merged:
            yield merged, found.ids.first if found.ids else 0


@contextlib.contextmanager
def _explained(name: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OnerootError(
            f"{name}:{path} cannot be copied", why=str(error), fix="start the container, then try again",
            container=name,
        ) from error  # fmt: skip


def _refused(name: str, path: str, said: bytes) -> OnerootError:
    why = said.decode("utf-8", "backslashreplace").strip()[-1000:]
    return OnerootError(f"{name}:{path} cannot be copied", why=why or "tar inside failed", container=name)


def _base_name(source: Path) -> str:
    return source.resolve().name if source.name in ("", "..") else source.name
