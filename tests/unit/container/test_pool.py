"""The pools: nothing is given twice, nothing is lost, and the directories are believed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from oneroot.container import occupancy, places, pool
from oneroot.container.pool import Want
from oneroot.errors import Busy, CorruptState, HostError
from oneroot.kernel import proc
from oneroot.settings import IdPool, Network, Paths, Settings

FIRST = 1_960_000_000
EACH = 65536


def settings_in(place: Path, *, ranges: int = 4, network: str = "10.77.96.0/27") -> Settings:
    made = Settings(
        paths=Paths(store=place / "store", run=place / "run", lxc=place / "lxc"),
        ids=IdPool(first=FIRST, count=ranges * EACH, each=EACH),
        network=Network(ipv4=network),
    )
    made.paths.lxc.mkdir(parents=True)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


def wants(*names: str, unprivileged: bool = True) -> list[Want]:
    return [Want(name=name, unprivileged=unprivileged) for name in names]


def declare(place: Path, name: str, ids: int | None, address: str, *, count: int = EACH) -> None:
    place.mkdir(parents=True)
    declared = {
        "schema": 1,
        "name": name,
        "ids": {"first": ids, "count": count} if ids else None,
        "addresses": [address],
    }
    (place / "oneroot.json").write_text(json.dumps(declared))


def make(settings: Settings, *names: str) -> list[tuple[int, str]]:
    """Allocate, and make the directories that then claim what was given."""
    grants = pool.allocate(settings, wants(*names))
    made = []
    for name, grant in grants.items():
        assert grant.ids
        declare(settings.paths.container(name), name, grant.ids.first, grant.addresses[0])
        made.append((grant.ids.first, grant.addresses[0]))
    pool.settle(settings, names)
    return made


def delete(settings: Settings, name: str) -> None:
    shutil.rmtree(settings.paths.container(name))


def test_gives_each_its_own_aligned_range_and_address(settings: Settings) -> None:
    grants = pool.allocate(settings, wants("a", "b", "c"))
    assert [grant.ids.first for grant in grants.values() if grant.ids] == [FIRST + n * EACH for n in range(3)]
    assert {grant.ids.count for grant in grants.values() if grant.ids} == {EACH}
    addresses = [grant.addresses for grant in grants.values()]
    assert len(set(addresses)) == 3
    assert ("10.77.96.0",) not in addresses


def test_a_privileged_container_gets_an_address_alone(settings: Settings) -> None:
    grant = pool.allocate(settings, wants("a", unprivileged=False))["a"]
    assert grant.ids is None
    assert len(grant.addresses) == 1


def test_what_is_in_a_directory_is_not_given_again(settings: Settings) -> None:
    declare(settings.paths.container("old"), "old", FIRST, "10.77.96.1")
    grant = pool.allocate(settings, wants("new"))["new"]
    assert grant.ids and grant.ids.first == FIRST + EACH
    assert grant.addresses != ("10.77.96.1",)


def test_the_trash_and_what_is_being_deleted_keep_theirs(settings: Settings) -> None:
    trash = settings.paths.trash
    declare(trash / places.trash_name(trash, "web"), "web", FIRST, "10.77.96.1")
    declare(places.doomed(trash) / "gone", "gone", FIRST + EACH, "10.77.96.2")
    grant = pool.allocate(settings, wants("new"))["new"]
    assert grant.ids and grant.ids.first == FIRST + 2 * EACH
    assert grant.addresses == ("10.77.96.3",)


def test_what_was_never_used_comes_before_what_was(settings: Settings) -> None:
    (first, _), (second, _) = make(settings, "a", "b")
    delete(settings, "a")
    made = make(settings, "c", "d")
    assert [ids for ids, _ in made] == [second + EACH, second + 2 * EACH]
    assert [ids for ids, _ in make(settings, "e")] == [first]


def test_what_was_used_fills_up_what_is_missing(settings: Settings) -> None:
    (first, _), (second, _) = make(settings, "a", "b")
    delete(settings, "a")
    made = make(settings, "c", "d", "e")
    assert [ids for ids, _ in made] == [second + EACH, second + 2 * EACH, first]


def test_what_is_free_the_longest_is_reused_first(settings: Settings) -> None:
    made = dict(zip("abcd", make(settings, "a", "b", "c", "d"), strict=True))
    for name in "cab":
        delete(settings, name)
        pool.settle(settings, [])  # any look at the pools notes what has become free
    assert [ids for ids, _ in make(settings, "e", "f", "g")] == [made[name][0] for name in "cab"]


def test_the_clock_does_not_decide_what_is_oldest(settings: Settings) -> None:
    make(settings, "a")
    ledger = json.loads(settings.paths.pools.read_text())
    assert "time" not in json.dumps(ledger)
    assert isinstance(ledger["turn"], int)


def test_an_exhausted_pool_gives_nothing_and_says_what_to_change(settings: Settings) -> None:
    make(settings, "a", "b")
    before = settings.paths.pools.read_bytes()
    with pytest.raises(HostError) as caught:
        pool.allocate(settings, wants("c", "d", "e"))
    assert caught.value.exit_code == 4
    assert "3 wanted, 2 free" in caught.value.what
    assert "ids.count" in caught.value.fix
    assert settings.paths.pools.read_bytes() == before


def test_exhausted_addresses_are_told_apart(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, network="10.77.96.0/30")
    with pytest.raises(HostError, match="addresses is exhausted: 3 wanted, 2 free") as caught:
        pool.allocate(settings, wants("a", "b", "c"))
    assert "network.ipv4" in caught.value.fix


def test_overlapping_ranges_name_both(settings: Settings) -> None:
    declare(settings.paths.container("one"), "one", FIRST, "10.77.96.1")
    declare(settings.paths.container("two"), "two", FIRST + 1, "10.77.96.2")
    with pytest.raises(CorruptState) as caught:
        pool.allocate(settings, wants("new"))
    assert "container one" in str(caught.value)
    assert "container two" in str(caught.value)


def test_a_long_range_that_spans_several_is_seen(settings: Settings) -> None:
    declare(settings.paths.container("long"), "long", FIRST, "10.77.96.1", count=3 * EACH)
    declare(settings.paths.container("inner"), "inner", FIRST + EACH, "10.77.96.2")
    declare(settings.paths.container("last"), "last", FIRST + 2 * EACH, "10.77.96.3")
    with pytest.raises(CorruptState, match="long"):
        pool.allocate(settings, wants("new"))


def test_one_address_of_two_names_both(settings: Settings) -> None:
    declare(settings.paths.container("one"), "one", FIRST, "10.77.96.1")
    declare(settings.paths.container("two"), "two", FIRST + EACH, "10.77.96.1")
    with pytest.raises(CorruptState, match=r"10\.77\.96\.1"):
        pool.allocate(settings, wants("new"))


def test_a_copy_by_lxc_copy_blocks_nobody_and_keeps_its_ids(settings: Settings) -> None:
    declare(settings.paths.container("web"), "web", FIRST, "10.77.96.1")
    declare(settings.paths.container("copy"), "web", FIRST, "10.77.96.1")
    pool.settle(settings, [])
    delete(settings, "web")
    grant = pool.allocate(settings, wants("new"))["new"]
    assert grant.ids and grant.ids.first == FIRST + EACH


def test_a_foreign_container_keeps_its_ids(settings: Settings) -> None:
    foreign = settings.paths.container("foreign")
    foreign.mkdir()
    (foreign / "config").write_text(
        f"lxc.idmap = u 0 {FIRST + 100} 1000\nlxc.net.0.ipv4.address = 10.77.96.1/24\n"
    )
    grant = pool.allocate(settings, wants("new"))["new"]
    assert grant.ids and grant.ids.first == FIRST + EACH
    assert grant.addresses == ("10.77.96.2",)


def test_a_damaged_declaration_keeps_what_its_configuration_says(settings: Settings) -> None:
    place = settings.paths.container("web")
    declare(place, "web", FIRST, "10.77.96.1")
    (place / "oneroot.json").write_text("{")
    (place / "config").write_text(f"lxc.idmap = u 0 {FIRST} {EACH}\nlxc.idmap = g 0 {FIRST} {EACH}\n")
    grant = pool.allocate(settings, wants("new"))["new"]
    assert grant.ids and grant.ids.first == FIRST + EACH


def test_a_range_that_is_delegated_to_somebody_is_passed_over(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subuid = tmp_path / "subuid"
    subuid.write_text(f"root:{FIRST}:{4 * EACH}\nalice:{FIRST + 5}:10\n")
    delegated = occupancy.delegated
    monkeypatch.setattr(occupancy, "delegated", lambda: delegated([subuid]))
    grant = pool.allocate(settings, wants("a"))["a"]
    assert grant.ids and grant.ids.first == FIRST + EACH


def test_ids_by_convention_somebody_elses_are_passed_over(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    beyond = dataclasses.replace(settings, ids=IdPool(first=0x7FFD_0000, count=4 * EACH, each=EACH))
    grant = pool.allocate(beyond, wants("a"))["a"]
    assert grant.ids and grant.ids.first == 0x7FFD_0000
    with pytest.raises(HostError, match="2 wanted, 1 free"):
        pool.allocate(beyond, wants("b", "c"))


def test_what_another_living_process_was_promised_is_busy(settings: Settings) -> None:
    pool.allocate(settings, wants("a"))
    ledger = json.loads(settings.paths.pools.read_text())
    parent = os.getppid()
    for lines in (ledger["ids"], ledger["addresses"]):
        for promise in lines.values():
            promise |= {"pid": parent, "pid_start": proc.start_time(parent)}
    settings.paths.pools.write_text(json.dumps(ledger))
    with pytest.raises(Busy, match=r"process \d+"):
        pool.allocate(settings, wants("a"))
    assert pool.in_making(settings) == {"a"}
    assert pool.allocate(settings, wants("b"))["b"].ids != pool.IdRange(first=FIRST, count=EACH)


def test_what_a_dead_process_was_promised_is_free_again(settings: Settings) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    pool.allocate(settings, wants("a", "b", "c", "d"))
    ledger = json.loads(settings.paths.pools.read_text())
    for lines in (ledger["ids"], ledger["addresses"]):
        for promise in lines.values():
            promise["pid"] = ended.pid
    settings.paths.pools.write_text(json.dumps(ledger))
    assert pool.in_making(settings) == set()
    assert pool.free_ranges(settings) == 4
    assert len(pool.allocate(settings, wants("a", "b", "c", "d"))) == 4


def test_a_lost_ledger_is_begun_anew_from_the_directories(settings: Settings) -> None:
    make(settings, "a", "b")
    settings.paths.pools.unlink()
    grant = pool.allocate(settings, wants("c"))["c"]
    assert grant.ids and grant.ids.first == FIRST + 2 * EACH


def test_a_damaged_ledger_is_named_with_its_mend(settings: Settings) -> None:
    make(settings, "a")
    settings.paths.pools.write_text("{nonsense")
    with pytest.raises(CorruptState) as caught:
        pool.allocate(settings, wants("b"))
    assert f"rm {settings.paths.pools}" in caught.value.fix


def test_the_ledger_is_roots_alone(settings: Settings) -> None:
    make(settings, "a")
    assert settings.paths.pools.stat().st_mode & 0o777 == 0o600


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=25))
@hypothesis_settings(max_examples=25, deadline=None)
def test_no_two_ever_share_anything(moves: list[tuple[bool, int]]) -> None:
    place = Path(tempfile.mkdtemp())
    try:
        settings = settings_in(place, ranges=6)
        existing: dict[str, tuple[int, str]] = {}
        for create, number in moves:
            name = f"c{number}"
            if create and name not in existing:
                existing[name] = make(settings, name)[0]
            elif not create and name in existing:
                delete(settings, name)
                del existing[name]
            assert len({ids for ids, _ in existing.values()}) == len(existing)
            assert len({address for _, address in existing.values()}) == len(existing)
    finally:
        shutil.rmtree(place)
