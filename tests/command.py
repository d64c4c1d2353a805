"""The command line, run as a user would run it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """What a command answered."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, from a command that was run with ``--format json``."""
        found: dict[str, Any] = json.loads(self.err.strip().splitlines()[-1])["error"]
        return found


def oneroot(
    *words: str,
    ok: Sequence[int] | None = (0,),
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    prefix: Sequence[str] = (),
) -> Said:
    """Run a command. *ok* lists the exit codes that are expected; None takes any."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "oneroot", "--progress", "none", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = Said(words=words, code=done.returncode, out=done.stdout, err=done.stderr)
    if ok is not None and said.code not in ok:
        raise AssertionError(f"oneroot {' '.join(words)} ended with {said.code}\n{said.out}\n{said.err}")
    return said


def refused(*words: str, code: int, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> Said:
    """Run a command that must be refused with a clear message and this exit code."""
    said = oneroot(*words, ok=None, env=env, prefix=prefix)
    assert said.code == code, f"{words}: {said.code} is not {code}\n{said.out}\n{said.err}"
    assert "Traceback" not in said.err and "did not expect" not in said.err, said.err
    first = said.err.strip().splitlines()[0] if said.err.strip() else ""
    assert len(first) > 20, f"{words}: no message: {said.err!r}"
    assert "fix:" in said.err or '"fix"' in said.err, said.err
    return said
