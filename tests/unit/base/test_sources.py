"""Which package sources a base takes from the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneroot.errors import UsageError
from oneroot.platform import sources

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://deb.example/debian http://two.example/debian
Suites: bookworm
  bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/a.gpg

Types: deb
URIs: http://deb.example/security
Suites: bookworm-security
Components: main
Enabled: no

Types: deb-src
URIs: http://src.example/
Suites: bookworm
Components: main

Types: deb
URIs: https://foreign.example/node
Suites: nodistro
Components: main
"""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_both_formats_are_read_and_foreign_suites_left_out(apt: Path) -> None:
    (apt / "sources.list").write_text(
        "deb [arch=amd64 signed-by=/k.gpg] http://old.example/debian bookworm-backports main contrib # why\n"
        "#deb http://no.example bookworm main\n"
        "deb-src http://no.example bookworm main\n"
        "deb http://foreign.example cloud-sdk-bookworm main\n"
        "deb http://foreign.example trixie main\n"
        "deb [arch=arm64] http://arm.example bookworm main\n"
    )
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    (apt / "sources.list.d/ignored.txt").write_text("deb http://no.example bookworm main\n")
    found = sources.host_repositories("bookworm", architecture="amd64", apt=apt)
    assert [(one.uri, one.suites, one.components, one.signed_by) for one in found] == [
        ("http://old.example/debian", ("bookworm-backports",), ("main", "contrib"), "/k.gpg"),
        *(
            (
                f"http://{host}.example/debian",
                ("bookworm", "bookworm-updates"),
                ("main",),
                "/usr/share/keyrings/a.gpg",
            )
            for host in ("deb", "two")
        ),
    ]


def test_chosen_suites_only(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    found = sources.host_repositories("bookworm", suites=["bookworm"], architecture="amd64", apt=apt)
    assert {one.suites for one in found} == {("bookworm",)}
    with pytest.raises(UsageError, match="bookworm-security"):
        sources.host_repositories(
            "bookworm", suites=["bookworm", "bookworm-security"], architecture="amd64", apt=apt
        )


def test_no_source_of_the_release(apt: Path) -> None:
    (apt / "sources.list").write_text("deb http://x.example trixie main\n")
    with pytest.raises(UsageError, match="bookworm") as caught:
        sources.host_repositories("bookworm", architecture="amd64", apt=apt)
    assert "--mirror" in caught.value.fix


@pytest.mark.parametrize("option", ["trusted=yes", "allow-insecure=yes", "arch=amd64 trusted=true"])
def test_unverified_sources_must_be_spoken(apt: Path, option: str) -> None:
    (apt / "sources.list").write_text(f"deb [{option}] http://x.example bookworm main\n")
    with pytest.raises(UsageError, match="not verified"):
        sources.host_repositories("bookworm", architecture="amd64", apt=apt)
    [one] = sources.host_repositories("bookworm", architecture="amd64", apt=apt, allow_unsigned=True)
    assert one.allow_unsigned


def test_unverified_deb822_and_embedded_keys_are_refused(apt: Path) -> None:
    file = apt / "sources.list.d/x.sources"
    body = "Types: deb\nURIs: http://x\nSuites: bookworm\nComponents: main\n"
    file.write_text(body + "Trusted: yes\n")
    with pytest.raises(UsageError, match="not verified"):
        sources.host_repositories("bookworm", architecture="amd64", apt=apt)
    file.write_text(body + "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n x\n")
    with pytest.raises(UsageError, match="key inside"):
        sources.host_repositories("bookworm", architecture="amd64", apt=apt)


@pytest.mark.parametrize(
    "line",
    [
        *("", "deb", "deb http://x", "deb-src http://x y z", "deb gopher://x y z", "rpm http://x y z"),
        *("deb http://x a main\ndeb [trusted=yes] http://y z main", "deb [signed-by=relative] file:/x y z"),
        "deb [signed-by=0123456789ABCDEF0123456789ABCDEF01234567] file:/x y z",
        *("deb [signed-by=/does/not/exist] http://x y z", "deb http://x\x1b[0m y z", "deb http://x -y z"),
        "deb [trusted=yes] http://x y z",
    ],
)  # fmt: skip
def test_bad_lines_are_refused(line: str) -> None:
    with pytest.raises(UsageError):
        sources.parse_repository(line)


def test_lines_name_keys_only_where_they_can_be_read(tmp_path: Path) -> None:
    keyring = tmp_path / "k.gpg"
    keyring.touch()
    one = sources.parse_repository(f"deb [signed-by={keyring}] file:{tmp_path} ./", allow_expired=True)
    assert sources.lines([one], keyring=str) == (
        f"deb [signed-by={keyring} check-valid-until=no] copy:{tmp_path} ./\n"
    )
    assert sources.lines([one], keyring=None) == f"deb copy:{tmp_path} ./\n"
    assert sources.local_directories([one]) == [tmp_path]
