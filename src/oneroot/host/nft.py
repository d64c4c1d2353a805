"""The door to nftables: one function for each thing we ask of it.

A ruleset has a generation that every change by anybody counts up; asking for it costs 0.1 ms,
a process 4 ms and more, so it tells whether anything has to be looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
from typing import Any

from oneroot.errors import CommandFailed
from oneroot.run import run

_NETLINK_NETFILTER = 12
_GET_GENERATION = (10 << 8) | 16
_GENERATION_ID = 1
_REQUEST = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseChain:
    """A chain at one of the kernel's hooks."""

    family: str
    table: str
    name: str
    hook: str
    policy: str
    priority: int


def generation() -> int | None:
    """Return the number of this network namespace's ruleset; None if it cannot be told."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(1)
            netlink.send(struct.pack("=IHHIIBBH", 20, _GET_GENERATION, _REQUEST, 1, 0, 0, 0, 0))
            return _parse_generation(netlink.recv(4096))
    except OSError:
        return None


def _parse_generation(answer: bytes) -> int | None:
    if len(answer) < 20 or struct.unpack_from("=H", answer, 4)[0] == 2:  # an error message
        return None
    offset = 20
    while offset + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, offset)
        if kind == _GENERATION_ID and length == 8:
            return int(struct.unpack_from(">I", answer, offset + 4)[0])
        if length < 4:
            return None
        offset += (length + 3) & ~3
    return None


def apply(transaction: str) -> None:
    """Apply commands in nftables' language, all of them or none.

    :raises CommandFailed: the kernel or nft refused; nothing was changed.
    """
    run(["nft", "-f", "-"], input=transaction + "\n", timeout=30)


def delete_table(family: str, name: str) -> None:
    """Delete a table; there may be none."""
    run(["nft", "-f", "-"], input=f"add table {family} {name}\ndelete table {family} {name}\n", timeout=30)


def elements(kind: str, family: str, table: str, name: str) -> list[Any] | None:
    """Return the elements of a set or map as nft's JSON has them; None if there is no such set.

    :param kind: ``set`` or ``map``.
    """
    done = run(["nft", "-j", "list", kind, family, table, name], timeout=30, check=False)
    if done.returncode:
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        for item in json.loads(done.stdout)["nftables"]:
            if kind in item:
                return list(item[kind].get("elem", []))
    return None


def base_chains() -> list[BaseChain]:
    """Return every chain at a hook, anybody's.

    :raises CommandFailed: nft failed.
    """
    listed = json.loads(run(["nft", "-j", "list", "chains"], timeout=30).stdout)["nftables"]
    chains = (item["chain"] for item in listed if "chain" in item)
    return [
        BaseChain(
            family=chain["family"],
            table=chain["table"],
            name=chain["name"],
            hook=chain["hook"],
            policy=chain.get("policy", "accept"),
            priority=int(chain.get("prio", 0)),
        )
        for chain in chains
        if "hook" in chain
    ]


def rules(family: str, table: str, chain: str) -> list[str] | None:
    """Return the rules of a chain as text, one each; None if it cannot be listed."""
    done = run(["nft", "-t", "list", "chain", family, table, chain], timeout=30, check=False)
    if done.returncode:
        return None
    lines = [line.strip() for line in done.stdout.splitlines()]
    return [line for line in lines if line and not line.endswith(("{", "}")) and not line.startswith("type ")]


def explain(error: CommandFailed) -> str:
    """Return the first line of what nft said, which names the cause."""
    return (error.stderr or error.why).strip().splitlines()[0] if (error.stderr or error.why).strip() else ""
