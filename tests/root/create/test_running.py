"""Containers that run: what create put into them works, and the commands that reach into them."""

from __future__ import annotations

import http.client
import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from oneroot.container import lxcconfig, spec
from oneroot.settings import Settings
from tests.root.create.conftest import error_of, oneroot

APACHE = ("create", "--base", "core", "--command", "apache2ctl -D FOREGROUND")
UNIT = ("create", "--base", "core", "--unit", "apache2.service")
SLEEP = ("create", "--base", "core", "--command", "sleep 1000")


def until(look: object, wanted: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while (found := look()) != wanted:  # type: ignore[operator]
        assert time.monotonic() < end, f"{found!r} is not {wanted!r}"
        time.sleep(0.05)


def http_status(settings: Settings, name: str) -> int:
    connection = http.client.HTTPConnection(spec.load(settings.paths, name).addresses[0], 80, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def inside(name: str, *words: str) -> str:
    return oneroot("exec", name, "--", *words, check=False).stdout.strip()


def test_a_command_runs_alone_under_tini_and_answers(real: Settings) -> None:
    oneroot(*APACHE, "--replicas", "2", "--memory", "128M", "web")
    oneroot("start", "web*")
    until(lambda: http_status(real, "web002"), 200)
    assert inside("web001", "cat", "/proc/1/comm") == "tini"
    assert inside("web001", "hostname") == "web001"
    assert inside("web001", "stat", "-c", "%a", "/run/lock") == "1777"
    assert inside("web001", "getent", "hosts", "web002.oneroot.internal").startswith("10.81.96.")
    processes = inside("web001", "sh", "-c", "cat /proc/[0-9]*/comm").split()
    assert "systemd" not in processes
    usage = json.loads(oneroot("--format", "json", "top", "--once").stdout)
    assert {one["name"] for one in usage} == {"web001", "web002"}
    assert all(one["memory"] and one["memory_limit"] == 128 << 20 and one["processes"] for one in usage)


def test_a_shell_command_keeps_its_quotes(real: Settings) -> None:
    command = """A='x y'; echo "it's $A" > /tmp/said; exec sleep 1000"""
    oneroot("create", "--base", "core", "--command", command, "web")
    oneroot("start", "web")
    until(lambda: inside("web", "cat", "/tmp/said"), "it's x y")
    assert inside("web", "sh", "-c", "cat /proc/[0-9]*/comm").split().count("sleep") == 1


def test_a_unit_runs_and_systemd_says_running_after_a_reboot_too(real: Settings) -> None:
    oneroot(*UNIT, "web")
    oneroot("start", "web")

    def running() -> str:
        return inside("web", "systemctl", "is-system-running")

    until(running, "running")
    until(lambda: http_status(real, "web"), 200)
    services = inside(
        "web", "systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend"
    )
    assert {line.split()[0] for line in services.splitlines()} == {
        "apache2.service",
        "systemd-journald.service",
    }
    logged = oneroot("logs", "web", "-n", "500").stdout
    assert "Reached target oneroot.target" in logged
    before = json.loads(oneroot("--format", "json", "ls", "web").stdout)[0]["pid"]
    oneroot("exec", "web", "--", "systemctl", "reboot", check=False)
    until(
        lambda: json.loads(oneroot("--format", "json", "ls", "web").stdout)[0]["pid"] not in (before, None),
        True,
    )
    until(running, "running")
    oneroot("stop", "web")
    assert "oneroot.target" in oneroot("logs", "web").stdout  # the console outlives the journal


def test_exec_gives_the_commands_own_code_and_nothing_of_our_environment(
    real: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", "secret")
    oneroot(*SLEEP, "--replicas", "2", "web")
    oneroot("start", "web*")
    assert oneroot("exec", "web001", "--", "sh", "-c", "exit 42", check=False).returncode == 42
    assert "PLANTED" not in inside("web001", "env")
    many = oneroot("exec", "web*", "--", "sh", "-c", "hostname; test $(hostname) = web001", check=False)
    assert many.returncode == 1
    assert many.stdout.splitlines() == ["web001: web001", "web002: web002", "web002: exit status 1"]
    hostile = oneroot("exec", "web*", "--", "printf", "\\033[31m\\n").stdout
    assert "\x1b" not in hostile
    oneroot("stop", "web002")
    assert oneroot("exec", "web002", "--", "true", check=False).returncode == 1


def test_files_go_in_and_out_of_a_running_and_a_stopped_one(real: Settings, tmp_path: Path) -> None:
    oneroot(*SLEEP, "web")
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("content")
    (source / "link").symlink_to("sub/file")
    for number, running in enumerate((False, True, False)):
        oneroot("start" if running else "stop", "web")
        oneroot("cp", str(source), f"web:/var/run/../../srv/in{number}")
        oneroot("cp", str(source / "sub/file"), "web:/bin/")  # /bin is a link in the base
        out = tmp_path / f"out{number}"
        oneroot("cp", f"web:/srv/in{number}", str(out))
        assert (out / "sub/file").read_text() == "content"
        assert str((out / "link").readlink()) == "sub/file"
        oneroot("cp", "web:/etc/apache2/apache2.conf", str(tmp_path / f"conf{number}"))
        assert "AccessFileName" in (tmp_path / f"conf{number}").read_text()
        assert oneroot("cp", "web:/nothing", str(tmp_path), check=False).returncode in (1, 2)
    found = spec.load(real.paths, "web")
    upper = real.paths.container("web") / "overlay/upper"
    assert found.ids
    assert (upper / "srv/in0/sub/file").stat().st_uid == found.ids.first
    assert (upper / "usr/bin/file").read_text() == "content"
    assert not (upper / "bin").exists()


def test_a_hostile_upper_does_not_lead_cp_out(tiny: Settings, tmp_path: Path) -> None:
    oneroot(*SLEEP, "web")
    upper = tiny.paths.container("web") / "overlay/upper"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (upper / "leak").symlink_to(outside)
    (upper / "up").symlink_to("../../../../../../../../.." + str(outside))
    (upper / "loop").symlink_to("/loop")
    os.mkfifo(upper / "fifo")
    file = tmp_path / "file"
    file.write_text("x")
    oneroot("cp", str(file), "web:/leak/new", check=False)
    oneroot("cp", str(file), "web:/up/new", check=False)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert oneroot("cp", "web:/leak/secret", str(tmp_path / "got"), check=False).returncode != 0
    assert not (tmp_path / "got").exists()
    assert oneroot("cp", str(file), "web:/loop/x", check=False).returncode == 1
    oneroot("cp", "web:/fifo", str(tmp_path / "fifo"))
    assert not (tmp_path / "fifo").exists()


def test_a_stopped_ones_view_is_the_merged_one(tiny: Settings, tmp_path: Path) -> None:
    root = tiny.paths.bases / "core/generations/1/root"
    for path in ("data/gone", "data/kept", "covered/old"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("base")
    oneroot(*SLEEP, "web")
    upper = tiny.paths.container("web") / "overlay/upper"
    (upper / "data").mkdir()
    os.mknod(upper / "data/gone", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    (upper / "data/own").write_text("own")
    (upper / "covered").mkdir()
    os.setxattr(upper / "covered", "user.overlay.opaque", b"y")
    (upper / "covered/new").write_text("own")
    oneroot("cp", "web:/data", str(tmp_path / "data"))
    oneroot("cp", "web:/covered", str(tmp_path / "covered"))
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["kept", "own"]
    assert [path.name for path in (tmp_path / "covered").iterdir()] == ["new"]
    assert oneroot("cp", "web:/data/gone", str(tmp_path), check=False).returncode == 2


def test_ls_has_exactly_the_contracts_fields(real: Settings) -> None:
    oneroot(*SLEEP, "--replicas", "2", "web")
    oneroot("start", "web002")
    listed = json.loads(oneroot("--format", "json", "ls").stdout)
    fields = ["name", "state", "base", "generation", "current_generation", "outdated", "addresses", "pid"]
    fields.append("unprivileged")
    assert [list(one) for one in listed] == [fields, fields]
    assert [one["state"] for one in listed] == ["STOPPED", "RUNNING"]
    assert [one["generation"] for one in listed] == [None, 1]
    assert listed[1]["unprivileged"] is True
    info = json.loads(oneroot("--format", "json", "info", "web002").stdout)[0]
    assert info["alive"] is True
    assert info["declared"]["command"] == "sleep 1000"


def test_a_running_one_is_not_removed_unless_forced_and_leaves_nothing(real: Settings) -> None:
    oneroot(*SLEEP, "web")
    oneroot("start", "web")
    assert oneroot("rm", "web", check=False).returncode == 1
    assert json.loads(oneroot("--format", "json", "ls", "web").stdout)[0]["state"] == "RUNNING"
    link = lxcconfig.interface(spec.load(real.paths, "web").addresses[0])
    assert Path(f"/sys/class/net/{link}").exists()
    oneroot("rm", "--force", "web")
    assert not Path(f"/sys/class/net/{link}").exists()
    assert list(real.paths.leases.iterdir()) == []
    assert list(real.paths.names.iterdir()) == []
    oneroot("undelete", "web")
    oneroot("start", "web")
    oneroot("wait", "--timeout", "5", "web")


def test_wait_tells_who_did_not_come(real: Settings) -> None:
    oneroot(*SLEEP, "--replicas", "2", "web")
    oneroot("start", "web001")
    done = oneroot("--format", "json", "wait", "--timeout", "0.2", "web*", check=False)
    assert done.returncode == 1
    assert [one["ok"] for one in json.loads(done.stdout)] == [True, False]
    assert oneroot("wait", "--state", "NONSENSE", "web001", check=False).returncode == 2


def test_ssh_host_keys_are_made_for_each(tiny: Settings) -> None:
    (tiny.paths.bases / "core/generations/1/root/usr/sbin").mkdir()
    (tiny.paths.bases / "core/generations/1/root/usr/sbin/sshd").touch()
    oneroot(*SLEEP, "--replicas", "100", "web")
    keys = set()
    for name in spec.names(tiny.paths):
        place = tiny.paths.container(name) / "overlay/upper/etc/ssh"
        for private in place.glob("ssh_host_*_key"):
            assert private.stat().st_mode & 0o777 == 0o600
            keys.add(private.read_text())
            said = subprocess.run(
                ["ssh-keygen", "-lf", f"{private}.pub"], capture_output=True, text=True, check=True
            )
            assert f"root@{name}" in said.stdout
    assert len(keys) == 200


def test_errors_are_json_when_asked(tiny: Settings) -> None:
    done = oneroot("--format", "json", "start", "nobody", check=False)
    assert done.returncode == 2
    assert error_of(done)["code"] == "unknown-name"
