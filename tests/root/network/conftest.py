"""A network namespace that plays the host, another that plays the world, and plain LXC containers.

Nothing here touches the machine's own rules, routes or addresses: the tests enter the namespace
for as long as they run, and what they start (LXC, nft, dnsmasq) starts in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.container import network
from oneroot.container.spec import ContainerSpec, Publish
from oneroot.kernel import libc
from oneroot.names import BaseName, ContainerName
from oneroot.settings import Network, Paths, Settings

HERE = Path(__file__).parent
GATEWAY = "169.254.80.1"
HOST = "198.51.100.1"
HOST_TWO = "198.51.100.11"
WORLD = "198.51.100.2"
METADATA = "169.254.169.254"
_WORLD_NAMESPACE = f"nw-world-{os.getpid()}"


def sh(command: str, *, check: bool = True) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def in_world(command: str) -> str:
    return sh(f"ip netns exec {_WORLD_NAMESPACE} {command}")


def probe_in_world(*words: str) -> str:
    return in_world(f"{sys.executable} {HERE}/probe.py {' '.join(words)}").strip()


def probe(*words: str) -> str:
    """Probe from the host."""
    return sh(f"{sys.executable} {HERE}/probe.py {' '.join(words)}").strip()


class Host:
    """The host, its settings, and the containers on it."""

    def __init__(self, place: Path, tree: Path, *, isolated: bool = True) -> None:
        self.place = place
        self.tree = tree
        self.settings = self._settings(isolated)
        self.specs: dict[str, ContainerSpec] = {}
        self._children: list[subprocess.Popen[bytes]] = []

    def _settings(self, isolated: bool) -> Settings:
        place = self.place
        return Settings(
            paths=Paths(store=place / "store", run=place / "run", lxc=place / "lxc"),
            network=Network(ipv4="10.77.80.0/20", gateway=GATEWAY, isolated=isolated),
        )

    def isolate(self, isolated: bool) -> None:
        self.settings = self._settings(isolated)
        network.ensure(self.settings)

    def declare(self, number: int, *published: Publish) -> ContainerSpec:
        """Write what create would: a plain LXC configuration, and a server as the command."""
        name = f"nw-{number}"
        address = f"10.77.{80 + number // 256}.{number % 256}"
        directory = self.settings.paths.lxc / name
        (directory / "overlay" / "upper" / "etc").mkdir(parents=True, exist_ok=True)
        (directory / "overlay" / "work").mkdir(exist_ok=True)
        upper = directory / "overlay" / "upper"
        for script in ("probe.py", "serve.py", "dnsquery.py"):
            shutil.copy(HERE / script, upper / script)
        (upper / "etc" / "resolv.conf").write_text(f"nameserver {GATEWAY}\n")
        (directory / "config").write_text(
            "lxc.include = /usr/share/lxc/config/common.conf\n"
            f"lxc.uts.name = {name}\n"
            f"lxc.rootfs.path = overlay:{self.tree}:{upper}\n"
            "lxc.rootfs.options = index=off,metacopy=off,redirect_dir=nofollow,xino=off,nfs_export=off\n"
            "lxc.rootfs.managed = 0\n"
            "lxc.tty.max = 0\n"
            f"lxc.init.cmd = /usr/bin/python3 /serve.py {name}\n"
            "lxc.net.0.type = veth\n"
            "lxc.net.0.veth.mode = router\n"
            f"lxc.net.0.veth.pair = or{80 * 256 + number}\n"
            f"lxc.net.0.ipv4.address = {address}/32\n"
            f"lxc.net.0.ipv4.gateway = {GATEWAY}\n"
            "lxc.net.0.flags = up\n"
        )
        spec = ContainerSpec(
            name=ContainerName(name),
            base=BaseName("core"),
            created="2026-01-01T00:00:00Z",
            group="nw",
            command="/serve.py",
            ids=None,
            addresses=(address,),
            publish=published,
        )
        self.specs[name] = spec
        return spec

    def start(self, spec: ContainerSpec) -> None:
        sh(f"lxc-start -P {self.settings.paths.lxc} -n {spec.name}")

    def stop(self, spec: ContainerSpec) -> None:
        sh(f"lxc-stop -k -P {self.settings.paths.lxc} -n {spec.name}", check=False)

    def run(self, spec: ContainerSpec, command: str) -> str:
        return sh(f"lxc-attach --clear-env -P {self.settings.paths.lxc} -n {spec.name} -- {command}").strip()

    def probe(self, spec: ContainerSpec, *words: str) -> str:
        """Probe from inside a container."""
        return self.run(spec, f"/usr/bin/python3 /probe.py {' '.join(words)}")

    def ask(self, spec: ContainerSpec, *words: str) -> str:
        """Ask the resolver from inside a container."""
        return self.run(spec, f"/usr/bin/python3 /dnsquery.py {GATEWAY} {' '.join(words)}")

    def serve(self, name: str, *words: str, prefix: str = "") -> None:
        """Run the test server outside containers, until the end of the tests."""
        command = [*prefix.split(), sys.executable, str(HERE / "serve.py"), name, *words]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._children.append(child)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"

    def clean(self) -> None:
        for spec in self.specs.values():
            self.stop(spec)
        for child in self._children:
            child.kill()
            child.wait()
        network.teardown(self.settings)


@pytest.fixture(scope="module")
def namespace(debian_tree: Path) -> Iterator[None]:
    """Move this thread into a network namespace of its own, with a world behind a link."""
    assert threading.current_thread() is threading.main_thread()
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    sh(f"ip netns add {_WORLD_NAMESPACE}")
    libc.unshare(libc.CLONE_NEWNET)
    try:
        for command in (
            "ip link set lo up",
            f"ip link add up0 type veth peer name out0 netns {_WORLD_NAMESPACE}",
            f"ip addr add {HOST}/24 dev up0",
            f"ip addr add {HOST_TWO}/24 dev up0",
            "ip addr add 2001:db8::1/64 dev up0 nodad",
            "ip link set up0 up",
            f"ip -n {_WORLD_NAMESPACE} link set lo up",
            f"ip -n {_WORLD_NAMESPACE} addr add {WORLD}/24 dev out0",
            f"ip -n {_WORLD_NAMESPACE} addr add {METADATA}/32 dev lo",
            f"ip -n {_WORLD_NAMESPACE} link set out0 up",
            f"ip route add default via {WORLD}",
        ):
            sh(command)
        yield
    finally:
        libc.setns(home, libc.CLONE_NEWNET)
        os.close(home)
        sh(f"ip netns del {_WORLD_NAMESPACE}")


@pytest.fixture(scope="module")
def host(namespace: None, debian_tree: Path) -> Iterator[Host]:
    """A host whose network is ready, with servers on it and in the world."""
    place = Path(tempfile.mkdtemp(prefix="oneroot-nw-", dir="/var/tmp"))
    place.chmod(0o755)
    made = Host(place, debian_tree)
    try:
        network.ensure(made.settings)
        made.serve("host")
        made.serve("world", f"{place}/world.log", prefix=f"ip netns exec {_WORLD_NAMESPACE}")
        yield made
    finally:
        made.clean()
        shutil.rmtree(place, ignore_errors=True)
