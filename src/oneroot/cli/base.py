"""``oneroot base``: make, show, upgrade and choose bases and their generations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oneroot.cli import basecare, render
from oneroot.cli.basetools import (
    dry_run_option,
    each,
    names_argument,
    print_steps,
    reason_option,
    required_names,
    select,
    store_of,
)
from oneroot.cli.context import Context, pass_context
from oneroot.errors import ExitCode, OnerootError, UsageError

if TYPE_CHECKING:
    from oneroot.base.generation import Generation, PackageChange, Repository
    from oneroot.base.store import Store


@click.group("base")
def base_command() -> None:
    """Make, show, upgrade and choose bases and their generations.

    A base is a root filesystem of declared packages. A generation is one immutable version of it.
    """


@base_command.command("create")
@click.argument("name")
@click.option(
    "--source", metavar="DISTRIBUTION:RELEASE", help="Where it comes from, such as debian:bookworm."
)
@click.option("--from", "parent", metavar="BASE", help="Derive it from another base.")
@click.option("--package", "packages", multiple=True, metavar="NAME", help="A package; may be repeated.")
@click.option("--suite", "suites", multiple=True, help="Use only these suites; may be repeated.")
@click.option(
    "--mirror", metavar="URL", help="Take this source in place of the host's own (http:, https:, file:)."
)
@click.option(
    "--component", "components", multiple=True, default=("main",), show_default=True, help="Of the mirror."
)
@click.option(
    "--keyring", type=click.Path(path_type=Path), metavar="FILE", help="Whose signatures the mirror has."
)
@click.option(
    "--repository", "repositories", multiple=True, metavar="LINE", help="One more source, as a deb line."
)
@click.option(
    "--initial-suite", "initial_suites", multiple=True, metavar="SUITE",
    help="Make the first generation of these suites alone; the others are its first updates.",
)  # fmt: skip
@click.option("--architecture", help="Of the packages.  [default: the host's]")
@click.option("--allow-unsigned", is_flag=True, help="Take packages that nobody has signed.")
@click.option("--allow-expired", is_flag=True, help="Take lists of packages that are past their date.")
@reason_option
@dry_run_option
@pass_context
def create(context: Context, /, name: str, dry_run: bool, reason: str, **words: Any) -> int:
    """Make a base and its first generation.

    The sources are the host's own that belong to the release, unless others are named. Run again,
    it does nothing if the base is there as declared, and finishes what was killed.
    """
    from oneroot.base import bootstrap

    context.require_root()
    declaration = _declaration(name, words)
    if dry_run:
        steps = bootstrap.plan(context.settings, declaration)
        print_steps(context, name, steps)
        return ExitCode.DONE
    made = bootstrap.create(context.settings, declaration, reason=reason, progress=context.progress)
    _print_made(context, name, made, "exists as declared")
    return ExitCode.DONE


def _declaration(name: str, words: dict[str, Any]) -> Any:
    from oneroot.base import bootstrap
    from oneroot.platform import dpkg

    source, parent = words.pop("source"), words.pop("parent")
    if parent or source == "host" or not source:
        what = "derived from another base" if parent else "captured from the host"
        raise UsageError(
            f"A base cannot be {what} yet" if parent or source else "Where the base comes from is not said",
            why="this version bootstraps bases from a distribution",
            fix=f"oneroot base create {name} --source debian:bookworm --package …",
        )
    architecture = words.pop("architecture") or dpkg.host_architecture()
    return bootstrap.Declaration(name=name, source=source, architecture=architecture, **words)


@base_command.command("ls")
@names_argument
@pass_context
def ls(context: Context, /, names: tuple[str, ...]) -> int:
    """List bases."""
    rows = [_summary(store_of(context), name) for name in select(context, names)]
    if context.json:
        render.print_json(
            [{key: value for key, value in row.items() if key != "generations"} for row in rows]
        )
        return ExitCode.DONE
    render.print_table(
        ("NAME", "SOURCE", "CURRENT", "GENERATIONS", "PINNED", "CHECKED", "PENDING", "SECURITY", "PROBLEM"),
        [
            (
                *(row["name"], row["source"], row["current"]),
                *(len(row["generations"]), row["pinned"] and f"to {row['pinned']['generation']}"),
                *(row["checked"], row["pending"], row["pending_security"], row["problem"]),
            )
            for row in rows
        ],
    )
    return ExitCode.DONE


@base_command.command("show")
@required_names
@click.option("--why", metavar="PATH", help="Why a path is in a base of the host.")
@pass_context
def show(context: Context, /, names: tuple[str, ...], why: str | None) -> int:
    """Show bases whole: what was declared, their sources and their generations."""
    if why:
        raise UsageError(
            "Why a path was admitted can be told of a base of the host only",
            why="this version bootstraps bases from a distribution: all of their files are of packages",
            fix=f"oneroot base show {names[0]}",
        )
    store = store_of(context)
    rows = [_summary(store, name, strict=True) for name in select(context, names)]
    if context.json:
        render.print_json([_contract(row) for row in rows] if _several(names) else _contract(rows[0]))
        return ExitCode.DONE
    for row in rows:
        _print_base(store, row)
    return ExitCode.DONE


_CONTRACT = ("name", "source", "from", "current", "pinned", "generations")


def _contract(row: dict[str, Any]) -> dict[str, Any]:
    """The fields that scripts rely on first, then the others."""
    return {key: row[key] for key in _CONTRACT} | {key: row[key] for key in row if key not in _CONTRACT}


def _several(names: Sequence[str]) -> bool:
    from oneroot.names import is_pattern

    return len(names) > 1 or is_pattern(names[0])


def _summary(store: Store, name: str, *, strict: bool = False) -> dict[str, Any]:
    """Return what can be said of a base; a damaged one is listed with its problem unless *strict*."""
    row: dict[str, Any] = {
        **dict.fromkeys(("source", "from", "current", "pinned", "checked", "pending", "pending_security")),
        "name": name,
        "generations": [],
        "bad": [],
        "declared": [],
        "repositories": [],
        "problem": "",
    }
    try:
        spec = store.spec(name)
        row |= {
            "source": spec.source,
            "from": spec.parent,
            "pinned": spec.pin and dataclasses.asdict(spec.pin),
        }
        row |= {"bad": list(spec.bad), "declared": list(spec.packages)}
        row["repositories"] = [_repository(one) for one in spec.repositories]
        row["generations"] = [_generation(one) for one in store.generations(name)]
        row["current"] = store.current(name)
        check = store.check(name)
        if check:
            # What was pending when it was asked may be installed by now.
            installed = store.generation(name, row["current"]).packages if row["current"] else {}
            pending = [change for change in check.pending if installed.get(change.package) != change.new]
            row |= {"checked": check.checked, "check_error": check.error, "pending": len(pending)}
            row["pending_security"] = sum(change.security for change in pending)
    except OnerootError as error:
        if strict:
            raise
        row["problem"] = str(error)
    return row


def _repository(one: Repository) -> dict[str, Any]:
    from oneroot.platform import sources

    return {**dataclasses.asdict(one), "uri": sources.without_password(one.uri)}


def _generation(one: Generation) -> dict[str, Any]:
    return {
        "number": one.number,
        "created": one.created,
        "parent": one.parent,
        "packages": len(one.packages),
        "files": one.files,
        "size": one.size,
        "reason": one.reason,
        "person": one.person,
        "changes": len(one.changes),
        "digest": one.digest,
    }


def _print_base(store: Store, row: dict[str, Any]) -> None:
    pin = row["pinned"]
    pinned = pin and f"to {pin['generation']} by {pin['person']} since {pin['since']}: {pin['reason']}"
    check = row["checked"] or "never"
    if row.get("check_error"):
        check += f" (the last attempt failed: {row['check_error']})"
    repositories = [
        f"{one['uri']} {' '.join(one['suites'])} ({one['signed_by'] or 'the keys that apt trusts'})"
        for one in row["repositories"]
    ]
    render.print_fields(
        [
            ("name", row["name"]),
            ("source", row["source"]),
            ("declared packages", " ".join(row["declared"])),
            ("package sources", repositories),
            ("current", row["current"]),
            ("pinned", pinned),
            ("marked bad", row["bad"]),
            ("sources checked", check),
            ("pending updates", row["pending"]),
        ]
    )
    render.print_table(
        ("NUMBER", "CREATED", "PARENT", "PACKAGES", "FILES", "SIZE", "PERSON", "REASON"),
        [
            (
                *(one["number"], one["created"], one["parent"], one["packages"], one["files"]),
                *(_size(one["size"]), one["person"], one["reason"]),
            )
            for one in row["generations"]
        ],
    )


def _size(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


@base_command.command("history")
@click.argument("name")
@pass_context
def history(context: Context, /, name: str) -> int:
    """Show every generation that ever was, newest first, with what it changed."""
    from oneroot.base import collect

    store = store_of(context)
    [chosen] = select(context, (name,), single=True)
    store.spec(chosen)
    found = collect.history(store, chosen)
    if context.json:
        render.print_json(
            [
                {**_generation(one), "collected": not there, "packages_changed": one.changes}
                for one, there in found
            ]
        )
        return ExitCode.DONE
    for one, there in found:
        collected = "" if there else " (collected: its tree is gone)"
        render.print_line(f"generation {one.number}{collected}: {one.created}, {one.person}, {one.reason}")
        for change in one.changes:
            render.print_line(f"  {_change(change)}")
    return ExitCode.DONE


def _change(change: PackageChange) -> str:
    kind = "  security" if change.security else ""
    cves = f"  {' '.join(change.cves)}" if change.cves else ""
    if change.old is None:
        return f"{change.package} {change.new} is new{kind}"
    if change.new is None:
        return f"{change.package} {change.old} is gone"
    return f"{change.package} {change.old} → {change.new}{kind}{cves}"


@base_command.command("diff")
@click.argument("name")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--packages", "only_packages", is_flag=True, help="Leave out the files.")
@pass_context
def diff(context: Context, /, name: str, a: str, b: str, only_packages: bool) -> int:
    """Show what differs between two generations: packages and files."""
    from oneroot.base import build
    from oneroot.base.store import parse_number

    store = store_of(context)
    [chosen] = select(context, (name,), single=True)
    old, new = (store.generation(chosen, parse_number(text)) for text in (a, b))
    packages = build.changes_between(old.packages, new.packages, new.changes)
    files = []
    if not only_packages:
        files = store.manifest(chosen, new.number).changes_from(store.manifest(chosen, old.number))
    if context.json:
        shown = [{"path": one.path, "old": one.old, "new": one.new} for one in files]
        render.print_json(
            {"base": chosen, "a": old.number, "b": new.number, "packages": packages, "files": shown}
        )
        return ExitCode.DONE
    for change in packages:
        render.print_line(_change(change))
    for one in files:
        sign = "+" if one.old is None else "-" if one.new is None else "~"
        render.print_line(f"{sign} {one.path}")
    if not packages and not files:
        render.print_line(f"generations {old.number} and {new.number} do not differ")
    return ExitCode.DONE


@base_command.command("upgrade")
@required_names
@reason_option
@dry_run_option
@pass_context
def upgrade(context: Context, /, names: tuple[str, ...], reason: str, dry_run: bool) -> int:
    """Make new generations with all pending updates; containers take them at their next start."""
    from oneroot.base import upgrade as upgrades

    context.require_root()
    if dry_run:
        return _show_pending(context, select(context, names))
    results: list[dict[str, Any]] = []

    def work(store: Store, name: str) -> str:
        made = upgrades.upgrade(context.settings, name, reason=reason, progress=context.progress)
        if made is None:
            return "nothing to do, no update is pending"
        results.append({"base": name, **_generation(made), "packages_changed": made.changes})
        return f"generation {made.number} is current: {len(made.changes)} packages changed"

    return each(context, names, work, json_results=results)


def _show_pending(context: Context, names: Sequence[str]) -> int:
    from oneroot.base import upgrade as upgrades

    shown = []
    for name in names:
        check = upgrades.check_sources(context.settings, name, context.progress)
        steps = upgrades.plan(context.settings, name, check)
        shown.append({"base": name, "packages": check.pending, "kept_back": check.kept_back, "steps": steps})
        if context.json:
            continue
        for change in check.pending:
            render.print_line(_change(change))
        for package in check.kept_back:
            render.print_line(f"{package} is kept back")
        print_steps(context, name, steps)
    if context.json:
        render.print_json(shown)
    return ExitCode.DONE


@base_command.command("capture")
@required_names
@dry_run_option
@pass_context
def capture(context: Context, /, names: tuple[str, ...], dry_run: bool) -> int:
    """Make a new generation from the host as it is now (bases of the host only)."""
    chosen = select(context, names)
    raise UsageError(
        f"The base {chosen[0]} cannot be captured",
        why="its source is a distribution, not this host",
        fix=f"oneroot base upgrade {chosen[0]}",
    )


@base_command.command("check")
@required_names
@pass_context
def check(context: Context, /, names: tuple[str, ...]) -> int:
    """Ask the package sources of bases what updates they have, and record the answer."""
    context.require_root()
    return _show_pending(context, select(context, names))


def _print_made(context: Context, name: str, made: Generation | None, nothing: str) -> None:
    if context.json:
        render.print_json(
            {"base": name, "created": made is not None, "generation": made and _generation(made)}
        )
    elif made is None:
        render.print_line(f"{name}: {nothing}; nothing to do")
    else:
        count = f"{len(made.packages)} packages, {made.files} files, {_size(made.size)}"
        render.print_line(f"{name}: generation {made.number} is made: {count}")


basecare.add_to(base_command)
