from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oneroot.host.mend import merge_parameters, parse_parameters

VALUES = st.dictionaries(st.sampled_from(["a.b", "c.d", "e.f"]), st.integers(0, 1 << 40).map(str))


def test_a_sysctl_file_is_read_without_its_comments() -> None:
    text = "# a = 1\n; b = 2\nkernel.x = 5\nnet.y=6\nrubbish\n"
    assert parse_parameters(text) == {"kernel.x": "5", "net.y": "6"}


@given(VALUES, VALUES)
def test_a_later_fix_for_fewer_containers_lowers_nothing(old: dict[str, str], new: dict[str, str]) -> None:
    merged = merge_parameters(old, new)
    assert set(merged) == set(old) | set(new)
    for name in merged:
        assert int(merged[name]) == max(int(side[name]) for side in (old, new) if name in side)
