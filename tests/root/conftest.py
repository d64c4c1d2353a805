"""What tests with root share: a real Debian tree, and an isolated place for everything."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot import settings as settings_module
from oneroot.kernel.tree import remove_tree
from oneroot.settings import Settings
from tests.conftest import skip_or_fail

CACHE = Path("/var/tmp/oneroot-test-cache")
PACKAGES = "apache2,tini,systemd-sysv,dbus,iproute2,openssl,python3-minimal,curl"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture(scope="session", autouse=True)
def as_root() -> None:
    """Everything here makes mounts and containers."""
    if os.geteuid() != 0:
        skip_or_fail("not root")
    for program in ("lxc-start", "mmdebstrap", "nft", "dnsmasq"):
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is not installed")


@pytest.fixture(scope="session")
def debian_tree() -> Path:
    """A bookworm tree of the release suite alone, so that security updates are pending.

    Shared by all tests and kept between runs: never write into it; use it as a lower, or copy it.
    """
    key = hashlib.sha256(PACKAGES.encode()).hexdigest()[:12]
    tree = CACHE / f"bookworm-{key}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may be at it
        if not tree.exists():
            _bootstrap(tree, key)
    return tree


def _bootstrap(tree: Path, key: str) -> None:
    partial = CACHE / f"bookworm-{key}.partial"
    remove_tree(partial)
    subprocess.run(
        [
            *("mmdebstrap", "--mode=root", "--variant=apt", "--quiet", f"--include={PACKAGES}"),
            *(f"--keyring={KEYRING}", "--aptopt=Acquire::Languages none", "bookworm", str(partial)),
            f"deb {_mirror()} bookworm main",
        ],
        check=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    partial.rename(tree)


def _mirror() -> str:
    """Return the mirror that this machine's own apt uses for the release suite."""
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for line in said.splitlines():
        uri, release = line.rsplit(" ", 1)
        if release == "bookworm":
            return uri
    pytest.fail("no apt source of this machine has bookworm")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with a store, a run directory and an LXC path of the test's own; all gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="oneroot-test-", dir="/var/tmp"))
    place.chmod(0o711)
    file = place / "settings.yaml"
    file.write_text(
        f"paths: {{store: {place}/store, run: {place}/run, lxc: {place}/lxc}}\n"
        "network: {ipv4: 10.78.0.0/17, gateway: 169.254.241.1}\n"
        "timeouts: {stop: 5}\n"
    )
    monkeypatch.setenv("ONEROOT_SETTINGS", str(file))
    made = settings_module.load()
    made.paths.lxc.mkdir()
    try:
        yield made
    finally:
        clean_up(made)
        remove_tree(place)


def clean_up(settings: Settings) -> None:
    """Stop every container below the test's LXC path, whatever state it is in."""
    lxc = settings.paths.lxc
    said = subprocess.run(
        ["lxc-ls", "-P", lxc, "-1", "--active"], capture_output=True, text=True, check=False
    )
    children = [
        subprocess.Popen(["lxc-stop", "-k", "-P", lxc, "-n", name], stderr=subprocess.DEVNULL)
        for name in said.stdout.split()
    ]
    for child in children:
        child.wait(timeout=60)
