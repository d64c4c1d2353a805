"""The LXC configuration: every value is one key's value, whatever it contains."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.container import lxcconfig
from oneroot.container.spec import ContainerSpec, IdRange, Limits
from oneroot.errors import UsageError
from oneroot.names import BaseName, ContainerName
from oneroot.settings import Network, Paths, Settings

SETTINGS = Settings()
SPEC = ContainerSpec(
    name=ContainerName("web001"),
    base=BaseName("core"),
    created="",
    group="web",
    command="exec sleep infinity",
    ids=IdRange(first=2_000_000, count=65536),
    addresses=("10.77.0.2",),
    limits=Limits(memory=64 << 20, cpus=0.5, pids=100),
)


def keys(text: str) -> list[str]:
    """Read the text as LXC does: lines, and in each a key before the first equals sign."""
    return [line.split("=", 1)[0].strip() for line in re.split(r"[\n\r\v\f]", text) if line.strip()]


def values(spec: ContainerSpec, key: str, settings: Settings = SETTINGS) -> list[str]:
    lines = lxcconfig.render(settings, spec).splitlines()
    return [value for name, value in (line.split(" = ", 1) for line in lines) if name == key]


def test_unprivileged() -> None:
    assert values(SPEC, "lxc.idmap") == ["u 0 2000000 65536", "g 0 2000000 65536"]
    assert values(SPEC, "lxc.rootfs.path") == ["overlay:/run/oneroot/lower:/run/oneroot/overlay/upper"]
    assert values(SPEC, "lxc.rootfs.options") == [
        "index=off,metacopy=off,redirect_dir=nofollow,xino=off,nfs_export=off,userxattr"
    ]
    assert values(SPEC, "lxc.rootfs.managed") == ["0"]
    assert values(SPEC, "lxc.monitor.unshare") == ["1"]
    assert values(SPEC, "lxc.tty.max") == ["0"]
    assert values(SPEC, "lxc.hook.pre-start")[0].split() == [
        *("/usr/lib/oneroot/start-hook", "--store", "/var/lib/oneroot", "--run", "/run/oneroot"),
        *("--lxc", "/var/lib/lxc", "--name", "web001", "--base", "core", "--ids", "2000000:65536"),
    ]


def test_privileged() -> None:
    spec = dataclasses.replace(SPEC, ids=None)
    assert values(spec, "lxc.idmap") == []
    assert values(spec, "lxc.cap.drop") == ["sys_boot syslog mknod dac_read_search"]
    assert "userxattr" not in values(spec, "lxc.rootfs.options")[0]
    assert values(spec, "lxc.hook.pre-start")[0].endswith("--ids 0:0")
    assert "cgroup:ro" in values(spec, "lxc.mount.auto")[0]
    assert "/usr/share/lxc/config/userns.conf" not in values(spec, "lxc.include")


def test_command_mode() -> None:
    assert values(SPEC, "lxc.init.cmd") == ["/usr/bin/tini -- /etc/oneroot/command"]
    assert values(SPEC, "lxc.signal.halt") == ["SIGTERM"]
    assert any(value.startswith("tmpfs run tmpfs ") for value in values(SPEC, "lxc.mount.entry"))


def test_unit_mode() -> None:
    spec = dataclasses.replace(SPEC, command=None, units=("apache2.service",))
    assert values(spec, "lxc.init.cmd") == ["/sbin/init"]
    assert values(spec, "lxc.signal.halt") == []


def test_limits_for_both_families_of_cgroups() -> None:
    assert (
        values(SPEC, "lxc.cgroup2.memory.max")
        == values(SPEC, "lxc.cgroup.memory.limit_in_bytes")
        == ["67108864"]
    )
    assert values(SPEC, "lxc.cgroup2.cpu.max") == ["50000 100000"]
    assert values(SPEC, "lxc.cgroup.cpu.cfs_quota_us") == ["50000"]
    assert values(SPEC, "lxc.cgroup2.pids.max") == values(SPEC, "lxc.cgroup.pids.max") == ["100"]


def test_interface_names_differ_and_fit() -> None:
    names = {lxcconfig.interface(f"10.77.{place // 256}.{place % 256}") for place in range(4096)}
    assert len(names) == 4096
    assert max(map(len, names)) <= 15


def test_autostart() -> None:
    assert values(SPEC, "lxc.start.auto") == ["1"]
    assert values(dataclasses.replace(SPEC, autostart=False), "lxc.start.auto") == ["0"]


@pytest.mark.parametrize("address", ["10.77.0", "10.77.0.2/8", "::1", "x"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError):
        lxcconfig.render(SETTINGS, dataclasses.replace(SPEC, addresses=(address,)))


HOSTILE = st.text(max_size=40) | st.sampled_from(
    [
        "a\nlxc.hook.start-host = /x",
        "a\r\nlxc.b = c",
        "\0",
        "x\u2028y",
        "x\x85y",
        "x\vy",
        "$(x)",
        "`x`",
        "a;b",
        "a b",
    ]
)


@given(
    field=st.sampled_from(["name", "base", "command", "group", "address", "gateway", "store", "lxc"]),
    text=HOSTILE,
)
def test_no_value_can_make_a_second_key(field: str, text: str) -> None:
    settings, spec = SETTINGS, SPEC
    changed: dict[str, Any] = {field: text}
    if field == "address":
        changed = {"addresses": (text,)}
    if field == "gateway":
        settings = dataclasses.replace(settings, network=Network(gateway=text))
    elif field in ("store", "lxc"):
        settings = dataclasses.replace(settings, paths=Paths(**{field: Path("/") / text}))
    else:
        spec = dataclasses.replace(spec, **changed)
    try:
        rendered = lxcconfig.render(settings, spec)
    except UsageError:
        return
    assert keys(rendered) == keys(lxcconfig.render(SETTINGS, SPEC))


@given(word=HOSTILE, where=st.sampled_from(["name", "base"]))
def test_no_value_says_anything_to_the_shell_that_runs_the_hook(word: str, where: str) -> None:
    import shlex

    try:
        line = values(dataclasses.replace(SPEC, **{where: word}), "lxc.hook.pre-start")[0]
    except UsageError:
        return
    assert not set(line) & set("$`\\\"'();&|<>*?[]#~!{}%\n\t")
    assert len(shlex.split(line)) == 13
