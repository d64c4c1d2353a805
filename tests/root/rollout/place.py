"""A small base with two generations, and real containers on it, for the tests of rollouts."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

from oneroot import settings as settings_module
from oneroot.base import layout
from oneroot.base.generation import SCHEMA, BaseSpec, Generation, GenerationNumber
from oneroot.container import contents, lease, lifecycle, lxcconfig, network, spec
from oneroot.container.identity import Needs
from oneroot.container.spec import ContainerSpec, Health, IdRange
from oneroot.container.upper import Mould
from oneroot.kernel.tree import Tree
from oneroot.names import BaseName, ContainerName
from oneroot.settings import Settings
from oneroot.work import files

FIRST_ID = 2_030_000_000
BASE = BaseName("core")
NOW = "2026-01-01T00:00:00+00:00"
COMMAND = (sys.executable, "-m", "oneroot", "--progress", "none")
PROGRAMS = (
    "bin/sh",
    "bin/sleep",
    "bin/mkdir",
    "bin/chown",
    "bin/cat",
    "bin/false",
    "bin/touch",
    "usr/bin/tini",
)


def oneroot(
    *words: str, kill: int | None = None, log: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program, and kill it at one of its points."""
    env = dict(os.environ)
    if kill is not None:
        env["ONEROOT_KILL_POINT"] = str(kill)
    if log is not None:
        env["ONEROOT_KILL_LOG"] = str(log)
    return subprocess.run(
        [*COMMAND, *words], env=env, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip


def small_tree(tree: Path, target: Path) -> None:
    """Make a root with a shell, tini and a few programs out of a whole one."""
    for directory in ("dev", "proc", "sys", "run", "tmp", "etc", "var/tmp", "usr/bin", "root"):
        (target / directory).mkdir(parents=True, exist_ok=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        place = os.readlink(tree / link)
        (target / place).mkdir(parents=True, exist_ok=True)
        (target / link).symlink_to(place)
    wanted = list(PROGRAMS)
    for program in PROGRAMS:
        said = subprocess.run(
            ["chroot", tree, "/lib64/ld-linux-x86-64.so.2", "--list", f"/{program}"],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        wanted += [word.lstrip("/") for word in said.split() if word.startswith("/")]
    wanted.append("lib64/ld-linux-x86-64.so.2")
    for path in set(wanted):
        source = (
            Path(os.path.realpath(tree / path)) if not (tree / path).is_symlink() else _resolved(tree, path)
        )
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        if not (target / path).exists():
            shutil.copy2(source, target / path)
    (target / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (target / "etc/group").write_text("root:x:0:\n")


def _resolved(tree: Path, path: str) -> Path:
    said = subprocess.run(
        ["chroot", tree, "readlink", "-f", f"/{path}"], capture_output=True, text=True, check=True
    )
    return tree / said.stdout.strip().lstrip("/")


@dataclasses.dataclass(kw_only=True)
class Place:
    """Makes generations and containers below one settings file."""

    settings: Settings
    base: BaseName = BASE
    made: int = 0

    def generation(self, number: int, tree: Path, *, small: bool = True) -> None:
        """Commit a generation that says its number in /etc/generation."""
        root = layout.root(self.settings.paths, self.base, number)
        root.parent.mkdir(parents=True)
        if number > 1:
            subprocess.run(["cp", "-al", layout.root(self.settings.paths, self.base, 1), root], check=True)
            (root / "etc/generation").unlink()
        elif small:
            small_tree(tree, root)
        else:
            subprocess.run(["cp", "-al", tree, root], check=True)
        (root / "etc/generation").write_text(f"{number}\n")
        described = Generation(
            base=self.base, number=GenerationNumber(number), parent=number - 1 or None, created=NOW,
            reason="test", person="test", packages={"libc6": str(number)}, changes=(), releases=(),
            files=0, size=0, digest="",
        )  # fmt: skip
        files.save(root.parent / "generation.json", described, schema=SCHEMA)
        if number == 1:
            declared = BaseSpec(name=self.base, source="debian:bookworm", created=NOW)
            files.save(self.settings.paths.bases / self.base / "base.json", declared, schema=SCHEMA)
            self.set_current(self.base, 1)

    def current(self, name: BaseName) -> int | None:
        return layout.current_number(self.settings.paths, name)

    def set_current(self, name: BaseName, number: int) -> None:
        link = layout.current_link(self.settings.paths, name)
        new = link.with_name(".current.new")
        new.unlink(missing_ok=True)
        new.symlink_to(f"generations/{number}")
        new.rename(link)

    def container(
        self,
        name: str,
        *,
        command: str | None = "exec sleep infinity",
        units: tuple[str, ...] = (),
        health: Health | None = None,
        address: bool = False,
    ) -> str:
        """Create a container, stopped."""
        self.made += 1
        root = layout.root(self.settings.paths, self.base, 1)
        ids = IdRange(first=FIRST_ID + (self.made - 1) * 65536, count=65536)
        declared = ContainerSpec(
            name=ContainerName(name), base=self.base, created=NOW, group=name, units=units,
            command=None if units else command, ids=ids,
            addresses=(f"10.81.112.{self.made + 1}",) if address else (), health=health, autostart=False,
        )  # fmt: skip
        directory = self.settings.paths.container(name)
        directory.mkdir(mode=0o700)
        with Tree(root) as base:
            shared = contents.of(base, units=units, command=declared.command)
        Mould(self.settings, root, shared, Needs()).cast(directory / "overlay", declared)
        (directory / "config").write_text(lxcconfig.render(self.settings, declared))
        spec.save(self.settings.paths, declared)
        return name

    def start(self, *names: str) -> None:
        for outcome in lifecycle.start(self.settings, names):
            if outcome.error:
                raise outcome.error

    def generation_of(self, name: str) -> int | None:
        """Return what a running container has mounted; None when it does not run."""
        found = lease.read(self.settings.paths, name)
        return found.generation if found and found.held else None

    def monitor_of(self, name: str) -> int:
        found = lease.read(self.settings.paths, name)
        assert found is not None and found.held, f"{name} does not run"
        return found.monitor

    def clean_up(self) -> None:
        """Kill the containers of this place, and take its network down."""
        for entry in self.settings.paths.lxc.iterdir():
            subprocess.run(
                ["lxc-stop", "-k", "-P", self.settings.paths.lxc, "-n", entry.name],
                capture_output=True, check=False, timeout=60,
            )  # fmt: skip
        network.teardown(self.settings)


def make(where: Path, *, run: Path | None = None) -> Place:
    """Make a place in a directory, and settings.yaml in it.

    :param run: the run directory, if it shall lie elsewhere.
    """
    where.mkdir(mode=0o711, parents=True, exist_ok=True)
    file = where / "settings.yaml"
    file.write_text(
        f"paths: {{store: {where}/store, run: {run or where / 'run'}, lxc: {where}/lxc}}\n"
        f"ids: {{first: {FIRST_ID}, count: 13107200}}\n"
        "network: {ipv4: 10.81.112.0/20, gateway: 169.254.112.1}\n"
        "timeouts: {stop: 5, alive: 10, health: 10}\n"
    )
    settings = settings_module.load(file)
    settings.paths.lxc.mkdir(mode=0o711)
    return Place(settings=settings)
