"""A command that runs in the background, and tells how far it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.root.scene import Scene


class Begun:
    """It has begun; the labels are those of the kill points."""

    def __init__(self, scene: Scene, *words: str, log: Path | None = None) -> None:
        self._log = log or scene.place / "reached"
        self._log.unlink(missing_ok=True)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "oneroot", "--progress", "none", *words],
            env={**os.environ, **scene.environment, "ONEROOT_KILL_LOG": str(self._log)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def wait_for(self, label: str) -> None:
        while label not in (self._log.read_text() if self._log.exists() else ""):
            assert self._child.poll() is None, f"ended before “{label}”: {self._child.communicate()}"
            time.sleep(0.002)

    def signal(self, number: int) -> None:
        """As a terminal does it: to the whole group."""
        os.killpg(self._child.pid, number)

    def end(self) -> tuple[int, str, str]:
        out, err = self._child.communicate(timeout=120)
        return self._child.returncode, out, err
