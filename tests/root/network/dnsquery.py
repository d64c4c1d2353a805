"""Ask a DNS server one question: ``dnsquery.py SERVER NAME [TYPE [CLASS]]``; prints answers, or the code.

Runs inside containers too, so it uses nothing but the standard library and stands alone.
"""

from __future__ import annotations

import socket
import struct
import sys

TYPES = {"A": 1, "PTR": 12, "TXT": 16, "AAAA": 28, "ANY": 255, "AXFR": 252}


def ask(server: str, name: str, kind: str = "A", cls: int = 1, timeout: float = 2) -> list[str] | str:
    """Return the answers (addresses, or hexadecimal data), or ``RCODE n``, or ``TIMEOUT``."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    query = (
        struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", TYPES[kind], cls)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.connect((server, 53))
        try:
            sock.send(query)
            data = sock.recv(4096)
        except TimeoutError:
            return "TIMEOUT"
        except OSError as error:
            return f"ERROR {error}"
    flags, _, count = struct.unpack_from(">HHH", data, 2)
    if flags & 15 or not count:
        return f"RCODE {flags & 15}"
    place, answers = 12 + len(labels) + 1 + 4, []
    for _ in range(count):
        while data[place] and data[place] < 192:
            place += data[place] + 1
        place += 2 if data[place] else 1
        found, _, _, length = struct.unpack_from(">HHIH", data, place)
        body = data[place + 10 : place + 10 + length]
        answers.append(socket.inet_ntoa(body) if found == 1 else body.hex())
        place += 10 + length
    return answers


def flood(server: str, name: str) -> int:
    """Ask 3,000 times without waiting; return how many answers came."""
    query = struct.pack(">HHHHHHB", 7, 0x0100, 1, 0, 0, 0, len(name)) + name.encode() + b"\0\0\1\0\1"
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.connect((server, 53))
        for _ in range(3000):
            sock.send(query)
        sock.settimeout(0.5)
        try:
            while sock.recv(4096):
                answered += 1
        except TimeoutError:
            return answered
    return answered


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[2:] == ["FLOOD"]:
        print(flood(*words[:2]))
        sys.exit()
    print(ask(words[0], words[1], *(words[2:3] or ["A"]), cls=int(words[3]) if len(words) > 3 else 1))
