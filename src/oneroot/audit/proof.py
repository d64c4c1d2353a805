"""The proof: that every container runs its base's current code, and runs; observed now.

Nothing here changes anything or takes a lock. What cannot be read is *unknown*, and never proven.
The field names are the contract of ``oneroot verify --format json``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from oneroot.audit import stale as stales
from oneroot.audit.basecode import BaseCode
from oneroot.audit.currency import Currency, currency
from oneroot.audit.override import Override, Overrides, examine_all
from oneroot.audit.stale import Finding, StaleProcess
from oneroot.base.generation import PackageChange, Pin
from oneroot.base.store import Store
from oneroot.container import healthcheck, liveness, resolver, spec
from oneroot.container.liveness import Liveness
from oneroot.container.state import ContainerState, State, read_states
from oneroot.settings import Settings
from oneroot.work.journal import Journal
from oneroot.work.progress import SILENT, Progress

_SHOWN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContainerProof:
    """What was observed of one container."""

    name: str
    state: State
    generation: int | None
    """Mounted, by the lease; None when it is stopped."""
    outdated: bool
    alive: bool | None
    """Its declared units or command run and its check passes; None: stopped, or not known."""
    proven: bool | None
    """None for a container that is stopped, and meant to be: its next start takes what is current."""
    unknown: bool
    """Something of it could not be read."""
    reasons: tuple[str, ...]
    """Why it is not proven."""
    stale: tuple[StaleProcess, ...]
    overrides: tuple[Override, ...]
    """Those that keep fixes out come first; at most a thousand."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostFinding:
    """The host's own processes that serve a base's containers."""

    stale: tuple[StaleProcess, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseProof:
    """What was observed of one base and its containers."""

    base: str
    generation: int | None
    """The current one."""
    newest: int | None
    pinned: bool
    pin: Pin | None
    sources_checked: str | None
    """When its package sources were last checked successfully, UTC."""
    pending_security: tuple[str, ...]
    """Packages with a security update that the current generation lacks."""
    pending: tuple[PackageChange, ...]
    """The same with versions and CVEs."""
    proven: bool
    """The base is, and no container that runs, or should, is not."""
    unknown: tuple[str, ...]
    """Names of what could not be read: containers, or the base itself."""
    reasons: tuple[str, ...]
    """Why the base itself is not proven."""
    taken: str
    host: HostFinding
    containers: tuple[ContainerProof, ...]

    @property
    def ok(self) -> bool:
        return self.proven


def prove(
    settings: Settings,
    names: Sequence[str] | None = None,
    *,
    bases: Sequence[str] | None = None,
    progress: Progress = SILENT,
) -> list[BaseProof]:
    """Observe containers and their bases, and judge both.

    :param names: containers; None for all.
    :param bases: only these bases and their containers; None for those of the containers, and, if
        all containers are looked at, those without any as well.
    """
    store = Store(settings)
    states = read_states(settings, spec.names(settings.paths) if names is None else names)
    if bases is not None:
        states = [state for state in states if state.base in bases]
    wanted = set(bases) if bases is not None else {state.base for state in states}
    if names is None and bases is None:
        wanted |= set(store.names())
    known = {base: BaseCode(settings.paths, base) for base in wanted if base}
    servants = [pid] if (pid := resolver.pid(settings)) else []
    progress.note("reading processes and writable layers")
    with ThreadPoolExecutor(1) as aside:
        # children read the processes, and leave this thread the processor that reads the uppers
        observing = aside.submit(stales.observe, states, servants=servants)
        overrides = examine_all(settings, states, known)
        lives = _liveness(settings, states)
        observed = observing.result()
    findings = stales.judge(settings, observed, known)
    proofs: list[BaseProof] = []
    for base in sorted(wanted):
        judged = tuple(
            _container(
                state, findings.containers.get(state.name), overrides[state.name], lives.get(state.name)
            )
            for state in states
            if state.base == base
        )
        monitors = {state.lease.monitor for state in states if state.base == base and state.lease}
        host = [one for pid in (*sorted(monitors), *servants) for one in findings.host.get(pid, ())]
        found = currency(store, base, max_age=settings.policy.max_age)
        proofs.append(_base(base, found, judged, tuple(host)))
    return proofs


def record(settings: Settings, proofs: Sequence[BaseProof], documents: Sequence[object]) -> None:
    """Keep proofs as evidence in the journal.

    :param documents: each proof as plain JSON data.
    :raises OnerootError: the journal cannot be written.
    """
    with Journal(settings.paths) as journal:
        for proof, document in zip(proofs, documents, strict=True):
            journal.record_proof(proof.base, proof.generation, proof.proven, document)


def _liveness(settings: Settings, states: Sequence[ContainerState]) -> dict[str, Liveness]:
    up = [state for state in states if state.state.up]
    found = {
        state.name: liveness.look(settings.paths, state.spec, lease=state.lease)
        for state in up
        if state.spec is not None and state.spec.health is None
    }
    asked = [state.spec for state in up if state.spec is not None and state.spec.health is not None]
    return found | {one.container: one for one in healthcheck.check_many(settings, asked)}


def _container(
    state: ContainerState, finding: Finding | None, overrides: Overrides, life: Liveness | None
) -> ContainerProof:
    if state.state is State.STOPPED:
        return _stopped(state, overrides)
    reasons: list[str] = []
    unknown: list[str] = []
    if state.damage:
        unknown.append(f"its declaration is damaged: {state.damage}")
    if state.outdated:
        now = state.current_generation
        current = f"generation {now} is current" if now is not None else "its base has no current generation"
        reasons.append(f"it runs on generation {state.generation}, {current} (oneroot restart {state.name})")
    if finding is None:
        unknown.append(f"its processes cannot be looked at: it is {state.state.value}")
    else:
        reasons += _stale_reasons(finding.stale)
        unknown += finding.unknown[:_SHOWN]
    reasons += _override_reasons(overrides)
    if overrides.unknown:
        unknown.append(overrides.unknown)
    alive = _alive(state, life, reasons, unknown)
    return ContainerProof(
        name=state.name,
        state=state.state,
        generation=state.generation,
        outdated=state.outdated,
        alive=alive,
        proven=not reasons and not unknown and alive is True,
        unknown=bool(unknown),
        reasons=(*reasons, *(f"unknown: {reason}" for reason in unknown)),
        stale=finding.stale if finding else (),
        overrides=overrides.found,
    )


def _stopped(state: ContainerState, overrides: Overrides) -> ContainerProof:
    ended = state.ended_by_itself
    why = (
        "it does not run, though nobody stopped it with oneroot: its command ended, or lxc-stop or a"
        f" crash ended it (oneroot start {state.name}, or oneroot stop {state.name} if it shall stay so)"
    )
    return ContainerProof(
        name=state.name,
        state=state.state,
        generation=None,
        outdated=False,
        alive=False if ended else None,
        proven=False if ended else None,
        unknown=False,
        reasons=(why,) if ended else (),
        stale=(),
        overrides=overrides.found,
    )


def _alive(
    state: ContainerState, life: Liveness | None, reasons: list[str], unknown: list[str]
) -> bool | None:
    """Say whether it is alive; adds the reasons why not."""
    if state.state is State.FROZEN:
        reasons.append(f"it is frozen (lxc-unfreeze -n {state.name})")
        return False
    if not state.state.up:
        reasons.append(f"it is {state.state.value}")
        return False
    if life is None or life.alive is None:
        said = life.reasons if life else ()
        unknown.append("; ".join(("whether it is alive cannot be told", *said)))
        return None
    if not life.ok:
        reasons.append("; ".join(("it is not alive", *life.reasons)))
    return life.ok


def _stale_reasons(stale: Sequence[StaleProcess]) -> list[str]:
    if not stale:
        return []
    paths = list(dict.fromkeys(one.path for one in stale))
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    count = len({one.pid for one in stale})
    processes = "process runs" if count == 1 else "processes run"
    return [f"{count} {processes} replaced code: {', '.join(paths[:_SHOWN])}{more}"]


def _override_reasons(overrides: Overrides) -> list[str]:
    found = [one for one in overrides.found if one.keeps_fixes_out]
    if not found:
        return []
    shown = ", ".join(f"{one.path} ({one.kind.value})" for one in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"its writable layer keeps the base's code out: {shown}{more}"]


def _base(
    base: str, found: Currency, containers: tuple[ContainerProof, ...], host: tuple[StaleProcess, ...]
) -> BaseProof:
    reasons = [*found.reasons, *(f"unknown: {reason}" for reason in found.unknown)]
    unproven = any(one.proven is False for one in containers)
    return BaseProof(
        base=base,
        generation=found.generation,
        newest=found.newest,
        pinned=found.pin is not None,
        pin=found.pin,
        sources_checked=found.sources_checked,
        pending_security=tuple(change.package for change in found.pending),
        pending=found.pending,
        proven=not reasons and not unproven,
        unknown=(*((base,) if found.unknown else ()), *(one.name for one in containers if one.unknown)),
        reasons=tuple(reasons),
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        host=HostFinding(stale=host),
        containers=containers,
    )
