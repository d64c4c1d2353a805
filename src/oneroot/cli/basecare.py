"""The part of ``oneroot base`` that looks after what is there: use, unpin, bad, fsck, gc, rm."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import click

from oneroot.cli import render
from oneroot.cli.basetools import (
    dry_run_option,
    each,
    names_argument,
    print_steps,
    reason_option,
    required_names,
    said_of,
    select,
    store_of,
    yes_option,
)
from oneroot.cli.context import Context, confirm, pass_context
from oneroot.errors import ExitCode, OnerootError

if TYPE_CHECKING:
    from oneroot.base.store import Store


def add_to(group: click.Group) -> None:
    for command in (use, unpin, bad, fsck, gc, rm):
        group.add_command(command)


@click.command("use")
@click.argument("name")
@click.argument("number", metavar="N")
@click.option("--pin/--no-pin", default=True, show_default=True, help="Hold the base there until base unpin.")
@reason_option
@dry_run_option
@pass_context
def use(context: Context, /, name: str, number: str, pin: bool, reason: str, dry_run: bool) -> int:
    """Make a generation the current one; containers take it at their next start.

    An older generation than the newest is pinned, so that no patch undoes the choice unnoticed.
    """
    from oneroot.base.store import parse_number

    store = store_of(context)
    [chosen] = select(context, (name,), single=True)
    wanted = parse_number(number)
    store.spec(chosen)
    store.manifest(chosen, wanted)
    pinned = pin and wanted != max(store.numbers(chosen))
    steps = [
        f"make generation {wanted} the current one of {chosen}",
        *([f"pin {chosen} to it"] if pinned else []),
    ]
    if dry_run:
        print_steps(context, chosen, steps)
        return ExitCode.DONE
    context.require_root()
    with store.holding(chosen, "use"):
        if pinned:
            store.pin(chosen, wanted, reason=reason or "chosen by hand")
        elif store.spec(chosen).pin:
            store.unpin(chosen)
        store.set_current(chosen, wanted)
    return said_of(context, chosen, f"generation {wanted} is current{' and pinned' if pinned else ''}")


@click.command("unpin")
@required_names
@dry_run_option
@pass_context
def unpin(context: Context, /, names: tuple[str, ...], dry_run: bool) -> int:
    """Let bases follow their updates again."""

    def work(store: Store, name: str) -> str:
        with store.holding(name, "unpin"):
            pin = store.unpin(name)
        return f"was pinned to {pin.generation} by {pin.person}: {pin.reason}" if pin else "was not pinned"

    return each(context, names, work, dry_run=dry_run, plan="unpin it")


@click.command("bad")
@click.argument("name")
@click.argument("number", metavar="N")
@click.option("--undo", is_flag=True, help="Take the mark back.")
@dry_run_option
@pass_context
def bad(context: Context, /, name: str, number: str, undo: bool, dry_run: bool) -> int:
    """Mark a generation, so that neither it nor its packages are rolled out again."""
    from oneroot.base.store import parse_number

    store = store_of(context)
    [chosen] = select(context, (name,), single=True)
    wanted = parse_number(number)
    store.generation(chosen, wanted)
    said = f"generation {wanted} is {'no longer ' if undo else ''}marked bad"
    if dry_run:
        print_steps(context, chosen, [said])
        return ExitCode.DONE
    context.require_root()
    with store.holding(chosen, "bad"):
        store.mark_bad(chosen, wanted, bad=not undo)
    return said_of(context, chosen, said)


@click.command("fsck")
@names_argument
@pass_context
def fsck(context: Context, /, names: tuple[str, ...]) -> int:
    """Compare every file of every generation with what was committed."""
    from oneroot.base import fsck as checks

    context.require_root()
    store = store_of(context)
    findings = [
        finding
        for name in select(context, names)
        for finding in checks.check(store, name, progress=context.progress)
    ]
    if context.json:
        render.print_json(findings)
    elif findings:
        render.print_table(
            ("BASE", "GENERATION", "PATH", "PROBLEM"),
            [(one.base, one.generation, one.path, one.problem) for one in findings],
        )
    else:
        render.print_line("every file is as it was committed")
    return ExitCode.FAILED if findings else ExitCode.DONE


@click.command("gc")
@names_argument
@yes_option
@dry_run_option
@pass_context
def gc(context: Context, /, names: tuple[str, ...], yes: bool, dry_run: bool) -> int:
    """Remove the generations that nobody needs; what they changed is remembered.

    Kept: the current one, the one before it, newer ones, pinned ones, and those that containers use.
    """
    from oneroot.base import collect

    context.require_root()
    chosen = select(context, names)
    plans = [collect.plan(context.settings, name, _used(context, name)) for name in chosen]
    if not dry_run and any(plan.removed for plan in plans):
        listed = "; ".join(
            f"{plan.base} {', '.join(map(str, plan.removed))}" for plan in plans if plan.removed
        )
        confirm(f"Remove these generations for ever: {listed}?", yes=yes)
        plans = [
            collect.gc(
                context.settings, name, functools.partial(_used, context, name), progress=context.progress
            )
            for name in chosen
        ]
    if context.json:
        render.print_json(plans)
        return ExitCode.DONE
    for plan in plans:
        numbers = ", ".join(map(str, plan.removed))
        said = f"{'would remove' if dry_run else 'removed'} {numbers}" if numbers else "nothing to remove"
        stay = ", ".join(f"{number} ({why})" for number, why in sorted(plan.kept.items()))
        render.print_line(f"{plan.base}: {said}; kept {stay}")
    return ExitCode.DONE


def _used(context: Context, name: str) -> set[int]:
    """Return the generations of a base that containers have mounted."""
    from oneroot.container import lease

    leases = lease.read_all(context.settings.paths).values()
    return {one.generation for one in leases if one.base == name and one.held}


@click.command("rm")
@required_names
@yes_option
@dry_run_option
@pass_context
def rm(context: Context, /, names: tuple[str, ...], yes: bool, dry_run: bool) -> int:
    """Remove bases with all of their generations, for ever."""
    from oneroot.base import collect

    context.require_root()
    chosen = select(context, names)
    for name in chosen:
        _refuse_used(context, name)
    if dry_run:
        for name in chosen:
            steps = [step.describe() for step in collect.removal(context.settings, name)]
            print_steps(context, name, steps)
        return ExitCode.DONE
    confirm(f"Remove for ever, with all generations: {', '.join(chosen)}?", yes=yes)

    def work(store: Store, name: str) -> str:
        with store.holding(name, "rm"):
            users = _users(context, name)
            collect.remove_base(context.settings, name, users, progress=context.progress)
        return "removed"

    return each(context, names, work)


def _refuse_used(context: Context, name: str) -> None:
    from oneroot.base import collect

    collect.refuse_used(name, _users(context, name))


def _users(context: Context, name: str) -> list[str]:
    """Return the containers and the bases that need a base; undelete looks for itself."""
    from oneroot.base import collect
    from oneroot.container import spec

    users = collect.derived(store_of(context), name)
    for container in spec.names(context.settings.paths):
        try:
            declared = spec.load(context.settings.paths, container).base
        except OnerootError:
            users.append(f"{container} (its declaration cannot be read)")
            continue
        if declared == name:
            users.append(container)
    return users
