"""The fold gives exactly what the overlay showed, and touches no older generation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroot.base.fold import Folded, fold
from oneroot.kernel import sandbox
from oneroot.platform import apt, dpkg, sources
from tests.root.base import treeview

VIEWER = Path(treeview.__file__)

SHAPES = r"""
set -e
cd "$1"
mkdir -p same gone/deep dir2file file2dir-parent moved/sub/subsub opaque both replaced
mkdir -p metadata links acl outer/inner
echo same > same/file; echo old > same/changed; ln -s file same/link; ln -s nowhere same/dangling
echo x > gone/deep/x; echo x > dir2file/x; echo f > file2dir
echo m > moved/sub/subsub/m; echo keep > moved/keep; echo hide > opaque/hide; echo b > both/b
echo in > outer/inner/in
echo l > links/one; ln links/one links/two; ln links/one links/three
cp /bin/true same/setuid; chmod 4755 same/setuid
cp /bin/true same/capable; setfattr -n security.capability -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= same/capable
mkdir sticky; chmod 1777 sticky; mkdir setgid; chmod 2775 setgid; chgrp 50 setgid; echo g > setgid/g
mkfifo fifo; mknod null c 1 3; mknod loop b 7 0
setfattr -n user.colour -v blue same/file; setfattr -n trusted.mine -v 1 same
setfacl -d -m g:50:rx acl; echo a > acl/a
chown 12:34 same/changed; chmod 0640 same/changed
printf 'n' > "$(printf 'new\nline')"; printf 'u' > "$(printf 'latin-\351')"
touch -d 2001-02-03 same same/file moved/sub outer metadata; touch -h -d 2002-03-04 same/link
"""

CHANGES = r"""
set -e
cd "$1"
rm -r gone; rm -r dir2file; echo now > dir2file; rm file2dir; mkdir file2dir; echo in > file2dir/in
mv moved elsewhere; echo more > elsewhere/sub/new; rm elsewhere/sub/subsub/m; mv elsewhere/sub elsewhere/sib
mkdir moved; echo fresh > moved/fresh
mv outer/inner both/inner; mv both away; rmdir outer; mkdir outer
rm -r opaque; mkdir opaque; echo shown > opaque/shown; mkdir opaque/new
mv replaced r1; mkdir replaced; mv r1 replaced/r1
echo new > same/changed; rm same/dangling; ln -s elsewhere same/dangling; ln -sf target same/link
chmod 0600 same/setuid; cp -p /bin/true same/setuid2; chmod 6755 same/setuid2
touch -d 2003-04-05 metadata; chmod 0711 metadata; chown 5:6 metadata; setfattr -n user.seen -v yes metadata
echo more >> links/two; ln links/three links/four; echo n > links/n1; ln links/n1 links/n2
mkfifo fifo2; mknod zero c 1 5; rm null; chmod 600 fifo
setfacl -d -m u:7:rwx acl; echo b > acl/b; mkdir acl/sub
mkdir -p new/a/b/c; echo deep > new/a/b/c/d; rm -r setgid/g; echo h > setgid/h
rm "$(printf 'new\nline')"; mv "$(printf 'latin-\351')" "$(printf 'latin-\352')"
touch -d 2004-05-06 same
"""


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = Path("/var/tmp") / f"oneroot-fold-{os.getpid()}"
    shutil.rmtree(made, ignore_errors=True)
    for name in ("lower", "upper", "work", "merged"):
        (made / name).mkdir(parents=True)
    yield made
    shutil.rmtree(made)


def overlaid(place: Path, lower: Path, script: str, **more: object) -> dict[str, list[object]]:
    """Run a script over the overlay and return what the overlay showed at its end."""
    mounts = (
        sandbox.Overlay(
            lower=str(lower),
            upper=str(place / "upper"),
            work=str(place / "work"),
            target=str(place / "merged"),
        ),
    )
    watch = f'{script}\ncd /; {sys.executable} {VIEWER} "$1" {place}/view.json'
    job = sandbox.Sandbox(
        argv=("/bin/sh", "-c", watch, "sh", str(place / "merged")),
        mounts=mounts,
        confined=False,
        environment={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **more},  # type: ignore[dict-item]
    )
    with open(place / "log", "wb") as log:
        code = sandbox.run(job, log=log, timeout=300)
    assert code == 0, (place / "log").read_text(errors="replace")[-3000:]
    view: dict[str, list[object]] = json.loads((place / "view.json").read_text())
    return view


def folded(place: Path, lower: Path) -> Folded:
    (place / "merged").rmdir()
    return fold(lower, place / "upper", place / "merged")


def test_every_shape_of_change(place: Path) -> None:
    lower = place / "lower"
    subprocess.run(["sh", "-c", SHAPES, "sh", lower], check=True)
    before = treeview.snapshot(str(lower))
    view = overlaid(place, lower, CHANGES)
    done = folded(place, lower)
    result = treeview.snapshot(str(place / "merged"))
    assert result == view
    assert treeview.snapshot(str(lower)) == before
    assert "/same/file" in done.linked
    assert os.stat(place / "merged/same/file").st_ino == os.stat(lower / "same/file").st_ino
    assert not any("overlay" in name for entry in result.values() for name in entry[7])  # type: ignore[attr-defined]


def test_a_lower_that_did_not_change_is_all_links(place: Path) -> None:
    lower = place / "lower"
    subprocess.run(["sh", "-c", SHAPES, "sh", lower], check=True)
    view = overlaid(place, lower, "true")
    assert folded(place, lower).moved == 0
    assert treeview.snapshot(str(place / "merged")) == view


def test_too_many_links_become_a_copy(place: Path) -> None:
    many = place / "lower" / "many"
    many.write_text("content")
    links = place / "links"
    links.mkdir()
    limit = os.pathconf(links, "PC_LINK_MAX")
    if limit > 70000:
        pytest.skip("this filesystem has no practical limit of links")
    for number in range(limit - 1):
        os.link(many, links / str(number))
    view = overlaid(place, place / "lower", "true")
    done = folded(place, place / "lower")
    copied = place / "merged" / "many"
    assert copied.stat().st_nlink == 1
    assert "/many" not in done.linked
    assert treeview.snapshot(str(place / "merged"))["/many"][:8] == view["/many"][:8]


@pytest.mark.slow
def test_a_real_run_of_the_package_manager(place: Path, debian_tree: Path) -> None:
    """Every real update that waits for the tree, unpacked and configured by dpkg over it."""
    before = treeview.snapshot(str(debian_tree))
    architecture = dpkg.host_architecture()
    area = apt.Area(
        directory=place / "apt",
        mount_point=place / "point",
        repositories=sources.host_repositories("bookworm", architecture=architecture),
        architectures=(architecture,),
        status=debian_tree / "var/lib/dpkg/status",
    )
    place.chmod(0o755)
    area.mount_point.mkdir()
    apt.prepare(area)
    apt.update(area, log=place / "log", timeout=300)
    if not apt.simulate(area, ["dist-upgrade"]).changes:
        pytest.skip("no update is pending for this release today")
    apt.download(area, ["dist-upgrade"], log=place / "log", timeout=300)
    overlay = sandbox.Overlay(
        lower=str(debian_tree), upper=str(place / "upper"), work=str(place / "work"),
        target=str(place / "merged"),
    )  # fmt: skip
    apt.run_in_tree(
        area, place / "merged", ["dist-upgrade"], mounts=(overlay,), log=place / "log", timeout=600
    )
    view = overlaid(place, debian_tree, "true")
    done = folded(place, debian_tree)
    assert done.moved > 100 and len(done.linked) > 1000
    assert treeview.snapshot(str(place / "merged")) == view
    assert treeview.snapshot(str(debian_tree)) == before
