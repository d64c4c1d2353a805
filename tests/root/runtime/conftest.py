"""A world of the runtime's own: two generations of a real tree, and containers over them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from oneroot import settings as settings_module
from oneroot.container import lease, lxcconfig, spec
from oneroot.container.lease import Lease
from oneroot.container.spec import ContainerSpec, IdRange, Limits
from oneroot.container.state import State, read_state
from oneroot.kernel import mount
from oneroot.names import base_name, container_name
from oneroot.settings import Settings
from tests.root.conftest import clean_up

HOOK_SOURCE = Path(__file__).parents[3] / "src/hook/start-hook.c"
FIRST_ID = 1_912_768_000
FOREVER = "exec sleep infinity"


@dataclass
class World:
    """Containers named rt-… in a place of their own."""

    settings: Settings
    place: Path
    made: list[str] = field(default_factory=list)

    def make(
        self,
        name: str,
        *,
        command: str | None = FOREVER,
        privileged: bool = False,
        limits: Limits | None = None,
    ) -> str:
        """Do what create does, without network; unit mode when *command* is None."""
        first = 0 if privileged else FIRST_ID + 65536 * len(self.made)
        self.made.append(name)
        declared = ContainerSpec(
            name=container_name(name),
            base=base_name("core"),
            created="2026-01-01T00:00:00+00:00",
            group="rt",
            command=command,
            units=() if command else ("apache2.service",),
            ids=None if privileged else IdRange(first=first, count=65536),
            limits=limits or Limits(),
        )
        self._fill_upper(name, command)
        directory = self.settings.paths.container(name)
        for path in (directory / "overlay", *(directory / "overlay").rglob("*")):
            os.chown(path, first, first, follow_symlinks=False)
        (directory / "config").write_text(lxcconfig.render(self.settings, declared))
        spec.save(self.settings.paths, declared)
        return name

    def _fill_upper(self, name: str, command: str | None) -> None:
        overlay = self.settings.paths.container(name) / "overlay"
        (overlay / "work").mkdir(parents=True)
        upper = overlay / "upper"
        (upper / "etc/oneroot").mkdir(parents=True)
        (upper / "etc/hosts").write_text(f"127.0.0.1 localhost {name}\n")
        if command:
            script = upper / "etc/oneroot/command"
            script.write_text(f"#!/bin/sh\n{command}\n")
            script.chmod(0o755)
            return
        units = upper / "etc/systemd/system"
        units.mkdir(parents=True)
        (units / "oneroot.target").write_text(
            "[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\n"
            "Wants=apache2.service dbus.socket\nAllowIsolate=yes\n"
        )
        (units / "default.target").symlink_to("oneroot.target")
        for masked in ("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount"):
            (units / masked).symlink_to("/dev/null")

    def use(self, generation: int) -> None:
        """Make a generation the current one, as the store does it."""
        link = self.settings.paths.bases / "core/current"
        fresh = link.with_name("current.new")
        fresh.symlink_to(f"generations/{generation}")
        fresh.rename(link)

    def lxc(
        self, program: str, name: str, *words: str, env: dict[str, str] | None = None, path: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a plain lxc-* program, as any operator would."""
        argv = [program, "-P", path or str(self.settings.paths.lxc), "-n", name, *words]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(env or {})}
        )

    def inside(self, name: str, script: str) -> str:
        done = self.lxc("lxc-attach", name, "--clear-env", "--", "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def generation_inside(self, name: str) -> int:
        return int(self.inside(name, "cat /etc/generation"))

    def lease(self, name: str) -> Lease:
        found = lease.read(self.settings.paths, name)
        assert found is not None
        return found

    def refusal(self, name: str) -> str:
        return (self.settings.paths.run / f"hook/{name}.error").read_text()

    def host_mounts(self) -> list[str]:
        """What the host's mount table shows of this place."""
        return [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.place) in line
        ]

    def monitors(self, name: str) -> list[int]:
        title = b"[lxc monitor] %s %s" % (os.fsencode(self.settings.paths.lxc), name.encode())
        return [pid for pid in all_pids() if command_line(pid).rstrip(b"\0 ") == title]

    def wait_for(self, what: Callable[[], object], seconds: float = 20) -> None:
        wait_for(what, seconds)

    def state(self, name: str) -> State:
        return read_state(self.settings, name).state


def all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_for(what: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hook as this tree has it, not as it may be installed."""
    built = tmp_path_factory.mktemp("hook") / "start-hook"
    flags = ["-O2", "-static", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(built), str(HOOK_SOURCE)], check=True)
    return built


@pytest.fixture(scope="module")
def world(debian_tree: Path, hook: Path) -> Iterator[World]:
    """Made once a module: copying the tree is what takes time."""
    place = Path(tempfile.mkdtemp(prefix="oneroot-rt-", dir="/var/tmp"))
    place.chmod(0o711)
    (place / "libexec").mkdir()
    shutil.copy(hook, place / "libexec/start-hook")
    file = place / "settings.yaml"
    file.write_text(
        f"paths: {{store: {place}/store, run: {place}/run, lxc: {place}/lxc, libexec: {place}/libexec}}\n"
        f"ids: {{first: {FIRST_ID}, count: 32768000}}\n"
        "network: {ipv4: 10.81.64.0/20, gateway: 169.254.64.1}\ntimeouts: {stop: 5}\n"
    )
    settings = settings_module.load(file)
    settings.paths.lxc.mkdir(mode=0o711)
    generations = settings.paths.bases / "core/generations"
    for number in (1, 2):
        (generations / str(number)).mkdir(parents=True)
        (generations / f"{number}/generation.json").write_text("{}")
    subprocess.run(["cp", "-a", str(debian_tree), str(generations / "1/root")], check=True)
    subprocess.run(["cp", "-al", str(generations / "1/root"), str(generations / "2/root")], check=True)
    for number in (1, 2):
        (generations / f"{number}/root/etc/generation").write_text(f"{number}\n")
    settings.paths.store.chmod(0o700)
    made = World(settings=settings, place=place)
    made.use(1)
    try:
        yield made
    finally:
        clean_up(settings)
        for entry in mount.table():  # a failed test may have left some; never delete through a mount
            if entry.target.startswith(f"{place}/"):
                mount.unmount(Path(entry.target), detach=True)
        shutil.rmtree(place, ignore_errors=True)
