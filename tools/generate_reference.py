"""Write docs/reference/commands.md from the command line itself.

    generate_reference.py           write it
    generate_reference.py --check   exit 1 if it is not up to date

The page is made from the declared commands and parameters, not from the help that click lays out:
that depends on the terminal's width and on click's version.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from oneroot.cli.main import cli

TARGET = Path(__file__).parent.parent / "docs/reference/commands.md"
HEADER = """# Commands

Made from the program itself by `tools/generate_reference.py`; do not edit.

- A NAME or BASE is a name, or a pattern such as `'web*'` (quoted, so that the shell leaves it alone).
  A name or pattern that matches nothing is an error, and nothing is done. `…` means several.
- The global options may stand before or behind the command: `oneroot ls --format json`. Behind `exec`
  and behind `--` all words belong to the program that is run.
- `--dry-run` shows what would be done, and does nothing.
- Every command except `--help` and `--version` reads the settings file: see [settings](settings.md).
- Results go to standard output, progress and errors to standard error: see [JSON](json.md) and
  [exit codes](exit-codes.md).
"""
_DEFAULT = re.compile(r"\[default(?: [A-Z]+)?: ([^]]+)\]")
"""How the help of an option says a default that click does not know."""


def text() -> str:
    """Return the whole page."""
    return "\n".join([HEADER, *_sections(cli, click.Context(cli, info_name="oneroot"), 2)]).rstrip() + "\n"


def _sections(command: click.Command, context: click.Context, depth: int) -> Iterator[str]:
    """Return the section of a command, and those of the commands below it."""
    yield f"{'#' * min(depth, 4)} `{context.command_path}`\n"
    yield f"```text\n{_usage(command, context)}\n```\n"
    yield f"{_paragraphs(command.help or command.short_help or '')}\n"
    options = [_option(param) for param in command.params if isinstance(param, click.Option)]
    if options:
        yield "\n".join(options) + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _sections(below, click.Context(below, info_name=name, parent=context), depth + 1)


def _usage(command: click.Command, context: click.Context) -> str:
    words = [context.command_path]
    if any(isinstance(param, click.Option) for param in command.params):
        words.append("[OPTIONS]")
    words += [_argument(param) for param in command.params if isinstance(param, click.Argument)]
    if isinstance(command, click.Group):
        words.append("COMMAND …")
    return " ".join(words)


def _argument(argument: click.Argument) -> str:
    shown = argument.metavar or (argument.name or "").upper()
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*sorted(option.opts, key=len), *option.secondary_opts))
    value = _value(option)
    if value:
        names = f"{names.removesuffix('`')} {value}`"
    said = _DEFAULT.sub(r"Default: \1.", " ".join((option.help or "").split()))
    if option.required:
        said += " Required."
    if option.show_default is True:  # the default itself is click's own sentinel where there is none
        said += f" Default: {_default(option)}."
    return f"- {names}: {said.strip()}" if said else f"- {names}"


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ""
    if option.metavar:
        return option.metavar
    kind = option.type
    if isinstance(kind, click.Choice):
        return "|".join(str(choice) for choice in kind.choices)
    if isinstance(kind, click.IntRange):
        low, high = kind.min, kind.max
        return f"{low}…{high}" if high is not None else "N"
    if isinstance(kind, click.Path):
        return "FILE"
    return "N" if kind.name in ("integer", "float") else "TEXT"


def _default(option: click.Option) -> str:
    default = option.default
    if option.secondary_opts:
        return f"`{(option.opts if default else option.secondary_opts)[0]}`"
    if isinstance(default, tuple | list):
        return ", ".join(f"`{one}`" for one in default)
    return f"`{default}`"


def _paragraphs(help_text: str) -> str:
    blocks = inspect.cleandoc(help_text).split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks)


def main() -> int:
    wanted = text()
    if "--check" in sys.argv:
        if TARGET.exists() and TARGET.read_text(encoding="utf-8") == wanted:
            return 0
        sys.stderr.write(f"{TARGET} is not up to date: run tools/generate_reference.py\n")
        return 1
    TARGET.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
