"""What every command is given: settings, output format, where progress goes."""

from __future__ import annotations

import dataclasses
import enum
import os
import sys

import click

from oneroot.cli import render
from oneroot.errors import HostError
from oneroot.settings import Settings
from oneroot.work.progress import Progress


class Format(enum.StrEnum):
    """What a command's result looks like on standard output."""

    TABLE = "table"
    JSON = "json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """Made once by `main` from the global options."""

    settings: Settings
    format: Format
    progress: Progress

    @property
    def json(self) -> bool:
        return self.format is Format.JSON

    def require_root(self) -> None:
        """Refuse early, and with a reason, what only root can do.

        :raises HostError: we are not root.
        """
        if os.geteuid() != 0:
            raise HostError(
                "oneroot needs to be root for this",
                why="it makes mounts, containers and files that only root may make",
                fix="run it with sudo",
            )


pass_context = click.make_pass_decorator(Context)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; without a terminal the answer must be ``--yes``.

    :raises click.UsageError: nobody can be asked.
    :raises click.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{render.escape(question)} Say so with --yes.")
    click.confirm(render.escape(question), abort=True, err=True)
