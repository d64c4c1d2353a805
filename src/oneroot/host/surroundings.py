"""Other programs of this host that meddle: firewalls, Docker, needrestart; forwarding."""

from __future__ import annotations

import ipaddress
import re
import shutil
from pathlib import Path

from oneroot.errors import OnerootError
from oneroot.host import iproute, nft, sysctl
from oneroot.host.check import Check, Status
from oneroot.names import LINK_PREFIX
from oneroot.run import SAFE_PATH, run
from oneroot.settings import Settings

_OURS = ("inet", "oneroot")
_LETS_THROUGH = re.compile(r'[io]ifname "or(\*|\d)')
_ENDS = re.compile(r"^(counter\s+(packets \d+ bytes \d+ )?)?(drop|reject\b.*)( comment .*)?$")
NEEDRESTART = Path("/etc/needrestart")
NEEDRESTART_LINE = "$nrconf{override_cont}{qr(.)} = 0;"
_LEFT_ALONE = re.compile(r"^\s*\$nrconf\{override_cont\}.*=\s*0\s*;", re.MULTILINE)


def check_all(settings: Settings) -> list[Check]:
    """Check what stands in the way of containers, or acts on them behind our back."""
    return [_forwarding(), _arp(), _collision(settings), *_firewalls(), *_needrestart()]


def _collision(settings: Settings) -> Check:
    pool = ipaddress.IPv4Network(settings.network.ipv4)
    found = [
        f"{route.network} leads to {route.interface}"
        for route in iproute.routes(but=LINK_PREFIX)
        if route.collides(pool)
    ]
    if not found:
        found = [f"{name} has {address}" for name, address in iproute.addresses() if address.ip in pool]
    return Check(
        id="network.collision",
        title="Nobody else has the containers' addresses",
        status=Status.FAIL if found else Status.OK,
        found="; ".join(found[:5]) or "nobody does",
        needed=f"{settings.network.ipv4} unused",
        why="packets would go to the wrong place",
        fix_command="choose another network.ipv4 in the settings" if found else "",
    )


def _forwarding() -> Check:
    on = sysctl.read("net.ipv4.ip_forward") == "1"
    return Check(
        id="network.forwarding",
        title="IPv4 forwarding",
        status=Status.OK if on else Status.WARN,
        found="on" if on else "off",
        needed="on",
        why="containers reach the outside through this host; the first start switches it on",
        fix_command="" if on else "sysctl -w net.ipv4.ip_forward=1",
        fixable=not on,
    )


def _arp() -> Check:
    found = sysctl.read_int("net.ipv4.conf.all.arp_ignore") or 0
    return Check(
        id="network.arp",
        title="Answers for the gateway's address",
        status=Status.OK if found == 0 else Status.FAIL,
        found=f"net.ipv4.conf.all.arp_ignore is {found}",
        needed="0",
        why="the gateway's address lies on lo, and links of containers ask for it",
        fix_command="" if found == 0 else "sysctl -w net.ipv4.conf.all.arp_ignore=0",
    )


def _firewalls() -> list[Check]:
    title = "No firewall of others drops what containers send"
    try:
        walls = foreign_walls()
    except OnerootError as error:
        return [
            Check(id="network.firewall", title=title, status=Status.UNKNOWN, found=error.why or error.what)
        ]
    if not walls:
        return [Check(id="network.firewall", title=title, status=Status.OK, found="none does")]
    return [
        Check(
            id="network.firewall",
            title=title,
            status=Status.FAIL,
            found=where,
            needed="a rule that lets interfaces or* through",
            why="one table's drop is final: our own rules cannot let through what another drops",
            fix_command=command,
        )
        for where, command in walls
    ]


def foreign_walls() -> list[tuple[str, str]]:
    """Return each foreign chain that ends in a drop of forwarded packets, and what opens it.

    :raises OnerootError: nft cannot be asked.
    """
    walls = []
    for chain in nft.base_chains():
        if chain.hook != "forward" or (chain.family, chain.table) == _OURS or chain.family == "ip6":
            continue
        rules = nft.rules(chain.family, chain.table, chain.name) or []
        if any(_LETS_THROUGH.search(rule) and rule.rstrip().endswith("accept") for rule in rules):
            continue
        drops = chain.policy == "drop" or bool(rules and _ENDS.match(rules[-1]))
        if not drops or _user_chain_opens(chain, rules):
            continue
        what = "drops by policy" if chain.policy == "drop" else f"ends in {rules[-1]}"
        where = f"chain {chain.name} of table {chain.family} {chain.table} {what}"
        walls.append((where, _opening(chain)))
    return walls + _legacy_walls()


def _user_chain_opens(chain: nft.BaseChain, rules: list[str]) -> bool:
    """Tell whether Docker's chain for the administrator's rules lets us through."""
    if not any("DOCKER-USER" in rule for rule in rules):
        return False
    own = nft.rules(chain.family, chain.table, "DOCKER-USER") or []
    return any(_LETS_THROUGH.search(rule) and rule.rstrip().endswith("accept") for rule in own)


def _opening(chain: nft.BaseChain) -> str:
    if chain.family == "ip" and chain.table == "filter" and shutil.which("iptables", path=SAFE_PATH):
        return _iptables("iptables", chain.name)
    if "firewalld" in chain.table:
        return "firewall-cmd --permanent --zone=trusted --add-interface=or+ && firewall-cmd --reload"
    place = f"{chain.family} {chain.table} {chain.name}"
    return f'nft \'insert rule {place} iifname "or*" accept; insert rule {place} oifname "or*" accept\''


def _iptables(program: str, chain: str) -> str:
    said = run([program, "-S"], timeout=10, check=False).stdout
    target = "DOCKER-USER" if "-N DOCKER-USER" in said else chain
    return f"{program} -I {target} -i or+ -j ACCEPT && {program} -I {target} -o or+ -j ACCEPT"


def _legacy_walls() -> list[tuple[str, str]]:
    """Look at the old iptables, which nft does not show."""
    try:
        if "filter" not in Path("/proc/net/ip_tables_names").read_text(encoding="ascii").split():
            return []
    except OSError:
        return []
    program = next(
        (name for name in ("iptables-legacy", "iptables") if shutil.which(name, path=SAFE_PATH)), None
    )
    if program is None:
        return []
    said = run([program, "-S"], timeout=10, check=False).stdout
    if "-P FORWARD DROP" not in said or re.search(r"-A \S+ -[io] or\+ .*-j ACCEPT", said):
        return []
    return [("chain FORWARD of the old iptables drops by policy", _iptables(program, "FORWARD"))]


def _needrestart() -> list[Check]:
    if not NEEDRESTART.is_dir():
        return []
    files = [NEEDRESTART / "needrestart.conf", *(NEEDRESTART / "conf.d").glob("*.conf")]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
    told = any(_LEFT_ALONE.search(text) for text in texts)
    return [
        Check(
            id="needrestart",
            title="needrestart leaves our containers alone",
            status=Status.OK if told else Status.WARN,
            found="told so" if told else "it may restart containers by itself",
            needed="an override_cont of 0 in /etc/needrestart/conf.d",
            why="it would run lxc-stop --reboot behind a rollout's back",
            fix_command="" if told else f"echo '{NEEDRESTART_LINE}' > /etc/needrestart/conf.d/oneroot.conf",
        )
    ]
