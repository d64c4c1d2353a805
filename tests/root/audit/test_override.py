"""Overrides in real uppers: written by the kernel's overlay, or by somebody hostile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oneroot.audit.override import Override, OverrideKind, Overrides, Severity, examine_all
from oneroot.base.manifest import Change, Entry, Kind, save_changes
from oneroot.container.state import read_states
from tests.root.audit.place import LIBRARIES, LIBSSL, Place

APACHE = "/usr/lib/apache2"


def look(place: Place, name: str) -> Overrides:
    return examine_all(place.settings, read_states(place.settings, [name]))[name]


def listed(found: Overrides) -> dict[str, tuple[OverrideKind, Severity]]:
    return {one.path: (one.kind, one.severity) for one in found.found}


@pytest.fixture
def upper(place: Place) -> Path:
    """The upper of a container that is stopped."""
    place.container("au-off")
    return place.upper("au-off")


@pytest.mark.parametrize("privileged", [False, True])
def test_what_a_running_container_does_to_its_base(place: Place, privileged: bool) -> None:
    name = place.container("au-do", privileged=privileged)
    place.start(name)
    place.inside(name, f"rm -r {APACHE}; mkdir -p {APACHE}/modules")  # opaque
    place.inside(name, f"cp /usr/bin/true {APACHE}/modules/mod_php.so")
    place.inside(name, "rm /usr/bin/openssl; echo x >> /usr/sbin/apache2ctl; touch /usr/bin/env")
    place.inside(
        name, "echo x >> /etc/apache2/apache2.conf; rm /etc/apache2/ports.conf; echo x >> /etc/hosts"
    )
    place.inside(
        name, "echo x >> /var/lib/dpkg/status; rm -r /usr/lib/ssl; ldconfig; echo x >> /etc/ld.so.cache"
    )
    place.inside(
        name, "mkdir -p /opt/app /var/log/app; cp /usr/bin/true /opt/app; echo x >> /var/log/dpkg.log"
    )
    running = look(place, name)
    place.stop(name)
    assert look(place, name) == running and running.unknown == ""
    found = listed(running)
    assert found.pop(APACHE) == (OverrideKind.MASKED, Severity.CODE)
    assert found.pop("/usr/bin/openssl") == (OverrideKind.MASKED, Severity.CODE)
    assert found.pop("/usr/sbin/apache2ctl") == (OverrideKind.OVERRIDDEN, Severity.CODE)
    assert found.pop("/usr/bin/env") == (OverrideKind.EQUIVALENT, Severity.CODE)
    assert found.pop("/etc/ld.so.cache") == (OverrideKind.OVERRIDDEN, Severity.CODE)
    assert found.pop("/etc/apache2/apache2.conf") == (OverrideKind.OVERRIDDEN, Severity.CONFIGURATION)
    assert found.pop("/etc/apache2/ports.conf") == (OverrideKind.MASKED, Severity.CONFIGURATION)
    assert found.pop("/var/lib/dpkg/status") == (OverrideKind.OVERRIDDEN, Severity.DATABASE)
    assert found.pop("/usr/lib/ssl")[0] is OverrideKind.MASKED
    assert found == {}
    hidden = next(one for one in running.found if one.path == APACHE)
    assert hidden.hides > 50 and hidden.keeps_fixes_out


def test_only_code_that_differs_keeps_fixes_out(place: Place) -> None:
    place.start(place.container("au-warn"))
    place.inside("au-warn", "echo x >> /etc/apache2/apache2.conf; echo x >> /var/lib/dpkg/status")
    place.inside("au-warn", f"chown 7:7 {LIBSSL}")
    one = place.one("au-warn")
    assert one.proven is True and len(one.overrides) == 3


def test_opaque_directory_that_shows_the_same_hides_nothing(place: Place) -> None:
    place.start(place.container("au-same"))
    place.inside("au-same", f"cp -a {APACHE} /opt/a; rm -r {APACHE}; cp -a /opt/a {APACHE}")
    found = look(place, "au-same")
    assert {one.kind for one in found.found} == {OverrideKind.EQUIVALENT}
    assert len(found.found) > 50 and place.one("au-same").proven is True


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/bin/true", path)])
def test_something_else_in_place_of_a_library(place: Place, upper: Path, make: object) -> None:
    (upper / LIBRARIES).mkdir(parents=True)
    make(upper / LIBSSL[1:])  # type: ignore[operator]
    assert listed(look(place, "au-off")) == {LIBSSL: (OverrideKind.OVERRIDDEN, Severity.CODE)}


@pytest.mark.parametrize("target", ["/", "/proc/self/root/usr/lib", "../../../../../../usr/lib"])
def test_link_in_place_of_a_directory_is_not_followed(place: Place, upper: Path, target: str) -> None:
    (upper / "usr").mkdir(exist_ok=True)
    (upper / "usr/lib").symlink_to(target)
    (one,) = look(place, "au-off").found
    assert (one.path, one.kind, one.severity) == ("/usr/lib", OverrideKind.MASKED, Severity.CODE)
    assert one.hides > 100


def test_whiteout_of_a_directory(place: Place, upper: Path) -> None:
    (upper / "usr").mkdir(exist_ok=True)
    os.mknod(upper / "usr/lib", 0o020000, os.makedev(0, 0))
    (one,) = look(place, "au-off").found
    assert (one.path, one.kind, one.severity) == ("/usr/lib", OverrideKind.MASKED, Severity.CODE)


def test_whiteout_in_the_form_of_an_attribute(place: Place, upper: Path) -> None:
    directory = upper / LIBRARIES
    directory.mkdir(parents=True)
    (upper / LIBSSL[1:]).touch()
    assert listed(look(place, "au-off"))[LIBSSL][0] is OverrideKind.OVERRIDDEN
    os.setxattr(directory, "user.overlay.opaque", b"x")
    os.setxattr(upper / LIBSSL[1:], "user.overlay.whiteout", b"")
    assert listed(look(place, "au-off"))[LIBSSL][0] is OverrideKind.MASKED


def test_merged_link_replaced_by_a_directory(place: Place, upper: Path) -> None:
    """/lib leads to /usr/lib in the base: a directory there hides every library under that name."""
    (upper / "lib/x86_64-linux-gnu").mkdir(parents=True)
    assert listed(look(place, "au-off")) == {"/lib": (OverrideKind.OVERRIDDEN, Severity.CODE)}


def test_link_to_a_library_replaced_by_a_file(place: Place, upper: Path) -> None:
    link = next(
        row[0] for row in place.manifest(2).rows()
        if row[1] == "l" and row[0].startswith(f"/{LIBRARIES}/lib") and ".so." in row[0]
    )  # fmt: skip
    (upper / LIBRARIES).mkdir(parents=True)
    (upper / link[1:]).write_bytes(b"\x7fELF of somebody")
    assert listed(look(place, "au-off")) == {link: (OverrideKind.OVERRIDDEN, Severity.CODE)}


def test_code_that_only_an_older_generation_had(place: Place, upper: Path) -> None:
    gone = f"/{LIBRARIES}/libssl.so.1.1"
    old = Entry(
        path=gone, kind=Kind.FILE, mode=0o644, uid=0, gid=0, size=3, mtime=0, digest="0" * 64,
        package="libssl1.1", code=True, attributes={},
    )  # fmt: skip
    collected = place.settings.paths.bases / "core/collected/7"
    collected.mkdir(parents=True)
    save_changes(collected / "changes.gz", [Change(path=gone, old=old, new=None)])
    try:
        (upper / LIBRARIES).mkdir(parents=True)
        (upper / gone[1:]).write_bytes(b"old")
        expected = Override(
            path=gone, kind=OverrideKind.OVERRIDDEN, package="libssl1.1", severity=Severity.CODE
        )
        assert look(place, "au-off").found == (expected,)
    finally:
        (collected / "changes.gz").unlink()
        collected.rmdir()
        collected.parent.rmdir()


def test_hostile_names_and_depth_do_no_harm(place: Place, upper: Path) -> None:
    (upper / LIBRARIES).mkdir(parents=True)
    for name in ("new\nline", "\x1b[31mred", b"\xff\xfe".decode("utf-8", "surrogateescape"), "[bold]"):
        (upper / LIBRARIES / name).touch()
        (upper / "etc" / name).mkdir()
    here = os.open(upper / LIBRARIES, os.O_RDONLY)
    for depth in range(4000):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        assert depth >= 0
    os.mkfifo("end", dir_fd=here)
    os.close(here)
    os.mkfifo(upper / "etc/passwd")
    found = look(place, "au-off")
    assert found.unknown == ""
    assert listed(found) == {"/etc/passwd": (OverrideKind.OVERRIDDEN, Severity.CONFIGURATION)}
    from oneroot.kernel.tree import remove_tree  # shutil cannot go so deep

    remove_tree(upper / LIBRARIES / "deep")


def test_directory_swapped_while_it_is_read(place: Place, upper: Path) -> None:
    """Whatever is seen, nothing outside the upper is, and nothing hangs or raises."""
    import threading

    (upper / LIBRARIES).mkdir(parents=True)
    (upper / LIBSSL[1:]).write_bytes(b"x")
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            (upper / "usr").rename(upper / "usr.away")
            (upper / "usr").symlink_to("/usr")
            (upper / "usr").unlink()
            (upper / "usr.away").rename(upper / "usr")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            paths = {one.path for one in look(place, "au-off").found}
            assert paths <= {LIBSSL, "/usr"}
    finally:
        ended.set()
        thread.join()


def test_upper_that_is_gone_is_unknown(place: Place, upper: Path) -> None:
    upper.rename(upper.with_name("away"))
    assert "cannot be read" in look(place, "au-off").unknown
