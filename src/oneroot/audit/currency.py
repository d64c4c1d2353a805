"""Whether a base is as new as it can be: newest or pinned, sources checked, nothing pending."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from oneroot.base.generation import BaseSpec, Generation, PackageChange, Pin, SourceCheck
from oneroot.base.store import Store
from oneroot.errors import OnerootError

_CLOCK_SLACK = timedelta(seconds=5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Currency:
    """What the store says of a base."""

    generation: int | None = None
    newest: int | None = None
    pin: Pin | None = None
    sources_checked: str | None = None
    pending: tuple[PackageChange, ...] = ()
    """Security updates that the current generation lacks."""
    reasons: tuple[str, ...] = ()
    """Why the base is not proven."""
    unknown: tuple[str, ...] = ()
    """What could not be read."""


def currency(store: Store, base: str, *, max_age: float, now: datetime | None = None) -> Currency:
    """Judge a base by what is recorded; asks no mirror.

    :param max_age: seconds since the last successful check of its sources.
    """
    newest: int | None = None
    try:
        newest = max(store.numbers(base), default=None)
        spec = store.spec(base)
        number = store.current(base)
        current = None if number is None else store.generation(base, number)
        newer = [store.generation(base, one) for one in store.numbers(base) if one > (number or 0)]
    except (OnerootError, OSError) as error:
        return Currency(newest=newest, unknown=(str(error),))
    check = store.check(base)
    pending = _pending(current, newer, check)
    reasons = [
        *_generation_reasons(spec, number, newest),
        *_source_reasons(base, check, max_age, now or datetime.now(UTC)),
        *_pending_reasons(base, pending, spec.pin),
    ]
    return Currency(
        generation=number,
        newest=newest,
        pin=spec.pin,
        sources_checked=check.checked if check else None,
        pending=pending,
        reasons=tuple(reasons),
    )


def _generation_reasons(spec: BaseSpec, number: int | None, newest: int | None) -> list[str]:
    if number is None:
        return [f"it has no current generation (oneroot base upgrade {spec.name})"]
    if spec.pin is not None:
        if spec.pin.generation != number:
            return [f"it is pinned to generation {spec.pin.generation}, and generation {number} is current"]
        return []
    if newest is not None and number != newest:
        bad = ", marked bad" if newest in spec.bad else ""
        return [f"generation {number} is current, the newest is {newest}{bad}; it is not pinned"]
    return []


def _source_reasons(base: str, check: SourceCheck | None, max_age: float, now: datetime) -> list[str]:
    mend = f"(oneroot verify --check-sources, or oneroot patch {base})"
    if check is None or check.checked is None:
        failed = f": {check.error}" if check and check.error else ""
        return [f"its package sources were never checked successfully{failed} {mend}"]
    try:
        checked = datetime.fromisoformat(check.checked)
        age = now - (checked if checked.tzinfo else checked.replace(tzinfo=UTC))
    except ValueError:
        return [f"the time of its last check cannot be read: {check.checked} {mend}"]
    if age < -_CLOCK_SLACK:
        return [f"its sources were checked in the future, {check.checked}: the clock was set back {mend}"]
    if age.total_seconds() > max_age:
        failed = f"; the last attempt failed: {check.error}" if check.error else ""
        hours = age.total_seconds() / 3600
        return [
            f"its package sources were last checked {hours:.1f} hours ago, at {check.checked}{failed} {mend}"
        ]
    return []


def _pending_reasons(base: str, pending: tuple[PackageChange, ...], pin: Pin | None) -> list[str]:
    if not pending:
        return []
    named = ", ".join(f"{change.package} {change.new}" for change in pending[:5])
    more = f" and {len(pending) - 5} more" if len(pending) > 5 else ""
    if pin is not None:
        said = f"pinned to generation {pin.generation} by {pin.person} since {pin.since}"
        why = f" ({pin.reason})" if pin.reason else ""
        mend = f"oneroot base unpin {base}, then oneroot patch {base}"
        return [f"{said}{why}, it lacks security updates: {named}{more} ({mend})"]
    return [f"security updates are pending: {named}{more} (oneroot patch {base})"]


def _pending(
    current: Generation | None, newer: list[Generation], check: SourceCheck | None
) -> tuple[PackageChange, ...]:
    """Return the security updates that wait at the sources or in generations newer than the current one."""
    if current is None:
        return ()
    found: dict[str, PackageChange] = {}
    offered = [change for generation in newer for change in generation.changes]
    for change in (*offered, *(check.pending if check else ())):
        if not (change.security or change.cves) or change.new is None:
            continue
        installed = current.packages.get(change.package)
        if installed is not None and installed != change.new:
            found[change.package] = dataclasses.replace(change, old=installed)
    return tuple(found[name] for name in sorted(found))
