from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.host import limits, sysctl
from oneroot.host.check import Status
from oneroot.host.limits import LIMITS, Limit, Load


@pytest.fixture
def parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)
    (tmp_path / "kernel").mkdir()
    return tmp_path


LIMIT = Limit(name="kernel.thing", need=lambda load: load.containers * 2, why="because")


def test_a_limit_that_is_too_low_says_what_to_do(parameters: Path) -> None:
    (parameters / "kernel" / "thing").write_text("199\n")
    found = limits.check(LIMIT, Load(containers=100, units=0))
    assert (found.status, found.found, found.needed) == (Status.FAIL, "199", "200")
    assert found.fix_command == "sysctl -w kernel.thing=256"
    assert found.fixable
    (parameters / "kernel" / "thing").write_text("200\n")
    assert limits.check(LIMIT, Load(containers=100, units=0)).status is Status.OK


def test_a_parameter_that_this_kernel_does_not_have_limits_nothing(parameters: Path) -> None:
    assert limits.check(LIMIT, Load(containers=100, units=0)).status is Status.OK


def test_only_walls_stop_a_start(parameters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (parameters / "kernel" / "thing").write_text("1\n")
    soft = Limit(name="kernel.thing", need=lambda load: 5, why="", wall=False)
    monkeypatch.setattr(limits, "LIMITS", (soft,))
    assert limits.too_low(Load(containers=1, units=1)) == []
    monkeypatch.setattr(limits, "LIMITS", (soft, LIMIT))
    assert [check.title for check in limits.too_low(Load(containers=1, units=1))] == ["kernel.thing"]


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_more_containers_never_need_less(few: int, more: int) -> None:
    few, more = sorted((few, more))
    for limit in LIMITS:
        assert limit.need(Load(containers=few, units=few)) <= limit.need(Load(containers=more, units=more))


@given(st.integers(1, 1 << 40))
def test_rounding_never_lowers(number: int) -> None:
    rounded = limits.rounded(number)
    assert number <= rounded < 2 * number or number == rounded == 1
    assert rounded & (rounded - 1) == 0


def test_few_containers_fit_into_what_a_kernel_offers_by_default() -> None:
    """Values of a plain kernel: a first container must start on an untouched machine."""
    defaults = {
        "kernel.pty.max": 4096,
        "kernel.pid_max": 32768,
        "fs.inotify.max_user_instances": 128,
        "net.ipv4.neigh.default.gc_thresh3": 1024,
    }
    for limit in LIMITS:
        if limit.name in defaults:
            assert limit.need(Load(containers=5, units=5)) <= defaults[limit.name]


def test_each_limit_is_named_once() -> None:
    names = [limit.name for limit in LIMITS]
    assert len(names) == len(set(names))
