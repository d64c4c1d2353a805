"""The proof over real containers: what it must find, and that it holds again after the mend."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from oneroot.audit import stale
from oneroot.base.generation import Pin
from oneroot.container import lease
from oneroot.container.spec import Health
from oneroot.container.state import State
from oneroot.kernel import proc
from oneroot.work.journal import Journal
from tests.root.audit.place import LIBC, LIBSSL, Place, is_asleep, until
from tests.root.conftest import clean_up


@pytest.mark.parametrize("privileged", [False, True])
def test_container_on_the_current_generation_is_proven(place: Place, privileged: bool) -> None:
    place.start(place.container("au-web", privileged=privileged))
    proof = place.prove()
    (one,) = proof.containers
    assert one.proven is True and one.alive is True and one.generation == 2 and not one.outdated
    assert one.reasons == () and one.stale == () and one.overrides == ()
    assert proof.proven and proof.generation == proof.newest == 2 and not proof.pinned
    assert proof.unknown == () and proof.host.stale == ()


@pytest.mark.parametrize("privileged", [False, True])
def test_container_left_on_the_old_generation(place: Place, privileged: bool) -> None:
    place.use(1)
    place.start(place.container("au-old", privileged=privileged))
    place.use(2)
    one = place.one("au-old")
    assert one.outdated and one.generation == 1 and one.proven is False and not one.unknown
    # the library that differs is named, with its package; those that are linked unchanged are not
    assert {(stale.path, stale.package) for stale in one.stale} == {(LIBC, "libc6")}
    assert "generation 1" in one.reasons[0]
    place.restart("au-old")
    assert place.one("au-old").proven is True


def test_process_that_maps_what_was_replaced_inside(place: Place) -> None:
    place.start(place.container("au-in"))
    pid = place.spawn("au-in", f"LD_PRELOAD={LIBSSL} exec sleep 1000")
    assert place.one("au-in").proven is True
    place.inside("au-in", f"cp {LIBSSL} /tmp/x; echo other >> /tmp/x; mv /tmp/x {LIBSSL}")
    one = place.one("au-in")
    assert (pid, LIBSSL) in {(stale.pid, stale.path) for stale in one.stale}
    assert [(o.path, o.kind.value, o.package) for o in one.overrides] == [(LIBSSL, "overridden", "libssl3")]
    assert one.proven is False


def test_process_that_maps_what_was_deleted_inside(place: Place) -> None:
    place.start(place.container("au-rm"))
    pid = place.spawn("au-rm", f"LD_PRELOAD={LIBSSL} exec sleep 1000")
    place.inside("au-rm", f"rm {LIBSSL}")
    one = place.one("au-rm")
    assert {(stale.pid, stale.path, stale.package) for stale in one.stale} == {(pid, LIBSSL, "libssl3")}
    assert [(o.path, o.kind.value) for o in one.overrides] == [(LIBSSL, "masked")]


def test_process_that_maps_an_upper_file_that_is_gone(place: Place) -> None:
    """The old library, put before the base's, mapped, and taken away again."""
    place.start(place.container("au-gone"))
    place.put("au-gone", "/opt/old", (place.root(1) / LIBSSL[1:]).read_bytes())
    place.inside("au-gone", f"cp -p {LIBSSL} /opt/new; cp /opt/old {LIBSSL}")
    pid = place.spawn("au-gone", f"LD_PRELOAD={LIBSSL} exec sleep 1000")
    place.inside("au-gone", f"mv /opt/new {LIBSSL}")
    one = place.one("au-gone")
    assert [o.kind.value for o in one.overrides] == ["equivalent"]
    assert {(stale.pid, stale.path) for stale in one.stale} == {(pid, LIBSSL)}
    assert one.proven is False
    os.kill(pid, signal.SIGKILL)
    until(lambda: place.one("au-gone").proven is True)


def test_process_that_maps_a_copy_of_the_old_library(place: Place) -> None:
    place.start(place.container("au-copy"))
    place.put("au-copy", "/opt/my.so", (place.root(1) / LIBSSL[1:]).read_bytes())
    assert place.one("au-copy").proven is True  # nobody runs it
    pid = place.spawn("au-copy", "LD_PRELOAD=/opt/my.so exec sleep 1000")
    one = place.one("au-copy")
    assert {(stale.pid, stale.path) for stale in one.stale} == {(pid, "/opt/my.so")}
    assert one.proven is False


def test_old_library_mounted_over_the_current_one(place: Place) -> None:
    place.start(place.container("au-bind"))
    script = f"cp {LIBSSL} /opt/a; echo a >> /opt/a; mount --bind /opt/a {LIBSSL}"
    place.inside("au-bind", script)  # in the container's own namespace
    pid = place.spawn("au-bind", f"LD_PRELOAD={LIBSSL} exec sleep 1000")
    one = place.one("au-bind")
    assert {(stale.pid, stale.path) for stale in one.stale} == {(pid, LIBSSL)}


def test_renamed_old_code_is_known_by_its_inode(place: Place) -> None:
    place.use(1)
    place.start(place.container("au-mv"))
    place.spawn("au-mv", f"LD_PRELOAD={LIBSSL} exec sleep 1000")
    place.inside("au-mv", f"mv {LIBSSL} /opt/harmless")
    place.use(2)
    assert any(stale.package == "libssl3" for stale in place.one("au-mv").stale)


def test_process_of_an_old_generation_put_into_a_container(place: Place) -> None:
    place.start(place.container("au-put"))
    library = place.root(1) / LIBSSL[1:]
    with subprocess.Popen(["sleep", "1000"], env={"LD_PRELOAD": str(library)}) as child:
        try:
            until(lambda: is_asleep(child.pid))
            cgroup = Path(f"/proc/{place.pid('au-put')}/cgroup").read_text().splitlines()
            line = next(line for line in cgroup if "name=systemd" in line or line.startswith("0::"))
            top = "/sys/fs/cgroup/systemd" if "name=systemd" in line else "/sys/fs/cgroup"
            Path(f"{top}{line.rpartition(':')[2]}/cgroup.procs").write_text(str(child.pid))
            one = place.one("au-put")
            assert str(library) in {stale.path for stale in one.stale if stale.pid == child.pid}
        finally:
            child.kill()
    until(lambda: place.one("au-put").proven is True)


@pytest.mark.parametrize("privileged", [False, True])
def test_copied_up_library(place: Place, privileged: bool) -> None:
    place.start(place.container("au-up", privileged=privileged))
    place.inside("au-up", f"chmod 0755 {LIBSSL}")
    one = place.one("au-up")
    assert [(o.path, o.kind.value) for o in one.overrides] == [(LIBSSL, "equivalent")]
    assert one.proven is True
    place.inside("au-up", f"echo patched by hand >> {LIBSSL}")
    one = place.one("au-up")
    found = [(o.path, o.kind.value, o.package) for o in one.overrides]
    assert found == [(LIBSSL, "overridden", "libssl3")]
    assert one.proven is False and LIBSSL in one.reasons[0] and one.stale == ()


def test_copy_that_was_equal_keeps_the_next_fix_out(place: Place) -> None:
    place.use(1)
    place.start(place.container("au-eq"))
    place.inside("au-eq", f"chmod 0755 {LIBSSL}")
    assert place.one("au-eq").proven is True
    place.use(2)
    place.restart("au-eq")
    one = place.one("au-eq")
    assert [(o.path, o.kind.value) for o in one.overrides] == [(LIBSSL, "overridden")]
    assert one.proven is False


def test_private_code_raises_no_alarm(place: Place) -> None:
    """memfd, deleted temporary files, own libraries, chroots of their own: the container's business."""
    place.start(place.container("au-jit"))
    memfd = "import os; fd = os.memfd_create('jit'); os.write(fd, open('/usr/bin/sleep', 'rb').read())"
    place.spawn("au-jit", f"exec python3 -c \"{memfd}; os.execve(fd, ['sleep', '1000'], {{}})\"")
    place.inside("au-jit", "cp /usr/bin/sleep /opt/own; cp /usr/bin/sleep /run/own")
    place.spawn("au-jit", "exec /opt/own 1000")
    place.spawn("au-jit", "exec /run/own 1000")
    place.inside("au-jit", "rm /run/own")
    place.spawn("au-jit", "cp /usr/bin/sleep /tmp/gone; (sleep 1; rm /tmp/gone) & exec /tmp/gone 1000")
    until(lambda: "(deleted)" in _maps(place, "au-jit", "/tmp/gone"))
    place.spawn("au-jit", "exec unshare -m sleep 1000")
    one = place.one("au-jit")
    assert (one.proven, one.stale, one.reasons) == (True, (), ())


def _maps(place: Place, name: str, word: str) -> str:
    return place.inside(name, f"cat /proc/[0-9]*/maps | grep {word} || true")


def test_container_inside_the_container_is_unknown(place: Place) -> None:
    place.start(place.container("au-nest"))
    place.inside("au-nest", "mkdir /opt/root; mount -t tmpfs none /opt/root; cp -a /usr /bin /lib* /opt/root")
    place.inside("au-nest", "mkdir /opt/root/old /opt/root/proc")
    script = "cd /opt/root; pivot_root . old; exec chroot . sleep 1000"
    place.spawn("au-nest", f"exec unshare -m sh -c '{script}'")
    until(lambda: place.one("au-nest").proven is False)
    one = place.one("au-nest")
    assert one.unknown and "root filesystem of its own" in one.reasons[0]
    assert place.prove().unknown == ("au-nest",)


def test_stopped_process_does_not_stop_the_proof(place: Place) -> None:
    place.start(place.container("au-sig"))
    pid = place.spawn("au-sig", "exec sleep 1000")
    os.kill(pid, signal.SIGSTOP)
    assert place.one("au-sig").proven is True


def test_names_that_look_alike(place: Place) -> None:
    """A container cannot put its processes on another's account, nor a number behind a name."""
    place.use(1)
    place.start(place.container("au-a", privileged=True))
    place.use(2)
    place.start(place.container("au-a-1"), place.container("au-b", privileged=True))
    proof = {one.name: one.proven for one in place.prove().containers}
    assert proof == {"au-a": False, "au-a-1": True, "au-b": True}


def test_apache_that_died_in_unit_mode(place: Place) -> None:
    place.start(place.container("au-unit", units=("apache2.service",)))
    assert place.one("au-unit").proven is True
    place.inside("au-unit", "systemctl stop apache2.service")
    one = place.one("au-unit")
    assert one.state is State.RUNNING and one.alive is False and one.proven is False
    assert "apache2.service" in one.reasons[0]
    place.inside("au-unit", "systemctl restart apache2.service")
    until(lambda: place.one("au-unit").proven is True)


def test_apache_that_died_in_command_mode(place: Place) -> None:
    place.start(place.container("au-cmd", command="exec apache2ctl -DFOREGROUND"))
    assert place.prove().proven
    # the container's command ends with Apache, and the container with its command
    place.inside("au-cmd", "pkill -KILL apache2 || kill -KILL -1", check=False)
    until(lambda: not lease.read(place.settings.paths, "au-cmd").held)  # type: ignore[union-attr]
    proof = place.prove()
    (one,) = proof.containers
    assert (one.state, one.alive, one.proven) == (State.STOPPED, False, False)
    assert "oneroot start au-cmd" in one.reasons[0] and not proof.proven
    place.start("au-cmd")
    until(lambda: place.prove().proven)


def test_stopped_on_purpose_is_neither_proven_nor_failed(place: Place) -> None:
    place.container("au-never")
    place.start(place.container("au-off"))
    place.stop("au-off")
    proof = place.prove()
    assert [(one.alive, one.proven, one.reasons) for one in proof.containers] == [(None, None, ())] * 2
    assert proof.proven


def test_stopped_by_a_foreign_hand_is_not_proven(place: Place) -> None:
    place.start(place.container("au-out"))
    place.stop("au-out", forget=False)  # as lxc-stop does it
    assert place.one("au-out").proven is False and not place.prove().proven
    lease.drop(place.settings.paths, "au-out")  # as oneroot stop does it
    assert place.one("au-out").proven is None


def test_declared_check_that_fails(place: Place) -> None:
    place.start(place.container("au-sick", health=Health(command="test -e /run/well")))
    one = place.one("au-sick")
    assert one.alive is False and one.proven is False and "health command" in one.reasons[0]
    place.inside("au-sick", "touch /run/well")
    assert place.one("au-sick").proven is True


def test_frozen_container_is_not_alive(place: Place) -> None:
    place.start(place.container("au-ice"))
    freeze = ["-P", str(place.settings.paths.lxc), "-n", "au-ice"]
    subprocess.run(["lxc-freeze", *freeze], check=True, timeout=60)
    try:
        one = place.one("au-ice")
        assert one.alive is False and one.proven is False
    finally:
        subprocess.run(["lxc-unfreeze", *freeze], check=True, timeout=60)


@pytest.mark.parametrize(
    ("ago", "said"),
    [
        (timedelta(hours=25), "25.0 hours ago"),
        (None, "never checked"),
        (timedelta(hours=-1), "the clock was set back"),
    ],
)
def test_sources_not_checked_for_too_long(place: Place, ago: timedelta | None, said: str) -> None:
    place.start(place.container("au-src"))
    place.checked(ago)
    proof = place.prove()
    assert not proof.proven and said in proof.reasons[0]
    assert proof.containers[0].proven is True  # it runs what is current; the base is what fails
    place.checked(timedelta(hours=23))
    assert place.prove().proven


def test_pinned_rollback_says_so(place: Place) -> None:
    place.use(1)
    place.start(place.container("au-pin"))
    assert "not pinned" in place.prove().reasons[0]
    place.declare(
        Pin(generation=1, reason="breaks the shop", person="ann", since="2026-01-01T00:00:00+00:00")
    )
    proof = place.prove()
    assert proof.pinned and proof.pin is not None and proof.pin.generation == 1
    assert proof.pending_security == ("libssl3",) and not proof.proven
    assert "pinned to generation 1 by ann" in proof.reasons[0] and "breaks the shop" in proof.reasons[0]
    assert proof.pending[0].cves == ("CVE-2026-0001",)
    place.declare()
    place.use(2)
    place.restart("au-pin")
    assert place.prove().proven


def test_damaged_store_is_unknown_and_not_proven(place: Place) -> None:
    place.start(place.container("au-dam"))
    current = place.settings.paths.bases / "core/current"
    current.unlink()
    current.symlink_to("generations/9")
    proof = place.prove()
    assert not proof.proven and "core" in proof.unknown and "au-dam" in proof.unknown
    assert proof.containers[0].proven is False


def test_command_line_and_its_contract(place: Place, tmp_path: Path) -> None:
    place.use(1)
    place.start(place.container("au-cli"), place.container("au-cli2"))
    place.inside("au-cli2", f"echo x >> {LIBSSL}")
    place.use(2)
    settings = place.settings.paths
    file = tmp_path / "settings.yaml"
    file.write_text(f"paths: {{store: {settings.store}, run: {settings.run}, lxc: {settings.lxc}}}\n")

    def oneroot(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(Path(sys.executable).with_name("oneroot")), "--settings", str(file), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    said = oneroot("verify", "--format", "json", "--report", str(tmp_path / "report.json"))
    assert said.returncode == 3, said.stderr
    (base,) = json.loads(said.stdout)
    assert (base["base"], base["generation"], base["newest"], base["pinned"]) == ("core", 2, 2, False)
    assert base["proven"] is False and base["host"] == {"stale": []}
    one, two = base["containers"]
    assert one["name"] == "au-cli" and one["outdated"] and one["alive"] and one["proven"] is False
    assert {"pid", "command", "path"} <= one["stale"][0].keys() and one["stale"][0]["path"] == LIBC
    assert (
        two["overrides"][0] | {"path": LIBSSL, "kind": "overridden", "package": "libssl3"}
        == two["overrides"][0]
    )
    assert json.loads((tmp_path / "report.json").read_text())["bases"] == json.loads(said.stdout)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o600
    with Journal(settings) as journal:
        assert journal.proofs("core")[0][1] is False
    assert "au-cli" in oneroot("verify").stdout
    assert json.loads(oneroot("audit", "au-cli2", "--format", "json").stdout)[0]["overrides"]
    assert oneroot("audit", "au-cli").returncode == 0
    assert oneroot("verify", "au-nothing").returncode == 2

    place.restart("au-cli")
    place.stop("au-cli2")
    assert oneroot("verify", "au-cli").returncode == 0
    assert oneroot("verify").returncode == 0
    history = json.loads(oneroot("verify", "--history", "--format", "json").stdout)
    assert [kept["proven"] for kept in history[:2]] == [True, False]


def test_process_that_cannot_be_read_costs_its_own_container_the_proof(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reader that hangs at one process, as the kernel makes it when that process holds its own lock."""
    place.start(place.container("au-hang"), place.container("au-calm"))
    pid = place.spawn("au-hang", "exec sleep 1000")
    text = proc._READER.read_text()
    reader = tmp_path / "reader.py"
    hang = f"    if pid == {pid}:\n        import time\n\n        time.sleep(1000)\n"
    found = text.index("    started = start_time(pid)")
    reader.write_text(text[:found] + hang + text[found:])
    monkeypatch.setattr(proc, "_READER", reader)
    proof = place.prove()
    hanging, calm = sorted(proof.containers, key=lambda one: one.name, reverse=True)
    assert calm.proven is True
    assert hanging.proven is False and hanging.unknown and f"process {pid}" in hanging.reasons[0]
    assert proof.unknown == ("au-hang",)


def test_two_filesystems_are_unknown(place: Place, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=True)
    lxc_path = tmp_path / "lxc"
    lxc_path.mkdir(mode=0o711)
    paths = dataclasses.replace(place.settings.paths, lxc=lxc_path)
    other = Place(settings=dataclasses.replace(place.settings, paths=paths), made=150)
    try:
        other.start(other.container("au-two", privileged=True))
        one = other.one("au-two")
        assert one.alive is True and one.proven is False and one.unknown
        assert "two filesystems" in one.reasons[0]
    finally:
        clean_up(other.settings)
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_hosts_own_processes_with_replaced_code(place: Place, tmp_path: Path) -> None:
    program = tmp_path / "monitor"
    shutil.copy("/usr/bin/sleep", program)
    with subprocess.Popen([str(program), "1000"]) as child:
        try:
            until(lambda: str(program) in Path(f"/proc/{child.pid}/maps").read_text())
            assert stale.judge(place.settings, stale.observe([], servants=[child.pid]), {}).host == {}
            program.unlink()
            found = stale.judge(place.settings, stale.observe([], servants=[child.pid]), {}).host
            assert [(one.pid, one.path) for one in found[child.pid]] == [(child.pid, str(program))]
        finally:
            child.kill()
