"""The check that a container's declaration may name: HTTP, TCP, or a command inside.

Whatever answers is hostile: every check has a deadline for the whole of it, and reads a bounded
part of the answer. Connections go straight from the host to the container's own address.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import re
import socket
import time
from collections.abc import Sequence

from oneroot.container import attach, liveness
from oneroot.container.lease import Lease
from oneroot.container.liveness import Liveness
from oneroot.container.spec import ContainerSpec
from oneroot.errors import OnerootError
from oneroot.settings import Settings

_READ_BYTES = 16 << 10
_SHOWN_CHARACTERS = 2000
_ASKERS = 4 * (os.cpu_count() or 1)
"""A first answer may cost an application much: asking all at once would make healthy ones too slow."""
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\r?\n)")
_PORT_AND_PATH = re.compile(r"([0-9]{1,5})(?:/([\x21-\x7e]*))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What one try of a check gave."""

    passed: bool
    reason: str = ""
    output: str = ""
    """The last answer or output; capped, with control characters written out."""


def has_question(spec: ContainerSpec) -> bool:
    """Whether more must be asked of a container than a look from the host tells."""
    return spec.health is not None or bool(liveness.units_to_ask(spec))


def check(settings: Settings, spec: ContainerSpec, *, lease: Lease | None = None) -> Liveness:
    """Look once whether a container is alive, and, if it is, ask its declared check once."""
    found = liveness.look(settings.paths, spec, lease=lease)
    if found.alive is True and (units := liveness.units_to_ask(spec)):
        found = _ask_systemd(settings, found, units)
    if found.alive is not True or spec.health is None:
        return found
    answer = _ask(settings, spec)
    reasons = (answer.reason,) if answer.reason else ()
    return dataclasses.replace(found, healthy=answer.passed, reasons=reasons, output=answer.output)


def check_many(settings: Settings, specs: Sequence[ContainerSpec]) -> list[Liveness]:
    """Check many containers at once, in their order; those without a check cost one look each."""
    asked = [spec for spec in specs if has_question(spec)]
    found: dict[str, Liveness] = {
        spec.name: liveness.look(settings.paths, spec) for spec in specs if not has_question(spec)
    }
    if asked:
        with concurrent.futures.ThreadPoolExecutor(min(_ASKERS, len(asked))) as pool:
            answers = pool.map(lambda spec: check(settings, spec), asked)
            found |= {answer.container: answer for answer in answers}
    return [found[spec.name] for spec in specs]


def _ask_systemd(settings: Settings, found: Liveness, units: Sequence[str]) -> Liveness:
    argv = ("systemctl", "is-active", "--", *units)
    try:
        ran = attach.execute(
            settings, found.container, argv, timeout=settings.timeouts.read, limit=_READ_BYTES
        )
    except (OnerootError, OSError) as error:
        return dataclasses.replace(found, alive=None, reasons=(f"systemd cannot be asked: {error}",))
    states = ran.stdout.decode("utf-8", "replace").split()
    if len(states) != len(units):
        said = shown(ran.stderr) or f"exit status {ran.returncode}"
        return dataclasses.replace(found, alive=None, reasons=(f"systemd cannot be asked: {said}",))
    reasons = tuple(
        f"the unit {unit} is {shown(state)}"
        for unit, state in zip(units, states, strict=True)
        if state != "active"
    )
    return dataclasses.replace(found, alive=not reasons, reasons=reasons)


def _ask(settings: Settings, spec: ContainerSpec) -> Answer:
    health = spec.health
    if health is not None and health.http is not None:
        return _http(spec, health.http, health.timeout)
    if health is not None and health.tcp is not None:
        return _tcp(spec, health.tcp, health.timeout)
    if health is not None and health.command is not None:
        return _command(settings, spec, health.command, health.timeout)
    return Answer(passed=False, reason="the declared check names neither http, tcp nor command")


def shown(data: bytes | str) -> str:
    """Make an answer fit to be shown: capped, control characters written out, lines kept."""
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    text = re.sub(r"\r+(\n|$)", r"\1", text[:_SHOWN_CHARACTERS]).strip()
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def _http(spec: ContainerSpec, where: str, timeout: float) -> Answer:
    parts = _PORT_AND_PATH.fullmatch(where)
    if not parts:
        return Answer(passed=False, reason=f"the declared check http {where[:80]!r} is not PORT/PATH")
    port, path = int(parts[1]), parts[2] or ""
    request = (
        f"GET /{path} HTTP/1.1\r\nHost: {spec.name}\r\nUser-Agent: oneroot\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    )
    what = f"http port {port}"
    try:
        data = _exchange(spec, port, request.encode("ascii"), timeout)
    except (OSError, ValueError, OverflowError) as error:
        return Answer(passed=False, reason=f"{what}: {_said(error)}")
    status = _STATUS.match(data)
    if not status:
        reason = "no HTTP answer" if data else f"no answer within {timeout:g} s or before it hung up"
        return Answer(passed=False, reason=f"{what}: {reason}", output=shown(data))
    code = int(status[1])
    if 200 <= code < 400:
        return Answer(passed=True)
    return Answer(passed=False, reason=f"{what}: it answered {code}", output=shown(data))


def _tcp(spec: ContainerSpec, port: int, timeout: float) -> Answer:
    try:
        with _connect(spec, port, timeout):
            return Answer(passed=True)
    except (OSError, ValueError, OverflowError) as error:
        return Answer(passed=False, reason=f"tcp port {port}: {_said(error)}")


def _command(settings: Settings, spec: ContainerSpec, command: str, timeout: float) -> Answer:
    argv = ("/bin/sh", "-c", command)
    try:
        ran = attach.execute(settings, spec.name, argv, timeout=timeout, limit=_READ_BYTES)
    except (OnerootError, OSError) as error:
        return Answer(passed=False, reason=f"health command: {shown(str(error))}")
    if ran.returncode == 0:
        return Answer(passed=True)
    return Answer(
        passed=False,
        reason=f"health command: exit status {ran.returncode}",
        output=shown(ran.stderr + b"\n" + ran.stdout),
    )


def _connect(spec: ContainerSpec, port: int, timeout: float) -> socket.socket:
    if not spec.addresses:
        raise ValueError("the container has no address")
    return socket.create_connection((spec.addresses[0].partition("/")[0], port), timeout=timeout)


def _exchange(spec: ContainerSpec, port: int, request: bytes, timeout: float) -> bytes:
    """Send a request and return the beginning of the answer; what has come by the deadline counts."""
    deadline = time.monotonic() + timeout
    data = b""
    with _connect(spec, port, timeout) as connection:
        connection.sendall(request)
        while len(data) < _READ_BYTES and (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            try:
                part = connection.recv(_READ_BYTES - len(data))
            except TimeoutError:
                break
            data += part
            # a passing answer needs no more than its first line; of a failing one we show more
            if not part or ((status := _STATUS.match(data)) and status[1] < b"400"):
                break
    return data


def _said(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
