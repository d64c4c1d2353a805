from __future__ import annotations

import pytest

from oneroot.host.kernelinfo import HOLES, Version, cgroup_mode, parse_version
from oneroot.kernel.mount import parse_mountinfo

DEBIAN = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)"


@pytest.mark.parametrize(
    ("release", "build", "expected"),
    [
        ("6.1.0-18-amd64", DEBIAN, ((6, 1, 76), True)),
        ("6.18.44", "#1 SMP", ((6, 18, 44), True)),
        ("6.18", "", ((6, 18, 0), True)),
        ("5.14.0-427.el9.x86_64", "#1 SMP", ((5, 14, 0), False)),
        ("6.8.0-45-generic", "#45-Ubuntu SMP", ((6, 8, 0), False)),
        ("strange", "", (None, False)),
    ],
)
def test_versions_and_whether_they_tell_of_holes(
    release: str, build: str, expected: tuple[Version | None, bool]
) -> None:
    assert parse_version(release, build) == expected


@pytest.mark.parametrize(
    ("cve", "version", "hit"),
    [
        ("CVE-2024-1086", (6, 1, 75), True),
        ("CVE-2024-1086", (6, 1, 76), False),
        ("CVE-2024-1086", (6, 5, 13), True),
        ("CVE-2024-1086", (6, 7, 3), False),
        ("CVE-2024-1086", (6, 8, 0), False),
        ("CVE-2024-1086", (6, 18, 1), False),
        ("CVE-2023-0386", (5, 10, 0), False),
        ("CVE-2023-0386", (6, 1, 8), True),
        ("CVE-2023-0386", (6, 2, 0), False),
        ("CVE-2023-32233", (6, 3, 1), True),
        ("CVE-2023-32233", (6, 3, 2), False),
        ("CVE-2023-32233", (6, 4, 0), False),
    ],
)
def test_holes(cve: str, version: Version, hit: bool) -> None:
    assert next(hole for hole in HOLES if hole.cve == cve).hits(version) is hit


def test_cgroup_modes() -> None:
    pids = "30 20 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    unified = "31 20 0:27 / /nowhere rw - cgroup2 cgroup2 rw\n"
    named = "32 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
    assert cgroup_mode([]) == ("none", set())
    assert cgroup_mode(parse_mountinfo(pids)) == ("v1", {"pids"})
    assert cgroup_mode(parse_mountinfo(pids + unified)) == ("hybrid", {"pids"})
    assert cgroup_mode(parse_mountinfo(named + unified))[0] == "v2"
    assert cgroup_mode(parse_mountinfo(unified)) == ("v2", set())
