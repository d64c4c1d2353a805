"""Send something and say what came back: ``probe.py tcp|udp|ping ADDRESS PORT [TEXT [SOURCE]]``.

Prints the answer, ``TIMEOUT``, or ``ERROR`` and its number. Runs inside containers too.
"""

import os
import socket
import struct
import sys


def main():
    kind, address, port, *rest = sys.argv[1:]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if kind == "ping":
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    else:
        sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.settimeout(1)
    try:
        if len(rest) > 1:
            sock.bind((rest[1], 0))
        if kind == "ping":
            head = struct.pack(">BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
            total = sum(struct.unpack(">4H", head))
            head = head[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[4:]
            sock.sendto(head, (address, 0))
            while True:
                data = sock.recv(1000)
                if data[20] == 0:
                    break
            print("pong")
            return
        sock.connect((address, int(port)))
        if kind == "udp":
            sock.send((rest[0] if rest else "x").encode())
        print(sock.recv(1000).decode().strip())
    except TimeoutError:
        print("TIMEOUT")
    except OSError as error:
        print("ERROR", error.errno)


if __name__ == "__main__":
    main()
