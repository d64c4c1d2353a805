"""``oneroot info``, a container explained whole, and the part of it that ``ls`` lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oneroot.cli import render

if TYPE_CHECKING:
    from oneroot.container.spec import ContainerSpec, Health
    from oneroot.container.state import ContainerState
    from oneroot.settings import Settings


def listed(state: ContainerState) -> dict[str, Any]:
    """Return what ``ls`` tells of a container, for JSON."""
    return {
        "name": state.name,
        "state": state.state.value,
        "base": state.base,
        "generation": state.generation,
        "current_generation": state.current_generation,
        "outdated": state.outdated,
        "addresses": list(state.addresses),
        "pid": state.pid,
        "unprivileged": state.unprivileged,
    }


def fields(settings: Settings, state: ContainerState) -> dict[str, Any]:
    """Return everything that is known, for JSON."""
    alive = _liveness(settings, state)
    return {
        **listed(state),
        "damage": state.damage,
        "alive": alive.alive if alive else None,
        "reasons": list(alive.reasons) if alive else [],
        "declared": render.plain(state.spec),
        "lease": render.plain(state.lease),
        "paths": _paths(settings, state.name),
    }


def lines(settings: Settings, state: ContainerState) -> list[tuple[str, object]]:
    """Return the same as name and value, for people."""
    alive = _liveness(settings, state)
    told: list[tuple[str, object]] = [("name", state.name), ("state", _state(state))]
    if state.damage:
        told.append(("damaged", state.damage))
    if alive is not None:
        word = {True: "yes", False: "no", None: "unknown"}[alive.alive]
        told.append(("alive", [word, *alive.reasons]))
    told += [("base", state.base), ("generation", _generation(state))]
    if state.spec is not None:
        told += _declared(settings, state.spec)
    if state.pid is not None:
        told.append(("init", f"process {state.pid}"))
    if state.lease is not None:
        told.append(("lease", f"generation {state.lease.generation}, taken {state.lease.taken}"))
    return told + list(_paths(settings, state.name).items())


def _declared(settings: Settings, spec: ContainerSpec) -> list[tuple[str, object]]:
    limits = spec.limits
    said = [
        f"memory {limits.memory} bytes" if limits.memory else "memory unlimited",
        f"{limits.cpus:g} processors" if limits.cpus else "processors unlimited",
        f"{limits.pids} processes",
    ]
    ids = f"{spec.ids.first} to {spec.ids.first + spec.ids.count - 1}" if spec.ids else ""
    return [
        ("runs", spec.units or spec.command),
        ("created", spec.created),
        ("group", spec.group),
        ("addresses", spec.addresses),
        ("known as", (spec.name, f"{spec.name}.{settings.network.domain}")),
        (
            "published",
            [f"{one.address}:{one.host_port} to {one.container_port}/{one.protocol}" for one in spec.publish],
        ),
        ("health check", _health(spec.health)),
        ("limits", ", ".join(said)),
        ("ids on the host", ids or "PRIVILEGED: its root is the host's root"),
        ("starts with the host", spec.autostart),
    ]


def _health(health: Health | None) -> str:
    if health is None:
        return ""
    if health.http is not None:
        return f"http:{health.http}"
    return f"tcp:{health.tcp}" if health.tcp is not None else f"command:{health.command}"


def _state(state: ContainerState) -> str:
    return f"{state.state.value} (ended by itself)" if state.ended_by_itself else state.state.value


def _generation(state: ContainerState) -> str:
    if state.generation is None:
        return f"none is mounted; its next start takes {state.current_generation}"
    if state.outdated:
        return f"{state.generation}, outdated: {state.current_generation} is current"
    return f"{state.generation}, the current one"


def _liveness(settings: Settings, state: ContainerState) -> Any:
    from oneroot.container import liveness

    if state.spec is None or not state.state.up:
        return None
    return liveness.look(settings.paths, state.spec, lease=state.lease)


def _paths(settings: Settings, name: str) -> dict[str, str]:
    place = settings.paths.container(name)
    return {
        "configuration": str(place / "config"),
        "writable layer": str(place / "overlay" / "upper"),
        "console": str(place / "console.log"),
    }
