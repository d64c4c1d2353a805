from __future__ import annotations

import time
from pathlib import Path

import pytest

from oneroot.errors import CommandFailed, HostError
from oneroot.run import run


def test_output_and_status_are_kept() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2; exit 3"], ok=(3,))
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


def test_failure_carries_the_whole_story() -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "echo the reason >&2; exit 7"])
    assert caught.value.returncode == 7
    assert "the reason" in caught.value.why


def test_a_missing_program_is_the_hosts_fault() -> None:
    with pytest.raises(HostError):
        run(["/nonexistent/program"])


def test_a_timeout_kills_what_the_program_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", f"(sleep 1; touch {mark}) & sleep 60"], timeout=0.2)
    assert caught.value.returncode is None
    time.sleep(1.2)
    assert not mark.exists()


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_PLANTED", "1")
    said = run(["env"], env={"MINE": "2"}).stdout.splitlines()
    assert "LC_ALL=C.UTF-8" in said and "MINE=2" in said
    assert not any(line.startswith("LD_PRELOAD_PLANTED") for line in said)


def test_input_is_empty_unless_given() -> None:
    assert run(["cat"]).stdout == ""
    assert run(["cat"], input="given").stdout == "given"
