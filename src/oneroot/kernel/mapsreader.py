"""The program that reads memory maps for `proc`, run as a child that may be killed.

Standard input: pids, separated by blanks. Standard output, a JSON object a line: for each new set
of mapped files ``{"set": N, "files": [[inode, path, deleted], …]}``, then for each process
``{"pid", "start", "command", "files": N, "root", "unknown"}`` or ``{"pid", "gone": true}``.
Many processes of one program share a set, which keeps the output small.
"""

import json
import os
import re
import sys

_MAPPED = re.compile(rb"^\S+ ..x\S? \S+ \S+ ([1-9]\d*) +(/[^\n]*)$", re.MULTILINE)
_LARGEST_MAPS = 64 << 20
_LARGEST_SET = 4 << 20
_LONGEST_COMMAND = 4096
_DELETED = b" (deleted)"


def main() -> None:
    """Read, print, end."""
    sets: dict[frozenset[tuple[bytes, bytes]], int] = {}
    out = sys.stdout.buffer
    for word in sys.stdin.buffer.read().split():
        pid = int(word)
        try:
            lines = describe(pid, sets)
        except (FileNotFoundError, ProcessLookupError):
            lines = [{"pid": pid, "gone": True}]
        except OSError as error:
            lines = [reading(pid, unknown=str(error))]
        out.write(b"".join(json.dumps(line).encode("ascii") + b"\n" for line in lines))
        out.flush()


def describe(pid: int, sets: dict[frozenset[tuple[bytes, bytes]], int]) -> list[dict[str, object]]:
    """Return what to print about a process.

    :param sets: the sets of files that were printed already, by their numbers; added to.
    """
    started = start_time(pid)
    maps = read(f"/proc/{pid}/maps", _LARGEST_MAPS)
    if len(maps) >= _LARGEST_MAPS:
        return [reading(pid, start=started, unknown="its memory map is larger than 64 MiB")]
    command = (
        read(f"/proc/{pid}/cmdline", _LONGEST_COMMAND) or b"[" + read(f"/proc/{pid}/comm", 64).strip() + b"]"
    )
    root = os.readlink(f"/proc/{pid}/root")
    if start_time(pid) != started:
        return [{"pid": pid, "gone": True}]
    files = frozenset(_MAPPED.findall(maps))
    if sum(len(path) for _, path in files) > _LARGEST_SET:
        return [reading(pid, start=started, unknown="it maps too many files")]
    lines: list[dict[str, object]] = []
    number = sets.get(files)
    if number is None:
        number = sets[files] = len(sets)
        lines.append({"set": number, "files": [plain(*item) for item in sorted(files)]})
    text = command.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "backslashreplace")
    lines.append(reading(pid, start=started, command=text, files=number, root=root))
    return lines


def reading(
    pid: int, start: int = 0, command: str = "", files: int = -1, root: str = "", unknown: str = ""
) -> dict[str, object]:
    return {"pid": pid, "start": start, "command": command, "files": files, "root": root, "unknown": unknown}


def plain(inode: bytes, path: bytes) -> list[object]:
    deleted = path.endswith(_DELETED)
    # The kernel writes a newline in a name as \012, and nothing else so (seq_file_path).
    name = path[: -len(_DELETED)] if deleted else path
    return [int(inode), name.replace(b"\\012", b"\n").decode("utf-8", "surrogateescape"), deleted]


def read(path: str, limit: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(limit)


def start_time(pid: int) -> int:
    data = read(f"/proc/{pid}/stat", 4096)
    return int(data[data.rindex(b")") + 2 :].split()[19])


if __name__ == "__main__":
    main()
