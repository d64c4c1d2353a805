"""A server for tests: on TCP port 80 it says its name and who asks; what comes on UDP port 81 it echoes.

``serve.py NAME [LOG]``. Runs inside containers too: standard library's smallest part only.
"""

import os
import select
import socket
import sys


def listen(kind, port):
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port))
    return sock


def main():
    name = sys.argv[1]
    log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if len(sys.argv) > 2 else None
    stream, datagrams = listen(socket.SOCK_STREAM, 80), listen(socket.SOCK_DGRAM, 81)
    stream.listen(128)
    print("ready", flush=True)
    while True:
        for ready in select.select([stream, datagrams], [], [])[0]:
            if ready is stream:
                peer, address = stream.accept()
                peer.sendall(f"{name} {address[0].removeprefix('::ffff:')}\n".encode())
                peer.close()
            else:
                data, address = datagrams.recvfrom(2000)
                datagrams.sendto(name.encode() + b" " + data, address)
            if log is not None:
                what = "tcp" if ready is stream else data.decode("ascii", "replace")
                os.write(log, f"{address[0].removeprefix('::ffff:')} {what}\n".encode())
        if os.getpid() == 1:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass


if __name__ == "__main__":
    main()
