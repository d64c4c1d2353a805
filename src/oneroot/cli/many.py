"""What every command on many containers does alike: choose them, print what became of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from oneroot.cli import render
from oneroot.cli.context import Context
from oneroot.errors import ExitCode, OnerootError, SomeFailed, UsageError

if TYPE_CHECKING:
    from oneroot.container.state import ContainerState
    from oneroot.work.parallel import Outcome


def select(context: Context, patterns: Sequence[str]) -> list[str]:
    from oneroot import names
    from oneroot.container import spec

    return names.select(patterns, spec.names(context.settings.paths))


def one(context: Context, name: str) -> str:
    chosen = select(context, (name,))
    if len(chosen) != 1:
        raise UsageError(f"{name!r} names {len(chosen)} containers", fix="name one")
    return chosen[0]


def states_of(context: Context, patterns: Sequence[str]) -> list[ContainerState]:
    from oneroot.container import state

    return state.read_states(context.settings, select(context, patterns))


def finish(context: Context, outcomes: Sequence[Outcome[Any]], said: Callable[[Any], str]) -> int:
    """Print what became of each, and return the exit code."""
    render.print_outcomes(outcomes, said, as_json=context.json)
    failures = [outcome.error for outcome in outcomes if outcome.error is not None]
    if failures and context.json:
        told = f"{len(failures)} of {len(outcomes)} containers failed"
        render.print_error(failures[0] if len(outcomes) == 1 else SomeFailed(told, failures), as_json=True)
    return exit_code(outcomes)


def exit_code(outcomes: Sequence[Outcome[Any]]) -> ExitCode:
    """Return a lone failure's own exit code, or that some of many have failed."""
    failures = [outcome.error for outcome in outcomes if outcome.error is not None]
    if not failures:
        return ExitCode.DONE
    return failures[0].exit_code if len(outcomes) == 1 else ExitCode.FAILED


def print_plan(outcomes: Sequence[Outcome[Any]]) -> int:
    for outcome in outcomes:
        if outcome.error is not None:
            render.print_error(outcome.error)
        elif outcome.value is not None:
            for step in outcome.value.steps:
                render.print_line(step)
            if not outcome.value.steps:
                render.print_line(f"{outcome.name}: nothing to do")
    return exit_code(outcomes)


def print_dry(
    context: Context, names: Sequence[str], verb: str, *, when: Callable[[ContainerState], bool]
) -> int:
    from oneroot.container import state

    plans = [
        {"name": found.name, "steps": [f"{found.name}: {verb}"] if when(found) else []}
        for found in state.read_states(context.settings, names)
    ]
    if context.json:
        render.print_json(plans)
    else:
        for plan in plans:
            render.print_line(plan["steps"][0] if plan["steps"] else f"{plan['name']}: nothing to do")
    return ExitCode.DONE


def warn(context: Context, refused: dict[str, OnerootError]) -> None:
    for error in refused.values():
        render.print_error(error, as_json=context.json)


def counted(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} containers"
