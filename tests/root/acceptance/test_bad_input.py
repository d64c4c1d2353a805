"""What an impatient person types, and what a host that was tampered with says to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.command import oneroot
from tests.root.acceptance.world import COMMAND, CREATE, lxc, refuse, running, states, unchanged
from tests.root.scene import Repository, Scene

NO_NAME = "is not a name|No container matches"
BAD_NAMES = {
    "slash": "a/b",
    "parent": "../etc",
    "parents": "../../../../etc/passwd",
    "dot": ".",
    "dots": "..",
    "absolute": "/etc",
    "blank": "a b",
    "only-blanks": "  ",
    "empty": "",
    "long": "x" * 300,
    "64": "x" * 64,
    "dash": "-web",
    "option": "--force",
    "end-dash": "web-",
    "umlaut": "wéb",
    "script": "名前",
    "look-alike": "ас001",
    "capital": "Web",
    "underscore": "web_1",
    "dotted": "web.example.org",
    "newline": "web\nlxc.hook.pre-start = /bin/sh",
    "escape": "\x1b]0;evil\x07\x1b[2J",
    "not-utf-8": os.fsdecode(b"\xff\xfe"),
    "substitution": "$(touch /tmp/evil)",
    "percent": "%s%n",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_a_name_that_is_none(neighbour: Scene, name: str) -> None:
    words: list[tuple[str, ...]] = [
        ("create", *COMMAND, "--", name),
        ("rm", "--force", "--yes", "--", name),
    ]
    with unchanged(neighbour), ThreadPoolExecutor(2) as pool:
        all_said = list(pool.map(lambda one: refuse(neighbour, *one, code=2, why=NO_NAME), words))
    for said in all_said:
        assert not any(ord(char) < 32 and char != "\n" for char in said.err), ascii(said.err)
        assert "\x7f" not in said.err and "\x1b" not in said.err


BAD = "../etc"
EVERY_COMMAND: list[tuple[str, ...]] = [
    *((verb, BAD) for verb in ("start", "stop", "restart", "rm", "undelete", "ls", "info", "logs", "top")),
    *((verb, BAD) for verb in ("wait", "verify", "audit", "shell", "history", "patch", "plan", "rollback")),
    ("exec", BAD, "--", "id"),
    ("cp", "a b:/etc/hostname", "/tmp/hostname-of-nobody"),
    ("cp", "/etc/hostname", "a b:/tmp/"),
    *(("rollout", verb, BAD) for verb in ("status", "pause", "resume", "abort")),
    *(("base", verb, BAD) for verb in ("ls", "show", "history", "unpin", "fsck", "gc", "rm", "upgrade")),
    ("base", "use", BAD, "1"),
    ("base", "diff", BAD, "1", "2"),
    ("base", "create", BAD, "--source", "debian:bookworm"),
    ("create", "--base", BAD, "--command", "x", "web"),
]


def test_every_command_refuses_it(neighbour: Scene) -> None:
    with unchanged(neighbour), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda words: refuse(neighbour, *words, code=2, why="is not a name"), EVERY_COMMAND))


@pytest.mark.parametrize("verb", ["start", "stop", "ls", "verify", "info"])
def test_a_pattern_that_matches_nothing(neighbour: Scene, verb: str) -> None:
    with unchanged(neighbour):
        refuse(neighbour, verb, "nothing-*", code=2, why="No container matches 'nothing-\\*'")
        refuse(neighbour, verb, "ac001", "nothing-*", code=2, why="No container matches")
        refuse(neighbour, verb, "ac01", code=2, why="did you mean ac001")


CREATIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "base": (("--base", "cor", "--command", "x", "web"), "no base cor"),
    "unit": (("--base", "core", "--unit", "apache3.service", "web"), "apache3.service"),
    "unit-path": (("--base", "core", "--unit", "../../etc/passwd", "web"), "passwd"),
    "unit-and-command": (("--base", "core", "--unit", "dbus.service", "--command", "x", "web"), "either"),
    "neither": (("--base", "core", "web"), "Say what shall run"),
    "none": ((*COMMAND, "--replicas", "0", "web"), "0 replicas"),
    "negative": ((*COMMAND, "--replicas", "-1", "web"), "-1 replicas"),
    "many": ((*COMMAND, "--replicas", "100000", "web"), "100000 replicas"),
    "a-range-too-many": ((*COMMAND, "--replicas", "4095", "web"), "4095 replicas"),
    "huge": ((*COMMAND, "--replicas", "9" * 30, "web"), "replicas"),
    "no-number": ((*COMMAND, "--replicas", "ten", "web"), "ten"),
    "long-for-replicas": ((*COMMAND, "--replicas", "3", "x" * 62), "too long"),
    "memory": ((*COMMAND, "--memory", "lots", "web"), "lots"),
    "negative-memory": ((*COMMAND, "--memory", "-5M", "web"), "-5M"),
    "little-memory": ((*COMMAND, "--memory", "1K", "web"), "few"),
    "cpus": ((*COMMAND, "--cpus", "nan", "web"), "processors"),
    "pids": ((*COMMAND, "--pids", "0", "web"), "processes"),
    "port": ((*COMMAND, "--publish", "99999:80", "web"), "99999"),
    "taken-port": ((*COMMAND, "--publish", "8080:80", "--replicas", "2", "web"), "share"),
    "health": ((*COMMAND, "--health", "ftp:21", "web"), "ftp:21"),
    "empty-command": (("--base", "core", "--command", "", "web"), "command"),
    "newline-command": (("--base", "core", "--command", "a\nlxc.hook.pre-start = /x", "web"), "command"),
    "exists-differently": (("--base", "core", "--command", "other", "--replicas", "3", "ac"), "differs"),
}


@pytest.mark.parametrize(("words", "why"), CREATIONS.values(), ids=CREATIONS.keys())
def test_a_creation_that_cannot_be(neighbour: Scene, words: tuple[str, ...], why: str) -> None:
    with unchanged(neighbour):
        refuse(neighbour, "create", *words, code=2, why=why)


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("base", "use", "core", "7"), 2, "no generation 7"),
        (("base", "use", "core", "x"), 2, "not the number"),
        (("base", "use", "core", "-1"), 2, "-1"),
        (("base", "diff", "core", "1", "2"), 2, "no generation 2"),
        (("rollback", "core"), 1, "no generation before"),
        (("rollback", "core", "--to", "7"), 2, "no generation 7"),
        (("rollback", "core", "--to", "0"), 2, "0"),
        (("rollout", "resume", "core"), 1, "unfinished|in progress|to go on"),
        (("rollout", "abort", "core"), 1, "unfinished|in progress|to go on"),
        (("patch", "core", "--batch", "0"), 2, "batch"),
        (("patch", "core", "--batch", "-5%"), 2, "batch"),
        (("patch", "core", "--batch", "many"), 2, "many"),
        (("patch", "core", "--max-unavailable", "0"), 2, "unavailable"),
        (("base", "rm", "core"), 2, "ac001"),
        (("base", "create", "x", "--source", "debian"), 2, "debian"),
        (("base", "create", "x", "--source", "debian:../etc"), 2, "etc"),
        (("base", "create", "core", "--source", "debian:bookworm", "--package", "tini"), 2, "another base"),
        (("base", "create", "x", "--source", "debian:bookworm", "--package", "-o=x"), 2, "not the name"),
        (("wait", "ac001", "--state", "HAPPY"), 2, "HAPPY"),
        (("strat", "ac001"), 2, "start"),
        (("ls", "--nonsense"), 2, "nonsense"),
        (("rm", "ac001", "--purge"), 2, "--yes"),
        (("rm", "ac001"), 1, "runs"),
        (("rm",), 2, "which"),
        (("exec", "ac002", "--", "id"), 1, "ac002"),
        (("--settings", "/nonexistent.yaml", "ls"), 2, "nonexistent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_words_that_cannot_be(neighbour: Scene, words: tuple[str, ...], code: int, why: str) -> None:
    with unchanged(neighbour):
        refuse(neighbour, *words, code=code, why=why)


def test_an_unknown_package(neighbour: Scene, repository: Repository) -> None:
    words = ("base", "create", "other", "--source", "debian:bookworm", "--suite", "bookworm")
    with unchanged(neighbour):
        refuse(neighbour, *words, "--package", "no-such-package", code=2, why="no-such-package")


@pytest.mark.parametrize(
    "text",
    ["[", "paths: 3", "network: {ipv4: 10.94.2.0/33}", "network: {ipv4: 10.94.2.7/23}", "nonsense: 1",
     "ids: {each: 10}", "parallel: many", "paths: {store: relative}", "ids: {first: 0}", "- a", "\x00"],
)  # fmt: skip
def test_settings_that_cannot_be(neighbour: Scene, text: str) -> None:
    file = neighbour.place / "bad.yaml"
    file.write_text(text + "\n")
    with unchanged(neighbour):
        refuse(neighbour, "--settings", str(file), "ls", code=2, why="bad.yaml")


def test_errors_are_json_too(neighbour: Scene) -> None:
    tried = (
        (("start", "a/b"), 2),
        (("rm", "ac001"), 1),
        (("rm", "ac*"), 1),
        (("create", "w"), 2),
        (("no",), 2),
    )
    for words, code in tried:
        said = oneroot(*words, "--dry-run", "--format", "json", ok=(code,), env=neighbour.environment)
        assert set(said.error) >= {"code", "what", "why", "fix", "container"}
        assert said.err.isascii() and len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize("locale", ["C", "POSIX", "nonsense"])
def test_no_locale(neighbour: Scene, locale: str) -> None:
    plain = {"LC_ALL": locale, "LANG": "", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in (("start", "ünïcode"), ("start", os.fsdecode(b"\xff")), ("--help",), ("ls", "名前*")):
        said = oneroot(*words, ok=(0, 2), env={**neighbour.environment, **plain})
        assert "Traceback" not in said.err and "did not expect" not in said.err, said.err


def test_a_reason_that_is_no_text(scene: Scene) -> None:
    scene.run("patch", "core", "--no-upgrade", "--reason", os.fsdecode(b"\xff\x1b[2J"), "--yes", ok=(0, 3))
    said = scene.run("history", "core")
    assert "udcff" in said.out and "\x1b" not in said.out


def test_the_reader_is_gone(neighbour: Scene) -> None:
    line = 'set -o pipefail; "$0" -m oneroot ls | true; "$0" -m oneroot --format json info ac001 | head -c 1'
    done = subprocess.run(
        ["bash", "-c", line, ".venv/bin/python"], capture_output=True, text=True, check=False,
        env={**os.environ, **neighbour.environment},
    )  # fmt: skip
    assert not done.stderr, done.stderr


# A container of somebody else


def make_foreign(scene: Scene, name: str) -> None:
    directory = scene.place / "lxc" / name
    (directory / "rootfs/etc").mkdir(parents=True)
    (directory / "rootfs/etc/precious").write_text("mine\n")
    (directory / "config").write_text(f"lxc.uts.name = {name}\nlxc.rootfs.path = dir:{directory}/rootfs\n")


def test_a_foreign_container_of_the_same_name(scene: Scene) -> None:
    scene.run("rm", "ac002", "--purge", "--yes")
    make_foreign(scene, "ac002")
    with unchanged(scene):
        refuse(scene, *CREATE, code=2, why="ac002 is taken")
        refuse(scene, "create", *COMMAND, "--replicas", "9", "ac", code=2, why="ac002 is taken")
        refuse(scene, "create", *COMMAND, "ac002", code=2, why="left alone")
        for verb in ("start", "stop", "restart", "info", "logs", "verify"):
            refuse(scene, verb, "ac002", code=2, why="no container ac002")
        refuse(scene, "rm", "--force", "--purge", "--yes", "ac002", code=2, why="no container ac002")
        refuse(scene, "exec", "ac002", "--", "id", code=2, why="no container ac002")
    assert set(states(scene)) == {"ac001", "ac003"}
    # all of ours at once is not all that is there
    scene.run("start", "*")
    scene.run("stop", "*")
    scene.run("rm", "--purge", "--yes", "*")
    assert (scene.place / "lxc/ac002/rootfs/etc/precious").read_text() == "mine\n"
    lxc(scene, "lxc-destroy", "-n", "ac002")
    assert not (scene.place / "lxc/ac002").exists()
    scene.run(*CREATE)
    scene.run("start", "ac*")
    assert len(running(scene)) == 3


@pytest.mark.parametrize("kind", ["file", "link", "empty", "dangling"])
def test_something_else_of_that_name(scene: Scene, kind: str) -> None:
    scene.run("rm", "ac002", "--purge", "--yes")
    path = scene.place / "lxc/ac002"
    makers: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_text("mine"),
        "link": lambda: path.symlink_to("ac001"),
        "empty": path.mkdir,
        "dangling": lambda: path.symlink_to("nowhere"),
    }
    makers[kind]()
    with unchanged(scene):
        said = oneroot(*CREATE, ok=(1, 2), env=scene.environment)
        assert "ac002" in said.err and "Traceback" not in said.err and "did not expect" not in said.err
        assert "fix:" in said.err
        scene.run("ls")
    path.rmdir() if kind == "empty" else path.unlink()
    scene.run(*CREATE)
    assert set(states(scene)) == {"ac001", "ac002", "ac003"}


def test_a_container_of_that_name_runs_in_another_lxc_path(scene: Scene, neighbour: Scene) -> None:
    with unchanged(neighbour):
        assert running(scene) == {}
        scene.run("start", "ac*")
        assert len(running(scene)) == 3
        first = states(scene)["ac001"]["pid"]
        assert first != states(neighbour)["ac001"]["pid"]
        scene.run("stop", "ac*", "--timeout", "0")
        assert running(scene) == {}
        assert running(neighbour) == {"ac001": 1}
        scene.run("rm", "--purge", "--yes", "ac*")
