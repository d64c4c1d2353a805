from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.cli import render
from oneroot.errors import OnerootError


@given(st.text())
def test_nothing_printed_can_steer_a_terminal(text: str) -> None:
    safe = render.escape(text)
    assert all(char.isprintable() for char in safe)


@given(st.text())
def test_json_is_ascii_and_whole(text: str) -> None:
    written = render.json_text({"name": text})
    assert written.isascii()
    assert json.loads(written) == {"name": text}


def test_escapes_are_shown_not_obeyed() -> None:
    assert render.escape("a\x1b[2Jb\u202ec") == "a\\x1b[2Jb\\u202ec"


def test_an_error_has_the_fields_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_error(OnerootError("w", why="y", fix="f", container="c"), as_json=True)
    assert json.loads(capsys.readouterr().err) == {
        "error": {"code": "failed", "what": "w", "why": "y", "fix": "f", "container": "c"}
    }


def test_markup_in_a_cell_stays_text(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_table(["name"], [["[red]x[/red]"]])
    assert "[red]x[/red]" in capsys.readouterr().out
