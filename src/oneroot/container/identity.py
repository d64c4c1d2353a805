"""Secrets that must be each container's own, because its base has them from nobody.

A generation carries no host key and no certificate of its own; they are made here, one set for each
container, by the host's programs. The door to ``ssh-keygen`` and ``openssl``.
"""

from __future__ import annotations

import dataclasses
import enum
import tempfile
from pathlib import Path

from oneroot.container.contents import File
from oneroot.kernel.tree import Tree
from oneroot.run import run
from oneroot.settings import Paths

_GROUP_BYTES = 1 << 20
_SSH_KEYS = ("ed25519", "ecdsa")
"""RSA keys take half a second of a processor each, and no client of the last ten years needs one."""


class Kind(enum.Enum):
    """What a base's packages ask for."""

    SSH_HOST_KEYS = "ssh host keys"
    SNAKEOIL = "self-signed certificate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What containers of a base need."""

    kinds: frozenset[Kind] = frozenset()
    certificate_group: int = 0
    """Group that may read the certificate's key (``ssl-cert``)."""


def needs(base: Tree) -> Needs:
    """Find out what the packages in a generation need."""
    kinds = set()
    if base.exists("usr/sbin/sshd"):
        kinds.add(Kind.SSH_HOST_KEYS)
    if base.exists("usr/sbin/make-ssl-cert"):
        kinds.add(Kind.SNAKEOIL)
    return Needs(kinds=frozenset(kinds), certificate_group=_group(base, "ssl-cert") if kinds else 0)


def make(paths: Paths, name: str, wanted: Needs) -> list[File]:
    """Make a container's secrets.

    :raises HostError: a program that makes them is not installed.
    """
    if not wanted.kinds:
        return []
    made: list[File] = []
    paths.run.mkdir(mode=0o711, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".keys-", dir=paths.run) as directory:
        if Kind.SSH_HOST_KEYS in wanted.kinds:
            made += _ssh(Path(directory), name)
        if Kind.SNAKEOIL in wanted.kinds:
            made += _snakeoil(Path(directory), name, wanted.certificate_group)
    return made


def _ssh(directory: Path, name: str) -> list[File]:
    made = []
    for kind in _SSH_KEYS:
        key = directory / f"ssh_host_{kind}_key"
        run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"root@{name}", "-f", key], container=name)
        public = key.with_name(f"{key.name}.pub")
        made.append(File(path=f"etc/ssh/{key.name}", data=key.read_bytes(), mode=0o600))
        made.append(File(path=f"etc/ssh/{public.name}", data=public.read_bytes()))
    return made


def _snakeoil(directory: Path, name: str, group: int) -> list[File]:
    key, certificate = directory / "key", directory / "certificate"
    run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "3650", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", key, "-out", certificate),
        ],
        container=name,
    )
    return [
        File(path="etc/ssl/private/ssl-cert-snakeoil.key", data=key.read_bytes(), mode=0o640, gid=group),
        File(path="etc/ssl/certs/ssl-cert-snakeoil.pem", data=certificate.read_bytes()),
    ]


def _group(base: Tree, wanted: str) -> int:
    try:
        text = base.read_bytes("etc/group", _GROUP_BYTES).decode("utf-8", "replace")
    except OSError:
        return 0
    for line in text.splitlines():
        name, *rest = line.split(":")
        if name == wanted and len(rest) >= 2 and rest[1].isdecimal():
            return int(rest[1])
    return 0
