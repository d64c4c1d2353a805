"""The digest of a file in a hostile tree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from oneroot.kernel.tree import Tree

_CHUNK = 1 << 20


def digest_of(tree: Tree, path: str, size: int, check: Callable[[], None] = lambda: None) -> str | None:
    """Return the SHA-256 of a regular file; None if there is none of exactly this size.

    :param check: called between reads; may raise.
    """
    try:
        descriptor = tree.open_read(path)
    except OSError:
        return None
    made = hashlib.sha256()
    left = size
    with open(descriptor, "rb", buffering=0) as file:
        while left > 0:
            data = file.read(min(_CHUNK, left))
            if not data:
                return None
            made.update(data)
            left -= len(data)
            check()
        return None if file.read(1) else made.hexdigest()
