"""Making containers: after it, those that were asked for exist.

Each is made in a stage directory and renamed into place: it exists whole or not at all. What a
killed command left is swept by the next one, and its ids and address are free again. All are
written to the disk at once, before the first of them is renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from oneroot.base import layout as base_layout
from oneroot.container import (
    announce,
    contents,
    identity,
    lxcconfig,
    making,
    network,
    places,
    pool,
    request,
    spec,
)
from oneroot.container.pool import Grant, Want
from oneroot.container.request import CreateRequest
from oneroot.container.spec import ContainerSpec
from oneroot.container.upper import Mould
from oneroot.errors import (
    CorruptState,
    HostError,
    Interrupted,
    NoSpace,
    OnerootError,
    UnknownName,
    UsageError,
)
from oneroot.host import doctor
from oneroot.kernel import copy, mount
from oneroot.kernel.tree import Tree, remove_tree
from oneroot.names import BaseName, ContainerName, base_name
from oneroot.settings import Settings
from oneroot.work import interrupt, killpoint, locks
from oneroot.work.journal import Journal, RunId, RunState, RunStep, StepState
from oneroot.work.parallel import Outcome, for_each
from oneroot.work.progress import SILENT, Progress
from oneroot.work.steps import apply_all, describe_all

_PATIENCE = 60.0
"""Seconds to wait for another command that makes the same containers."""
_COMPARED = ("base", "units", "command", "limits", "publish", "health", "autostart")


class Made(enum.Enum):
    """What was done for a container."""

    CREATED = "created"
    EXISTED = "existed already"
    PLANNED = "would be created"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CreateResult:
    """A container that exists now, or would."""

    status: Made
    spec: ContainerSpec | None
    """None: only planned, so that it has no ids and address yet."""
    steps: tuple[str, ...] = ()
    warning: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Design:
    """A request that was checked against its base."""

    request: CreateRequest
    base: BaseName
    generation: int
    root: Path
    units: tuple[str, ...]
    command: str | None
    mould: Mould

    def declare(self, name: ContainerName, index: int, grant: Grant) -> ContainerSpec:
        asked = self.request
        return ContainerSpec(
            name=name,
            base=self.base,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            group=asked.name,
            units=self.units,
            command=self.command,
            ids=grant.ids,
            addresses=grant.addresses,
            limits=asked.limits,
            publish=tuple(wish.of_replica(index) for wish in asked.publish),
            health=asked.health,
            autostart=asked.autostart,
        )


def ensure(
    settings: Settings, asked: CreateRequest, *, progress: Progress = SILENT, dry_run: bool = False
) -> list[Outcome[CreateResult]]:
    """Make the containers that are missing of those that were asked for.

    :returns: one outcome for each container, in the order of their names.
    :raises UsageError: the request cannot be met, now or ever; nothing was done.
    :raises HostError: this host cannot hold them; nothing was done.
    """
    request.check(asked)
    _check_privilege(asked)
    if dry_run:
        return _ensure(settings, asked, progress, dry_run=True)
    with locks.group(settings.paths, asked.name, verb=f"create {asked.name}", wait=_PATIENCE):
        return _ensure(settings, asked, progress, dry_run=False)


def _ensure(
    settings: Settings, asked: CreateRequest, progress: Progress, *, dry_run: bool
) -> list[Outcome[CreateResult]]:
    names = request.names(asked)
    design = _design(settings, asked)
    outcomes: dict[str, Outcome[CreateResult]] = {}
    missing = []
    for index, name in enumerate(names):
        found = _existing(settings, design, name, index)
        if found is None:
            missing.append((index, name))
        else:
            outcomes[name] = found
    if missing:
        _check_host(settings, design, missing)
    if dry_run:
        for index, name in missing:
            steps = tuple(describe_all(making.steps(settings, design.mould, _sketch(design, index, name))))
            outcomes[name] = Outcome(
                name=name, value=CreateResult(status=Made.PLANNED, spec=None, steps=steps)
            )
    else:
        sweep_stage(settings)
        outcomes |= _make_missing(settings, design, missing, progress)
        # Of all: a command that was killed may have made some and told of none.
        outcomes |= _announce(settings, outcomes.values())
    return [outcomes[name] for name in names]


def sweep_stage(settings: Settings) -> None:
    """Remove what commands that were killed have left unfinished."""
    # Listed before the ledger is read: a container is promised its ids before its stage is made.
    unfinished = [place for directory in places.stages(settings.paths) for place in places.listing(directory)]
    if unfinished:
        busy = pool.in_making(settings)
        for place in unfinished:
            if place.name not in busy:
                killpoint.reach(f"before: sweep {place.name}")
                remove_tree(place)


def _design(settings: Settings, asked: CreateRequest) -> _Design:
    base = base_name(asked.base)
    generation, root = current_root(settings, base)
    with Tree(root) as tree:
        units = contents.checked_units(tree, asked.units, base)
        command = None
        if asked.command is not None:
            command = contents.checked_command(tree, asked.command, base)
        shared = contents.of(tree, units=units, command=command)
        needs = identity.needs(tree)
    return _Design(
        request=asked,
        base=base,
        generation=generation,
        root=root,
        units=units,
        command=command,
        mould=Mould(settings, root, shared, needs),
    )


def current_root(settings: Settings, base: str) -> tuple[int, Path]:
    """Return a base's current generation and its tree.

    :raises UnknownName: there is no such base.
    :raises CorruptState: its current generation is not there.
    """
    directory = base_layout.base_directory(settings.paths, base)
    if not (directory / "base.json").exists():
        existing = [place.name for place in places.listing(settings.paths.bases)]
        raise UnknownName(
            f"There is no base {base}",
            why=f"existing: {', '.join(existing[:10])}" if existing else "there is none at all",
            fix=f"oneroot base create {base} --source debian:bookworm --package …, or name another",
        )
    number = base_layout.current_number(settings.paths, base)
    root = base_layout.root(settings.paths, base, number) if number else directory / "current"
    if number is None or not root.is_dir():
        raise CorruptState(
            f"The current generation of the base {base} is not there",
            why=f"{directory / 'current'} leads to nothing",
            fix=f"oneroot base fsck {base}, then oneroot base use {base} N",
        )
    return number, root


def _check_privilege(asked: CreateRequest) -> None:
    if not asked.privileged or asked.unsafe:
        return
    if any(entry.kind == "cgroup" for entry in mount.table()):
        raise HostError(
            "A privileged container is not made on a host with cgroup v1",
            why="its root could run programs on the host through release_agent",
            fix="leave --privileged away, boot with systemd.unified_cgroup_hierarchy=1, or say --unsafe",
        )


def _existing(
    settings: Settings, design: _Design, name: ContainerName, index: int
) -> Outcome[CreateResult] | None:
    """Return what becomes of a container that exists; None if it does not.

    :raises UsageError: what exists there is something else.
    """
    place = settings.paths.container(name)
    try:
        found = spec.load(settings.paths, name)
    except (FileNotFoundError, NotADirectoryError):
        if not place.is_symlink() and not place.exists():
            return None
        raise UsageError(
            f"The name {name} is taken in the LXC path",
            why=f"{place} was not made by oneroot, and is left alone",
            fix="choose another name",
            container=name,
        ) from None
    except CorruptState as error:
        error.container = name
        return Outcome(name=name, error=error)
    wanted = design.declare(name, index, Grant(ids=found.ids, addresses=found.addresses))
    differing = [field for field in _COMPARED if getattr(found, field) != getattr(wanted, field)]
    if found.unprivileged == design.request.privileged:
        differing.append("privileged")
    if differing:
        raise UsageError(
            f"The container {name} exists, and differs",
            why="\n".join(_difference(field, found, wanted) for field in differing),
            fix=f"say the same again, choose another name, or first oneroot rm {name}",
            container=name,
        )
    return Outcome(name=name, value=CreateResult(status=Made.EXISTED, spec=found))


def _difference(field: str, found: ContainerSpec, wanted: ContainerSpec) -> str:
    if field == "privileged":
        kinds = ("unprivileged", "privileged") if found.unprivileged else ("privileged", "unprivileged")
        return f"it is {kinds[0]}, asked for was {kinds[1]}"
    old, new = (_shown(getattr(one, field)) for one in (found, wanted))
    return f"{field}: it has {old}, asked for was {new}"


def _shown(value: object) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.asdict(value)
        return ", ".join(f"{key} {item}" for key, item in fields.items() if item is not None)
    if isinstance(value, tuple):
        return "; ".join(_shown(item) for item in value) or "none"
    return "none" if value is None else str(value)


def _check_host(settings: Settings, design: _Design, missing: Sequence[tuple[int, ContainerName]]) -> None:
    existing = announce.declared(settings)
    units = sum(bool(one.units) for one in existing) + (len(missing) if design.units else 0)
    doctor.require(settings, len(existing) + len(missing), units=units)
    lxcconfig.render(settings, _sketch(design, *missing[-1]))
    if design.request.publish:
        wishes = [_sketch(design, index, name) for index, name in missing]
        network.check_publish(settings, [*existing, *wishes])


def _sketch(design: _Design, index: int, name: ContainerName) -> ContainerSpec:
    """Return a declaration before ids and address are known, for plans and checks."""
    ids = None if design.request.privileged else spec.IdRange(first=65536, count=65536)
    return design.declare(name, index, Grant(ids=ids, addresses=("192.0.2.1",)))


def _make_missing(
    settings: Settings,
    design: _Design,
    missing: Sequence[tuple[int, ContainerName]],
    progress: Progress,
) -> dict[str, Outcome[CreateResult]]:
    with Journal(settings.paths) as journal, _run(journal, design, missing) as run:
        if not missing or run is None:
            return {}
        wants = [Want(name=name, unprivileged=not design.request.privileged) for _, name in missing]
        grants = pool.allocate(settings, wants)
        try:
            # Another command may have made some until we had the promise; nobody can from now on.
            found = {name: _existing(settings, design, name, index) for index, name in missing}
            made = {name: outcome for name, outcome in found.items() if outcome is not None}
            for name in made:
                journal.mark(run, name, StepState.SKIPPED, "another command has made it")
            specs = [design.declare(name, index, grants[name]) for index, name in missing if name not in made]
            return made | _Maker(settings, design, journal, run, progress).make(specs)
        finally:
            pool.settle(settings, [name for _, name in missing])


@contextlib.contextmanager
def _run(
    journal: Journal, design: _Design, missing: Sequence[tuple[int, ContainerName]]
) -> Iterator[RunId | None]:
    """Open the journal's run, or go on with the one that a killed command of this kind has left."""
    steps = [
        RunStep(container=name, was_running=False, from_generation=None, to_generation=design.generation)
        for _, name in missing
    ]
    asked = design.request
    left = journal.unfinished(subject=asked.name, verb="create")
    if left is not None and not left.alive:
        run = left.id
        journal.take_over(run)
        known = {step.container for step in journal.steps(run)}
        journal.add_steps(run, [step for step in steps if step.container not in known])
        for step in journal.steps(run):
            if step.state is not StepState.DONE and step.container not in {name for _, name in missing}:
                journal.mark(run, step.container, StepState.DONE)
    elif missing:
        data: dict[str, object] = {"base": design.base, "containers": len(missing)}
        run = journal.begin("create", asked.name, data=data, steps=steps)
    else:
        yield None
        return
    try:
        yield run
    except Interrupted:
        journal.end(run, RunState.INTERRUPTED)
        raise
    except BaseException:
        with contextlib.suppress(OnerootError):
            journal.end(run, RunState.FAILED)
        raise
    states = {step.state for step in journal.steps(run)}
    journal.end(run, RunState.FAILED if StepState.FAILED in states else RunState.DONE)


class _Maker:
    """Makes containers that have their declarations: all are prepared, then all are renamed."""

    def __init__(
        self, settings: Settings, design: _Design, journal: Journal, run: RunId, progress: Progress
    ) -> None:
        self._settings = settings
        self._design = design
        self._journal = journal
        self._run = run
        self._progress = progress

    def make(self, specs: Sequence[ContainerSpec]) -> dict[str, Outcome[CreateResult]]:
        stage = places.make(places.stage(self._settings.paths))
        try:
            prepared = for_each(
                specs,
                self._prepare,
                name=lambda one: one.name,
                workers=self._settings.workers,
                title="create",
                progress=self._progress,
            )
            good = {outcome.name for outcome in prepared if outcome.ok}
            outcomes = {outcome.name: outcome for outcome in prepared}
            if good:
                # Once for all: a thousand containers would otherwise wait for the disk a thousand times.
                copy.sync_filesystem(stage)
                killpoint.reach("after: written to the disk")
            for one in specs:
                if one.name in good:
                    outcomes[one.name] = self._commit(one)
        finally:
            for one in specs:
                remove_tree(stage / one.name)
        copy.sync_directory(self._settings.paths.lxc)
        return outcomes

    def _prepare(self, one: ContainerSpec) -> CreateResult:
        self._journal.mark(self._run, one.name, StepState.DOING)
        steps = making.steps(self._settings, self._design.mould, one)
        try:
            apply_all(steps[:-1])
        except OSError as error:
            failure = _failure(one.name, error)
            self._journal.mark(self._run, one.name, StepState.FAILED, str(failure))
            raise failure from error
        except OnerootError as error:
            self._journal.mark(self._run, one.name, StepState.FAILED, str(error))
            raise
        return CreateResult(status=Made.CREATED, spec=one)

    def _commit(self, one: ContainerSpec) -> Outcome[CreateResult]:
        try:
            interrupt.check()
            apply_all(making.steps(self._settings, self._design.mould, one)[-1:])
        except FileExistsError:
            # The same command, given twice at once: the other one was faster with this container.
            self._journal.mark(self._run, one.name, StepState.DONE)
            found = spec.load(self._settings.paths, one.name)
            return Outcome(name=one.name, value=CreateResult(status=Made.EXISTED, spec=found))
        except OSError as error:
            failure = _failure(one.name, error)
            self._journal.mark(self._run, one.name, StepState.FAILED, str(failure))
            return Outcome(name=one.name, error=failure)
        self._journal.mark(self._run, one.name, StepState.DONE)
        return Outcome(name=one.name, value=CreateResult(status=Made.CREATED, spec=one))


def _announce(
    settings: Settings, outcomes: Iterable[Outcome[CreateResult]]
) -> dict[str, Outcome[CreateResult]]:
    """Let host and other containers find those that exist; return the outcomes that have a warning now."""
    there = {one.name: one.value for one in outcomes if one.value is not None}
    refused = announce.tell(settings, [made.spec for made in there.values() if made.spec is not None])
    return {
        name: Outcome(name=name, value=dataclasses.replace(made, warning=str(refused[name])))
        for name, made in there.items()
        if name in refused
    }


def _failure(name: str, error: OSError) -> OnerootError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"The container {name} was not created",
            why=str(error),
            fix="free space, then run the same command again",
            container=name,
        )
    return OnerootError(f"The container {name} was not created", why=str(error), container=name)
