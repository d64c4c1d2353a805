"""Everything that can be said about a tree, to compare two of them; runs alone too, in a sandbox."""

import hashlib
import json
import os
import stat
import sys


def snapshot(root: str) -> dict[str, list[object]]:
    """Describe every path: type, mode, owner, times, content, attributes, and what it is linked with."""
    seen: dict[str, list[object]] = {}
    inodes: dict[int, list[str]] = {}
    _look(root, "", seen, inodes)
    for names in inodes.values():
        for name in names:
            seen[name].append(sorted(names))
    return seen


def _look(root: str, path: str, seen: dict[str, list[object]], inodes: dict[int, list[str]]) -> None:
    full = root + path
    status = os.lstat(full)
    kind = stat.S_IFMT(status.st_mode)
    content = ""
    if kind == stat.S_IFREG:
        with open(full, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
    elif kind == stat.S_IFLNK:
        content = os.readlink(full)
    attributes = {
        name: os.getxattr(full, name, follow_symlinks=False).hex()
        for name in sorted(os.listxattr(full, follow_symlinks=False))
    }
    size = 0 if kind == stat.S_IFDIR else status.st_size
    seen[path] = [
        *(status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, status.st_rdev),
        *(content, attributes),
    ]
    if kind == stat.S_IFDIR:
        for name in os.listdir(full):
            _look(root, f"{path}/{name}", seen, inodes)
    else:
        inodes.setdefault(status.st_ino, []).append(path)


if __name__ == "__main__":
    with open(sys.argv[2], "w", encoding="ascii") as out:
        json.dump(snapshot(sys.argv[1]), out)
