"""create, rm and undelete as commands, on a base that nothing is started from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oneroot.container import claims, places, pool, spec
from oneroot.container.pool import Want
from oneroot.settings import Settings
from tests.root.create.conftest import EACH, FIRST, error_of, oneroot

CREATE = ("create", "--base", "core", "--command", "sleep 1")


def existing(settings: Settings) -> list[str]:
    return spec.names(settings.paths)


def assert_nothing_is_left(settings: Settings) -> None:
    """No stage, no promise, no two with the same, nothing half."""
    claims.check(claims.read(settings.paths))
    for directory in places.stages(settings.paths):
        assert places.listing(directory) == []
    assert pool.in_making(settings) == set()
    for name in existing(settings):
        found = spec.load(settings.paths, name)
        place = settings.paths.container(name)
        assert found.ids
        assert (place / "overlay/upper").stat().st_uid == found.ids.first
        assert (place / "overlay/upper/etc/hostname").read_text() == f"{name}\n"
        assert f"lxc.idmap = u 0 {found.ids.first} " in (place / "config").read_text()
    for directory in places.trashes(settings.paths):
        assert places.listing(places.doomed(directory)) == []
    assert {path.name for path in places.listing(settings.paths.names)} <= set(existing(settings))


def test_creates_replicas_and_only_what_is_missing(tiny: Settings) -> None:
    oneroot(*CREATE, "--replicas", "3", "web")
    before = {name: spec.load(tiny.paths, name) for name in existing(tiny)}
    assert sorted(before) == ["web001", "web002", "web003"]
    oneroot("rm", "web002")
    said = json.loads(oneroot("--format", "json", *CREATE, "--replicas", "4", "web").stdout)
    assert [(one["name"], one["result"]["status"]) for one in said] == [
        ("web001", "existed already"),
        ("web002", "created"),
        ("web003", "existed already"),
        ("web004", "created"),
    ]
    after = {name: spec.load(tiny.paths, name) for name in existing(tiny)}
    assert after["web001"] == before["web001"]
    assert after["web002"].ids != before["web002"].ids
    assert len({found.ids for found in after.values()}) == 4
    assert_nothing_is_left(tiny)


def test_what_is_made_belongs_to_the_mapped_root_and_repeats_the_base(tiny: Settings) -> None:
    oneroot(*CREATE, "web")
    place = tiny.paths.container("web")
    found = spec.load(tiny.paths, "web")
    assert found.ids is not None
    first = found.ids.first
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / "oneroot.json").stat().st_mode & 0o777 == 0o600
    upper = place / "overlay" / "upper"
    for path in [upper, *upper.rglob("*")]:
        status = path.lstat()
        if path != upper / "var/lib/dbus":
            assert (status.st_uid, status.st_gid) == (first, first), path
    dbus = (upper / "var/lib/dbus").stat()
    assert (dbus.st_uid, dbus.st_gid, dbus.st_mode & 0o777) == (first + 101, first + 102, 0o750)
    assert (upper / "etc/oneroot/command").stat().st_mode & 0o777 == 0o755


def test_each_has_a_machine_id_of_its_own(tiny: Settings) -> None:
    oneroot(*CREATE, "--replicas", "5", "web")
    ids = {
        (tiny.paths.container(name) / "overlay/upper/etc/machine-id").read_text() for name in existing(tiny)
    }
    assert len(ids) == 5
    assert all(len(text.strip()) == 32 for text in ids)


def test_a_different_declaration_is_refused_and_says_what_differs(tiny: Settings) -> None:
    oneroot(*CREATE, "--replicas", "2", "web")
    done = oneroot("--format", "json", *CREATE, "--memory", "64M", "--replicas", "3", "web", check=False)
    assert done.returncode == 2
    assert "memory 67108864" in error_of(done)["why"]
    assert existing(tiny) == ["web001", "web002"]


def test_a_foreign_container_is_left_alone(tiny: Settings) -> None:
    foreign = tiny.paths.container("web")
    foreign.mkdir()
    (foreign / "config").write_text("lxc.uts.name = web\n")
    done = oneroot(*CREATE, "web", check=False)
    assert done.returncode == 2
    assert "was not made by oneroot" in done.stderr
    assert [path.name for path in foreign.iterdir()] == ["config"]
    assert oneroot("ls").stdout.count("web") == 0


def test_a_damaged_declaration_stops_its_own_container_only(tiny: Settings) -> None:
    oneroot(*CREATE, "web001")
    spec.spec_file(tiny.paths, "web001").write_text("{nonsense")
    done = oneroot("--format", "json", *CREATE, "--replicas", "2", "web", check=False)
    assert done.returncode == 1
    first, second = json.loads(done.stdout)
    assert first["error"]["code"] == "corrupt-state"
    assert second["ok"]
    assert "damaged" in oneroot("ls").stdout


def test_an_lxc_copy_is_told(tiny: Settings) -> None:
    oneroot(*CREATE, "web")
    subprocess.run(["cp", "-a", tiny.paths.container("web"), tiny.paths.container("copy")], check=True)
    done = oneroot("--format", "json", "info", "copy")
    assert "copy of web" in json.loads(done.stdout)[0]["damage"]
    oneroot(*CREATE, "other")
    assert_ids_apart(tiny, "web", "other")


def assert_ids_apart(settings: Settings, *names: str) -> None:
    assert len({spec.load(settings.paths, name).ids for name in names}) == len(names)


def test_overlapping_ranges_stop_create_and_name_both(tiny: Settings) -> None:
    oneroot(*CREATE, "--replicas", "2", "web")
    file = spec.spec_file(tiny.paths, "web002")
    file.write_text(file.read_text().replace(f"{FIRST + EACH}", f"{FIRST + 1}"))
    done = oneroot(*CREATE, "new", check=False)
    assert done.returncode == 1
    assert "web001" in done.stderr
    assert "web002" in done.stderr
    assert "new" not in existing(tiny)


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "x" * 300, "-x", "ü", "", "A", "a\nb"])
def test_names_that_are_none(tiny: Settings, name: str) -> None:
    for words in ((*CREATE, "--", name), ("start", "--", name), ("rm", "--", name)):
        assert oneroot(*words, check=False).returncode == 2
    assert existing(tiny) == []


def test_an_unknown_base_a_dangling_one_and_one_without_its_tree(tiny: Settings) -> None:
    assert oneroot("create", "--base", "nope", "--command", "x", "web", check=False).returncode == 2
    current = tiny.paths.bases / "core" / "current"
    current.unlink()
    current.symlink_to("generations/7")
    done = oneroot("--format", "json", *CREATE, "web", check=False)
    assert done.returncode == 1
    assert error_of(done)["code"] == "corrupt-state"
    assert existing(tiny) == []


def test_privileged_is_spoken_twice_on_cgroup_v1(tiny: Settings) -> None:
    if " cgroup " not in Path("/proc/mounts").read_text():
        pytest.skip("this host has no cgroup v1")
    assert oneroot(*CREATE, "--privileged", "web", check=False).returncode == 4
    oneroot(*CREATE, "--privileged", "--unsafe", "web")
    assert spec.load(tiny.paths, "web").ids is None
    assert (tiny.paths.container("web") / "overlay/upper").stat().st_uid == 0
    assert "PRIVILEGED" in oneroot("ls").stdout


def test_a_dry_run_changes_nothing(tiny: Settings) -> None:
    before = sorted(tiny.paths.store.rglob("*"))
    said = oneroot(*CREATE, "--dry-run", "--replicas", "2", "web").stdout
    assert "write its declaration" in said
    assert existing(tiny) == []
    assert sorted(tiny.paths.store.rglob("*")) == before


def test_a_published_port_is_not_given_twice(tiny: Settings) -> None:
    oneroot(*CREATE, "--publish", "127.96.0.1:18080+:80", "--replicas", "2", "web")
    ports = [spec.load(tiny.paths, name).publish[0].host_port for name in existing(tiny)]
    assert ports == [18080, 18081]
    done = oneroot(*CREATE, "--publish", "127.96.0.1:18081:80", "other", check=False)
    assert done.returncode == 2
    assert "web002" in done.stderr
    oneroot("rm", "web*")


def test_removed_ones_wait_in_the_trash_and_come_back(tiny: Settings) -> None:
    oneroot(*CREATE, "--replicas", "2", "web")
    before = spec.load(tiny.paths, "web001")
    (tiny.paths.container("web001") / "overlay/upper/etc/own").write_text("kept")
    oneroot("rm", "web*")
    assert existing(tiny) == []
    assert places.listing(tiny.paths.names) == []
    oneroot("undelete", "web001")
    assert spec.load(tiny.paths, "web001") == before
    assert (tiny.paths.container("web001") / "overlay/upper/etc/own").read_text() == "kept"
    assert [path.name for path in places.listing(tiny.paths.names)] == ["web001"]
    assert_nothing_is_left(tiny)


def test_undelete_does_not_replace_a_new_one(tiny: Settings) -> None:
    oneroot(*CREATE, "web")
    oneroot("rm", "web")
    oneroot(*CREATE, "web")
    now = spec.load(tiny.paths, "web")
    assert oneroot("undelete", "web", check=False).returncode == 2
    assert spec.load(tiny.paths, "web") == now
    assert len(places.trashed(tiny.paths)) == 1


def test_what_was_removed_long_ago_is_deleted_and_the_rest_is_not(tiny: Settings) -> None:
    oneroot(*CREATE, "--replicas", "2", "web")
    oneroot("rm", "web001")
    (item,) = places.trashed(tiny.paths)
    item.path.rename(item.path.with_name("web001-20200101T000000.000000Z"))
    oneroot("rm", "web002")
    assert [found.name for found in places.trashed(tiny.paths)] == ["web002"]
    assert_nothing_is_left(tiny)


def test_a_clock_set_back_keeps_the_trash(tiny: Settings) -> None:
    oneroot(*CREATE, "--replicas", "2", "web")
    oneroot("rm", "web001")
    (item,) = places.trashed(tiny.paths)
    item.path.rename(item.path.with_name("web001-20990101T000000.000000Z"))
    oneroot("rm", "web002")
    assert len(places.trashed(tiny.paths)) == 2
    oneroot("undelete", "web001")


def test_purge_asks_and_then_leaves_nothing(tiny: Settings) -> None:
    oneroot(*CREATE, "web")
    assert oneroot("rm", "--purge", "web", check=False).returncode == 2
    assert existing(tiny) == ["web"]
    oneroot("rm", "--purge", "--yes", "web")
    assert existing(tiny) == []
    assert places.trashed(tiny.paths) == []
    assert_nothing_is_left(tiny)


def test_a_hostile_upper_is_removed_and_nothing_else(tiny: Settings) -> None:
    oneroot(*CREATE, "web")
    upper = tiny.paths.container("web") / "overlay" / "upper"
    outside = tiny.paths.store / "precious"
    outside.mkdir()
    (outside / "file").write_text("here")
    (upper / "link").symlink_to(outside)
    os.mkfifo(upper / "fifo")
    os.mknod(upper / "device", 0o600 | 0o20000, os.makedev(0, 0))
    (upper / "new\nline\x1b[31m").touch()
    descriptor = os.open(upper, os.O_PATH)
    for _ in range(4000):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_PATH, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    oneroot("rm", "--purge", "--yes", "web")
    assert (outside / "file").read_text() == "here"
    assert_nothing_is_left(tiny)


def test_ids_of_a_living_process_or_an_ipc_object_are_not_reused(tiny: Settings) -> None:
    small = tiny_pool(tiny, 4)
    for name in "abcd":
        oneroot(*CREATE, name)
    (first, second, third, fourth) = (spec.load(small.paths, name).ids for name in "abcd")
    assert first and second and third and fourth
    oneroot("rm", "--purge", "--yes", "a", "b", "c", "d")
    held = subprocess.Popen(["sleep", "60"], user=first.first + 33)
    made = subprocess.run(
        ["ipcmk", "-M", "4096"], user=second.first + 7, capture_output=True, text=True, check=True
    )
    try:
        oneroot(*CREATE, "--replicas", "2", "web")
        given = {spec.load(small.paths, name).ids for name in existing(small)}
        assert given == {third, fourth}
        done = oneroot(*CREATE, "one-more", check=False)
        assert done.returncode == 4
        assert "0 free" in done.stderr
    finally:
        held.kill()
        held.wait()
        subprocess.run(["ipcrm", "-m", made.stdout.split()[-1]], check=True)
    oneroot(*CREATE, "one-more")
    assert spec.load(small.paths, "one-more").ids in (first, second)


def tiny_pool(settings: Settings, ranges: int) -> Settings:
    """Make the settings' id pool small, for the commands too."""
    from oneroot import settings as settings_module

    file = Path(os.environ["ONEROOT_SETTINGS"])
    file.write_text(file.read_text().replace("count: 65536000", f"count: {ranges * EACH}"))
    return settings_module.load()


def count_kill_points(settings: Settings, words: tuple[str, ...], log: Path) -> int:
    oneroot(*words, env={"ONEROOT_KILL_LOG": str(log)})
    return len(log.read_text().splitlines())


@pytest.mark.slow
def test_killed_anywhere_create_and_rm_leave_nothing_and_can_be_said_again(
    tiny: Settings, tmp_path: Path
) -> None:
    """Every kill point of create, rm, undelete and rm --purge, in turn."""
    cycle: list[tuple[tuple[str, ...], list[str]]] = [
        ((*CREATE, "--replicas", "2", "web"), ["web001", "web002"]),
        (("rm", "web*"), []),
        (("undelete", "web*"), ["web001", "web002"]),
        (("rm", "--purge", "--yes", "web*"), []),
    ]
    points = [count_kill_points(tiny, words, tmp_path / f"log{n}") for n, (words, _) in enumerate(cycle)]
    assert all(number >= 5 for number in points), points
    for point in range(1, max(points) + 1):
        for number, (words, expected) in zip(points, cycle, strict=True):
            if point <= number:
                done = oneroot(*words, env={"ONEROOT_KILL_POINT": str(point)}, check=False)
                assert done.returncode in (-signal.SIGKILL, 0), done.stderr
                for name in existing(tiny):
                    spec.load(tiny.paths, name)
            again = oneroot("--format", "json", *words, check=False)
            if again.returncode:  # killed when all was done: there is nothing of that name any more
                assert error_of(again)["code"] == "unknown-name"
                assert point == number
            assert existing(tiny) == expected
            assert_nothing_is_left(tiny)
    assert pool.free_ranges(tiny) == 1000


def test_a_killed_create_keeps_no_ids(tiny: Settings) -> None:
    small = tiny_pool(tiny, 3)
    for point in range(1, 12):
        oneroot(*CREATE, "--replicas", "3", "web", env={"ONEROOT_KILL_POINT": str(point)}, check=False)
    oneroot(*CREATE, "--replicas", "3", "web")
    assert len(existing(small)) == 3


def test_two_creates_at_once_make_each_container_once(tiny: Settings) -> None:
    command = [sys.executable, "-m", "oneroot", "--progress", "none", *CREATE, "--replicas", "20", "web"]
    children = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(3)
    ]
    said = [child.communicate()[1] for child in children]
    codes = sorted(child.returncode for child in children)
    assert not any(b"Traceback" in text for text in said)
    assert codes[0] == 0, said
    assert set(codes) <= {0, 5}, said
    assert len(existing(tiny)) == 20
    assert_nothing_is_left(tiny)


def test_an_interrupt_leaves_what_is_whole(tiny: Settings) -> None:
    command = [sys.executable, "-m", "oneroot", "--progress", "none", *CREATE, "--replicas", "400", "web"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    stage = tiny.paths.store / "stage" / "containers"
    deadline = time.monotonic() + 20
    while not places.listing(stage) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert b"Interrupted by SIGTERM" in said
    assert_nothing_is_left(tiny)
    oneroot(*CREATE, "--replicas", "400", "web")
    assert len(existing(tiny)) == 400


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Settings
) -> None:
    image, mount = tmp_path / "image", tmp_path / "mount"
    image.write_bytes(b"")
    os.truncate(image, 12 << 20)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        file = Path(os.environ["ONEROOT_SETTINGS"])
        file.write_text(file.read_text().replace(str(tiny.paths.lxc), str(mount / "lxc")))
        (mount / "lxc").mkdir()
        from oneroot import settings as settings_module

        full = settings_module.load()
        assert places.stage(full.paths).parent == mount / "lxc"
        oneroot(*CREATE, "first")
        (mount / "ballast").write_bytes(
            b"x" * (os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize - 160_000)
        )
        done = oneroot("--format", "json", *CREATE, "--replicas", "10", "web", check=False)
        assert done.returncode == 1
        codes = {one["error"]["code"] for one in json.loads(done.stdout) if one["error"]}
        assert codes == {"no-space"}
        (mount / "ballast").unlink()
        assert "first" in existing(full)
        oneroot(*CREATE, "--replicas", "10", "web")
        assert len(existing(full)) == 11
        assert_nothing_is_left(full)
        oneroot("rm", "web*")
        oneroot("undelete", "web003")
        assert existing(full) == ["first", "web003"]
        listed = subprocess.run(
            ["lxc-ls", "-P", full.paths.lxc, "-1"], capture_output=True, text=True, check=True
        )
        assert listed.stdout.split() == ["first", "web003"]
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_promise_is_durable_before_it_is_used(tiny: Settings) -> None:
    grant = pool.allocate(tiny, [Want(name="web", unprivileged=True)])["web"]
    assert grant.ids
    assert str(grant.ids.first) in tiny.paths.pools.read_text()
