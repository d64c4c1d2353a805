"""Numbered points at which a test may kill us, to show that nothing is ever left between.

``ONEROOT_KILL_POINT=N`` makes the process end by SIGKILL when it reaches its N-th point, and
``ONEROOT_KILL_LOG=FILE`` appends each point's label. Unset, a point costs one dictionary look-up.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading

_counter = itertools.count(1)
_lock = threading.Lock()


def reach(label: str) -> None:
    """Note that this point is reached; die here if a test wants that."""
    wanted = os.environ.get("ONEROOT_KILL_POINT")
    logfile = os.environ.get("ONEROOT_KILL_LOG")
    if wanted is None and logfile is None:
        return
    with _lock:
        number = next(_counter)
        if logfile is not None:
            with open(logfile, "a", encoding="utf-8") as log:
                log.write(f"{number} {label}\n")
        if wanted is not None and number == int(wanted):
            os.kill(os.getpid(), signal.SIGKILL)
