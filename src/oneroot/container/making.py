"""The steps that one container is made of: prepared in a stage directory, then renamed into place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from oneroot.container import lxcconfig, places, spec
from oneroot.container.spec import ContainerSpec
from oneroot.container.upper import Mould
from oneroot.kernel.tree import remove_tree
from oneroot.settings import Settings
from oneroot.work.steps import Rename, Step


def steps(settings: Settings, mould: Mould, one: ContainerSpec) -> list[Step]:
    """Return the steps that make a container; the last one lets it appear."""
    stage = places.stage(settings.paths) / one.name
    return [
        _Declare(settings=settings, spec=one, place=stage),
        _Configure(settings=settings, spec=one, place=stage),
        _PrepareUpper(mould=mould, spec=one, place=stage),
        Rename(
            description=f"{one.name}: put it into the LXC path",
            source=stage,
            target=settings.paths.container(one.name),
        ),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Declare:
    settings: Settings
    spec: ContainerSpec
    place: Path

    def describe(self) -> str:
        return f"{self.spec.name}: write its declaration"

    def apply(self) -> None:
        self.place.mkdir(mode=0o700)
        spec.save_in(self.place, self.spec)

    def undo(self) -> None:
        remove_tree(self.place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Configure:
    settings: Settings
    spec: ContainerSpec
    place: Path

    def describe(self) -> str:
        return f"{self.spec.name}: write its LXC configuration"

    def apply(self) -> None:
        (self.place / "config").write_text(lxcconfig.render(self.settings, self.spec), encoding="utf-8")

    def undo(self) -> None:
        (self.place / "config").unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PrepareUpper:
    mould: Mould
    spec: ContainerSpec
    place: Path

    def describe(self) -> str:
        return f"{self.spec.name}: prepare its writable layer"

    def apply(self) -> None:
        self.mould.cast(self.place / "overlay", self.spec)

    def undo(self) -> None:
        remove_tree(self.place / "overlay")
