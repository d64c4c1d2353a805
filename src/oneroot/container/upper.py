"""A new container's writable layer: what makes it itself, and nothing more.

Directories repeat mode and owner of the base's, since those of the topmost layer count. All is
owned by the mapped root and written through `kernel.tree`.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from oneroot.container import contents, identity
from oneroot.container.contents import File, Layout, Link
from oneroot.container.identity import Needs
from oneroot.container.spec import ContainerSpec
from oneroot.kernel.tree import Tree
from oneroot.settings import Settings

_OTHER_PATHS = ("etc/hosts", "etc/ssh/key", "etc/ssl/private/key", "etc/ssl/certs/certificate")


class Mould:
    """Makes the uppers of containers that share a base and a declaration.

    Looks at the base once, so that each container costs only what is written for it. May be used
    from several threads at a time.
    """

    def __init__(self, settings: Settings, base_root: Path, shared: Layout, needs: Needs) -> None:
        self._settings = settings
        self._shared = shared
        self._needs = needs
        paths = {*_paths(shared.files, shared.links), *_OTHER_PATHS}
        with Tree(base_root) as base:
            self._directories = {path: _attributes(base, path) for path in _parents(paths)}
            self._root = _attributes(base, "")

    def cast(self, overlay: Path, spec: ContainerSpec) -> None:
        """Make a container's overlay directory with its upper and work directories.

        :param overlay: must not exist; its parent is root's alone.
        """
        shift = spec.ids.first if spec.ids else 0
        for directory in (overlay, overlay / "upper", overlay / "work"):
            directory.mkdir(mode=0o755)
            os.chown(directory, shift, shift)
        mode, uid, gid = self._root
        os.chown(overlay / "upper", shift + uid, shift + gid)
        (overlay / "upper").chmod(mode)
        files = [
            *contents.identity(spec, self._settings.network, secrets.token_hex(16)),
            *self._shared.files,
            *identity.make(self._settings.paths, spec.name, self._needs),
        ]
        with Tree(overlay / "upper") as upper:
            self._make_directories(upper, shift, _paths(files, self._shared.links))
            for file in files:
                upper.write_file(file.path, file.data, mode=file.mode, uid=shift, gid=shift + file.gid)
            for link in self._shared.links:
                upper.symlink(link.target, link.path, uid=shift, gid=shift)

    def _make_directories(self, upper: Tree, shift: int, paths: Iterable[str]) -> None:
        for path in _parents(paths):
            mode, uid, gid = self._directories[path]
            upper.makedirs(path, mode=mode, uid=shift + uid, gid=shift + gid)


def _paths(files: Iterable[File], links: Iterable[Link]) -> list[str]:
    return [file.path for file in files] + [link.path for link in links]


def _parents(paths: Iterable[str]) -> list[str]:
    """Return every directory above the paths, each once, parents first."""
    found: set[str] = set()
    for path in paths:
        parts = path.split("/")
        found.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return sorted(found)


def _attributes(base: Tree, path: str) -> tuple[int, int, int]:
    try:
        status = base.lstat(path)
    except OSError:
        return 0o755, 0, 0
    if not stat.S_ISDIR(status.st_mode):
        return 0o755, 0, 0
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
