"""Commands that look or reach into containers: exec shell logs cp top."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from oneroot.cli import many, render
from oneroot.cli.context import Context, pass_context
from oneroot.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oneroot.container import attach
    from oneroot.work.parallel import Outcome


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--timeout", type=click.FloatRange(0, 86400), metavar="SECONDS", help="With several containers."
)
@click.argument("words", nargs=-1, required=True, metavar="NAME… [--] PROGRAM [ARGUMENT…]")
@pass_context
def exec_command(context: Context, timeout: float | None, words: tuple[str, ...]) -> int:
    """Run a program inside containers, as their root. Several names end with "--"."""
    from oneroot.container import attach

    names, argv = _split_words(words)
    chosen = many.select(context, names)
    context.require_root()
    if len(chosen) == 1 and not context.json:
        return attach.stream(context.settings, chosen[0], argv)
    return _exec_many(context, chosen, argv, timeout)


def _split_words(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    # click takes away a first “--”, and leaves one that stands behind names
    if "--" in words:
        place = words.index("--")
        names, argv = words[:place], words[place + 1 :]
    else:
        names, argv = words[:1], words[1:]
    if not names or not argv:
        raise click.UsageError("Say which container and which program: exec NAME -- PROGRAM")
    return names, argv


def _exec_many(context: Context, names: list[str], argv: tuple[str, ...], timeout: float | None) -> int:
    from oneroot.container import attach
    from oneroot.work.parallel import for_each

    def one(name: str) -> attach.Ran:
        return attach.execute(context.settings, name, argv, timeout=timeout, limit=1 << 20)

    outcomes = for_each(names, one, workers=context.settings.workers, title="exec", progress=context.progress)
    if context.json:
        render.print_json([_ran(outcome) for outcome in outcomes])
        return _exec_code(outcomes)
    for outcome in outcomes:
        if outcome.error:
            render.print_error(outcome.error)
        elif outcome.value is not None:
            text = (outcome.value.stdout + outcome.value.stderr).decode("utf-8", "backslashreplace")
            for line in text.splitlines():
                render.print_line(f"{outcome.name}: {line}")
            if outcome.value.returncode:
                render.print_line(f"{outcome.name}: exit status {outcome.value.returncode}")
    return _exec_code(outcomes)


def _exec_code(outcomes: Sequence[Outcome[attach.Ran]]) -> int:
    """Return the program's own code if it ran in one container."""
    if len(outcomes) == 1 and outcomes[0].value is not None:
        return outcomes[0].value.returncode
    failed = any(outcome.value is not None and outcome.value.returncode for outcome in outcomes)
    return ExitCode.FAILED if failed else many.exit_code(outcomes)


def _ran(outcome: Outcome[Any]) -> dict[str, Any]:
    ran = outcome.value
    return {
        "name": outcome.name,
        "ok": ran is not None and ran.returncode == 0,
        "returncode": ran.returncode if ran else None,
        "stdout": ran.stdout.decode("utf-8", "backslashreplace") if ran else "",
        "stderr": ran.stderr.decode("utf-8", "backslashreplace") if ran else "",
        "truncated": ran.truncated if ran else False,
        "error": render.error_fields(outcome.error) if outcome.error else None,
    }


@click.command("shell")
@click.argument("name")
@pass_context
def shell_command(context: Context, name: str) -> int:
    """Open a shell inside a container, as its root, on a terminal of its own."""
    from oneroot.container import attach

    chosen = many.one(context, name)
    context.require_root()
    argv = ("/bin/sh", "-c", "if [ -x /bin/bash ]; then exec /bin/bash -l; fi; exec /bin/sh -l")
    if sys.stdin.isatty() and sys.stdout.isatty():
        return attach.interactive(context.settings, chosen, argv)
    return attach.stream(context.settings, chosen, argv)


@click.command("logs")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--lines", "-n", type=click.IntRange(0, 1_000_000), default=200, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written from now on.")
@click.option("--console", is_flag=True, help="The console, also of a container that runs units.")
@pass_context
def logs_command(context: Context, names: tuple[str, ...], lines: int, follow: bool, console: bool) -> int:
    """Show what containers wrote: their console, or the journal of those that run units."""
    from oneroot.container import logs
    from oneroot.work.parallel import raise_failures

    chosen = many.select(context, names)
    context.require_root()
    if follow and context.json:
        raise click.UsageError("--follow has no JSON form.")
    outcomes = logs.read(context.settings, chosen, lines=lines, console=console)
    found = [(outcome.name, outcome.value) for outcome in outcomes if outcome.value is not None]
    several = len(chosen) > 1
    if context.json:
        render.print_json([{"name": name, "lines": text} for name, text in found])
    else:
        for name, text in found:
            for line in text:
                render.print_line(f"{name}: {line}" if several else line)
    raise_failures(outcomes, "logs")
    if follow:
        sys.stdout.flush()
        for name, line in logs.follow(context.settings, chosen, console=console):
            render.print_line(f"{name}: {line}" if several else line)
            sys.stdout.flush()
    return ExitCode.DONE


@click.command("cp")
@click.argument("source")
@click.argument("target")
@pass_context
def cp_command(context: Context, source: str, target: str) -> int:
    """Copy files into and out of containers: one of SOURCE and TARGET is NAME:/PATH.

    Into several containers at once, NAME may be a pattern. A link that SOURCE or TARGET names is
    followed: the file that it leads to is read or written. Below a directory links are copied as
    links, and replaced. A container that runs and one that is stopped make no difference.
    """
    from pathlib import Path

    from oneroot.container import files
    from oneroot.work.parallel import for_each

    context.require_root()
    outside, inside = files.parse(source), files.parse(target)
    if (outside is None) == (inside is None):
        raise click.UsageError("Exactly one of SOURCE and TARGET is inside a container: NAME:/PATH")
    if inside is not None:
        names = many.select(context, (inside.name,))
        path = Path(source)
        outcomes = for_each(
            names,
            lambda name: files.copy_in(context.settings, path, name, inside.path),
            workers=context.settings.workers,
            title="cp",
            progress=context.progress,
        )
        return many.finish(context, outcomes, lambda copied: f"{copied} copied")
    assert outside is not None
    name = many.one(context, outside.name)
    copied = files.copy_out(context.settings, name, outside.path, Path(target))
    if context.json:
        render.print_json({"name": name, "files": copied})
    else:
        render.print_line(f"{name}: {copied} copied")
    return ExitCode.DONE


@click.command("top")
@click.argument("names", nargs=-1, metavar="[NAME…]")
@click.option("--once", is_flag=True, help="Show it once, and end.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, metavar="SECONDS")
@pass_context
def top_command(context: Context, names: tuple[str, ...], once: bool, interval: float) -> int:
    """Show what running containers use, the busiest first."""
    from oneroot.container import usage

    def chosen() -> list[str]:
        return [state.name for state in many.states_of(context, names) if state.state.up]

    sampler = usage.Sampler()
    sampler.read(chosen())
    live = not once and not context.json and sys.stdout.isatty()
    while True:
        sampler.wait(interval if live else min(interval, 0.5))
        found = sorted(sampler.read(chosen()), key=lambda one: (-(one.cpu or 0), one.name))
        if context.json:
            render.print_json(found)
            return ExitCode.DONE
        if live:
            click.clear()
        render.print_table(
            ("NAME", "CPU %", "MEMORY", "LIMIT", "PROCESSES"),
            [
                (
                    one.name,
                    None if one.cpu is None else f"{100 * one.cpu:.1f}",
                    _size(one.memory),
                    _size(one.memory_limit),
                    one.processes,
                )
                for one in found[: max(5, shutil.get_terminal_size().lines - 3) if live else None]
            ],
        )
        if not live:
            return ExitCode.DONE


def _size(value: int | None) -> str | None:
    if value is None:
        return None
    amount = float(value)
    for unit in ("B", "K", "M", "G"):
        if amount < 1024:
            return f"{amount:.0f}{unit}" if unit in "BK" else f"{amount:.1f}{unit}"
        amount /= 1024
    return f"{amount:.1f}T"
