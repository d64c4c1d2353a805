"""A host that somebody has tampered with: files deleted, damaged, copied; pools that clash or run out."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Said
from tests.root.acceptance.world import (
    COMMAND,
    CONTAINERS,
    CREATE,
    IDS,
    PATCH,
    ROLLBACK,
    base,
    fix_of,
    generations,
    inside,
    lxc,
    refuse,
    running,
    states,
    unchanged,
)
from tests.root.base.treeview import snapshot
from tests.root.scene import Scene


def clear(said: Said) -> Said:
    """What it said is for people."""
    assert "Traceback" not in said.err and "did not expect" not in said.err, said.err
    return said


@contextlib.contextmanager
def away(path: Path) -> Iterator[None]:
    """Let something be gone for a while."""
    hidden = path.with_name(f".{path.name}.away")
    path.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(path)


# LXC's own programs on ours


def test_lxc_copy(scene: Scene) -> None:
    scene.run("start", "ac001")
    with unchanged(scene):
        for words in (("-N", "copy"), ("-N", "copy", "-s"), ("-N", "copy", "-B", "overlay", "-s")):
            for name in ("ac001", "ac002"):
                lxc(scene, "lxc-copy", "-n", name, *words)
                shutil.rmtree(scene.place / "lxc/copy", ignore_errors=True)
    # LXC 5.0 fails to copy an overlay; what a person does then:
    subprocess.run(["cp", "-a", scene.place / "lxc/ac002", scene.place / "lxc/copy"], check=True)
    config = scene.place / "lxc/copy/config"
    config.write_text(config.read_text().replace("/lxc/ac002/", "/lxc/copy/"))
    refuse(scene, "start", "copy", code=1, why="copy of ac002")
    assert lxc(scene, "lxc-start", "-n", "copy").returncode != 0
    assert running(scene) == {"ac001": 1}
    # neither its original nor the others are held up
    scene.run("start", "ac002", "ac003")
    scene.run("create", *COMMAND, "--replicas", "4", "ac")
    assert states(scene)["ac004"]["addresses"] != states(scene)["ac002"]["addresses"]
    clear(scene.run(*PATCH, ok=(0, 1, 3)))
    assert running(scene) == dict.fromkeys(CONTAINERS, 2)
    scene.run("rm", "--purge", "--yes", "copy")
    assert set(states(scene)) == {*CONTAINERS, "ac004"}
    assert inside(scene, "ac002", "probe") == "2"
    scene.run("verify")


def test_lxc_copy_ephemeral_and_rename(scene: Scene) -> None:
    lxc(scene, "lxc-copy", "-n", "ac001", "-N", "passing", "-e", timeout=60)
    assert "passing" not in running(scene)
    lxc(scene, "lxc-stop", "-n", "passing", "-k")
    shutil.rmtree(scene.place / "lxc/passing", ignore_errors=True)
    # a rename; undone, all is as it was
    lxc(scene, "lxc-copy", "-n", "ac001", "-N", "renamed", "-R")
    if (scene.place / "lxc/renamed").exists():
        assert clear(scene.run("start", "renamed", ok=(1, 2))).err
        assert lxc(scene, "lxc-start", "-n", "renamed").returncode != 0
        lxc(scene, "lxc-copy", "-n", "renamed", "-N", "ac001", "-R")
    scene.run("start", *CONTAINERS)
    assert len(running(scene)) == 3


@pytest.mark.parametrize("started", [False, True])
def test_lxc_snapshot(scene: Scene, started: bool) -> None:
    if started:
        scene.run("start", "ac001")
    generation = scene.place / "store/bases/core/generations/1/root"
    before = snapshot(str(generation))
    lxc(scene, "lxc-snapshot", "-n", "ac001")
    lxc(scene, "lxc-snapshot", "-n", "ac001", "-r", "snap0")
    lxc(scene, "lxc-snapshot", "-n", "ac001", "-r", "snap0", "-N", "restored")
    lxc(scene, "lxc-snapshot", "-n", "ac001", "-d", "ALL")
    assert snapshot(str(generation)) == before
    assert set(states(scene)) - {"restored"} == set(CONTAINERS)
    assert "restored" not in running(scene)
    assert running(scene) == ({"ac001": 1} if started else {})
    scene.run("start", *CONTAINERS)
    assert [inside(scene, name, "hostname") for name in CONTAINERS] == list(CONTAINERS)


@pytest.mark.parametrize("started", [False, True])
def test_lxc_destroy(scene: Scene, started: bool) -> None:
    scene.run("start", "ac002")
    if started:
        scene.run("start", "ac001")
    generation = scene.place / "store/bases/core/generations/1/root"
    before = snapshot(str(generation))
    lxc(scene, "lxc-destroy", "-n", "ac001", "-s")
    lxc(scene, "lxc-destroy", "-n", "ac001", "-f")
    assert snapshot(str(generation)) == before
    assert (scene.place / "store/bases/core/current").is_symlink()
    assert inside(scene, "ac002", "probe") == "1"
    assert set(running(scene)) <= {"ac001", "ac002"} and "ac002" in running(scene)
    for name in ("ac002", "ac003"):
        assert (scene.place / f"lxc/{name}/overlay/upper/etc/hostname").exists()
    # what it left is either whole, or can be removed, and made again by the same command
    if "ac001" in states(scene) and not (scene.place / "lxc/ac001/config").exists():
        clear(scene.run("start", "ac001", ok=(1,)))
        scene.run("rm", "--force", "--purge", "--yes", "ac001")
    scene.run(*CREATE)
    scene.run("start", *CONTAINERS)
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)
    scene.assert_no_orphans()


# The base


def test_a_deleted_generation(scene: Scene) -> None:
    scene.run("start", "ac001")
    with away(scene.place / "store/bases/core/generations/1"):
        with unchanged(scene):
            refuse(scene, "start", "ac002", code=1, why="generation 1 of core is gone")
            refuse(scene, "restart", "ac001", code=1, why="was not stopped")
            refuse(scene, "create", *COMMAND, "new", code=1, why="generation of the base core is not there")
            refuse(scene, *PATCH, code=1, why="core")
            refuse(
                scene, "base", "upgrade", "core", code=1, why="current generation of the base core is gone"
            )
            refuse(scene, *ROLLBACK, code=2, why="no generation 1")
            assert scene.run("base", "fsck", "core", ok=(1,)).out
            assert "gone" in clear(scene.run("base", "ls")).out
            found = clear(scene.run("verify", "--format", "json", ok=(3,))).json
            assert not found[0]["proven"]
            clear(scene.run("info", "ac001"))
            clear(scene.run("plan", "core", ok=(0, 1)))
        scene.run("stop", "ac001")
    scene.run("start", *CONTAINERS)
    scene.run(*PATCH, "--no-upgrade")
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)


def test_a_generation_deleted_for_good(scene_of_two: Scene) -> None:
    scene = scene_of_two
    shutil.rmtree(scene.place / "store/bases/core/generations/2")
    said = refuse(scene, "start", "ac001", code=1, why="generation 2 of core is gone")
    assert fix_of(said)
    said = refuse(scene, "base", "upgrade", "core", code=1, why="is gone")
    scene.run(*fix_of(said))  # what the message tells
    assert base(scene)["current"] == 1
    scene.run("start", *CONTAINERS)
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)
    scene.run("base", "unpin", "core")
    scene.run(*PATCH)
    assert set(running(scene).values()) == {max(generations(scene))}
    assert inside(scene, "ac001", "probe") == "2"


def test_an_older_generation_is_deleted(scene_of_two: Scene) -> None:
    scene = scene_of_two
    scene.run("start", *CONTAINERS)
    shutil.rmtree(scene.place / "store/bases/core/generations/1")
    with unchanged(scene):
        refuse(scene, "rollback", "core", "--yes", code=1, why="no generation before")
        refuse(scene, *ROLLBACK, code=2, why="no generation 1")
        clear(scene.run("base", "gc", "core", "--yes"))
        clear(scene.run("base", "history", "core"))
        scene.run("verify")


@pytest.mark.parametrize("target", ["generations/99", "/etc", ""])
def test_current_dangles(scene: Scene, target: str) -> None:
    scene.run("start", "ac001")
    link = scene.place / "store/bases/core/current"
    link.unlink()
    if target:
        link.symlink_to(target)
    with unchanged(scene):
        refuse(scene, "start", "ac002", code=1, why="core")
        refuse(scene, "create", *COMMAND, "new", code=1, why="current generation of the base core")
        said = refuse(scene, "base", "upgrade", "core", code=1, why="current")
        clear(scene.run("verify", ok=(3,)))
        clear(scene.run("ls"))
        clear(scene.run("base", "ls"))
        clear(scene.run("plan", "core", ok=(0, 1)))
        clear(scene.run("base", "fsck", "core", ok=(1,)))
    scene.run(*(word.replace("N", "1") for word in fix_of(said)))
    scene.run("start", *CONTAINERS)
    scene.run(*PATCH, "--no-upgrade")
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)


# Files of ours

RUBBISH = {
    "empty": b"",
    "cut": b'{"schema": 1, "name": "ac0',
    "binary": bytes(range(256)),
    "list": b"[]",
    "null": b"null",
    "schema": b'{"schema": 99, "name": "ac002"}',
    "deep": b"[" * 100_000,
    "types": b'{"schema": 1, "name": 7, "base": [], "ids": "x", "addresses": {}, "created": null}',
    "escape": b'{"schema": "\\u001b[2J\\n"}',
}


def test_a_corrupt_declaration(scene: Scene) -> None:
    file = scene.place / "lxc/ac002/oneroot.json"
    kept = file.read_bytes()
    scene.run("start", "ac001", "ac002")
    for rubbish in RUBBISH.values():
        file.write_bytes(rubbish)
        refuse(scene, "restart", "ac002", code=1, why="ac002")
    with unchanged(scene):
        assert clear(scene.run(*CREATE, ok=(1,))).err.count("ac002") >= 1
    assert running(scene) == {"ac001": 1, "ac002": 1}
    assert "damaged" in clear(scene.run("ls")).out
    clear(scene.run("info", "ac002"))
    file.write_bytes(RUBBISH["deep"])
    clear(scene.run("start", "ac*", ok=(1,)))
    assert set(running(scene)) == set(CONTAINERS), "the others did not go on"
    # its range and address are still taken
    clear(scene.run("create", *COMMAND, "ac004"))
    found = states(scene)
    mapped = {Path(f"/proc/{found[name]['pid']}/uid_map").read_text() for name in CONTAINERS}
    scene.run("start", "ac004")
    mapped.add(Path(f"/proc/{states(scene)['ac004']['pid']}/uid_map").read_text())
    assert len(mapped) == 4
    assert "\x1b" not in clear(scene.run("verify", ok=(1, 3))).out
    file.write_bytes(kept)
    scene.run(*CREATE)
    scene.run("start", *CONTAINERS)


def test_a_patch_beside_a_corrupt_declaration(scene: Scene) -> None:
    file = scene.place / "lxc/ac002/oneroot.json"
    kept = file.read_bytes()
    scene.run("start", *CONTAINERS)
    file.write_bytes(b"{")
    said = clear(scene.run(*PATCH, ok=(1, 3)))
    assert "ac002" in said.out + said.err
    assert running(scene) == {"ac001": 2, "ac002": 1, "ac003": 2}
    file.write_bytes(kept)
    scene.run(*PATCH, ok=(0,))
    assert running(scene) == dict.fromkeys(CONTAINERS, 2)


def test_a_corrupt_declaration_can_be_removed(scene: Scene) -> None:
    (scene.place / "lxc/ac002/oneroot.json").write_bytes(b"\x00")
    scene.run("start", "ac001")
    scene.run("rm", "--yes", "ac002")
    scene.run(*CREATE)
    scene.run("start", *CONTAINERS)
    assert len({state["addresses"][0] for state in states(scene).values()}) == 3


@pytest.mark.parametrize("file", ["pools.json", "journal.db", "bases/core/base.json"])
@pytest.mark.parametrize("rubbish", ["binary", "cut"])
def test_corrupt_files_of_the_store(scene: Scene, file: str, rubbish: str) -> None:
    path = scene.place / "store" / file
    for more in path.parent.glob("journal.db-*"):
        more.unlink()
    kept = path.read_bytes()
    path.write_bytes(RUBBISH[rubbish] * 20)
    words = (*PATCH, "--no-upgrade") if "base.json" in file else ("create", *COMMAND, "new")
    with unchanged(scene):
        refuse(scene, *words, code=1, why=path.name)
        clear(scene.run("ls"))
    scene.run("start", "ac001")  # what needs none of it still works
    path.write_bytes(kept)
    scene.run(*words)


@pytest.mark.parametrize(
    "file", ["checked.json", "generations/1/generation.json", "generations/1/manifest.gz"]
)
def test_corrupt_files_of_a_base(scene: Scene, file: str) -> None:
    scene.run("start", "ac001")
    path = scene.place / "store/bases/core" / file
    kept = path.read_bytes()
    path.unlink()  # not in place: it is shared by hard link with other scenes
    path.write_bytes(b"\x00\xff{")
    clear(scene.run("verify", ok=(3,)))
    for words in (("base", "show", "core"), ("base", "ls"), ("plan", "core"), ("base", "fsck")):
        clear(scene.run(*words, ok=(0, 1, 3)))
    path.write_bytes(kept)
    scene.run(*PATCH, "--no-upgrade")
    assert running(scene) == {"ac001": 1}


# Pools


def test_overlapping_id_ranges(scene: Scene) -> None:
    scene.run("start", "ac001")
    file = scene.place / "lxc/ac002/oneroot.json"
    kept = file.read_bytes()
    declared = json.loads(kept)
    declared["ids"] = json.loads((scene.place / "lxc/ac001/oneroot.json").read_bytes())["ids"]
    file.write_text(json.dumps(declared))
    with unchanged(scene):
        refuse(scene, "create", *COMMAND, "new", code=1, why="ac001 and the container ac002 claim the same")
        # the overlay belongs to another range, and LXC's configuration says another
        clear(scene.run("start", "ac002", ok=None))
        scene.run("stop", "ac002", ok=None)
    file.write_bytes(kept)
    scene.run("create", *COMMAND, "new")
    scene.run("start", *CONTAINERS, "new")
    assert len(running(scene)) == 4


def test_the_pool_overlaps_somebody_elses_ids(scene: Scene) -> None:
    """In a mount namespace of its own: the machine's own file is not touched."""
    theirs = scene.place / "subuid"
    theirs.write_text(f"root:{IDS[0]}:{IDS[1]}\nann:{IDS[0] + 65536 * 3}:{IDS[1]}\n")
    hide = f'mount --bind {theirs} /etc/subuid && mount --bind {theirs} /etc/subgid && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", hide, "sh")
    with unchanged(scene):
        refuse(scene, "create", *COMMAND, "new", code=4, why="exhausted.*\n.*ann|ann", prefix=prefix)
    theirs.write_text(f"root:{IDS[0]}:65536\n")
    with unchanged(scene):
        refuse(scene, "create", *COMMAND, "new", code=4, why="/etc/subuid", prefix=prefix)
    scene.run("create", *COMMAND, "new")


@pytest.mark.parametrize(
    ("network", "more"),
    [
        ("ipv4: 10.94.0.0/29, gateway: 169.254.94.1", ""),
        ("", f"ids: {{first: {IDS[0]}, count: {6 * 65536}}}"),
    ],
    ids=["addresses", "ids"],
)
def test_exhausted_pools(scene: Scene, network: str, more: str) -> None:
    for name in CONTAINERS:
        scene.run("rm", "--purge", "--yes", name)
    scene.write_settings(network=network, more=more)
    words = ("create", *COMMAND, "--replicas", "7", "full")
    with unchanged(scene):
        refuse(scene, *words, code=4, why="6")
    scene.run("create", *COMMAND, "--replicas", "6", "full")
    with unchanged(scene):
        refuse(scene, *words, code=4, why="6")
    # what lies in the trash keeps what it has, and the message leads to it
    scene.run("rm", "full001", "full002")
    again = ("create", *COMMAND, "--replicas", "6", "full")
    with unchanged(scene):
        said = refuse(scene, *again, code=4, why="exhausted: 2 wanted, 0 free")
        assert "2 of these in the trash" in said.err and "oneroot rm --empty-trash" in said.err
    scene.run("rm", "--empty-trash", "--yes")
    scene.run(*again)
    scene.write_settings()
    scene.run(*words)
    scene.run("start", "full*")
    assert len(running(scene)) == 7
    scene.assert_no_orphans()


def test_a_route_that_collides(scene: Scene) -> None:
    subprocess.run(["ip", "link", "add", "ac-link", "type", "veth", "peer", "name", "ac-peer"], check=True)
    try:
        subprocess.run(["ip", "link", "set", "ac-link", "up"], check=True)
        subprocess.run(["ip", "route", "add", "10.94.1.0/25", "dev", "ac-link"], check=True)
        with unchanged(scene):
            said = refuse(scene, "start", "ac001", code=4, why="10.94.1.0/25 leads to ac-link")
            assert "network.ipv4" in said.err
            refuse(scene, "start", "ac*", code=4, why="collides with a route")
            routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
            assert "10.94.1.0/25 dev ac-link" in routes, "somebody else's route was taken"
    finally:
        subprocess.run(["ip", "link", "delete", "ac-link"], check=True)
    scene.run("start", "ac*")
    assert len(running(scene)) == 3
    subprocess.run(["ip", "link", "add", "ac-link", "type", "veth", "peer", "name", "ac-peer"], check=True)
    try:
        # it comes while they run: they run on, and what is asked of them is still answered
        subprocess.run(["ip", "link", "set", "ac-link", "up"], check=True)
        subprocess.run(["ip", "route", "add", "10.94.1.0/25", "dev", "ac-link"], check=True)
        with unchanged(scene):
            clear(scene.run(*PATCH, "--no-upgrade", ok=None))
            refuse(scene, "restart", "ac001", code=4, why="10.94.1.0/25 leads to ac-link")
    finally:
        subprocess.run(["ip", "link", "delete", "ac-link"], check=True)
    scene.run("restart", "ac*")
    assert running(scene) == dict.fromkeys(CONTAINERS, 1)
