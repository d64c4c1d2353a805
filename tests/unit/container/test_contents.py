"""What is put into a new container: its command exactly, its units and nothing else."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.container import contents
from oneroot.container.spec import ContainerSpec
from oneroot.errors import UsageError
from oneroot.kernel.tree import Tree
from oneroot.names import BaseName, ContainerName
from oneroot.settings import Network


@pytest.fixture
def base(tmp_path: Path) -> Tree:
    for path in (
        *("usr/bin/tini", "usr/bin/sh", "usr/lib/systemd/systemd", "etc/init.d/old"),
        *("usr/lib/systemd/system/web.service", "usr/lib/systemd/system/db@.service"),
        *("usr/lib/systemd/system/systemd-udevd.service", "etc/systemd/system/own.timer"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return Tree(tmp_path)


def script(base: Tree, command: str) -> str:
    (file,) = contents.of(base, units=(), command=command).files
    assert file.path == contents.COMMAND_SCRIPT
    assert file.mode == 0o755
    return file.data.decode()


printable = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=60)


@given(printable)
def test_the_shell_gets_the_command_exactly(command: str) -> None:
    words = shlex.split(contents._executable(command))
    assert words in (["/bin/sh", "-c", command], command.split())


@pytest.mark.parametrize(
    ("command", "ends"),
    [
        ("apache2ctl -D FOREGROUND", "exec apache2ctl -D FOREGROUND\n"),
        ("cd /srv", "exec /bin/sh -c 'cd /srv'\n"),
        ("A=1 env", "exec /bin/sh -c 'A=1 env'\n"),
        ("a && b", "exec /bin/sh -c 'a && b'\n"),
        ("echo 'it'\"'\"'s'", """exec /bin/sh -c 'echo '"'"'it'"'"'"'"'"'"'"'"'s'"'"''\n"""),
        ("ls *", "exec /bin/sh -c 'ls *'\n"),
    ],
)
def test_the_script_ends_in_exec(base: Tree, command: str, ends: str) -> None:
    assert script(base, command).endswith(ends)


def test_the_script_runs_the_command_in_the_end(base: Tree, tmp_path: Path) -> None:
    said = 'it\'s "here" $((1+1)) `echo x`'
    made = script(base, f"printf %s {shlex.quote(said)} $HOME")
    # The part that makes directories in /run needs a container.
    head, _, last = made.partition("set -f\n")[0], None, made.splitlines()[-1]
    done = subprocess.run(
        ["sh", "-c", f"{head}{last}"], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == f"{said}/root"


def test_the_script_is_shell(base: Tree) -> None:
    subprocess.run(["sh", "-n"], input=script(base, "sleep 1"), text=True, check=True)


@pytest.mark.parametrize("command", ["", "  ", "a\nb", "a\0b", "a\x1bb", "a\u2028b", "x" * 70000])
def test_commands_that_cannot_be(base: Tree, command: str) -> None:
    with pytest.raises(UsageError):
        contents.checked_command(base, command, "core")


def test_a_base_without_tini_runs_no_command(base: Tree) -> None:
    base.remove("usr/bin/tini")
    with pytest.raises(UsageError, match="no /usr/bin/tini") as caught:
        contents.checked_command(base, "sleep 1", "core")
    assert "--package tini" in caught.value.fix


def test_a_base_without_systemd_runs_no_unit(base: Tree) -> None:
    base.remove("usr/lib/systemd/systemd")
    with pytest.raises(UsageError, match="no systemd"):
        contents.checked_units(base, ["web"], "core")


def test_units_are_found_wherever_they_may_lie(base: Tree) -> None:
    asked = ["web", "web.service", "db@main.service", "own.timer", "old"]
    assert contents.checked_units(base, asked, "core") == (
        *("web.service", "db@main.service", "own.timer", "old.service"),
    )


@pytest.mark.parametrize(
    "unit", ["nope.service", "db@main", "../web.service", "-x", "web.service\nWants=x", ""]
)
def test_units_that_the_base_has_not(base: Tree, unit: str) -> None:
    if unit == "db@main":
        assert contents.checked_units(base, [unit], "core") == ("db@main.service",)
        return
    with pytest.raises(UsageError):
        contents.checked_units(base, [unit], "core")


def test_unit_mode_wants_the_units_and_masks_what_the_base_has(base: Tree) -> None:
    made = contents.of(base, units=("web.service",), command=None)
    target = next(file.data.decode() for file in made.files if file.path.endswith(contents.TARGET))
    assert [line for line in target.splitlines() if line.startswith("Wants=")] == [
        "Wants=dbus.socket",
        "Wants=web.service",
    ]
    links = {link.path: link.target for link in made.links}
    assert links["etc/systemd/system/default.target"] == contents.TARGET
    assert links["etc/systemd/system/systemd-udevd.service"] == "/dev/null"
    assert not any("timesyncd" in path for path in links)


def test_a_unit_that_is_asked_for_is_not_masked(base: Tree) -> None:
    made = contents.of(base, units=("systemd-udevd.service",), command=None)
    assert all(link.target != "/dev/null" for link in made.links)


def test_a_container_knows_its_own_name() -> None:
    spec = ContainerSpec(
        name=ContainerName("web"),
        base=BaseName("core"),
        created="",
        group="web",
        ids=None,
        addresses=("10.0.0.9",),
    )
    files = {file.path: file.data.decode() for file in contents.identity(spec, Network(), "0" * 32)}
    assert files["etc/hostname"] == "web\n"
    assert "10.0.0.9 web.oneroot.internal web\n" in files["etc/hosts"]
    assert files["etc/resolv.conf"] == "nameserver 169.254.0.1\nsearch oneroot.internal\n"
