"""Doctor on this very machine: what it finds, mends and takes back."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.errors import HostError
from oneroot.host import (
    doctor,
    idpool,
    kernelinfo,
    limits,
    mend,
    nft,
    programs,
    storage,
    subids,
    surroundings,
    sysctl,
)
from oneroot.host.check import Check, Status
from oneroot.host.limits import Load
from oneroot.kernel import libc
from oneroot.settings import IdPool, Network, Paths, Settings

POOL = IdPool(first=536_870_912, count=4 * 65536)
"""Nobody's, and outside the default pool."""


@pytest.fixture
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="oneroot-hc-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def own(place: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a hook that is fine; parameters are kept in a file of the test's own."""
    monkeypatch.setattr(mend, "SYSCTL_FILE", place / "60-oneroot.conf")
    (place / "libexec").mkdir()
    hook = place / "libexec" / "start-hook"
    hook.write_bytes(b"#!/bin/true\n")
    hook.chmod(0o755)
    return Settings(
        paths=Paths(store=place / "store", run=place / "run", lxc=place / "lxc", libexec=place / "libexec"),
        ids=POOL,
        network=Network(ipv4="10.77.80.0/20"),
    )


@pytest.fixture
def namespace() -> Iterator[None]:
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    libc.unshare(libc.CLONE_NEWNET)
    yield
    libc.setns(home, libc.CLONE_NEWNET)
    os.close(home)


@pytest.fixture
def ids() -> Iterator[None]:
    """Leave /etc/subuid and /etc/subgid as they were."""
    before = {file: file.read_bytes() if file.exists() else None for file in idpool.FILES}
    yield
    for file in idpool.FILES:
        ours = f"root:{POOL.first}:{POOL.count}\n".encode()
        if file.exists():
            file.write_bytes(file.read_bytes().replace(ours, b""))
        if before[file] is None and file.exists() and not file.read_bytes():
            file.unlink()


def by_id(checks: list[Check]) -> dict[str, Check]:
    found = {check.id: check for check in checks}
    assert len(found) == len(checks), "ids are unique"
    return found


def test_all_that_a_container_needs_is_tried_and_works_here(own: Settings) -> None:
    found = by_id(doctor.examine(own, containers=3))
    for name in ("root", "kernel.version", "kernel.openat2", "kernel.overlay", "kernel.idmapped", "hook"):
        assert found[name].status is Status.OK, found[name]
    for name in ("kernel.userxattr", "storage.store.attributes", "lxc.version", "program.nft"):
        assert found[name].status is Status.OK, found[name]
    assert not list(own.paths.store.parent.glob(".oneroot-trial-*"))


def test_every_check_that_is_not_right_says_why(own: Settings) -> None:
    for check in doctor.examine(own, containers=100_000):
        assert check.title and check.found
        if check.status in (Status.FAIL, Status.WARN):
            assert check.why and check.needed, check
            assert check.fix_command, check


def test_a_filesystem_that_cannot_be_an_upper_is_named(place: Path) -> None:
    """Ramfs knows neither trusted nor user attributes before kernel 6.17, proc none at all."""
    assert storage.missing_features(Path("/proc")) != []
    errors = kernelinfo.try_mounts(Path("/proc"), POOL)
    assert all(errors.values())


def test_fix_gives_ids_raises_limits_and_undo_takes_both_back(own: Settings, ids: None) -> None:
    load = Load(containers=9000, units=9000)
    low = [limit.name for limit in limits.LIMITS if limits.check(limit, load).status is not Status.OK]
    assert low, "this machine is ready for more than the test asks"
    before = {name: sysctl.read(name) for name in low}
    texts = {file: file.read_bytes() if file.exists() else b"" for file in idpool.FILES}
    try:
        done = mend.fix(own, 9000)
        assert done
        for name in low:
            assert int(sysctl.read(name) or 0) > int(before[name] or 0)
        assert mend.parse_parameters(mend.SYSCTL_FILE.read_text()).keys() >= set(low)
        for file in idpool.FILES:
            assert idpool.missing(idpool.read(file), POOL) == []
        assert mend.plan(own, 9000) == [], "done is done"
        assert mend.plan(own, 10) == [], "nothing is ever lowered"
    finally:
        mend.undo(own)
    assert {name: sysctl.read(name) for name in low} == before
    assert {file: file.read_bytes() for file in idpool.FILES} == texts
    assert not mend.SYSCTL_FILE.exists()
    assert mend.plan_undo(own) == []


def test_two_fixes_are_undone_to_before_the_first(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = own.paths.store.parent / "sys"
    (parameters / "kernel").mkdir(parents=True)
    (parameters / "kernel" / "thing").write_text("5\n")
    monkeypatch.setattr(sysctl, "ROOT", parameters)
    thing = limits.Limit(name="kernel.thing", need=lambda load: load.containers, why="")
    monkeypatch.setattr(limits, "LIMITS", (thing,))
    monkeypatch.setattr(idpool, "FILES", ())
    mend.fix(own, 10)
    mend.fix(own, 100)
    assert sysctl.read("kernel.thing") == "128"
    mend.undo(own)
    assert sysctl.read("kernel.thing") == "5"


def test_a_parameter_that_the_kernel_keeps_does_not_stop_the_others(
    own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = own.paths.store.parent / "sys"
    (parameters / "kernel").mkdir(parents=True)
    (parameters / "kernel" / "thing").write_text("5\n")
    monkeypatch.setattr(sysctl, "ROOT", parameters)
    (parameters / "kernel" / "kept").symlink_to("/proc/sys/kernel/ngroups_max")
    kept, thing = (
        limits.Limit(name=f"kernel.{name}", need=lambda load: 1 << 30, why="") for name in ("kept", "thing")
    )
    monkeypatch.setattr(limits, "LIMITS", (kept, thing))
    monkeypatch.setattr(idpool, "FILES", ())
    mend.fix(own, 10)
    assert sysctl.read("kernel.thing") == str(1 << 30)
    assert [check.title for check in limits.too_low(Load(containers=10, units=0))] == ["kernel.kept"]


def test_undo_leaves_what_somebody_changed_since(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = own.paths.store.parent / "sys"
    (parameters / "kernel").mkdir(parents=True)
    (parameters / "kernel" / "thing").write_text("5\n")
    monkeypatch.setattr(sysctl, "ROOT", parameters)
    thing = limits.Limit(name="kernel.thing", need=lambda load: load.containers, why="")
    monkeypatch.setattr(limits, "LIMITS", (thing,))
    monkeypatch.setattr(idpool, "FILES", ())
    mend.fix(own, 10)
    sysctl.write("kernel.thing", 77)
    mend.undo(own)
    assert sysctl.read("kernel.thing") == "77"


def test_a_step_that_fails_takes_the_others_back(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = own.paths.store.parent / "sys"
    (parameters / "kernel").mkdir(parents=True)
    (parameters / "kernel" / "thing").write_text("5\n")
    monkeypatch.setattr(sysctl, "ROOT", parameters)
    thing = limits.Limit(name="kernel.thing", need=lambda load: load.containers, why="")
    monkeypatch.setattr(limits, "LIMITS", (thing,))
    monkeypatch.setattr(idpool, "FILES", ())
    monkeypatch.setattr(mend, "SYSCTL_FILE", Path("/proc/nowhere/60-oneroot.conf"))
    with pytest.raises(OSError, match="proc"):
        mend.fix(own, 10)
    assert sysctl.read("kernel.thing") == "5"


def test_ids_are_not_taken_from_containers_that_use_them(own: Settings, ids: None) -> None:
    for file in idpool.FILES:
        subids.give(file, POOL.first, POOL.count)
    container = own.paths.lxc / "web001"
    container.mkdir(parents=True)
    (container / "oneroot.json").write_text("{}")
    with pytest.raises(HostError, match="cannot be taken back"):
        mend._TakeIds(idpool.FILES[0], POOL.first, POOL.count, own).apply()
    assert idpool.missing(idpool.read(idpool.FILES[0]), POOL) == []


def test_require_passes_where_all_is_there(own: Settings, ids: None) -> None:
    for file in idpool.FILES:
        subids.give(file, POOL.first, POOL.count)
    doctor.require(own, 3)


def test_require_names_all_that_is_lacking(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idpool, "FILES", ())
    own.paths.start_hook.unlink()
    thing = limits.Limit(name="kernel.pty.max", need=lambda load: 1 << 40, why="")
    monkeypatch.setattr(limits, "LIMITS", (thing,))
    with pytest.raises(HostError) as caught:
        doctor.require(own, 10_000)
    for part in ("start hook", "kernel.pty.max", "Id ranges", "Addresses"):
        assert part in caught.value.why
    assert caught.value.exit_code == 4


def test_require_says_which_command_mends_it(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idpool, "FILES", ())
    thing = limits.Limit(name="kernel.pty.max", need=lambda load: 1 << 40, why="")
    monkeypatch.setattr(limits, "LIMITS", (thing,))
    with pytest.raises(HostError) as caught:
        doctor.require(own, 4)
    assert caught.value.fix == "oneroot doctor --fix --containers 4"


def test_a_foreign_drop_is_named_with_the_rule_that_opens_it(namespace: None) -> None:
    assert surroundings.foreign_walls() == []
    nft.apply("table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop;\n}\n}")
    walls = surroundings.foreign_walls()
    assert [where for where, _ in walls] == ["chain FORWARD of table ip filter drops by policy"]
    subprocess.run(walls[0][1], shell=True, check=True)
    assert surroundings.foreign_walls() == []


def test_a_chain_that_ends_in_a_reject_is_a_wall_too(namespace: None) -> None:
    nft.apply(
        "table inet own { chain f { type filter hook forward priority 5; policy accept;\n"
        "ct state established accept\nreject with icmpx admin-prohibited\n}\n}"
    )
    assert len(surroundings.foreign_walls()) == 1
    nft.apply("table inet oneroot { chain f { type filter hook forward priority 5; policy drop;\n}\n}")
    assert len(surroundings.foreign_walls()) == 1, "our own is none"


def test_a_route_that_the_pool_collides_with_is_named(namespace: None) -> None:
    for command in (
        "link set lo up",
        "link add d0 type veth peer name d1",
        "link set d1 up",
        "address add 10.77.81.7/24 dev d0",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    pool = Settings(network=Network(ipv4="10.77.80.0/20"))
    found = by_id(surroundings.check_all(pool))["network.collision"]
    assert (found.status, found.found) == (Status.FAIL, "d0 has 10.77.81.7/24")
    subprocess.run(["ip", "link", "set", "d0", "up"], check=True)
    subprocess.run(["ip", "route", "add", "unreachable", "10.77.80.0/20"], check=True)
    assert by_id(surroundings.check_all(pool))["network.collision"].found == "10.77.81.0/24 leads to d0"
    subprocess.run(["ip", "link", "del", "d0"], check=True)
    assert by_id(surroundings.check_all(pool))["network.collision"].status is Status.OK


def run_cli(*words: str, user: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "oneroot", *words]
    if user:
        command = ["setpriv", f"--reuid={user}", "--clear-groups", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def settings_file(own: Settings, place: Path) -> str:
    file = place / "settings.yaml"
    file.write_text(
        f"paths: {{store: {own.paths.store}, run: {own.paths.run}, lxc: {own.paths.lxc},"
        f" libexec: {own.paths.libexec}}}\nids: {{first: {POOL.first}, count: {POOL.count}}}\n"
    )
    return str(file)


def test_the_command_says_what_lacks_and_exits_4(settings_file: str) -> None:
    done = run_cli("doctor", "--containers", "5", "--settings", settings_file, "--format", "json")
    checks = json.loads(done.stdout)
    assert done.returncode == 4
    lacking = [check["id"] for check in checks if check["status"] == "FAIL"]
    assert "ids.subuid" in lacking and "ids.size" in lacking
    assert set(checks[0]) == {field.name for field in dataclasses.fields(Check)}
    table = run_cli("doctor", "--containers", "5", "--settings", settings_file)
    assert f"usermod --add-subuids {POOL.first}-" in table.stdout


def test_the_command_shows_its_plan_and_changes_nothing(settings_file: str, own: Settings) -> None:
    before = [file.read_bytes() if file.exists() else b"" for file in idpool.FILES]
    done = run_cli("doctor", "--fix", "--dry-run", "--containers", "4", "--settings", settings_file)
    assert done.returncode == 0, done.stderr
    assert f"give root the ids {POOL.first}" in done.stdout
    assert [file.read_bytes() if file.exists() else b"" for file in idpool.FILES] == before
    assert not own.paths.store.exists()


def test_not_root_gets_unknown_and_exit_4_and_no_traceback(settings_file: str) -> None:
    done = run_cli("doctor", "--settings", settings_file, "--format", "json", user="nobody")
    assert done.returncode == 4, done.stderr
    found = {check["id"]: check["status"] for check in json.loads(done.stdout)}
    assert found["root"] == "FAIL"
    assert found["kernel.overlay"] == "UNKNOWN"
    done = run_cli("doctor", "--fix", "--settings", settings_file, user="nobody")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_the_hook_of_a_path_that_others_may_write_is_refused(place: Path) -> None:
    hook = place / "open" / "start-hook"
    hook.parent.mkdir()
    hook.write_bytes(b"x")
    hook.chmod(0o755)
    assert programs.hook_problem(hook) == ""
    hook.parent.chmod(0o777)
    assert "written by others" in programs.hook_problem(hook)
