"""Our containers are plain LXC containers, and leave nothing of theirs on the host."""

from __future__ import annotations

import itertools
from pathlib import Path

from oneroot.kernel import mount
from tests.root.acceptance.world import CONTAINERS, IDS, base, inside, lxc, running, states
from tests.root.scene import Scene


def test_unprivileged_with_ranges_of_their_own(scene: Scene) -> None:
    scene.run("start", "ac*")
    ranges = []
    for name, state in states(scene).items():
        assert state["unprivileged"]
        # what the kernel says, not what is configured
        for kind in ("uid_map", "gid_map"):
            words = Path(f"/proc/{state['pid']}/{kind}").read_text().split()
            assert words[0] == "0" and words[2] == "65536", f"{name}: {kind} is {words}"
            first = int(words[1])
            assert IDS[0] <= first <= IDS[0] + IDS[1] - 65536
        ranges.append((first, first + 65536))
        assert Path(f"/proc/{state['pid']}").stat().st_uid == first
    assert len(ranges) == len(CONTAINERS)
    for (_, end), (begin, _) in itertools.pairwise(sorted(ranges)):
        assert end <= begin, f"ranges overlap: {sorted(ranges)}"


def test_no_mount_in_the_hosts_table(scene: Scene) -> None:
    before = {entry.target for entry in mount.table()}
    scene.run("start", "ac*")
    assert set(running(scene)) == set(CONTAINERS)
    mine = [entry for entry in mount.table() if str(scene.place) in f"{entry.target} {entry.super_options}"]
    assert not mine
    # LXC's own, for ptys and the like, do not come either
    assert {entry.target for entry in mount.table() if "lxc" in entry.target} <= before
    scene.run("stop", "ac*")
    scene.assert_whole()


def test_lxc_stop_and_lxc_start(scene: Scene) -> None:
    scene.run("start", "ac*")
    untouched = {name: state["pid"] for name, state in states(scene).items() if name != "ac002"}
    assert lxc(scene, "lxc-stop", "-n", "ac002", "-t", "5").returncode == 0
    assert running(scene) == {"ac001": 1, "ac003": 1}

    scene.run("base", "upgrade", "core")
    assert running(scene) == {"ac001": 1, "ac003": 1}
    started = lxc(scene, "lxc-start", "-n", "ac002")
    assert started.returncode == 0, started.stderr
    assert running(scene) == {"ac001": 1, "ac002": base(scene)["current"], "ac003": 1}
    assert inside(scene, "ac002", "probe") == "2"
    assert inside(scene, "ac001", "probe") == "1"
    after = states(scene)
    assert {name: after[name]["pid"] for name in untouched} == untouched
    assert {name: after[name]["outdated"] for name in CONTAINERS} == {
        "ac001": True, "ac002": False, "ac003": True,
    }  # fmt: skip
    assert after["ac002"]["addresses"] and after["ac002"]["addresses"][0] in inside(
        scene, "ac002", "cat", "/proc/net/fib_trie"
    )

    # a kill is noticed, and oneroot goes on with it
    assert lxc(scene, "lxc-stop", "-n", "ac002", "-k").returncode == 0
    assert set(running(scene)) == {"ac001", "ac003"}
    scene.run("start", "ac002")
    assert lxc(scene, "lxc-stop", "-n", "ac003", "-t", "5").returncode == 0
    assert lxc(scene, "lxc-autostart", "-a").returncode == 0
    scene.run("wait", "ac003")
    assert running(scene) == {"ac001": 1, "ac002": 2, "ac003": 2}
    scene.assert_no_orphans()
    scene.assert_whole()


def test_lxcs_own_programs_see_them(scene: Scene) -> None:
    scene.run("start", "ac001")
    listed = lxc(scene, "lxc-ls", "-f", "-F", "NAME,STATE,UNPRIVILEGED").stdout
    rows = {words[0]: words[1:] for line in listed.splitlines() if (words := line.split())}
    assert rows["ac001"] == ["RUNNING", "true"]
    assert rows["ac002"] == ["STOPPED", "true"]
    assert set(rows) - {"NAME"} == set(CONTAINERS), "hidden directories of ours look like containers"
    assert lxc(scene, "lxc-attach", "-n", "ac001", "--", "probe").stdout == "1\n"
