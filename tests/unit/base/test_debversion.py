"""Our order of versions is dpkg's own."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess

import pytest

from oneroot.platform import debversion
from tests.conftest import skip_or_fail

VERSIONS = [
    *(
        "1.0",
        "1.0-1",
        "1.0-1+b1",
        "1.0-1~deb12u1",
        "1.0~rc1-1",
        "1:0.1",
        "0:1.0-1",
        "1.0.0",
        "1.10",
        "1.9",
        "1.0a",
    ),
    *(
        "1.0+dfsg-1",
        "2.36-9+deb12u14",
        "2.36-9+deb12u9",
        "3.0.17-1~deb12u2",
        "3.0.15-1~deb12u1",
        "1.0-",
        "0",
        "00",
    ),
    *(
        "1.0-1.1",
        "1.0-1-1",
        "~",
        "~~",
        "~a",
        "a",
        "1.02",
        "1.2",
        "20230311+deb12u1",
        "20250419~deb12u2",
        "1.0Z",
        "1.0.",
    ),
]


def test_known_orders() -> None:
    assert debversion.newer("1.0-1", "1.0-1~deb12u1")
    assert debversion.newer("2.36-9+deb12u14", "2.36-9+deb12u9")
    assert debversion.newer("1:0.1", "2.0")
    assert debversion.newer("1.0", "1.0~rc1")
    assert not debversion.newer("1.0", "1.0")
    assert not debversion.newer("0:1.0", "1.0")


def test_agrees_with_dpkg() -> None:
    if shutil.which("dpkg") is None:
        skip_or_fail("no dpkg here")
    chosen = random.Random(7)
    made = ["1" + "".join(chosen.choices("0123459abZ.+~-:", k=chosen.randint(0, 6))) for _ in range(40)]
    valid = [version for version in VERSIONS + made if _valid(version)]
    pairs = chosen.sample(list(itertools.combinations(valid, 2)), 400)
    # One shell for all: a process for each comparison would take minutes.
    script = "".join(f"dpkg --compare-versions '{a}' gt '{b}'; echo $?\n" for a, b in pairs)
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    wrong = [
        (a, b) for (a, b), code in zip(pairs, said, strict=True) if debversion.newer(a, b) != (code == "0")
    ]
    assert wrong == []


def _valid(version: str) -> bool:
    epoch, colon, rest = version.partition(":")
    return not version.endswith("-") and (
        not colon or (epoch.isdecimal() and ":" not in rest and rest[:1].isdigit())
    )


@pytest.mark.parametrize("version", ["", ":", "-", "1:", "a:b-c", "1-2-3~"])
def test_nonsense_has_an_order_too(version: str) -> None:
    assert debversion.key(version) == debversion.key(version)
