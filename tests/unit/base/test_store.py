"""The store tells the truth about what is there, and says what to do about what is damaged."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.base import collect, fsck, layout
from oneroot.base.generation import BaseSpec, Generation, SourceCheck
from oneroot.base.manifest import save_changes
from oneroot.base.store import Store, now, parse_number
from oneroot.base.survey import survey
from oneroot.errors import Busy, CorruptState, OnerootError, UnknownName, UsageError
from oneroot.names import BaseName
from oneroot.settings import Paths, Settings
from oneroot.work import locks

NAME = BaseName("core")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    paths = Paths(store=tmp_path / "store", run=tmp_path / "run", lxc=tmp_path / "lxc")
    made = Store(Settings(paths=paths))
    for directory in (paths.store, paths.bases, made.directory(NAME)):
        directory.mkdir(mode=0o700)
    with locks.base(paths, NAME, verb="test"):
        made.save_spec(BaseSpec(name=NAME, source="debian:bookworm", packages=("tini",)))
        yield made


def add(store: Store, *, packages: dict[str, str] | None = None, name: BaseName = NAME) -> Generation:
    number = store.next_number(name)
    prepared = store.stage(name) / "generation"
    (prepared / "root/usr").mkdir(parents=True)
    prepared.chmod(0o700)
    (prepared / "root/usr/file").write_text(str(number))
    made = survey(prepared / "root", {}).manifest
    made.save(prepared / "manifest.gz")
    save_changes(prepared / "changes.gz", [])
    done = store.commit(
        prepared,
        Generation(
            base=name, number=number, parent=None, created=now(), reason="", person="me",
            packages=packages or {"tini": str(number)}, changes=(), releases=(), files=len(made), size=1,
            digest=made.digest(),
        ),
    )  # fmt: skip
    store.sweep(name)
    return done


def test_a_generation_is_there_whole_and_private(store: Store) -> None:
    assert store.current(NAME) is None and store.numbers(NAME) == []
    made = add(store)
    assert store.generation(NAME, 1) == made
    assert store.generations(NAME) == [made]
    assert "/usr/file" in store.manifest(NAME, 1)
    assert store.changes(NAME, 1) == []
    store.set_current(NAME, 1)
    assert store.current(NAME) == 1
    assert str((store.directory(NAME) / "current").readlink()) == "generations/1"
    generation = layout.generation_directory(store.settings.paths, NAME, 1)
    for place in (store.directory(NAME), generation.parent, generation):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    for file in (*generation.glob("*.*"), store.directory(NAME) / "base.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_numbers_are_never_used_twice(store: Store) -> None:
    for expected in (1, 2, 3):
        assert add(store).number == expected
    store.set_current(NAME, 3)
    collect.gc(store.settings, NAME, set())
    assert store.numbers(NAME) == [2, 3]
    assert store.collected(NAME) == [1]
    for file in (layout.generation_directory(store.settings.paths, NAME, 3)).rglob("*"):
        assert file.exists()
    os.rename(store.directory(NAME) / "generations/3", store.directory(NAME) / "lost")
    assert store.next_number(NAME) == 4


def test_a_collected_generation_keeps_its_description(store: Store) -> None:
    first = add(store)
    add(store), add(store)
    store.set_current(NAME, 3)
    collect.gc(store.settings, NAME, set())
    assert store.generation(NAME, 1) == first
    assert store.changes(NAME, 1) == []
    with pytest.raises(UnknownName, match="collected"):
        store.manifest(NAME, 1)
    with pytest.raises(UnknownName):
        store.set_current(NAME, 1)
    assert [(one.number, there) for one, there in collect.history(store, NAME)] == [
        (3, True), (2, True), (1, False),
    ]  # fmt: skip


def test_gc_keeps_what_is_needed(store: Store) -> None:
    for _ in range(6):
        add(store)
    store.set_current(NAME, 5)
    store.pin(NAME, 2, reason="why")
    asked = []

    def in_use() -> set[int]:
        asked.append(1)
        return {1}

    done = collect.gc(store.settings, NAME, in_use)
    assert asked == [1]
    assert done.removed == (3,)
    assert set(done.kept) == {1, 2, 4, 5, 6} == set(store.numbers(NAME))
    assert not (store.directory(NAME) / "stage").exists()
    assert collect.gc(store.settings, NAME, {1}).removed == ()


def test_gc_waits_for_no_container_that_starts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store), add(store), add(store)
    store.set_current(NAME, 3)
    import fcntl
    import struct

    monkeypatch.setattr(collect, "_PATIENCE", 0.1)
    path = store.settings.paths.locks / f"mount-{NAME}"
    with open(path, "a+b") as hook:
        shared = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(hook, fcntl.F_OFD_SETLK, shared)
        with pytest.raises(Busy, match="starting"):
            collect.gc(store.settings, NAME, set())
    assert store.numbers(NAME) == [1, 2, 3]
    assert collect.gc(store.settings, NAME, set()).removed == (1,)


def test_a_killed_gc_is_finished(store: Store) -> None:
    add(store), add(store), add(store)
    store.set_current(NAME, 3)
    kept = store.directory(NAME) / "collected/1"
    kept.mkdir(parents=True)
    for file in ("generation.json", "changes.gz"):
        (kept / file).write_bytes((store.directory(NAME) / "generations/1" / file).read_bytes())
    assert store.collected(NAME) == [] and store.numbers(NAME) == [1, 2, 3]
    assert collect.gc(store.settings, NAME, set()).removed == (1,)
    assert store.collected(NAME) == [1]


def test_current_that_leads_nowhere(store: Store) -> None:
    add(store), add(store)
    store.set_current(NAME, 2)
    os.rename(store.directory(NAME) / "generations/2", store.directory(NAME) / "lost")
    with pytest.raises(CorruptState, match="is gone") as caught:
        store.current(NAME)
    assert caught.value.fix == "oneroot base use core 1"
    store.set_current(NAME, 1)
    assert store.current(NAME) == 1
    (store.directory(NAME) / "current").unlink()
    (store.directory(NAME) / "current").symlink_to("/etc")
    with pytest.raises(CorruptState):
        store.current(NAME)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "name": "core"}', "\xff"])
def test_a_damaged_declaration(store: Store, text: str) -> None:
    (store.directory(NAME) / "base.json").write_text(text, encoding="latin-1")
    with pytest.raises(CorruptState) as caught:
        store.spec(NAME)
    assert caught.value.fix
    assert store.names() == [NAME]


def test_a_lost_declaration_and_a_copied_base(store: Store) -> None:
    (store.directory(NAME) / "base.json").rename(store.directory(NAME) / "x")
    with pytest.raises(CorruptState, match="lost its declaration"):
        store.spec(NAME)
    other = store.directory(NAME).with_name("other")
    other.mkdir()
    (store.directory(NAME) / "x").rename(other / "base.json")
    with pytest.raises(CorruptState, match="is a copy of core"):
        store.spec("other")


def test_a_generation_under_another_number(store: Store) -> None:
    add(store)
    os.rename(store.directory(NAME) / "generations/1", store.directory(NAME) / "generations/5")
    with pytest.raises(CorruptState, match="describes generation 1"):
        store.generation(NAME, 5)


def test_a_half_generation_is_none(store: Store) -> None:
    (store.directory(NAME) / "generations/1/root").mkdir(parents=True)
    assert store.numbers(NAME) == []
    assert store.next_number(NAME) == 2
    assert any("no complete generation" in one.problem for one in fsck.check(store, NAME))


def test_unknown_names_say_the_nearest(store: Store) -> None:
    with pytest.raises(UnknownName) as caught:
        store.spec("cor")
    assert "core" in caught.value.fix
    with pytest.raises(UnknownName, match="no generation 7"):
        store.generation(NAME, 7)
    for bad in ("../x", "", "a/b", "-x", "x" * 300):
        with pytest.raises(UsageError):
            store.spec(bad)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "one", "01", "9" * 30, "٣"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(UsageError):
        parse_number(text)


def test_pins(store: Store) -> None:
    add(store)
    store.require_unpinned(NAME)
    store.pin(NAME, 1, reason="because")
    with pytest.raises(OnerootError, match="pinned") as caught:
        store.require_unpinned(NAME)
    assert "because" in caught.value.why and "unpin" in caught.value.fix
    pin = store.unpin(NAME)
    assert pin is not None and pin.generation == 1
    assert store.unpin(NAME) is None


def test_bad_marks(store: Store) -> None:
    add(store)
    store.mark_bad(NAME, 1)
    store.mark_bad(NAME, 1)
    assert store.spec(NAME).bad == (1,)
    store.mark_bad(NAME, 1, bad=False)
    assert store.spec(NAME).bad == ()
    with pytest.raises(UnknownName):
        store.mark_bad(NAME, 9)


def test_a_damaged_check_counts_as_none(store: Store) -> None:
    assert store.check(NAME) is None
    store.save_check(NAME, SourceCheck(checked="x", attempted="y"))
    assert store.check(NAME) == SourceCheck(checked="x", attempted="y")
    (store.directory(NAME) / "checked.json").write_text("{}")
    assert store.check(NAME) is None


def test_without_the_lock_nothing_changes(tmp_path: Path) -> None:
    paths = Paths(store=tmp_path / "store", run=tmp_path / "run", lxc=tmp_path / "lxc")
    store = Store(Settings(paths=paths))
    store.directory(NAME).mkdir(parents=True)
    with pytest.raises(Busy):
        store.save_spec(BaseSpec(name=NAME, source=""))
    with store.holding(NAME, "test"), store.holding(NAME, "test again"):
        store.save_spec(BaseSpec(name=NAME, source=""))
    with pytest.raises(Busy):
        store.set_current(NAME, 1)


def test_hidden_directories_are_no_bases(store: Store) -> None:
    (store.settings.paths.bases / ".core.new").mkdir()
    assert store.names() == [NAME]


def test_removing_a_base(store: Store) -> None:
    add(store)
    with pytest.raises(UsageError, match="in use") as caught:
        collect.remove_base(store.settings, NAME, [f"web{number}" for number in range(9)])
    assert "web0" in caught.value.why and "4 more" in caught.value.why
    assert store.exists(NAME)
    collect.remove_base(store.settings, NAME, [])
    assert list(store.settings.paths.bases.iterdir()) == []
    with pytest.raises(UnknownName):
        collect.remove_base(store.settings, NAME, [])


def test_derived_bases_keep_their_parent(store: Store) -> None:
    child = BaseName("child")
    store.directory(child).mkdir()
    with locks.base(store.settings.paths, child, verb="test"):
        store.save_spec(BaseSpec(name=child, source="", parent="core"))
    assert collect.derived(store, NAME) == ["child"]


def test_fsck_sees_every_kind_of_change(store: Store) -> None:
    add(store)
    store.set_current(NAME, 1)
    assert fsck.check(store, NAME) == []
    root = store.root(NAME, 1)
    tree = {one.path: one for one in store.manifest(NAME, 1)}
    status = (root / "usr/file").stat()
    (root / "usr/file").write_text("2")
    os.utime(root / "usr/file", ns=(status.st_atime_ns, tree["/usr/file"].mtime))
    (root / "usr").chmod(0o700)
    (root / "extra").symlink_to("x")
    problems = {(one.path, one.problem.split(",")[0]) for one in fsck.check(store, NAME)}
    assert {("/usr/file", "its content is another"), ("/extra", "is not in the manifest")} <= problems
    assert any(path == "/usr" and problem.startswith("mode") for path, problem in problems)
    (root / "usr/file").unlink()
    assert ("/usr/file", "is missing") in {(one.path, one.problem) for one in fsck.check(store, NAME)}


def test_fsck_sees_leftovers_and_open_doors(store: Store) -> None:
    add(store)
    (store.directory(NAME) / "stage").mkdir(exist_ok=True)
    (store.directory(NAME) / "generations").chmod(0o755)
    problems = " ".join(one.problem for one in fsck.check(store, NAME))
    assert "killed" in problems and "others than root" in problems


def test_fsck_sees_a_forged_manifest(store: Store) -> None:
    add(store)
    file = store.directory(NAME) / "generations/1/generation.json"
    plain = json.loads(file.read_text())
    plain["digest"] = "0" * 64
    file.write_text(json.dumps(plain))
    assert any("manifest is not the one" in one.problem for one in fsck.check(store, NAME))
