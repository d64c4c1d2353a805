"""What LXC's log and the hook's report tell of a failed start."""

from __future__ import annotations

from pathlib import Path

from oneroot.container import lxc
from oneroot.errors import Busy, OnerootError

OVERLAY = """\
lxc-start web 1.1 WARN     conf - x.c:f:1 - newuidmap is missing
lxc-start web 1.2 INFO     overlay - x.c:f:1 - Stale file handle - Failed to mount "/l" with workdir=/w
lxc-start web 1.2 ERROR    overlay - x.c:f:1 - Invalid argument - Failed to mount "/l" with no workdir
lxc-start web 1.2 ERROR    conf - x.c:f:1 - Failed to setup rootfs
lxc-start web 1.3 ERROR    sync - x.c:f:1 - An error occurred in another process
lxc-start web 1.3 ERROR    lxc_start - x.c:f:1 - The container failed to start
"""


def test_the_hidden_error_of_an_overlay_comes_first() -> None:
    first, *rest = lxc._cause(OVERLAY).splitlines()
    assert first.startswith("Stale file handle")
    assert len(rest) == 1 and rest[0].startswith("Invalid argument")


def test_consequences_are_told_when_there_is_nothing_else() -> None:
    only = OVERLAY.splitlines()[-1]
    assert lxc._cause(only) == "The container failed to start"
    assert lxc._cause("") == ""


def test_a_refusal(tmp_path: Path) -> None:
    file = tmp_path / "web.error"
    file.write_text("busy\nthe container web is busy\nwait\n")
    refused = lxc._refusal(file, "web")
    assert isinstance(refused, Busy)
    assert (refused.why, refused.fix, refused.container) == ("the container web is busy", "wait", "web")
    file.write_text("refused\nit is a copy\nremove it\n")
    other = lxc._refusal(file, "web")
    assert isinstance(other, OnerootError) and not isinstance(other, Busy)
    assert lxc._refusal(tmp_path / "none", "web") is None
