"""The engine's hands: real containers, their leases and their base's current generation."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Protocol

from oneroot.container import lease, lifecycle
from oneroot.container.healthcheck import shown
from oneroot.container.state import ContainerState, State
from oneroot.errors import CorruptState
from oneroot.names import BaseName
from oneroot.rollout.plan import Seen
from oneroot.settings import Settings
from oneroot.work import locks

_LOCK_PATIENCE = 10.0
_CONSOLE_BYTES = 2000
_CONSOLE_LINES = 6


class Currents(Protocol):
    """The part of the store that a mover needs."""

    def current(self, name: BaseName) -> int | None:
        """Return the number of a base's current generation."""

    def set_current(self, name: BaseName, number: int) -> None:
        """Make a generation the current one."""


class LxcMover:
    """Moves a base's containers; see `engine.Mover` for each method."""

    def __init__(self, settings: Settings, store: Currents, base: BaseName, verb: str) -> None:
        self._settings = settings
        self._store = store
        self._base = base
        self._verb = verb

    def locked(self, name: str) -> AbstractContextManager[None]:
        return locks.container(self._settings.paths, name, verb=self._verb, wait=_LOCK_PATIENCE)

    def observe(self, name: str) -> Seen:
        found = lease.read(self._settings.paths, name)
        if found is None:
            return Seen(name=name, running=False, generation=None)
        return Seen(name=name, running=found.held, generation=found.generation)

    def stop(self, name: str) -> None:
        lifecycle.stop_locked(self._settings, name)

    def start(self, name: str) -> None:
        lifecycle.start_locked(self._settings, name)

    def set_current(self, generation: int) -> None:
        try:
            if self._store.current(self._base) == generation:
                return
        except CorruptState:
            pass  # it leads nowhere, and this mends it
        self._store.set_current(self._base, generation)

    def last_words(self, name: str) -> tuple[str, ...]:
        path = self._settings.paths.container(name) / "console.log"
        try:
            # the directory is root's alone: nobody inside can put another file there
            with open(path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _CONSOLE_BYTES))
                lines = shown(file.read(_CONSOLE_BYTES)).splitlines()
        except OSError:
            return ()
        return tuple(lines[-_CONSOLE_LINES:])


def seen(state: ContainerState) -> Seen:
    """Return a container's state as plans are made of it."""
    running = None if state.damage else state.state is not State.STOPPED
    return Seen(name=state.name, running=running, generation=state.generation)
