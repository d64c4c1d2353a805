"""``oneroot base`` as scripts see it: JSON fields, exit codes, dry runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oneroot.base.store import Store
from oneroot.settings import Settings
from tests.root.base.repository import NAME, Repository
from tests.root.base.test_kill import oneroot


def read(*words: str, code: int = 0) -> Any:
    done = oneroot(*words, "--format", "json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else json.loads(done.stderr)["error"]


def test_the_life_of_a_base(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    store = Store(base)

    [listed] = read("base", "ls")
    assert (listed["name"], listed["current"], listed["pinned"], listed["problem"]) == (NAME, 1, None, "")
    [planned] = read("base", "upgrade", NAME, "--dry-run")
    assert [one["package"] for one in planned["packages"]] == ["tini"] and len(planned["steps"]) == 6
    assert store.numbers(NAME) == [1]

    [made] = read("base", "upgrade", NAME, "--reason", "for the test")
    assert (made["number"], made["packages_changed"][0]["new"]) == (2, "99.0-1")
    assert read("base", "upgrade", NAME) == []

    shown = read("base", "show", NAME)
    assert list(shown)[:6] == ["name", "source", "from", "current", "pinned", "generations"]
    assert (shown["name"], shown["source"], shown["from"], shown["current"]) == (
        NAME,
        "debian:bookworm",
        None,
        2,
    )
    newest = shown["generations"][-1]
    assert set(newest) >= {"number", "created", "parent", "packages", "files", "size", "reason"}
    assert (newest["number"], newest["parent"], newest["reason"]) == (2, 1, "for the test")
    assert isinstance(newest["packages"], int)
    assert isinstance(read("base", "show", "c*"), list)

    difference = read("base", "diff", NAME, "1", "2")
    assert [one["package"] for one in difference["packages"]] == ["tini"]
    assert "/usr/share/tini/version" in {one["path"] for one in difference["files"]}
    assert [one["number"] for one in read("base", "history", NAME)] == [2, 1]

    read("base", "use", NAME, "1", "--dry-run")
    assert store.current(NAME) == 2
    read("base", "use", NAME, "1", "--reason", "back")
    assert read("base", "show", NAME)["pinned"]["reason"] == "back"
    assert "pinned" in read("base", "upgrade", NAME, code=1)["what"]
    read("base", "unpin", NAME)
    assert read("base", "show", NAME)["pinned"] is None
    read("base", "bad", NAME, "2")
    assert "marked bad" in read("base", "upgrade", NAME, code=1)["what"]
    read("base", "bad", NAME, "2", "--undo")
    read("base", "use", NAME, "2")
    assert read("base", "fsck", NAME) == []
    [planned] = read("base", "gc", NAME, "--dry-run")
    assert planned["removed"] == [] and planned["kept"] == {"1": "the previous one", "2": "current"}
    assert read("base", "rm", NAME, code=2)["code"] == "usage"
    read("base", "rm", NAME, "--yes")
    assert read("base", "ls") == []


def test_wrong_use(base: Settings) -> None:
    for words in (
        ("show", "nosuch"), ("show", "x*"), ("show", "../x"), ("use", NAME, "7"), ("use", NAME, "x"),
        ("diff", NAME, "1", "9"), ("capture", NAME), ("create", "x"), ("create", "x", "--source", "host"),
        ("create", "x", "--from", NAME), ("show", NAME, "--why", "/"),
        ("create", "-x", "--source", "debian:bookworm"),
        ("create", "x" * 300, "--source", "debian:bookworm"),
    ):  # fmt: skip
        done = oneroot("base", *words)
        assert done.returncode == 2, (words, done)
        assert "Traceback" not in done.stderr and done.stderr


def test_a_used_base_cannot_be_removed(base: Settings) -> None:
    container = base.paths.lxc / "web001"
    container.mkdir()
    (container / "oneroot.json").write_text("{}")
    error = read("base", "rm", NAME, "--yes", code=2)
    assert "web001" in error["why"]
    assert Store(base).exists(NAME)


def test_a_damaged_base_is_listed_with_its_problem(base: Settings) -> None:
    (Store(base).directory(NAME) / "base.json").write_text("{")
    [listed] = read("base", "ls")
    assert "damaged" in listed["problem"]
    assert read("base", "show", NAME, code=1)["code"] == "corrupt-state"


def test_a_busy_base(base: Settings, packages: Repository) -> None:
    packages.publish()
    with Store(base).holding(NAME, "hold"):
        error = read("base", "upgrade", NAME, code=5)
        assert "hold" in error["why"]
        assert read("base", "ls")[0]["name"] == NAME, "readers never lock"


def test_fsck_fails_when_a_file_was_changed(base: Settings) -> None:
    victim = Store(base).root(NAME, 1) / "etc/debian_version"
    text = victim.read_text()
    victim.unlink()
    victim.write_text(text + "x")
    done = oneroot("base", "fsck", "--format", "json")
    assert done.returncode == 1
    assert {"/etc/debian_version"} == {
        Path(one["path"]).as_posix() for one in json.loads(done.stdout) if one["path"]
    }
