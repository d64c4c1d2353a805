"""Bases bootstrapped for real, from the archive that this machine's apt uses."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oneroot.base import bootstrap, fsck
from oneroot.base.bootstrap import ALWAYS, Declaration, create
from oneroot.base.store import Store
from oneroot.base.upgrade import upgrade
from oneroot.errors import OnerootError, UsageError
from oneroot.platform import dpkg
from oneroot.settings import Settings
from tests.root.base import treeview
from tests.root.base.repository import Repository
from tests.root.base.test_kill import assert_nothing_left_running, oneroot

RELEASE = "bookworm"


def declared(**more: object) -> Declaration:
    asked = Declaration(
        name="core", source=f"debian:{RELEASE}", packages=("openssl",), architecture=dpkg.host_architecture()
    )
    return dataclasses.replace(asked, **more)  # type: ignore[arg-type]


def assert_no_trace(settings: Settings) -> None:
    assert Store(settings).names() == []
    assert not [place for place in settings.paths.bases.glob(".*") if place.name.endswith(".new")]
    assert_nothing_left_running(settings)


@pytest.mark.slow
def test_a_base_from_the_release_suite_and_its_real_updates(settings: Settings) -> None:
    store = Store(settings)
    made = create(settings, declared(initial_suites=(RELEASE,)))
    assert made is not None
    root = store.root("core", 1)
    assert {"openssl", *ALWAYS} <= set(made.packages)
    assert store.current("core") == 1
    assert [release.suite for release in made.releases] == [RELEASE]
    assert all(len(key) == 40 for key in made.releases[0].fingerprint.split())
    assert made.releases[0].fingerprint
    assert fsck.check(store, "core") == []
    assert (root / "etc/machine-id").read_bytes() == b""
    for gone in (
        "etc/hostname",
        "etc/resolv.conf",
        "usr/sbin/policy-rc.d",
        "etc/apt/apt.conf.d/99mmdebstrap",
    ):
        assert not (root / gone).exists()
    for empty in ("run", "dev", "tmp"):
        assert list((root / empty).iterdir()) == []
    for apt in ("var/lib/apt/lists", "var/cache/apt/archives"):
        assert [path.name for path in (root / apt).rglob("*")] == ["partial"]
    assert RELEASE in (root / "etc/apt/sources.list").read_text()
    assert [
        path
        for path in (root / "var/log").rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size
    ] == []
    marks = (root / "var/lib/apt/extended_states").read_text()
    assert "Package: openssl\n" not in marks and "Auto-Installed: 1" in marks

    check = store.check("core")
    assert check is not None and check.checked
    if not check.pending:
        pytest.skip("no update is pending for this release today")
    before = treeview.snapshot(str(root))
    done = upgrade(settings, "core")
    assert done is not None
    assert {(one.package, one.new) for one in done.changes} == {
        (one.package, one.new) for one in check.pending
    }
    assert any(one.security and one.cves for one in done.changes)
    assert treeview.snapshot(str(root)) == before
    assert fsck.check(store, "core") == []
    assert dpkg.Dpkg().broken(store.root("core", 2)) == []
    said = subprocess.run(
        ["chroot", store.root("core", 2), "dpkg", "--verify"], capture_output=True, text=True, check=False
    ).stdout
    assert [line for line in said.splitlines() if "/usr/share/" not in line and " c " not in line] == []

    assert create(settings, declared()) is None, "it exists as declared"
    with pytest.raises(UsageError, match="another base"):
        create(settings, declared(packages=("curl",)))
    assert upgrade(settings, "core") is None


def test_unknown_packages_are_told_before_anything_is_made(settings: Settings) -> None:
    with pytest.raises(UsageError, match="no-such-package") as caught:
        create(settings, declared(packages=("openssl", "no-such-package")))
    assert caught.value.exit_code == 2
    assert_no_trace(settings)


def test_an_unknown_suite_of_a_mirror(settings: Settings) -> None:
    mirror = bootstrap.specify(declared()).repositories[0]
    with pytest.raises(OnerootError) as caught:
        create(
            settings,
            declared(mirror=mirror.uri, suites=("no-such-suite",), keyring=Path(mirror.signed_by)),
        )
    assert "no-such-suite" in caught.value.why
    assert_no_trace(settings)


def test_a_dead_mirror(settings: Settings) -> None:
    with pytest.raises(OnerootError, match="could not be checked") as caught:
        create(settings, declared(mirror="http://127.0.0.1:9/debian"))
    assert "network" in caught.value.fix
    assert_no_trace(settings)


def test_a_repository_that_is_no_release(settings: Settings, packages: Repository) -> None:
    packages.add("openssl", "1")
    packages.publish()
    with pytest.raises(UsageError):
        create(settings, declared(mirror=f"file:{packages.place}", suites=("./",), keyring=packages.keyring))
    assert_no_trace(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "host"}, {"source": "debian"}, {"source": "debian:../x"}, {"source": "debian:bookworm\n"},
        {"name": "../x"}, {"name": ""}, {"packages": ("-o=evil",)}, {"packages": ("a b",)},
        {"packages": ("x/y",)},
        {"mirror": "bookworm"}, {"mirror": "http://x y"}, {"mirror": "http://x", "suites": ("a b",)},
        {"initial_suites": ("sid",)}, {"repositories": ("nonsense",)}, {"source": "debian:nosuchrelease"},
        {"mirror": "http://x", "keyring": Path("/does/not/exist")},
    ],
)  # fmt: skip
def test_what_cannot_be_declared(settings: Settings, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        create(settings, declared(**wrong))
    assert caught.value.fix
    assert not settings.paths.bases.exists() or Store(settings).names() == []


def test_a_dry_run_makes_nothing(settings: Settings) -> None:
    assert len(bootstrap.plan(settings, declared())) == 7
    assert not settings.paths.store.exists()


@pytest.mark.slow
def test_killed_while_it_is_made(settings: Settings) -> None:
    """Killed in the middle of mmdebstrap and of the packages; then the same command finishes."""
    words = ("base", "create", "core", "--source", f"debian:{RELEASE}", "--suite", RELEASE)
    build = settings.paths.bases / ".core.new"
    for sign in ("generations/1/root/usr/bin/dpkg", "generations/1/root/usr/bin/tini"):
        argv = [sys.executable, "-m", "oneroot", "--progress", "none", *words]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as child:
            deadline = time.monotonic() + 300
            while not (build / sign).exists():
                assert child.poll() is None, child.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(child.pid, signal.SIGKILL)
        assert_nothing_left_running(settings)
        assert Store(settings).names() == []
    done = oneroot(*words)
    assert done.returncode == 0, done.stderr
    assert not build.exists()
    assert fsck.check(Store(settings), "core") == []
    again = oneroot(*words)
    assert again.returncode == 0 and "nothing to do" in again.stdout
