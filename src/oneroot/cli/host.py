"""``oneroot doctor``: what this host lacks, and the command that mends it."""

from __future__ import annotations

import click

from oneroot.cli import render
from oneroot.cli.context import Context, pass_context
from oneroot.errors import ExitCode
from oneroot.host import doctor, mend
from oneroot.host.check import Check, Status
from oneroot.work import steps

_BAD = (Status.FAIL, Status.WARN, Status.UNKNOWN)


@click.command("doctor")
@click.option(
    "--containers", type=click.IntRange(1, 100_000), default=doctor.DEFAULT_CONTAINERS, show_default=True,
    help="Look with this many containers in mind.",
)  # fmt: skip
@click.option("--fix", is_flag=True, help="Mend what can be mended; it can be undone.")
@click.option("--undo", is_flag=True, help="Take back what --fix did.")
@click.option("--dry-run", is_flag=True, help="With --fix or --undo: only show what would be done.")
@click.option("--all", "all_", is_flag=True, help="Show what is right, too.")
@pass_context
def doctor_command(
    context: Context, containers: int, fix: bool, undo: bool, dry_run: bool, all_: bool
) -> int:
    """Look at this host and say what it lacks, and the command that mends it.

    Exit status 4 as long as something is missing that containers need.
    """
    if fix and undo:
        raise click.UsageError("--fix and --undo exclude each other.")
    if dry_run and not (fix or undo):
        raise click.UsageError("--dry-run goes with --fix or --undo.")
    if dry_run:
        planned = mend.plan_undo(context.settings) if undo else mend.plan(context.settings, containers)
        _print_plan(context, planned)
        return ExitCode.DONE
    if fix or undo:
        context.require_root()
        if undo:
            mend.undo(context.settings, progress=context.progress)
        else:
            mend.fix(context.settings, containers, progress=context.progress)
    checks = doctor.examine(context.settings, containers=containers)
    if context.json:
        render.print_json(checks)
    else:
        _print_checks(checks, containers, all_=all_)
    return ExitCode.HOST if any(check.status is Status.FAIL for check in checks) else ExitCode.DONE


def _print_plan(context: Context, planned: list[steps.Step]) -> None:
    described = steps.describe_all(planned)
    if context.json:
        render.print_json({"steps": described})
        return
    for line in described or ["There is nothing to do."]:
        render.print_line(line)


def _print_checks(checks: list[Check], containers: int, *, all_: bool) -> None:
    bad = [check for check in checks if check.status in _BAD]
    shown = checks if all_ else bad
    if shown:
        render.print_table(
            ["status", "what", "is", "needed"],
            [(check.status, check.title, check.found, check.needed) for check in shown],
        )
    for check in bad:
        render.print_line("")
        render.print_line(f"{check.status}  {check.title}: {check.why}")
        if check.fix_command:
            render.print_line(f"      {check.fix_command}")
    counted = {status: sum(check.status is status for check in checks) for status in Status}
    if bad:
        render.print_line("")
    summary = ", ".join(f"{number} {status.value}" for status, number in counted.items() if number)
    render.print_line(f"For {containers} containers: {summary}.")
    if any(check.fixable for check in bad):
        render.print_line(f"oneroot doctor --fix --containers {containers} mends what it can.")
