"""The door to gpgv: whose signature a Release file carries."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from oneroot import run
from oneroot.errors import CommandFailed, HostError


def fingerprints(signed: Path, keyrings: Iterable[Path], *, content: Path | None = None) -> list[str]:
    """Return the fingerprints of the primary keys whose signatures on a file are good.

    :param signed: a clear-signed file, or a detached signature of *content*.
    """
    found: list[str] = []
    for keyring in keyrings:
        try:
            with tempfile.NamedTemporaryFile(suffix=".gpg") as binary:
                binary.write(_dearmored(keyring.read_bytes()))
                binary.flush()
                argv = ["gpgv", "--status-fd", "1", "--keyring", binary.name, str(signed)]
                said = run.run([*argv, str(content)] if content else argv, check=False).stdout
        except (OSError, CommandFailed):
            continue
        except HostError:
            return []  # apt has verified it; without gpgv we only cannot say whose key it was
        found += re.findall(r"^\[GNUPG:\] VALIDSIG .* ([0-9A-F]{40})$", said, re.MULTILINE)
    return list(dict.fromkeys(found))


def _dearmored(data: bytes) -> bytes:
    """Return the binary form of a keyring, which is all that gpgv reads."""
    blocks = re.findall(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP", data, re.DOTALL)
    if not blocks:
        return data
    binary = b""
    for block in blocks:
        body = re.split(rb"\r?\n[ \t]*\r?\n", block, maxsplit=1)[-1]
        encoded = b"".join(line.strip() for line in body.splitlines() if not line.startswith(b"="))
        binary += base64.b64decode(encoded)
    return binary
