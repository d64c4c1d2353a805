"""A small host of its own: a signed repository, a base with an update pending, containers.

Making a base takes half a minute, so each step is made once and copied: generations by hard link
(they are never written), everything else byte by byte.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import shutil
import subprocess
from pathlib import Path

from oneroot import settings as settings_module
from oneroot.container import network, spec
from oneroot.container.state import ContainerState, read_states
from oneroot.kernel import mount, proc
from oneroot.kernel.tree import remove_tree
from oneroot.settings import Settings
from tests.command import Said, oneroot


@dataclasses.dataclass(frozen=True)
class Repository:
    """A signed package repository in a directory, with one package that has code of its own."""

    place: Path

    def build(self) -> None:
        (self.place / "gnupg").mkdir(parents=True, mode=0o700)
        self._gpg("--quick-generate-key", "--passphrase", "", "kill tests", "default", "sign")
        self._gpg("--export", "--output", str(self.place / "key.gpg"))

    def publish(self, version: str) -> None:
        """Add a version of the package ``probe`` and sign the index anew."""
        self.add_probe(version)
        self.sign()

    def add_probe(self, version: str, *, postinst: str = "") -> None:
        """Build a version of ``probe``; `sign` makes it known.

        :param postinst: shell lines that are run when it is installed.
        """
        tree = self.place / f"probe-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/bin").mkdir(parents=True)
        (tree / "usr/bin/probe").write_text(f"#!/bin/sh\necho {version}\n")
        (tree / "usr/bin/probe").chmod(0o755)
        (tree / "DEBIAN/control").write_text(
            f"Package: probe\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\n"
            "Description: tells its version\n"
        )
        if postinst:
            (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\nset -e\n{postinst}\n")
            (tree / "DEBIAN/postinst").chmod(0o755)
        self._build_package(tree, f"probe_{version}_all.deb")

    def add_again(self, file: Path, suffix: str) -> None:
        """Add an existing package under a higher version, otherwise as it is; `sign` makes it known."""
        tree = self.place / "again"
        self._run("dpkg-deb", "-R", str(file), str(tree))
        control = tree / "DEBIAN/control"
        lines = control.read_text().splitlines()
        raised = [line + suffix if line.startswith("Version:") else line for line in lines]
        control.write_text("\n".join(raised) + "\n")
        self._build_package(tree, f"{file.name.partition('_')[0]}{suffix}.deb")

    def _build_package(self, tree: Path, name: str) -> None:
        # into place by rename: an index must not meet half a package
        self._run("dpkg-deb", "-Znone", "--root-owner-group", "-b", str(tree), str(self.place / "new"))
        (self.place / "new").rename(self.place / name)
        remove_tree(tree)

    def sign(self) -> None:
        """Write the index of all packages that are here, and sign it."""
        (self.place / "Packages").write_text(self._run("dpkg-scanpackages", "-m", "."))
        (self.place / "Release").write_text(self._run("apt-ftparchive", "release", "."))
        (self.place / "InRelease").unlink(missing_ok=True)
        self._gpg("--clearsign", "--output", str(self.place / "InRelease"), str(self.place / "Release"))

    @property
    def line(self) -> str:
        return f"deb [signed-by={self.place}/key.gpg] file:{self.place} ./"

    def clear(self) -> None:
        subprocess.run(
            ["gpgconf", "--kill", "gpg-agent"],
            env={**os.environ, "GNUPGHOME": str(self.place / "gnupg")},
            check=False,
        )
        shutil.rmtree(self.place / "gnupg", ignore_errors=True)

    def _gpg(self, *words: str) -> None:
        self._run("gpg", "--batch", "--pinentry-mode", "loopback", *words)

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            words,
            cwd=self.place,
            env={**os.environ, "GNUPGHOME": str(self.place / "gnupg")},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout


@dataclasses.dataclass(frozen=True)
class Scene:
    """One host's worth of state below a directory."""

    place: Path
    network: str = "ipv4: 10.78.240.0/20, gateway: 169.254.240.1"
    more: str = ""
    """Further lines of the settings file."""
    run_directory: Path | None = None
    """Where /run would be; below *place* unless given."""

    @property
    def _run_directory(self) -> Path:
        return self.run_directory or self.place / "run"

    @property
    def environment(self) -> dict[str, str]:
        return {"ONEROOT_SETTINGS": str(self.place / "settings.yaml")}

    @property
    def settings(self) -> Settings:
        return settings_module.load(self.place / "settings.yaml")

    def prepare(self) -> None:
        self.place.mkdir(mode=0o711)
        (self.place / "lxc").mkdir()
        self.write_settings()

    def write_settings(self, *, network: str = "", more: str = "") -> None:
        (self.place / "settings.yaml").write_text(
            f"paths: {{store: {self.place}/store, run: {self._run_directory}, lxc: {self.place}/lxc}}\n"
            f"network: {{{network or self.network}}}\ntimeouts: {{stop: 5}}\n{more or self.more}\n"
        )

    def copy_from(self, template: Scene) -> None:
        """Become what another scene is; its containers must be stopped."""
        self.clear()
        for name in ("store", "lxc"):
            source, target = template.place / name, self.place / name
            if not source.exists():
                continue
            if target.exists():
                remove_tree(target)
            if source.stat().st_dev != self.place.stat().st_dev:
                subprocess.run(["cp", "-a", source, target], check=True)
                continue
            subprocess.run(["cp", "-al", source, target], check=True)
            # Only generations are immutable; the rest is written in place.
            script = 'find "$1" -path "*/generations" -prune -o -type f -links +1 -print0'
            found = subprocess.run(["sh", "-c", script, "sh", target], check=True, capture_output=True)
            for path in filter(None, found.stdout.split(b"\0")):
                temporary = path + b".copy"
                subprocess.run([b"cp", b"-a", path, temporary], check=True)
                os.rename(temporary, path)
        for config in (self.place / "lxc").glob("*/config"):
            text = config.read_text().replace(str(template._run_directory), str(self._run_directory))
            config.write_text(text.replace(str(template.place), str(self.place)))

    def clear(self) -> None:
        self.kill_containers()
        for directory in (self.place / "store", self._run_directory, self.place / "lxc"):
            if directory.exists():
                remove_tree(directory)
        (self.place / "lxc").mkdir()

    def leave(self) -> None:
        """Take back what the host was told, too."""
        self.kill_containers()
        network.teardown(self.settings)
        self.clear()

    def kill_containers(self) -> None:
        lxc = self.place / "lxc"
        said = subprocess.run(
            ["lxc-ls", "-P", lxc, "-1", "--active"], capture_output=True, text=True, check=False
        )
        stops = [subprocess.Popen(["lxc-stop", "-k", "-P", lxc, "-n", name]) for name in said.stdout.split()]
        for stop in stops:
            stop.wait(30)

    def states(self) -> dict[str, ContainerState]:
        """Look at all containers, without starting a program."""
        settings = self.settings
        return {state.name: state for state in read_states(settings, spec.names(settings.paths))}

    def running(self) -> dict[str, int | None]:
        """Return the generation of each container that runs."""
        return {name: state.generation for name, state in self.states().items() if state.state.up}

    def run(self, *words: str, ok: tuple[int, ...] | None = (0,), **variables: str) -> Said:
        return oneroot(*words, ok=ok, env={**self.environment, **variables})

    def assert_whole(self) -> None:
        """Nothing half: what exists is complete, and nothing is mounted or left in the network."""
        bases = self.place / "store/bases"
        for base in bases.iterdir() if bases.exists() else ():
            if base.name.startswith("."):
                continue
            assert (base / "base.json").is_file(), base
            for generation in (base / "generations").iterdir():
                for name in ("generation.json", "manifest.gz", "root/usr/bin/dpkg"):
                    assert (generation / name).exists(), f"{generation} is half: {name} is missing"
            current = base / "current"
            if current.is_symlink():
                assert (current / "generation.json").is_file(), "current leads nowhere"
        for container in (self.place / "lxc").iterdir():
            if not container.name.startswith("."):
                for name in ("oneroot.json", "config", "overlay/upper/etc/hostname", "overlay/work"):
                    assert (container / name).exists(), f"{container} is half: {name} is missing"
        mounted = [entry.target for entry in mount.table() if entry.target.startswith(f"{self.place}/")]
        assert not mounted, f"mounts are left in the host's namespace: {mounted}"

    def assert_no_orphans(self) -> None:
        """Links, leases and id ranges belong to containers that exist."""
        existing = {entry.name for entry in (self.place / "lxc").iterdir() if not entry.name.startswith(".")}
        leases = self._run_directory / "lease"
        if leases.exists():
            names = {entry.name for entry in leases.iterdir() if not entry.name.startswith(".")}
            assert names <= existing, f"leases without a container: {names - existing}"
        listed = self.states()
        assert set(listed) == existing
        links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
        running = self.running()
        pool = ipaddress.IPv4Network(self.settings.network.ipv4)
        mine = [
            line.split("@")[0]
            for line in links.splitlines()
            if line.startswith("or") and ipaddress.IPv4Address(int(line[2:10], 16)) in pool
        ]
        assert len(mine) == len(running), f"links {mine} for containers {running}"
        for name in running:
            assert proc.start_time(listed[name].pid or 0)
