"""What the host tells of its containers: their names to the resolver, their ports to the world.

Both lie in ``/run`` and end with the boot. `ensure` makes them again from the declarations; a
marker tells that this has been done since the host started.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from oneroot.container import network, spec
from oneroot.container.spec import ContainerSpec
from oneroot.errors import OnerootError
from oneroot.settings import Settings
from oneroot.work import files


def ensure(settings: Settings) -> dict[str, OnerootError]:
    """Announce all containers, if that was not done since the host started.

    :returns: the containers whose ports are not theirs to have, and why.
    """
    if _marker(settings).exists():
        return {}
    specs = declared(settings)
    network.write_names(settings, specs)
    refused = _publish(settings, specs) if any(found.publish for found in specs) else {}
    files.write_atomic(_marker(settings), b"", durable=False)
    return refused


def added(settings: Settings, new: Sequence[ContainerSpec]) -> dict[str, OnerootError]:
    """Announce new containers.

    :returns: those whose ports are not theirs to have, and why.
    """
    if not _marker(settings).exists():
        return ensure(settings)
    network.write_names(settings, new)
    if any(found.publish for found in new):
        return _publish(settings, declared(settings))
    return {}


def removing(settings: Settings, old: Iterable[ContainerSpec | None], names: Iterable[str]) -> None:
    """Tell no more of containers that are about to be removed.

    :param old: their declarations; None for a damaged one, whose ports are not known.
    """
    gone = set(names)
    network.forget_names(settings, gone)
    if any(found is None or found.publish for found in old):
        _publish(settings, [found for found in declared(settings) if found.name not in gone])


def declared(settings: Settings) -> list[ContainerSpec]:
    """Return every declaration that can be read."""
    found = []
    for name in spec.names(settings.paths):
        try:
            found.append(spec.load(settings.paths, name))
        except (OnerootError, OSError):
            continue
    return found


def _publish(settings: Settings, specs: Iterable[ContainerSpec]) -> dict[str, OnerootError]:
    return network.publish(settings, specs)


def _marker(settings: Settings) -> Path:
    return settings.paths.run / "announced"
