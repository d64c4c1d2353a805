"""What the host tells of its containers: their names to the resolver, their ports to the world.

Both lie in ``/run`` and end with the boot. `ensure` makes them again from the declarations; a
marker tells that this has been done since the host started.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from oneroot.container import network, spec
from oneroot.container.spec import ContainerSpec
from oneroot.errors import OnerootError
from oneroot.kernel import proc
from oneroot.settings import Settings
from oneroot.work import files, locks


def ensure(settings: Settings) -> dict[str, OnerootError]:
    """Announce all containers, if that was not done since the host started.

    :returns: the containers whose ports are not theirs to have, and why.
    """
    if _announced(settings):
        return {}
    specs = declared(settings)
    network.write_names(settings, specs)
    refused = _publish(settings) if any(found.publish for found in specs) else {}
    files.write_atomic(_marker(settings), proc.boot_id().encode("ascii"), durable=False)
    return refused


def tell(settings: Settings, specs: Sequence[ContainerSpec]) -> dict[str, OnerootError]:
    """Announce containers; those that are known already cost next to nothing.

    :returns: those whose ports are not theirs to have, and why.
    """
    if not _announced(settings):
        return ensure(settings)
    network.write_names(settings, specs)
    return _publish(settings) if any(found.publish for found in specs) else {}


def removing(settings: Settings, old: Iterable[ContainerSpec | None], names: Iterable[str]) -> None:
    """Tell no more of containers that are about to be removed.

    :param old: their declarations; None for a damaged one, whose ports are not known.
    """
    gone = set(names)
    network.forget_names(settings, gone)
    if any(found is None or found.publish for found in old):
        _publish(settings, but=gone)


def declared(settings: Settings) -> list[ContainerSpec]:
    """Return every declaration that can be read."""
    found = []
    for name in spec.names(settings.paths):
        try:
            found.append(spec.load(settings.paths, name))
        except (OnerootError, OSError):
            continue
    return found


def _publish(settings: Settings, *, but: Collection[str] = ()) -> dict[str, OnerootError]:
    # Two commands at a time must not each publish what they read before the other changed it.
    with locks.announcements(settings.paths, verb="publish"):
        return network.publish(settings, [found for found in declared(settings) if found.name not in but])


def _announced(settings: Settings) -> bool:
    try:
        return _marker(settings).read_text(encoding="ascii") == proc.boot_id()
    except (OSError, ValueError):
        return False


def _marker(settings: Settings) -> Path:
    return settings.paths.run / "announced"
