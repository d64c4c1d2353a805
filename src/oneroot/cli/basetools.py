"""What the commands of ``oneroot base`` share: choosing bases, and printing what became of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from oneroot.cli import render
from oneroot.cli.context import Context
from oneroot.errors import ExitCode, Interrupted, OnerootError, SomeFailed, UsageError

if TYPE_CHECKING:
    from oneroot.base.store import Store

dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would be done.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
names_argument = click.argument("names", metavar="NAME…", nargs=-1)
required_names = click.argument("names", metavar="NAME…", nargs=-1, required=True)
reason_option = click.option("--reason", default="", help="Why, for the history.")


def store_of(context: Context) -> Store:
    from oneroot.base.store import Store

    return Store(context.settings)


def select(context: Context, patterns: Sequence[str], *, single: bool = False) -> list[str]:
    from oneroot import names

    chosen = names.select(patterns, store_of(context).names(), what="base")
    if single and len(chosen) != 1:
        raise UsageError(f"{patterns[0]!r} names {len(chosen)} bases", fix="name one")
    return chosen


def each(
    context: Context,
    patterns: Sequence[str],
    work: Callable[[Store, str], str],
    *,
    dry_run: bool = False,
    plan: str = "",
    json_results: list[dict[str, Any]] | None = None,
) -> int:
    """Do something with every chosen base, one after the other; one's failure does not stop the others."""
    context.require_root()
    chosen = select(context, patterns)
    if dry_run:
        for name in chosen:
            print_steps(context, name, [f"{name}: {plan}"])
        return ExitCode.DONE
    failures: list[OnerootError] = []
    said: list[dict[str, str]] = []
    for name in chosen:
        try:
            said.append({"base": name, "result": work(store_of(context), name)})
        except Interrupted:
            raise
        except OnerootError as error:
            failures.append(error)
    if context.json:
        render.print_json(json_results if json_results is not None else said)
    else:
        for one in said:
            render.print_line(f"{one['base']}: {one['result']}")
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise SomeFailed(f"{len(failures)} of {len(chosen)} bases failed", failures)
    return ExitCode.DONE


def print_steps(context: Context, name: str, steps: Sequence[str]) -> None:
    if context.json:
        render.print_json({"base": name, "steps": steps})
        return
    for step in steps or (f"{name}: nothing to do",):
        render.print_line(step)


def said_of(context: Context, name: str, text: str) -> int:
    if context.json:
        render.print_json([{"base": name, "result": text}])
    else:
        render.print_line(f"{name}: {text}")
    return ExitCode.DONE
