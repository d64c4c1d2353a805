"""The store of bases: what is declared, which generations exist, which one is current.

Readers never lock. Whoever changes a base holds its lock (`oneroot.work.locks.base`); the
functions that change something check that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from oneroot.base import layout, manifest
from oneroot.base.generation import SCHEMA, BaseSpec, Generation, GenerationNumber, Pin, SourceCheck
from oneroot.base.manifest import Change, Manifest
from oneroot.errors import Busy, CorruptState, OnerootError, UnknownName, UsageError
from oneroot.kernel import copy, tree
from oneroot.names import BaseName, base_name
from oneroot.settings import Settings
from oneroot.work import files, killpoint, locks

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class Store:
    """The bases of one host."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._paths = settings.paths

    def names(self) -> list[BaseName]:
        """Return the names of all bases, sorted; damaged ones included."""
        try:
            entries = list(self._paths.bases.iterdir())
        except FileNotFoundError:
            return []
        return sorted(BaseName(entry.name) for entry in entries if not entry.name.startswith("."))

    def directory(self, name: str) -> Path:
        return layout.base_directory(self._paths, base_name(name))

    def exists(self, name: str) -> bool:
        return self.directory(name).is_dir()

    def spec(self, name: str) -> BaseSpec:
        """Return what was declared of a base.

        :raises UnknownName: there is no such base; says the nearest.
        :raises CorruptState: its file is damaged.
        """
        file = self.directory(name) / "base.json"
        try:
            spec = files.load(file, BaseSpec, schema=SCHEMA)
        except FileNotFoundError:
            if not self.exists(name):
                raise self._unknown(name) from None
            raise CorruptState(
                f"The base {name} has lost its declaration",
                why=f"{file} is missing",
                fix="restore it from a backup, or remove the base with oneroot base rm and create it again",
            ) from None
        if spec.name != name:
            raise CorruptState(
                f"The base {name} is a copy of {spec.name}",
                why=f"{file} names that base",
                fix=f"remove {file.parent}, and use oneroot base create",
            )
        return spec

    def _unknown(self, name: str) -> UnknownName:
        import difflib

        near = difflib.get_close_matches(name, self.names(), n=1)
        return UnknownName(
            f"There is no base {name}",
            why=f"{len(self.names())} exist",
            fix=f"did you mean {near[0]}?"
            if near
            else f"oneroot base create {name} --source debian:bookworm",
        )

    def save_spec(self, spec: BaseSpec) -> None:
        """Write what is declared of an existing base."""
        self.require_lock(spec.name)
        files.save(self.directory(spec.name) / "base.json", spec, schema=SCHEMA)

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of the complete generations that are there, oldest first."""
        directory = self.directory(name) / "generations"
        return sorted(
            number
            for number in _numbers(directory)
            if (directory / str(number) / "generation.json").is_file()
        )

    def collected(self, name: str) -> list[int]:
        """Return the numbers of the generations whose tree is gone but whose description is kept."""
        return sorted(set(_numbers(self.directory(name) / "collected")) - set(self.numbers(name)))

    def current(self, name: str) -> int | None:
        """Return the number of the current generation; None before there is one.

        :raises CorruptState: ``current`` leads nowhere.
        """
        link = layout.current_link(self._paths, self.directory(name).name)
        number = layout.current_number(self._paths, name)
        if number is None and not os.path.lexists(link):
            return None
        if number is not None and layout.root(self._paths, name, number).is_dir():
            return number
        there = self.numbers(name)
        advice = (
            f"oneroot base use {name} {there[-1]}"
            if there
            else f"remove {link} and run oneroot base upgrade {name}"
        )
        raise CorruptState(
            f"The current generation of the base {name} is gone",
            why=f"{link} leads to {os.readlink(link) if link.is_symlink() else 'no link'}",  # noqa: PTH115
            fix=advice,
        )

    def generations(self, name: str) -> list[Generation]:
        """Return the generations that are there, oldest first."""
        return [self.generation(name, number) for number in self.numbers(name)]

    def generation(self, name: str, number: int) -> Generation:
        """Return the description of a generation, also of a collected one.

        :raises UnknownName: there was never such a generation.
        :raises CorruptState: its description is damaged.
        """
        file = self._described(name, number, "generation.json")
        generation = files.load(file, Generation, schema=SCHEMA)
        if generation.base != name or generation.number != number:
            raise CorruptState(
                f"{file} describes generation {generation.number} of {generation.base}",
                why="its files were copied or renamed by hand",
                fix=f"choose another generation: oneroot base use {name} N",
            )
        return generation

    def _described(self, name: str, number: int, file: str) -> Path:
        places = (
            layout.generation_directory(self._paths, name, number),
            self.directory(name) / "collected" / str(number),
        )
        for place in places:
            if (place / file).is_file():
                return place / file
        if not self.exists(name):
            raise self._unknown(name)
        known = ", ".join(map(str, self.numbers(name))) or "none"
        raise UnknownName(
            f"The base {name} has no generation {number}",
            why=f"there are: {known}",
            fix=f"oneroot base history {name}",
        )

    def root(self, name: str, number: int) -> Path:
        """Return where a generation's tree lies."""
        return layout.root(self._paths, name, number)

    def manifest(self, name: str, number: int) -> Manifest:
        """Return the manifest of a generation whose tree is there; loaded once, then kept."""
        file = layout.generation_directory(self._paths, name, number) / "manifest.gz"
        try:
            return manifest.load(file)
        except FileNotFoundError:
            self.generation(name, number)
            raise UnknownName(
                f"Generation {number} of the base {name} was collected",
                why="its list of changes is all that is kept of it",
                fix=f"oneroot base history {name}",
            ) from None

    def changes(self, name: str, number: int) -> list[Change]:
        """Return what a generation changed against its parent; collected ones too. The first: nothing."""
        return manifest.load_changes(self._described(name, number, "changes.gz"))

    def set_current(self, name: str, number: int) -> None:
        """Make a generation the current one, for the next start of every container.

        :raises UnknownName: there is no such generation, or only its description is left.
        """
        self.require_lock(name)
        if number not in self.numbers(name):
            self.manifest(name, number)
        copy.replace_symlink(layout.current_link(self._paths, name), f"generations/{number}")
        killpoint.reach(f"base {name}: current is {number}")

    def pin(self, name: str, number: int, *, reason: str) -> Pin:
        """Hold a base on a generation, in this person's name."""
        pin = Pin(generation=number, reason=reason, person=locks.person(), since=now())
        self.save_spec(dataclasses.replace(self.spec(name), pin=pin))
        return pin

    def unpin(self, name: str) -> Pin | None:
        """Let a base follow its updates again; returns the pin that was."""
        spec = self.spec(name)
        if spec.pin:
            self.save_spec(dataclasses.replace(spec, pin=None))
        return spec.pin

    def mark_bad(self, name: str, number: int, *, bad: bool = True) -> None:
        """Say that a generation must not be rolled out again, or take that back."""
        self.generation(name, number)
        spec = self.spec(name)
        numbers = {*spec.bad, number} if bad else set(spec.bad) - {number}
        if tuple(sorted(numbers)) != spec.bad:
            self.save_spec(dataclasses.replace(spec, bad=tuple(sorted(numbers))))

    def check(self, name: str) -> SourceCheck | None:
        """Return the last look at a base's package sources; None without one, or if it is damaged."""
        try:
            return files.load(self.directory(name) / "checked.json", SourceCheck, schema=SCHEMA)
        except (FileNotFoundError, CorruptState):
            return None  # a damaged record proves nothing, and the next check writes it anew

    def save_check(self, name: str, check: SourceCheck) -> None:
        files.save(self.directory(name) / "checked.json", check, schema=SCHEMA)

    def next_number(self, name: str) -> GenerationNumber:
        """Return a number that no generation of this base ever had."""
        directory = self.directory(name)
        used = [*_numbers(directory / "generations"), *_numbers(directory / "collected")]
        used += [layout.current_number(self._paths, name) or 0, *self.spec(name).bad]
        return GenerationNumber(max(used, default=0) + 1)

    def stage(self, name: str) -> Path:
        """Return an empty directory for a build; what an earlier, killed one left is swept away."""
        self.require_lock(name)
        stage = self.directory(name) / "stage"
        if stage.exists():
            tree.remove_tree(stage)
        stage.mkdir(mode=0o700)
        return stage

    def sweep(self, name: str) -> None:
        """Remove what a build left, killed or done."""
        self.require_lock(name)
        tree.remove_tree(self.directory(name) / "stage")

    def commit(self, prepared: Path, generation: Generation) -> Generation:
        """Make a finished tree a generation, by one rename.

        :param prepared: a directory in the stage that holds ``root``, ``manifest.gz`` and ``changes.gz``.
        """
        self.require_lock(generation.base)
        copy.sync_filesystem(prepared)
        # Written last: a directory without it is no generation, whatever a power loss made of it.
        files.save(prepared / "generation.json", generation, schema=SCHEMA)
        killpoint.reach(f"base {generation.base}: generation {generation.number} is described")
        directory = layout.generation_directory(self._paths, generation.base, generation.number)
        directory.parent.mkdir(mode=0o700, exist_ok=True)
        copy.rename_new(prepared, directory)
        copy.sync_directory(directory.parent)
        killpoint.reach(f"base {generation.base}: generation {generation.number} is committed")
        return generation

    @contextlib.contextmanager
    def holding(self, name: str, verb: str) -> Iterator[None]:
        """Hold the base's lock, whether or not the caller does already.

        :raises Busy: another process holds it.
        """
        with contextlib.ExitStack() as stack:
            if not self._held(name):
                stack.enter_context(locks.base(self._paths, base_name(name), verb=f"{verb} {name}"))
            yield

    def require_lock(self, name: str) -> None:
        """Check that this process holds the base's lock; a changer that forgot it would race.

        :raises Busy: it does not.
        """
        if not self._held(name):
            raise Busy(
                f"The base {name} is not ours to change now",
                why="its lock is not held by this process",
                fix="report this: a command forgot to take the lock",
            )

    def _held(self, name: str) -> bool:
        holder = locks.holder(self._paths, f"base-{name}")
        return holder is not None and holder.token == locks.TOKEN

    def require_unpinned(self, name: str) -> None:
        """Refuse to move a base that a person holds.

        :raises OnerootError: says who, since when and why.
        """
        pin = self.spec(name).pin
        if pin:
            raise OnerootError(
                f"The base {name} is pinned to generation {pin.generation}",
                why=f"by {pin.person} since {pin.since}: {pin.reason or 'no reason given'}",
                fix=f"oneroot base unpin {name}",
            )


def now() -> str:
    """Return the time as every file of ours writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def parse_number(text: str) -> int:
    """Parse a generation's number that a person typed.

    :raises UsageError: it is none.
    """
    if not _NUMBER.fullmatch(text):
        raise UsageError(
            f"{text[:40]!r} is not the number of a generation", fix="for example 2; see oneroot base ls"
        )
    return int(text)


def _numbers(directory: Path) -> Iterator[int]:
    try:
        entries = os.listdir(directory)  # noqa: PTH208  names are all that is wanted
    except (FileNotFoundError, NotADirectoryError):
        return iter(())
    return (int(entry) for entry in entries if _NUMBER.fullmatch(entry))
