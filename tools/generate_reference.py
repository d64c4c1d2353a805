"""Write docs/reference/commands.md from the command line's own help.

    generate_reference.py           write it
    generate_reference.py --check   exit 1 if it is not up to date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from oneroot.cli.main import cli

TARGET = Path(__file__).parent.parent / "docs/reference/commands.md"
HEADER = """# Commands

Made from `oneroot --help` by `tools/generate_reference.py`; do not edit.

A NAME may be a pattern such as `'web*'` (quoted, for the shell), and there may be several. The global
options may stand before or behind the command. `--dry-run` shows what would be done.
"""


def text() -> str:
    """Return the whole page."""
    return "\n".join([HEADER, *_sections(cli, click.Context(cli, info_name="oneroot"), 0)])


def _sections(command: click.Command, context: click.Context, depth: int) -> Iterator[str]:
    level = "#" * min(4, depth + 2)
    with context.scope():
        shown = command.get_help(context).rstrip()
    yield f"{level} {context.command_path}\n\n```text\n{shown}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                inner = click.Context(below, info_name=name, parent=context, terminal_width=100)
                yield from _sections(below, inner, depth + 1)


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
