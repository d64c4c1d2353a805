from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot import names
from oneroot.errors import ExitCode, UnknownName, UsageError

EXISTING = ["db", "web001", "web002", "web010"]


@pytest.mark.parametrize("good", ["a", "0", "web001", "a-b", "x" * 63])
def test_names_of_the_contract_are_taken(good: str) -> None:
    assert names.container_name(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "-a",
        "a-",
        "a/b",
        "..",
        ".",
        "a b",
        "x" * 64,
        "x" * 300,
        "Web",
        "wéb",
        "a\n",
        "a\x00",
        "../a",
        "--all",
    ],
)
def test_anything_else_is_refused_with_a_reason(bad: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.container_name(bad)
    assert caught.value.exit_code is ExitCode.USAGE
    assert caught.value.fix
    assert len(caught.value.what) < 150


@given(st.text())
def test_no_accepted_name_can_leave_its_directory(text: str) -> None:
    try:
        name = names.container_name(text)
    except UsageError:
        return
    assert "/" not in name and not name.startswith((".", "-")) and name.isascii() and name.isprintable()


def test_patterns_and_names_select_each_container_once() -> None:
    assert names.select(["web0*", "web001", "db"], EXISTING) == EXISTING
    assert names.select([], EXISTING) == EXISTING


@pytest.mark.parametrize("nothing", ["mail*", "web003"])
def test_what_matches_nothing_is_an_error(nothing: str) -> None:
    with pytest.raises(UnknownName):
        names.select(["db", nothing], EXISTING)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UnknownName) as caught:
        names.select(["web0001"], EXISTING)
    assert "web001" in caught.value.fix
