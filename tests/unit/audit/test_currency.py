"""Whether a base is as new as it can be, from what the store says."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from oneroot.audit.currency import Currency, currency
from oneroot.base.generation import (
    SCHEMA,
    BaseSpec,
    Generation,
    GenerationNumber,
    PackageChange,
    Pin,
    SourceCheck,
)  # fmt: skip
from oneroot.base.store import Store
from oneroot.names import BaseName
from oneroot.settings import Paths, Settings
from oneroot.work import files

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
FIX = PackageChange(package="openssl", old="1", new="2", cves=("CVE-2026-0001",), security=True)


@dataclasses.dataclass
class Shelf:
    """A store with one base, written as `Store` reads it."""

    store: Store

    @property
    def directory(self) -> Path:
        return self.store.settings.paths.bases / "core"

    def generation(self, number: int, packages: dict[str, str], *changes: PackageChange) -> None:
        directory = self.directory / "generations" / str(number)
        (directory / "root").mkdir(parents=True)
        made = Generation(
            base=BaseName("core"), number=GenerationNumber(number), parent=None, created="", reason="",
            person="", packages=packages, changes=changes, releases=(), files=0, size=0, digest="",
        )  # fmt: skip
        files.save(directory / "generation.json", made, schema=SCHEMA)

    def use(self, number: int) -> None:
        (self.directory / "current").unlink(missing_ok=True)
        (self.directory / "current").symlink_to(f"generations/{number}")

    def declare(self, **fields: object) -> None:
        spec = BaseSpec(name=BaseName("core"), source="debian:bookworm", **fields)  # type: ignore[arg-type]
        files.save(self.directory / "base.json", spec, schema=SCHEMA)

    def checked(self, when: str | None, *pending: PackageChange, error: str = "") -> None:
        check = SourceCheck(checked=when, attempted=NOW.isoformat(), error=error, pending=pending)
        files.save(self.directory / "checked.json", check, schema=SCHEMA)

    def look(self) -> Currency:
        return currency(self.store, "core", max_age=24 * 3600, now=NOW)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(Store(Settings(paths=Paths(store=tmp_path, run=tmp_path / "run"))))
    made.generation(1, {"openssl": "1"})
    made.use(1)
    made.declare()
    made.checked(NOW.isoformat())
    return made


def test_newest_checked_and_nothing_pending(shelf: Shelf) -> None:
    found = shelf.look()
    assert (found.generation, found.newest, found.reasons, found.unknown) == (1, 1, (), ())


def test_security_update_at_the_sources(shelf: Shelf) -> None:
    shelf.checked(NOW.isoformat(), FIX, dataclasses.replace(FIX, package="vim", cves=(), security=False))
    found = shelf.look()
    assert found.pending == (FIX,) and "openssl 2" in found.reasons[0]


def test_record_that_names_what_is_installed_by_now(shelf: Shelf) -> None:
    shelf.checked(NOW.isoformat(), dataclasses.replace(FIX, new="1"))
    assert shelf.look().reasons == ()


def test_older_generation_lacks_what_the_newer_fixed(shelf: Shelf) -> None:
    shelf.generation(2, {"openssl": "2"}, FIX)
    found = shelf.look()
    assert found.newest == 2 and len(found.reasons) == 2 and found.pending == (FIX,)
    shelf.use(2)
    assert shelf.look().reasons == ()


def test_pin_is_a_reason_only_with_what_it_keeps_out(shelf: Shelf) -> None:
    pin = Pin(generation=1, reason="", person="ann", since="2026-05-01T00:00:00+00:00")
    shelf.declare(pin=pin)
    shelf.generation(2, {"openssl": "1", "vim": "2"})
    assert shelf.look().pin == pin and shelf.look().reasons == ()
    shelf.generation(3, {"openssl": "2"}, FIX)
    (reason,) = shelf.look().reasons
    assert "pinned to generation 1 by ann" in reason and "openssl 2" in reason
    shelf.use(2)
    assert "it is pinned to generation 1, and generation 2 is current" in shelf.look().reasons


@pytest.mark.parametrize(
    ("age", "said"),
    [
        (timedelta(hours=24), ""),
        (timedelta(hours=24, seconds=1), "24.0 hours ago"),
        (timedelta(seconds=-4), ""),
        (timedelta(minutes=-1), "set back"),
    ],
)
def test_age_of_the_check(shelf: Shelf, age: timedelta, said: str) -> None:
    shelf.checked((NOW - age).isoformat())
    reasons = shelf.look().reasons
    assert (said in reasons[0]) if said else reasons == ()


@pytest.mark.parametrize("when", [None, "yesterday", ""])
def test_check_that_never_succeeded(shelf: Shelf, when: str | None) -> None:
    shelf.checked(when, error="the mirror is gone")
    assert len(shelf.look().reasons) == 1
    (shelf.directory / "checked.json").unlink()
    assert "never" in shelf.look().reasons[0]


def test_failed_attempt_within_the_age_is_forgiven(shelf: Shelf) -> None:
    shelf.checked((NOW - timedelta(hours=2)).isoformat(), error="the mirror is gone")
    assert shelf.look().reasons == ()


@pytest.mark.parametrize("victim", ["base.json", "generations/1/generation.json", "current"])
def test_what_cannot_be_read_is_unknown(shelf: Shelf, victim: str) -> None:
    path = shelf.directory / victim
    path.unlink()
    if victim == "current":
        path.symlink_to("generations/7")
    else:
        path.write_text("{")
    assert shelf.look().unknown
