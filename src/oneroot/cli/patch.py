"""``oneroot patch``, ``plan``, ``rollback``, ``rollout`` and ``history``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from oneroot.cli import render
from oneroot.cli.context import Context, pass_context
from oneroot.errors import ExitCode, Interrupted, OnerootError

if TYPE_CHECKING:
    from oneroot.base.generation import PackageChange
    from oneroot.names import BaseName
    from oneroot.rollout.job import PatchResult
    from oneroot.rollout.patch import PatchPlan
    from oneroot.rollout.plan import RolloutPolicy
    from oneroot.rollout.status import RolloutStatus

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_SHOWN_REASONS = 5
_SHOWN_CVES = 3


def _policy_options(*, batch: str, canary: int, on_failure: str) -> Callable[[F], F]:
    options = (
        click.option(
            "--batch", default=batch, show_default=True, metavar="N|N%",
            help="Containers moved before the next are begun; a failure stops after its batch.",
        ),
        click.option(
            "--canary", type=click.IntRange(min=0), default=canary, show_default=True,
            help="Containers in a first batch of their own.",
        ),
        click.option(
            "--max-unavailable", metavar="N|N%", help="At most so many down at once.  [default: a batch]"
        ),
        click.option(
            "--on-failure", type=click.Choice(["rollback", "pause", "continue"]), default=on_failure,
            show_default=True, help="What becomes of those that were moved when one fails.",
        ),
        click.option(
            "--min-healthy-time", type=click.FloatRange(min=0), default=0, metavar="SECONDS",
            help="A batch must stay alive so long before the next is begun.",
        ),
        click.option(
            "--timeout", type=click.FloatRange(min=0), metavar="SECONDS",
            help="Until a started container must be alive and healthy.  [default: as the settings say]",
        ),
    )  # fmt: skip

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_yes = click.option("--yes", "-y", is_flag=True, help="Ask nothing; patch and rollback can be taken back.")
_bases = click.argument("names", metavar="BASE…", nargs=-1, required=True)


@click.command("patch")
@_bases
@_policy_options(batch="25%", canary=1, on_failure="rollback")
@click.option("--reason", default="", help="Why, for the history.")
@click.option("--no-upgrade", is_flag=True, help="Roll out the newest generation as it is.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done; the same as oneroot plan.")
@_yes
@pass_context
def patch_command(
    context: Context,
    /,
    names: tuple[str, ...],
    reason: str,
    no_upgrade: bool,
    dry_run: bool,
    yes: bool,
    **rules: Any,
) -> int:
    """Upgrade bases, restart their containers in batches, prove that all run the fix.

    The same command again goes on with a run that was killed, interrupted or paused. Exit status 0
    only when all is proven, 3 when it is not, 1 when a container failed.
    """
    from oneroot.rollout import patch as patches

    context.require_root()
    policy = _policy(rules)
    if dry_run:
        return _show_plans(context, names, policy)
    return _for_each_base(
        context,
        names,
        lambda base: patches.patch(
            context.settings,
            base,
            policy=policy,
            why=reason,
            upgrade=not no_upgrade,
            progress=context.progress,
        ),
    )


@click.command("plan")
@_bases
@_policy_options(batch="25%", canary=1, on_failure="rollback")
@pass_context
def plan_command(context: Context, /, names: tuple[str, ...], **rules: Any) -> int:
    """Show what patch would do: packages, CVEs, containers, and what keeps fixes out."""
    context.require_root()
    return _show_plans(context, names, _policy(rules))


@click.command("rollback")
@click.argument("name", metavar="BASE")
@click.option(
    "--to", type=click.IntRange(min=1), metavar="N", help="A generation.  [default: the one before]"
)
@click.option("--reason", default="", help="Why; stands in the pin and in the history.")
@click.option("--bad", is_flag=True, help="Mark the generation that is left: it is not rolled out again.")
@_policy_options(batch="100%", canary=0, on_failure="continue")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@_yes
@pass_context
def rollback_command(
    context: Context,
    /,
    name: str,
    to: int | None,
    reason: str,
    bad: bool,
    dry_run: bool,
    yes: bool,
    **rules: Any,
) -> int:
    """Go back to an earlier generation, and stay there: the base is pinned until base unpin."""
    from oneroot.rollout import patch as patches

    context.require_root()
    policy = _policy(rules)
    if dry_run:
        (base,) = _select(context, (name,))
        found = patches.plan_rollback(context.settings, base, to=to, policy=policy)
        lines = [f"pin {base} to generation {found.to_generation}", *found.describe()]
        _print(context, found, lines)
        return ExitCode.DONE
    return _for_each_base(
        context,
        (name,),
        lambda base: patches.rollback(
            context.settings, base, to=to, why=reason, bad=bad, policy=policy, progress=context.progress
        ),
        one=True,
    )


@click.group("rollout")
def rollout_command() -> None:
    """Watch, pause, resume or abort a rollout, from any terminal."""


@rollout_command.command("status")
@click.argument("names", metavar="[BASE…]", nargs=-1)
@pass_context
def status_command(context: Context, names: tuple[str, ...]) -> int:
    """Show how far rollouts are; the last one where none is unfinished."""
    from oneroot.rollout import status as statuses

    context.require_root()
    found = [one for base in _select(context, names) if (one := statuses.status(context.settings, base))]
    if context.json:
        render.print_json(found)
        return ExitCode.DONE
    if not found:
        render.print_line("There was no rollout yet.")
    for place, one in enumerate(found):
        if place:
            render.print_line("")
        _print_status(one)
    return ExitCode.DONE


@rollout_command.command("pause")
@click.argument("name", metavar="BASE")
@pass_context
def pause_command(context: Context, name: str) -> int:
    """Let a rollout in progress finish the containers it is at, and wait."""
    from oneroot.rollout import patch as patches

    context.require_root()
    (base,) = _select(context, (name,))
    found = patches.pause(context.settings, base)
    said = f"The {found.verb} of {base} pauses; oneroot rollout resume {base} goes on with it."
    _print(context, {"base": base, "run": found.id, "requested": "pause"}, [said])
    return ExitCode.DONE


@rollout_command.command("resume")
@click.argument("name", metavar="BASE")
@pass_context
def resume_command(context: Context, name: str) -> int:
    """Go on with a rollout that was paused, interrupted or killed."""
    from oneroot.rollout import patch as patches

    context.require_root()
    return _for_each_base(
        context,
        (name,),
        lambda base: patches.resume(context.settings, base, progress=context.progress),
        one=True,
    )


@rollout_command.command("abort")
@click.argument("name", metavar="BASE")
@_yes
@pass_context
def abort_command(context: Context, name: str, yes: bool) -> int:
    """Take back what an unfinished rollout has moved."""
    from oneroot.rollout import patch as patches

    context.require_root()
    (base,) = _select(context, (name,))
    result = patches.abort(context.settings, base, progress=context.progress)
    if result is None:
        said = f"The rollout of {base} goes back; oneroot rollout status {base} shows how far it is."
        _print(context, {"base": base, "requested": "abort"}, [said])
        return ExitCode.DONE
    if context.json:
        render.print_json(result)
    else:
        _print_result(result)
    return ExitCode.FAILED if result.rollout.failures else ExitCode.DONE


@click.command("history")
@click.argument("names", metavar="[BASE]", nargs=-1)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@pass_context
def history_command(context: Context, names: tuple[str, ...], limit: int) -> int:
    """Show who did what, when and why, and what came of it; newest first."""
    from oneroot.rollout import status as statuses

    context.require_root()
    chosen: Sequence[str | None] = _select(context, names) if names else (None,)
    found = [run for base in chosen for run in statuses.history(context.settings, base=base, limit=limit)]
    found = sorted(found, key=lambda run: -run.id)[:limit]
    if context.json:
        render.print_json(found)
        return ExitCode.DONE
    rows = [
        (
            *(run.id, run.started, run.person, run.verb, run.subject),
            _generations(run.from_generation, run.to_generation),
            "in progress" if run.in_progress else run.state,
            *(f"{run.seconds:.1f} s", run.proven, run.why or run.error),
        )
        for run in found
    ]
    render.print_table(
        ("RUN", "STARTED", "WHO", "WHAT", "BASE", "GENERATION", "RESULT", "TOOK", "PROVEN", "WHY"), rows
    )
    return ExitCode.DONE


def _policy(rules: dict[str, Any]) -> RolloutPolicy:
    from oneroot.rollout.plan import OnFailure, RolloutPolicy

    return RolloutPolicy(**{**rules, "on_failure": OnFailure(rules["on_failure"])})


def _select(context: Context, names: Sequence[str]) -> list[BaseName]:
    from oneroot.base.store import Store
    from oneroot.names import BaseName, select

    return [BaseName(name) for name in select(names, Store(context.settings).names(), what="base")]


def _for_each_base(
    context: Context, names: Sequence[str], work: Callable[[BaseName], PatchResult], *, one: bool = False
) -> int:
    """Do it for one base after the other; with several, a base that fails does not stop the others.

    :param one: the result is one object, and not a list.
    """
    chosen = _select(context, names)
    results: list[PatchResult] = []
    codes: list[ExitCode] = []
    for base in chosen:
        try:
            results.append(work(base))
            codes.append(results[-1].exit_code)
        except Interrupted:
            raise
        except OnerootError as error:
            if len(chosen) == 1:
                raise
            render.print_error(error, as_json=context.json)
            codes.append(ExitCode.FAILED)
    if context.json:
        render.print_json(results[0] if one and results else results)
    else:
        for result in results:
            _print_result(result)
    if ExitCode.FAILED in codes:
        return ExitCode.FAILED
    return ExitCode.NOT_PROVEN if ExitCode.NOT_PROVEN in codes else ExitCode.DONE


def _show_plans(context: Context, names: Sequence[str], policy: RolloutPolicy) -> int:
    from oneroot.rollout import patch as patches

    found = [
        patches.plan(context.settings, base, policy=policy, progress=context.progress)
        for base in _select(context, names)
    ]
    if context.json:
        render.print_json(found)
        return ExitCode.DONE
    for place, one in enumerate(found):
        if place:
            render.print_line("")
        _print_plan(one)
    return ExitCode.DONE


def _print_plan(found: PatchPlan) -> None:
    if found.pinned is not None:
        render.print_line(
            f"{found.base} is pinned ({found.pinned}): patch refuses until base unpin {found.base}."
        )
    if found.unfinished:
        render.print_line(f"Unfinished, and gone on with first: {found.unfinished}.")
    if found.sources_error:
        render.print_line(f"The package sources could not be checked: {found.sources_error}")
        render.print_line(f"The last good check was {found.sources_checked or 'never'}.")
    if found.pending:
        _print_packages(found.pending)
    else:
        render.print_line(f"{found.base}: no update is pending.")
    for line in found.rollout.describe():
        render.print_line(line)
    if found.kept_out:
        render.print_line("Files of containers that keep fixes of code out (oneroot audit):")
        render.print_table(
            ("CONTAINER", "PATH", "PACKAGE"),
            [(one.container, one.path, one.package) for one in found.kept_out],
        )


def _print_packages(changes: Sequence[PackageChange]) -> None:
    render.print_table(
        ("PACKAGE", "FROM", "TO", "SECURITY", "CVES"),
        [(one.package, one.old, one.new, one.security, _few(one.cves)) for one in changes],
    )


def _journey(result: PatchResult) -> str:
    there = _generations(result.from_generation, result.to_generation)
    back = result.state.value in ("rolled back", "aborted") and result.from_generation is not None
    return f"{there}, and back to {result.from_generation}" if back else there


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_CVES} more" if len(names) > _SHOWN_CVES else ""
    return ", ".join(names[:_SHOWN_CVES]) + more


def _print_result(result: PatchResult) -> None:
    rollout = result.rollout
    cves = len({cve for change in result.changes for cve in change.cves})
    timeline = [
        f"{part} {seconds:.1f} s"
        for part in ("upgrade", "rollout", "verify", "total")
        if (seconds := getattr(result.timeline, part)) is not None
    ]
    counts = [
        f"{len(names)} {word}"
        for word, names in (
            ("moved", rollout.moved),
            ("taken back", rollout.taken_back),
            ("stay stopped", rollout.skipped),
            ("not moved", rollout.remaining),
            ("failed", {failure.container for failure in rollout.failures}),
        )
        if names
    ]
    fields: list[tuple[str, object]] = [
        ("Base", f"{result.base}: generation {_journey(result)}"),
        ("Run", f"{result.run}, {result.verb}: {result.state.value}"),
        ("Packages", f"{len(result.changes)} changed, {cves} CVEs named"),
        ("Containers", ", ".join(counts) or "none was outdated"),
        ("Timeline", ", ".join(timeline)),
        ("Proof", _proof(result)),
    ]
    if result.proof is not None and result.proof.pin is not None:
        pin = result.proof.pin
        fields.append(("Pinned", f"to generation {pin.generation}, until oneroot base unpin {result.base}"))
    fields += [("Note", list(result.notes))] if result.notes else []
    render.print_fields(fields)
    for failure in rollout.failures:
        render.print_line(f"{failure.container} failed on generation {failure.generation}: {failure.why}")
        for text in (*failure.output.splitlines(), *failure.console):
            render.print_line(f"    {text}")
    if result.state.value == "paused":
        render.print_line(
            f"oneroot rollout resume {result.base} goes on, oneroot rollout abort {result.base} goes back."
        )


def _proof(result: PatchResult) -> list[str]:
    if result.proof is None:
        return ["none was taken"]
    if result.proven:
        return [f"proven: {sum(one.proven is True for one in result.proof.containers)} containers"]
    bad = [one for one in result.proof.containers if one.proven is False]
    reasons = [*result.proof.reasons, *(f"{one.name}: {'; '.join(one.reasons)}" for one in bad)]
    more = len(reasons) - _SHOWN_REASONS
    shown = reasons[:_SHOWN_REASONS] + ([f"and {more} more (oneroot verify)"] if more > 0 else [])
    return ["not proven", *shown]


def _print_status(one: RolloutStatus) -> None:
    where = "in progress" if one.in_progress else one.state
    fields: list[tuple[str, object]] = [
        ("Base", f"{one.base}: generation {_generations(one.from_generation, one.to_generation)}"),
        ("Run", f"{one.run}, {one.verb}: {where}, since {one.started} by {one.person}"),
        ("Phase", one.phase if one.direction == "forward" else f"{one.phase}, going back"),
        ("Containers", ", ".join(f"{count} {state}" for state, count in one.counts.items())),
        ("Moving", ", ".join(one.moving[:10])),
        ("Failed", [f"{trouble.container}: {trouble.message}" for trouble in one.failed]),
    ]
    if one.requested:
        fields.append(("Requested", one.requested))
    render.print_fields(fields)


def _print(context: Context, document: object, lines: Sequence[str]) -> None:
    if context.json:
        render.print_json(document)
        return
    for line in lines:
        render.print_line(line)


def _generations(before: int | None, after: int | None) -> str:
    if before == after:
        return "-" if before is None else str(before)
    return f"{before or '-'} → {after or '-'}"
