"""Commands about containers: create start stop restart rm undelete ls info exec shell logs cp top wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from oneroot.cli import explain, many, render
from oneroot.cli.context import Context, confirm, pass_context
from oneroot.cli.inside import cp_command, exec_command, logs_command, shell_command, top_command
from oneroot.errors import ExitCode, OnerootError, UsageError

if TYPE_CHECKING:
    from oneroot.container.state import ContainerState

__all__ = [
    "cp_command",
    "create_command",
    "exec_command",
    "info_command",
    "logs_command",
    "ls_command",
    "restart_command",
    "rm_command",
    "shell_command",
    "start_command",
    "stop_command",
    "top_command",
    "undelete_command",
    "wait_command",
]

NAMES = click.argument("names", nargs=-1, metavar="[NAME…]")
SOME_NAMES = click.argument("names", nargs=-1, required=True, metavar="NAME…")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only show what would be done.")
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.command("create")
@click.argument("name")
@click.option("--base", required=True, help="The base that it stands on.")
@click.option("--replicas", type=int, metavar="N", help="NAME001 … instead of one container called NAME.")
@click.option("--unit", "units", multiple=True, help="A systemd unit of the base that runs; may be repeated.")
@click.option("--command", help="Run by /bin/sh under the base's tini, instead of units.")
@click.option("--memory", metavar="SIZE", help="Limit, such as 64M or 2G.")
@click.option("--cpus", type=float, metavar="N", help="Limit: processors' worth of time, such as 0.5.")
@click.option("--pids", type=int, metavar="N", help="Limit of processes.  [default: the settings' 2048]")
@click.option(
    "--publish", "-p", multiple=True, metavar="[ADDRESS:]PORT:PORT",
    help="Lead a port of the host to one of the container; 8080+:80 counts up for replicas."
    "  [default ADDRESS: 127.0.0.1]",
)  # fmt: skip
@click.option("--health", metavar="CHECK", help="http:80/, tcp:5432 or command:…: what tells that it works.")
@click.option("--privileged", is_flag=True, help="Without an id range of its own: its root is the host's.")
@click.option("--unsafe", is_flag=True, help="Accept what the host cannot hold back.")
@click.option("--autostart/--no-autostart", default=True, show_default=True, help="Start it with the host.")
@DRY_RUN
@pass_context
def create_command(
    context: Context,
    name: str,
    base: str,
    replicas: int | None,
    units: tuple[str, ...],
    command: str | None,
    memory: str | None,
    cpus: float | None,
    pids: int | None,
    publish: tuple[str, ...],
    health: str | None,
    privileged: bool,
    unsafe: bool,
    autostart: bool,
    dry_run: bool,
) -> int:
    """Make sure that containers exist; run again, it finishes what is missing."""
    from oneroot.container import create, request
    from oneroot.container.spec import Limits

    asked = request.CreateRequest(
        name=name,
        replicas=replicas,
        base=base,
        units=units,
        command=command,
        limits=Limits(
            memory=None if memory is None else request.parse_size(memory),
            cpus=cpus,
            pids=context.settings.policy.pids if pids is None else pids,
        ),
        publish=tuple(map(request.parse_publish, publish)),
        health=None if health is None else request.parse_health(health),
        privileged=privileged,
        unsafe=unsafe,
        autostart=autostart,
    )
    request.check(asked)
    if not dry_run:
        context.require_root()
    outcomes = create.ensure(context.settings, asked, progress=context.progress, dry_run=dry_run)
    if dry_run and not context.json:
        return many.print_plan(outcomes)
    for outcome in outcomes:
        if outcome.value is not None and outcome.value.warning and not context.json:
            render.print_error(OnerootError(outcome.value.warning, container=outcome.name))
    return many.finish(context, outcomes, lambda result: str(result.status.value))


@click.command("start")
@SOME_NAMES
@DRY_RUN
@pass_context
def start_command(context: Context, names: tuple[str, ...], dry_run: bool) -> int:
    """Start containers, on the current generation of their base."""
    from oneroot.container import lifecycle

    chosen = many.select(context, names)
    if dry_run:
        return many.print_dry(context, chosen, "start it", when=lambda state: not state.state.up)
    context.require_root()
    lifecycle.require(context.settings, chosen)
    many.warn(context, lifecycle.prepare(context.settings))
    return many.finish(
        context,
        lifecycle.start(context.settings, chosen, progress=context.progress),
        lambda change: change.value,
    )


@click.command("stop")
@SOME_NAMES
@click.option(
    "--timeout", type=click.FloatRange(0, 86400), metavar="SECONDS", help="Until it is killed; 0: now."
)
@DRY_RUN
@pass_context
def stop_command(context: Context, names: tuple[str, ...], timeout: float | None, dry_run: bool) -> int:
    """Stop containers gracefully, and kill those that do not stop in time."""
    from oneroot.container import lifecycle

    chosen = many.select(context, names)
    if dry_run:
        return many.print_dry(context, chosen, "stop it", when=lambda state: state.state.up)
    context.require_root()
    outcomes = lifecycle.stop(context.settings, chosen, timeout=timeout, progress=context.progress)
    return many.finish(context, outcomes, lambda change: change.value)


@click.command("restart")
@SOME_NAMES
@click.option(
    "--timeout", type=click.FloatRange(0, 86400), metavar="SECONDS", help="Until it is killed; 0: now."
)
@DRY_RUN
@pass_context
def restart_command(context: Context, names: tuple[str, ...], timeout: float | None, dry_run: bool) -> int:
    """Stop and start containers; one that is stopped is started."""
    from oneroot.container import lifecycle

    chosen = many.select(context, names)
    if dry_run:
        return many.print_dry(context, chosen, "restart it", when=lambda state: True)
    context.require_root()
    lifecycle.require(context.settings, chosen)
    many.warn(context, lifecycle.prepare(context.settings))
    outcomes = lifecycle.restart(context.settings, chosen, timeout=timeout, progress=context.progress)
    return many.finish(context, outcomes, lambda change: change.value)


@click.command("rm")
@click.argument("names", nargs=-1, metavar="NAME…")
@click.option("--force", "-f", is_flag=True, help="Stop those that run.")
@click.option("--purge", is_flag=True, help="Delete for good, not into the trash.")
@click.option("--empty-trash", is_flag=True, help="Delete for good what lies in the trash.")
@DRY_RUN
@YES
@pass_context
def rm_command(
    context: Context,
    names: tuple[str, ...],
    force: bool,
    purge: bool,
    empty_trash: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    """Move stopped containers to the trash, where they are kept for some days."""
    from oneroot.container import remove

    if empty_trash:
        return _empty_trash(context, names, dry_run=dry_run, yes=yes)
    if not names:
        raise click.UsageError("Say which containers.")
    chosen = remove.chosen(context.settings, names)
    if not dry_run:
        context.require_root()
        if purge:
            confirm(f"Delete {many.counted(chosen)} for good?", yes=yes)
    outcomes = remove.remove(
        context.settings, names, force=force, purge=purge, dry_run=dry_run, progress=context.progress
    )
    if dry_run and not context.json:
        return many.print_plan(outcomes)
    return many.finish(context, outcomes, lambda removal: "deleted" if purge else "moved to the trash")


def _empty_trash(context: Context, names: Sequence[str], *, dry_run: bool, yes: bool) -> int:
    from oneroot.container import places, remove

    if names:
        raise click.UsageError("--empty-trash takes no names.")
    context.require_root()
    trashed = sorted(item.path.name for item in places.trashed(context.settings.paths))
    if dry_run or not trashed:
        deleted: list[str] = []
    else:
        confirm(f"Delete {many.counted(trashed)} for good?", yes=yes)
        deleted = remove.sweep_trash(context.settings, everything=True, progress=context.progress)
    if context.json:
        render.print_json({"trash": trashed, "deleted": deleted})
    else:
        verb = "would be deleted" if dry_run else "deleted"
        render.print_line(f"{many.counted(trashed)}: {verb}" if trashed else "The trash is empty.")
    return ExitCode.DONE


@click.command("undelete")
@click.argument("names", nargs=-1, metavar="NAME…")
@click.option("--list", "list_", is_flag=True, help="Show what is in the trash.")
@DRY_RUN
@pass_context
def undelete_command(context: Context, names: tuple[str, ...], list_: bool, dry_run: bool) -> int:
    """Take containers out of the trash, as they were removed last."""
    from oneroot.container import remove

    if list_:
        return _list_trash(context)
    if not names:
        raise click.UsageError("Say which containers, or --list.")
    if not dry_run:
        context.require_root()
    outcomes = remove.undelete(context.settings, names, dry_run=dry_run, progress=context.progress)
    if dry_run and not context.json:
        return many.print_plan(outcomes)
    return many.finish(context, outcomes, lambda removal: "taken out of the trash")


def _list_trash(context: Context) -> int:
    from oneroot.container import places

    found = [
        {"name": item.name, "removed": item.removed.isoformat(timespec="seconds"), "path": str(item.path)}
        for item in places.trashed(context.settings.paths)
    ]
    if context.json:
        render.print_json(found)
    else:
        render.print_table(("NAME", "REMOVED", "PATH"), [tuple(item.values()) for item in found])
    return ExitCode.DONE


@click.command("ls")
@NAMES
@pass_context
def ls_command(context: Context, names: tuple[str, ...]) -> int:
    """List containers."""
    states = many.states_of(context, names)
    if context.json:
        render.print_json([explain.listed(state) for state in states])
        return ExitCode.DONE
    rows = [
        (
            state.name,
            state.state,
            state.base,
            _generation(state),
            state.addresses,
            state.pid,
            "damaged" if state.damage else "" if state.unprivileged else "PRIVILEGED",
        )
        for state in states
    ]
    render.print_table(("NAME", "STATE", "BASE", "GENERATION", "ADDRESS", "PID", "NOTE"), rows)
    return ExitCode.DONE


def _generation(state: ContainerState) -> str:
    if state.generation is None:
        return ""
    return (
        f"{state.generation} (outdated: {state.current_generation} is current)"
        if state.outdated
        else str(state.generation)
    )


@click.command("info")
@SOME_NAMES
@pass_context
def info_command(context: Context, names: tuple[str, ...]) -> int:
    """Explain containers whole: what was declared, what is, and where everything lies."""
    states = many.states_of(context, names)
    if context.json:
        render.print_json([explain.fields(context.settings, state) for state in states])
        return ExitCode.DONE
    for place, state in enumerate(states):
        if place:
            render.print_line("")
        render.print_fields(explain.lines(context.settings, state))
    return ExitCode.DONE


@click.command("wait")
@SOME_NAMES
@click.option("--state", "wanted", default="RUNNING", show_default=True, help="RUNNING, STOPPED or FROZEN.")
@click.option("--timeout", type=click.FloatRange(0, 86400), default=60, show_default=True, metavar="SECONDS")
@pass_context
def wait_command(context: Context, names: tuple[str, ...], wanted: str, timeout: float) -> int:
    """Wait until containers are in a state."""
    from oneroot.container import lifecycle
    from oneroot.container.state import State

    known = {state.value: state for state in State}
    if wanted.upper() not in known:
        raise UsageError(f"{wanted[:40]!r} is no state", fix=f"one of {', '.join(known)}")
    chosen = many.select(context, names)
    outcomes = lifecycle.wait(context.settings, chosen, (known[wanted.upper()],), timeout=timeout)
    return many.finish(context, outcomes, lambda state: state.value)
