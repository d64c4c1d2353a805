"""Everything that is printed goes through here: tables, JSON, errors, progress.

Text from containers, packages and logs is hostile: control characters are escaped, markup is
off, and JSON is ASCII.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import sys
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from oneroot.errors import OnerootError, SomeFailed
from oneroot.work.parallel import Outcome
from oneroot.work.progress import Task

if TYPE_CHECKING:
    from rich.console import Console


_NAMED_EACH = 10
"""So many containers of which the same is said are named; more are counted."""


def escape(text: object) -> str:
    """Make text safe for a terminal: control, format and unpaired characters are written out."""
    return "".join(char if _printable(char) else _written_out(char) for char in str(text))


def _printable(char: str) -> bool:
    return (char.isascii() and char.isprintable()) or unicodedata.category(char)[0] not in "CZ" or char == " "


def _written_out(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def json_text(value: object, *, indent: int | None = 2) -> str:
    """Return a value (dataclasses, enums and paths included) as ASCII JSON."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=True)


def plain(value: Any) -> Any:
    """Turn a value into what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


_bars: Terminal | None = None
"""The progress that is on the screen now."""


def end_progress() -> None:
    """Take progress off the screen; everything that prints does this first."""
    if _bars is not None:
        _bars.close()


def print_json(value: object) -> None:
    """Print a result as JSON on standard output."""
    end_progress()
    sys.stdout.write(json_text(value) + "\n")


def print_line(text: str) -> None:
    """Print one line of a result for people; the caller has nothing escaped."""
    end_progress()
    sys.stdout.write(escape(text) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """Print rows for people; None is shown as a dash, True and False as yes and no."""
    from rich.table import Table
    from rich.text import Text

    end_progress()
    console = _console(sys.stdout)
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value), style=_style(value)) for value in row))
    console.print(table)


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Print one thing for people: a field a line."""
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        lines = [_cell(item) for item in value] if isinstance(value, list | tuple) else [_cell(value)]
        for place, line in enumerate(lines or ["-"]):
            print_line(f"{(name + ':') if place == 0 else '':<{width + 1}}  {line}")


def print_outcomes(outcomes: Sequence[Outcome[Any]], said: Callable[[Any], str], *, as_json: bool) -> None:
    """Print what became of each of many: ``{name, ok, result, error}``, or a line for each that failed
    and the others together, by what is said of them.
    """
    if as_json:
        print_json(
            [
                {
                    "name": outcome.name,
                    "ok": outcome.ok,
                    "result": plain(outcome.value),
                    "error": error_fields(outcome.error) if outcome.error else None,
                }
                for outcome in outcomes
            ]
        )
        return
    alike: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.error:
            print_error(outcome.error)
        else:
            alike.setdefault(said(outcome.value), []).append(outcome.name)
    for text, names in alike.items():
        if len(names) <= _NAMED_EACH:
            for name in names:
                print_line(f"{name}: {text}")
        else:
            print_line(f"{len(names)} of {len(outcomes)} containers: {text}")


def error_fields(error: OnerootError) -> dict[str, Any]:
    """Return the fields of an error, as the contract names them."""
    fields: dict[str, Any] = {
        "code": error.code,
        "what": error.what,
        "why": error.why,
        "fix": error.fix,
        "container": error.container,
    }
    if isinstance(error, SomeFailed):
        fields["failures"] = [error_fields(failure) for failure in error.failures]
    return fields


def print_error(error: OnerootError, *, as_json: bool = False) -> None:
    """Print an error on standard error: what happened, why, what to do."""
    end_progress()
    if as_json:
        sys.stderr.write(json_text({"error": error_fields(error)}, indent=None) + "\n")
        return
    where = f"{error.container}: " if error.container and error.container not in error.what else ""
    lines = [f"oneroot: {where}{error.what}"]
    lines += [
        f"  why: {line}" if place == 0 else f"       {line}"
        for place, line in enumerate(error.why.splitlines())
    ]
    if error.fix:
        lines.append(f"  fix: {error.fix}")
    lines += [f"  also: {note}" for note in getattr(error, "__notes__", [])]
    sys.stderr.write("".join(escape(line) + "\n" for line in lines))
    if isinstance(error, SomeFailed):
        for failure in error.failures:
            print_error(failure)


def _cell(value: object) -> str:
    match value:
        case None | "" | () | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case enum.Enum():
            return escape(value.value)
        case list() | tuple():
            return escape(", ".join(str(item) for item in value))
        case _:
            return escape(value)


_STYLES = {
    "RUNNING": "green",
    "FAIL": "bold red",
    "WARN": "yellow",
    "OK": "green",
    "proven": "green",
    "not proven": "bold red",
}


def _style(value: object) -> str:
    return _STYLES.get(str(value.value if isinstance(value, enum.Enum) else value), "")


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    width = None if stream.isatty() else 200
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, width=width,
        no_color=bool(os.environ.get("NO_COLOR")) or None,
    )  # fmt: skip


class Terminal:
    """Progress for people, on standard error: a bar while many are worked on, and notes."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}", markup=False),
            console=_console(sys.stderr),
            transient=True,
            # rich would send results to the console too, which is standard error
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._lock = threading.Lock()

    def note(self, message: str) -> None:
        with self._lock:
            self._start()
        self._bars.console.print(f"  {escape(message)}", style="dim", markup=False)

    def begin(self, title: str, total: int) -> Task:
        with self._lock:
            self._start()
        return _TerminalTask(self._bars, self._bars.add_task(escape(title), total=total, message=""))

    def close(self) -> None:
        """Take the bars off the screen; those of finished work do not come back."""
        global _bars
        with self._lock:
            if _bars is self:
                _bars = None
                self._bars.stop()
                for task in self._bars.tasks:
                    if task.finished:
                        self._bars.remove_task(task.id)

    def _start(self) -> None:
        global _bars
        if _bars is not self:
            self._bars.start()
            _bars = self


class _TerminalTask:
    def __init__(self, bars: Any, task: Any) -> None:
        self._bars = bars
        self._task = task
        self._failed = 0

    def done(self, name: str, *, failed: bool = False, message: str = "") -> None:
        self._failed += failed
        said = f"{self._failed} failed" if self._failed else escape(name)
        self._bars.update(self._task, advance=1, message=said)


class Lines:
    """Progress for a log: a line for each note and for each tenth of the work."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def note(self, message: str) -> None:
        self.line(message)

    def begin(self, title: str, total: int) -> Task:
        return _LinesTask(self, title, total)

    def line(self, text: str) -> None:
        with self._lock:
            self._stream.write(escape(text) + "\n")
            self._stream.flush()


class _LinesTask:
    def __init__(self, lines: Lines, title: str, total: int) -> None:
        self._lines = lines
        self._title = title
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def done(self, name: str, *, failed: bool = False, message: str = "") -> None:
        with self._lock:  # while it prints too, so that the counts stand in order
            self._done += 1
            if failed:
                self._lines.line(f"{self._title}: {name} failed: {message}")
            if self._done == self._total or self._done % max(1, self._total // 10) == 0:
                self._lines.line(f"{self._title}: {self._done} of {self._total}")
