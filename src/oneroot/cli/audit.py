"""``oneroot verify`` and ``oneroot audit``: the proof, and what keeps patches out."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oneroot.cli import render
from oneroot.cli.context import Context, pass_context
from oneroot.errors import ExitCode, OnerootError

if TYPE_CHECKING:
    from oneroot.audit.override import Override
    from oneroot.audit.proof import BaseProof, ContainerProof

REPORT_SCHEMA = 1


@click.command("verify")
@click.argument("names", metavar="[NAME…]", nargs=-1)
@click.option("--report", type=click.Path(path_type=Path), help="Write the evidence to this file as JSON.")
@click.option("--history", is_flag=True, help="Show kept proofs, newest first, instead of taking one.")
@click.option(
    "--check-sources", is_flag=True, help="Ask the package sources first, instead of using the last check."
)
@pass_context
def verify_command(
    context: Context, names: tuple[str, ...], report: Path | None, history: bool, check_sources: bool
) -> int:
    """Prove, now, that all that runs has the fix and runs.

    Exits 0 only when every container that runs is proven, and every base; else 3. A container that
    was stopped is neither proven nor failed. The age of the package sources is that of the last
    recorded check; --check-sources asks them anew.
    """
    context.require_root()
    if history:
        return _history(context)
    from oneroot.audit import proof as proofs
    from oneroot.container import spec
    from oneroot.names import select

    chosen = select(names, spec.names(context.settings.paths)) if names else None
    if check_sources:
        _check_sources(context, chosen)
    found = proofs.prove(context.settings, chosen, progress=context.progress)
    documents = render.plain(found)
    if not names:  # a proof of a part is no evidence for the whole
        _record(context, found, documents)
    if report is not None:
        _write_report(report, documents)
    if context.json:
        render.print_json(documents)
    else:
        _print_proofs(found)
    return ExitCode.DONE if all(proof.proven for proof in found) else ExitCode.NOT_PROVEN


@click.command("audit")
@click.argument("names", metavar="[NAME…]", nargs=-1)
@pass_context
def audit_command(context: Context, names: tuple[str, ...]) -> int:
    """Show what in containers keeps a patch out: files that stand before the base's.

    Exits 3 when an override keeps a fix of code out, or a writable layer could not be read.
    """
    context.require_root()
    from oneroot.audit.override import examine_all
    from oneroot.container import spec
    from oneroot.container.state import read_states
    from oneroot.names import select

    chosen = select(names, spec.names(context.settings.paths))
    found = examine_all(context.settings, read_states(context.settings, chosen))
    if context.json:
        render.print_json(
            [
                {
                    "name": name,
                    "overrides": one.found,
                    "unlisted": one.unlisted,
                    "unknown": one.unknown or None,
                }
                for name, one in found.items()
            ]
        )
    else:
        rows = [(name, *_override_row(one)) for name, overrides in found.items() for one in overrides.found]
        if rows:
            render.print_table(("CONTAINER", "KIND", "WHAT", "PATH", "PACKAGE"), rows)
        else:
            render.print_line("No writable layer stands before a file of its base.")
        for name, overrides in found.items():
            if overrides.unknown:
                render.print_line(f"{name}: unknown: {overrides.unknown}")
            if overrides.unlisted:
                render.print_line(f"{name}: {overrides.unlisted} more overrides are not listed")
    kept_out = any(one.keeps_fixes_out for overrides in found.values() for one in overrides.found)
    unknown = any(overrides.unknown for overrides in found.values())
    return ExitCode.NOT_PROVEN if kept_out or unknown else ExitCode.DONE


def _history(context: Context) -> int:
    from oneroot.work.journal import Journal

    with Journal(context.settings.paths) as journal:
        kept = journal.proofs()
    if context.json:
        render.print_json(
            [{"taken": taken, "proven": proven, **document} for taken, proven, document in kept]
        )
        return ExitCode.DONE
    rows = []
    for taken, proven, document in kept:
        containers = document.get("containers")
        count = len(containers) if isinstance(containers, list) else None
        rows.append((taken, document.get("base"), document.get("generation"), count, _word(proven)))
    render.print_table(("TAKEN", "BASE", "GENERATION", "CONTAINERS", "PROOF"), rows)
    return ExitCode.DONE


def _check_sources(context: Context, chosen: Sequence[str] | None) -> None:
    from oneroot.base import upgrade
    from oneroot.base.store import Store
    from oneroot.container import spec
    from oneroot.container.state import read_states

    bases: set[str] = set(Store(context.settings).names())
    if chosen is not None:
        states = read_states(context.settings, spec.names(context.settings.paths))
        bases &= {state.base for state in states if state.name in set(chosen)}
    for base in sorted(bases):
        try:
            upgrade.check_sources(context.settings, base, context.progress)
        except OnerootError as error:  # the proof tells how old the last good check is
            render.print_error(error, as_json=context.json)


def _record(context: Context, found: Sequence[BaseProof], documents: Sequence[object]) -> None:
    from oneroot.audit import proof as proofs

    if not found:
        return
    try:
        proofs.record(context.settings, found, documents)
    except (OnerootError, OSError) as error:  # a full disk must not hide what was seen
        context.progress.note(f"this proof is not kept as evidence: {error}")


def _write_report(path: Path, documents: object) -> None:
    from oneroot import __version__
    from oneroot.work import files

    evidence: dict[str, Any] = {
        "schema": REPORT_SCHEMA,
        "oneroot": __version__,
        "host": platform.node(),
        "kernel": platform.release(),
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "bases": documents,
    }
    try:
        files.write_atomic(path, render.json_text(evidence).encode("ascii") + b"\n")
    except OSError as error:
        raise OnerootError(f"The report {path} cannot be written", why=str(error)) from error


def _print_proofs(found: Sequence[BaseProof]) -> None:
    if not found:
        render.print_line("There is no base yet, and nothing to prove.")
    for place, proof in enumerate(found):
        if place:
            render.print_line("")
        _print_base(proof)
        shown = [one for one in proof.containers if one.proven is not True]
        if shown:
            render.print_line("")
            render.print_table(
                ("CONTAINER", "STATE", "GENERATION", "ALIVE", "PROOF", "WHY"), [_row(one) for one in shown]
            )


def _print_base(proof: BaseProof) -> None:
    proven = sum(one.proven is True for one in proof.containers)
    stopped = sum(one.proven is None for one in proof.containers)
    failed = len(proof.containers) - proven - stopped
    newest = "the newest" if proof.generation == proof.newest else f"the newest is {proof.newest}"
    fields: list[tuple[str, object]] = [
        ("Base", f"{proof.base}: {_word(proof.proven)}"),
        ("Generation", f"{proof.generation}, {newest}" if proof.generation is not None else "none"),
        ("Sources checked", proof.sources_checked or "never"),
        ("Security updates", ", ".join(proof.pending_security) or "none pending"),
        ("Containers", f"{proven} proven, {failed} not proven, {stopped} stopped"),
    ]
    if proof.pin is not None:
        why = f": {proof.pin.reason}" if proof.pin.reason else ""
        said = f"to generation {proof.pin.generation} by {proof.pin.person} since {proof.pin.since}{why}"
        fields.insert(2, ("Pinned", said))
    if proof.reasons:
        fields.append(("Not proven", list(proof.reasons)))
    if proof.host.stale:
        listed = [f"process {one.pid} ({one.command}): {one.path}" for one in proof.host.stale[:10]]
        fields.append(("Host, stale", listed))
    warnings = sum(not one.keeps_fixes_out for held in proof.containers for one in held.overrides)
    if warnings:
        fields.append(("Warnings", f"{warnings} overrides that keep no code out (oneroot audit)"))
    render.print_fields(fields)


def _row(one: ContainerProof) -> tuple[object, ...]:
    reasons = "; ".join(one.reasons)
    return (one.name, one.state, one.generation, one.alive, _word(one.proven), reasons)


def _override_row(one: Override) -> tuple[object, ...]:
    path = one.path if one.hides == 1 else f"{one.path} ({one.hides} files)"
    return (one.kind, one.severity, path, one.package)


def _word(proven: bool | None) -> str:
    return {True: "proven", False: "not proven", None: "stopped"}[proven]
