"""The door to mmdebstrap, which makes the smallest tree that has apt."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from oneroot import run
from oneroot.errors import CommandFailed, NoSpace
from oneroot.kernel import sandbox
from oneroot.platform.apt import Area

# update: the area has fresh lists; the rest: what is bound into the tree is ours, not to be cleaned.
_SKIPPED = "update,check/signed-by,essential/unlink,cleanup/apt/lists,cleanup/apt/cache,output/dev"

_BIND_AREA = """\
set -e
mkdir -p "$1/var/lib/apt/lists" "$1/var/cache/apt/archives"
mount --bind {place}/lists "$1/var/lib/apt/lists"
mount --bind {place}/archives "$1/var/cache/apt/archives"
"""


def bootstrap(area: Area, suite: str, target: Path, *, log: Path, timeout: float) -> None:
    """Make a tree of the essential packages and apt, out of an area that holds lists and packages.

    It has no network, and mounts in a namespace of its own: killed, it leaves nothing but files.

    :param target: does not exist, or is an empty directory.
    :raises OnerootError: it failed; names the log.
    """
    place = shlex.quote(str(area.mount_point))
    argv = (
        *("mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", f"--skip={_SKIPPED}"),
        f"--architectures={','.join(area.architectures)}",
        *('--aptopt=Acquire::Languages "none"', '--aptopt=APT::Sandbox::User "root"'),
        *("--dpkgopt=force-unsafe-io", f"--setup-hook={_BIND_AREA.format(place=place)}"),
        *(suite, str(target), str(area.mount_point / "inside.list")),
    )
    job = sandbox.Sandbox(
        argv=argv,
        mounts=(sandbox.Bind(str(area.directory), str(area.mount_point)),),
        confined=False,  # it mounts; only essential packages' scripts run in it
        environment=run.environment({"DEBIAN_FRONTEND": "noninteractive"}),
    )
    with log.open("ab") as file:
        start = file.tell()
        try:
            code = sandbox.run(job, log=file, timeout=timeout)
        except TimeoutError as error:
            raise CommandFailed(
                "The tree could not be made", argv=argv, returncode=None, why=str(error), fix=f"read {log}"
            ) from error
    if code:
        raise _failed(argv, code, log, start)
    _make_apt_directories(target)


def _make_apt_directories(tree: Path) -> None:
    """Make the directories of apt's package that went into what was bound over theirs."""
    passwd = (tree / "etc/passwd").read_text(encoding="utf-8", errors="surrogateescape")
    owner = next((int(line.split(":")[2]) for line in passwd.splitlines() if line.startswith("_apt:")), 0)
    for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        directory = tree / name
        directory.mkdir(exist_ok=True)
        os.chown(directory, owner, 0)
        directory.chmod(0o700)


def _failed(argv: tuple[str, ...], code: int, log: Path, start: int) -> CommandFailed | NoSpace:
    with log.open("rb") as file:
        file.seek(start)
        said = file.read().decode("utf-8", "backslashreplace")
    what = "The tree could not be made"
    errors = [line for line in said.splitlines() if line.startswith(("E: ", "dpkg: error", "sandbox: "))]
    why = "\n".join(errors[-5:]) or "\n".join(said.splitlines()[-5:])
    if "No space left on device" in said:
        return NoSpace(what, why=why, fix=f"free space below the store; the whole story is in {log}")
    return CommandFailed(
        what, argv=argv, returncode=code, stdout=said, why=why, fix=f"the whole story is in {log}"
    )
