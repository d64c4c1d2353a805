"""exec and shell: nothing of the host gets inside (SECURITY rule 3)."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from oneroot.container import attach, lifecycle
from oneroot.errors import OnerootError
from tests.root.runtime.conftest import World, all_pids, command_line


@pytest.fixture(scope="module")
def name(world: World) -> str:
    made = world.make("rt-attach")
    lifecycle.start_one(world.settings, made, verb="start")
    return made


def test_status_output_and_environment(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "secret")
    inherited = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    ran = attach.execute(world.settings, name, ["sh", "-c", "env; ls -l /proc/self/fd; echo no >&2; exit 5"])
    os.close(inherited)
    assert (ran.returncode, ran.stderr, ran.truncated) == (5, b"no\n", False)
    variables = {line.split("=")[0] for line in ran.stdout.decode().splitlines() if re.match(r"\w+=", line)}
    assert variables == {"HOME", "LANG", "PATH", "TERM", "PWD", "container"}
    assert b"passwd" not in ran.stdout
    assert b"pts" not in ran.stdout


@pytest.mark.parametrize(
    ("argv", "status"),
    [(["true"], 0), (["absent-program"], 127), (["/etc/passwd"], 126), (["sh", "-c", "kill -9 $$"], 137)],
)
def test_statuses(world: World, name: str, argv: list[str], status: int) -> None:
    assert attach.execute(world.settings, name, argv).returncode == status


def test_too_much_output_is_cut(world: World, name: str) -> None:
    ran = attach.execute(world.settings, name, ["head", "-c", "3000000", "/dev/zero"], limit=1000)
    assert (len(ran.stdout), ran.truncated, ran.returncode) == (1000, True, 0)


def test_a_timeout_ends_it_inside_too(world: World, name: str) -> None:
    with pytest.raises(OnerootError, match="did not finish within"):
        attach.execute(world.settings, name, ["sleep", "4711"], timeout=0.5)
    world.wait_for(lambda: not [pid for pid in all_pids() if command_line(pid) == b"sleep\x004711\0"])


def test_a_stopped_one(world: World) -> None:
    with pytest.raises(OnerootError, match="does not run"):
        attach.execute(world.settings, world.make("rt-silent"), ["true"])


STREAM = """
import sys
from oneroot import settings
from oneroot.container import attach
sys.exit(attach.stream(settings.load(), sys.argv[1], sys.argv[2:]))
"""
SHELL = STREAM.replace("stream", "interactive")


def command(world: World, name: str, program: str, *argv: str) -> tuple[list[str], dict[str, str]]:
    env = {**os.environ, "ONEROOT_SETTINGS": str(world.place / "settings.yaml"), "PLANTED": "secret"}
    return [sys.executable, "-c", program, name, *argv], env


def test_standard_streams_are_passed_on(world: World, name: str) -> None:
    argv, env = command(world, name, STREAM, "sh", "-c", "cat; echo err >&2; exit 9")
    ran = subprocess.run(argv, env=env, input=b"x" * 200_000, capture_output=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (9, b"x" * 200_000, b"err\n")


class Terminal:
    """A person's terminal with oneroot's shell in it."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execve(argv[0], argv, env)
        self.said = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, pattern: str, seconds: float = 20) -> re.Match[str]:
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < end, self.said
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.said += os.read(self.master, 65536).decode()
                except OSError:
                    break
        found = re.search(pattern, self.said)
        assert found, self.said
        self.said = self.said[found.end() :]
        return found

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.master)[3] & termios.ECHO)


@pytest.fixture
def terminal(world: World, name: str) -> Terminal:
    # A descriptor that this process was started with, and that must not get inside.
    inherited = os.dup2(os.open("/etc/passwd", os.O_RDONLY), 250)
    os.set_inheritable(inherited, True)
    made = Terminal(*command(world, name, SHELL, "/bin/sh"))
    os.close(inherited)
    made.resize(30, 100)
    made.read_until("# ")
    return made


def test_a_shell_has_a_terminal_of_its_own(terminal: Terminal) -> None:
    terminal.type('env; ls -l /proc/self/fd /proc/$$/fd; echo the-""end\n')
    said = terminal.read_until(r"HOME=[\s\S]*the-end")[0]
    assert "PLANTED" not in said and "passwd" not in said
    terminal.type("stat -c device-%d $(tty)\n")
    inside = terminal.read_until(r"device-(\d+)")[1]
    assert int(inside) != os.stat("/dev/pts/ptmx").st_dev, "its terminal is of the host's devpts"
    terminal.type("exit 7\n")
    assert terminal.status() == 7
    assert terminal.echoes


def test_a_shell_follows_the_windows_size(terminal: Terminal) -> None:
    terminal.resize(41, 133)
    terminal.type("sleep 0.3; stty size\n")
    terminal.read_until("41 133")
    terminal.type("exit\n")
    assert terminal.status() == 0


def test_a_shell_hears_control_c(terminal: Terminal) -> None:
    terminal.type("sleep 4712; echo status-$?\n")
    time.sleep(0.3)
    terminal.type("\x03")
    terminal.type("echo again\n")
    terminal.read_until("again")
    terminal.type("exit\n")
    terminal.status()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_killed_shell_leaves_nothing(world: World, name: str, terminal: Terminal, number: int) -> None:
    os.kill(terminal.pid, number)
    terminal.status()
    world.wait_for(
        lambda: (
            not [
                pid
                for pid in all_pids()
                if b"lxc-attach\0-P\0" + str(world.settings.paths.lxc).encode() in command_line(pid)
            ]
        )
    )
