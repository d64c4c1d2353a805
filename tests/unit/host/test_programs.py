from __future__ import annotations

import os
from pathlib import Path

import pytest

from oneroot.host.programs import hook_problem


def test_a_hook_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be used" in hook_problem(tmp_path / "start-hook")


def test_a_hook_that_is_not_executable(tmp_path: Path) -> None:
    hook = tmp_path / "start-hook"
    hook.write_bytes(b"x")
    hook.chmod(0o644)
    assert "not an executable" in hook_problem(hook)
    assert "not an executable" in hook_problem(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="owners are root's to set")
def test_a_hook_that_others_could_change(tmp_path: Path) -> None:
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_mode & 0o022 and not place.stat().st_mode & 0o1000:
            pytest.skip(f"{place} is open to others")
    directory = tmp_path / "libexec"
    directory.mkdir(mode=0o755)
    hook = directory / "start-hook"
    hook.write_bytes(b"x")
    hook.chmod(0o755)
    assert hook_problem(hook) == ""
    hook.chmod(0o775)
    assert "written by others" in hook_problem(hook)
    hook.chmod(0o755)
    directory.chmod(0o777)
    assert f"{directory} can be written" in hook_problem(hook)
    directory.chmod(0o755)
    os.chown(directory, 12345, 0)
    assert "belongs to user 12345" in hook_problem(hook)
    os.chown(directory, 0, 0)
    link = tmp_path / "link"
    link.symlink_to(hook)
    assert hook_problem(link) == ""
    os.chown(hook, 12345, 0)
    assert "belongs to user 12345" in hook_problem(link)


@pytest.mark.skipif(os.geteuid() == 0, reason="as root it is root's")
def test_a_hook_of_an_ordinary_user(tmp_path: Path) -> None:
    hook = tmp_path / "start-hook"
    hook.write_bytes(b"x")
    hook.chmod(0o755)
    assert "not to root" in hook_problem(hook)
