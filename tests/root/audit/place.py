"""A place with a base of two generations and real containers on it, for the tests of the proof."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from oneroot.audit.proof import BaseProof, ContainerProof, prove
from oneroot.base import layout as base_layout
from oneroot.base.generation import (
    SCHEMA,
    BaseSpec,
    Generation,
    GenerationNumber,
    PackageChange,
    Pin,
    SourceCheck,
)  # fmt: skip
from oneroot.base.manifest import Entry, Kind, Manifest, load, save_changes
from oneroot.container import contents, lease, liveness, lxc, lxcconfig, spec, state
from oneroot.container.identity import Needs
from oneroot.container.spec import ContainerSpec, Health, IdRange
from oneroot.container.upper import Mould
from oneroot.kernel import proc
from oneroot.kernel.tree import Tree
from oneroot.names import BaseName, ContainerName
from oneroot.settings import Settings
from oneroot.work import files

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LIBSSL = f"/{LIBRARIES}/libssl.so.3"
LIBC = f"/{LIBRARIES}/libc.so.6"
FIRST_ID = 2_050_000_000
_LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/perl",
    "var/cache",
    "proc",
    "sys",
)


@dataclasses.dataclass(kw_only=True)
class Place:
    """Makes generations and containers, and starts and stops them."""

    settings: Settings
    base: str = "core"
    made: int = 0

    def root(self, number: int) -> Path:
        return base_layout.root(self.settings.paths, self.base, number)

    def generation(
        self, number: int, tree: Path, replace: Mapping[str, bytes | None] | None = None
    ) -> Generation:
        """Commit a generation: *tree*'s files linked, those in *replace* written anew or left out."""
        root = self.root(number)
        root.parent.mkdir(parents=True)
        if number == 1:
            _copy(tree, root)
        else:
            subprocess.run(["cp", "-al", tree, root], check=True)
        for path, data in (replace or {}).items():
            _replace(root / path.lstrip("/"), data)
        before = self.manifest(number - 1) if number > 1 else None
        manifest = manifest_of(root, before)
        manifest.save(root.parent / "manifest.gz")
        changes = manifest.changes_from(before) if before else []
        save_changes(root.parent / "changes.gz", changes)
        made = Generation(
            base=BaseName(self.base),
            number=GenerationNumber(number),
            parent=number - 1 if number > 1 else None,
            created=now(),
            reason="test",
            person="test",
            packages={"libssl3": str(number), "libc6": "1"},
            changes=(
                PackageChange(
                    package="libssl3", old=str(number - 1), new=str(number), cves=("CVE-2026-0001",),
                    security=True,
                ),
            ) if number > 1 else (),
            releases=(),
            files=len(manifest),
            size=0,
            digest="",
        )  # fmt: skip
        files.save(root.parent / "generation.json", made, schema=SCHEMA)
        self.declare()
        self.use(number)
        return made

    def manifest(self, number: int) -> Manifest:
        return load(self.root(number).parent / "manifest.gz")

    def declare(self, pin: Pin | None = None) -> None:
        path = self.settings.paths.bases / self.base / "base.json"
        files.save(path, BaseSpec(name=BaseName(self.base), source="debian:bookworm", pin=pin), schema=SCHEMA)

    def use(self, number: int) -> None:
        link = base_layout.current_link(self.settings.paths, self.base)
        link.unlink(missing_ok=True)
        link.symlink_to(f"generations/{number}")

    def checked(self, ago: timedelta | None = timedelta(0), pending: Sequence[PackageChange] = ()) -> None:
        """Record a check of the sources; None: all attempts failed."""
        found = SourceCheck(
            checked=None if ago is None else (datetime.now(UTC) - ago).isoformat(timespec="seconds"),
            attempted=now(),
            error="the mirror is gone" if ago is None else "",
            pending=tuple(pending),
        )
        files.save(self.settings.paths.bases / self.base / "checked.json", found, schema=SCHEMA)

    def container(
        self,
        name: str,
        *,
        command: str | None = "exec sleep 3600",
        units: tuple[str, ...] = (),
        privileged: bool = False,
        health: Health | None = None,
        base: str | None = None,
    ) -> str:
        self.made += 1
        ids = None if privileged else IdRange(first=FIRST_ID + 65536 * self.made, count=65536)
        made = ContainerSpec(
            name=ContainerName(name),
            base=BaseName(base or self.base),
            created=now(),
            group=name,
            units=units,
            command=None if units else command,
            ids=ids,
            health=health,
        )
        directory = self.settings.paths.container(name)
        directory.mkdir(mode=0o700)
        number = base_layout.current_number(self.settings.paths, made.base) or 1
        root = base_layout.root(self.settings.paths, made.base, number)
        with Tree(root) as tree:
            shared = contents.of(tree, units=units, command=made.command)
        Mould(self.settings, root, shared, Needs()).cast(directory / "overlay", made)
        (directory / "config").write_text(lxcconfig.render(self.settings, made))
        spec.save(self.settings.paths, made)
        return name

    def start(self, *names: str) -> None:
        paths = self.settings.paths
        for directory, mode in (
            *((paths.run, 0o711), (paths.locks, 0o700), (paths.leases, 0o700)),
            *((paths.run / "hook", 0o700), (paths.lower, 0o711), (paths.overlay, 0o711)),
        ):
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
        for name in names:
            lxc.start(paths, name, timeout=30)
            declared = spec.load(paths, name)
            # LXC says that it runs before its init has begun the command
            until(lambda declared=declared: liveness.look(paths, declared).alive, 60)  # type: ignore[misc]

    def stop(self, *names: str, forget: bool = True) -> None:
        for name in names:
            held = lease.read(self.settings.paths, name)
            lxc.kill(self.settings.paths, name)
            until(lambda held=held: held is None or not held.held)  # type: ignore[misc]
            if forget:
                lease.drop(self.settings.paths, name)

    def restart(self, *names: str) -> None:
        self.stop(*names)
        self.start(*names)

    def inside(self, name: str, script: str, *, check: bool = True) -> str:
        """Run a shell script inside, as the container's root."""
        argv = lxc.attach_argv(self.settings.paths, name, ("/bin/sh", "-ec", script))
        done = subprocess.run(
            argv, check=check, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=60
        )
        return done.stdout

    def upper(self, name: str) -> Path:
        return self.settings.paths.container(name) / "overlay/upper"

    def put(self, name: str, path: str, data: bytes) -> None:
        """Write a file through the container's own mount."""
        argv = lxc.attach_argv(self.settings.paths, name, ("/bin/sh", "-ec", f"cat > {path}"))
        subprocess.run(argv, input=data, check=True, timeout=60)

    def prove(self, *names: str) -> BaseProof:
        (proof,) = prove(self.settings, list(names) or None)
        return proof

    def one(self, name: str) -> ContainerProof:
        (found,) = self.prove(name).containers
        return found

    def spawn(self, name: str, script: str) -> int:
        """Start a shell script in the background inside; return the host's pid of what it became."""
        self.inside(name, f"({script}) </dev/null >/dev/null 2>&1 & echo $! > /tmp/spawned")
        inner = self.inside(name, "cat /tmp/spawned").strip()
        for pid in proc.pids():
            if f"/lxc.payload.{name}" not in proc.cgroup(pid):
                continue
            fields = Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()
            if fields[-1] == inner:
                until(lambda pid=pid: is_asleep(pid))  # type: ignore[misc]
                return pid
        raise AssertionError(f"process {inner} of {name} is gone")

    def pid(self, name: str) -> int:
        found = state.read_state(self.settings, name).pid
        assert found is not None
        return found


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds; fail when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come"
        time.sleep(0.02)


def is_asleep(pid: int) -> bool:
    """Whether a process has come as far as to sleep in a program that is no shell."""
    fields = Path(f"/proc/{pid}/stat").read_text()
    return fields.rpartition(")")[2].split()[0] == "S" and "(sh)" not in fields


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def manifest_of(root: Path, before: Manifest | None) -> Manifest:
    """Describe a tree: a plain reading, made for the tests alone."""
    owners = _owners(root)
    inodes = {}
    rows = []
    for directory, names, others in os.walk(root):
        for name in (*names, *others):
            path = Path(directory, name)
            shown = f"/{path.relative_to(root)}"
            status = path.lstat()
            rows.append(_entry(path, shown, status, owners.get(shown), inodes))
    return Manifest([_row(entry) for entry in rows])


def _row(entry: Entry) -> tuple[object, ...]:
    from oneroot.base.manifest import to_row

    return tuple(to_row(entry))


def _entry(
    path: Path, shown: str, status: os.stat_result, package: str | None, seen: dict[int, tuple[str, bool]]
) -> Entry:
    kind, digest, code = Kind.FILE, "", False
    if stat.S_ISDIR(status.st_mode):
        kind, package = Kind.DIRECTORY, None
    elif stat.S_ISLNK(status.st_mode):
        kind, digest = Kind.LINK, os.readlink(path)
    elif not stat.S_ISREG(status.st_mode):
        kind = Kind.CHARACTER
    else:
        if status.st_ino not in seen:
            data = path.read_bytes()
            code = data[:4] == b"\x7fELF" or data[:2] == b"#!" or shown.endswith((".py", ".pm", ".rb"))
            code = code or shown == "/etc/ld.so.cache"
            seen[status.st_ino] = (hashlib.sha256(data).hexdigest(), code)
        digest, code = seen[status.st_ino]
    size = status.st_size if kind is Kind.FILE else 0
    return Entry(
        path=shown, kind=kind, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid, gid=status.st_gid,
        size=size, mtime=status.st_mtime_ns, digest=digest, package=package, code=code, attributes={},
    )  # fmt: skip


def _owners(root: Path) -> dict[str, str]:
    owners: dict[str, str] = {}
    for listing in (root / "var/lib/dpkg/info").glob("*.list"):
        package = listing.name.removesuffix(".list").partition(":")[0]
        for line in listing.read_text().splitlines():
            owners[line] = package
            for top in ("/bin", "/sbin", "/lib"):
                if line.startswith(top):
                    owners[f"/usr{line}"] = package
    return owners


def _copy(tree: Path, root: Path) -> None:
    """Copy a tree without what the tests do not need."""
    excludes = [f"--exclude=./{path}/*" for path in _LEFT_OUT]
    root.mkdir()
    packed = subprocess.Popen(
        ["tar", "-C", tree, "--warning=no-file-changed", "-cf", "-", *excludes, "."], stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-C", root, "-xpf", "-"], stdin=packed.stdout, check=True)
    assert packed.wait() in (0, 1)  # 1: another test made links to the tree's files meanwhile


def _replace(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink()
        return
    fresh = path.with_name(f"{path.name}.new")
    if path.exists():
        shutil.copy2(path, fresh)
    fresh.write_bytes(data)
    fresh.rename(path)


def newer(place: Place, path: str) -> bytes:
    """Return other content of the same working library: ELF ignores what is appended."""
    return (place.root(1) / path.lstrip("/")).read_bytes() + b"patched"
