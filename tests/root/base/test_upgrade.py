"""Upgrades: a new generation, or no trace; the older one untouched in either case."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from oneroot.base import fsck
from oneroot.base.generation import Generation
from oneroot.base.store import Store
from oneroot.base.survey import survey
from oneroot.base.upgrade import check_sources, plan, upgrade
from oneroot.errors import CommandFailed, OnerootError
from oneroot.platform.dpkg import Dpkg
from oneroot.settings import Settings
from tests.root.base import treeview
from tests.root.base.conftest import use
from tests.root.base.repository import NAME, Repository

CHANGELOG = """\
tini (99.0-1) unstable; urgency=high

  * CVE-2030-12345

 -- T <t@example.org>  Mon, 01 Jan 2030 00:00:00 +0000

tini (0.0.1-1) unstable; urgency=low

  * CVE-2001-0001

 -- T <t@example.org>  Mon, 01 Jan 2001 00:00:00 +0000
"""


def made(settings: Settings, **more: object) -> Generation:
    done = upgrade(settings, NAME, **more)  # type: ignore[arg-type]
    assert done is not None
    return done


def assert_no_trace(settings: Settings, number: int = 1) -> None:
    """What a failed upgrade must leave: the base as it was, nothing in its stage."""
    store = Store(settings)
    assert store.current(NAME) == number
    assert store.numbers(NAME)[-1] == number
    assert not (store.directory(NAME) / "stage").exists()
    assert not any("oneroot-test" in line for line in Path("/proc/self/mounts").read_text().splitlines())


def test_an_update_makes_a_generation(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1", files={"usr/bin/tini": "#!/bin/sh\n"}, changelog=CHANGELOG)
    packages.publish()
    store = Store(base)
    before = treeview.snapshot(str(store.root(NAME, 1)))
    done = made(base, reason="because")
    assert (done.number, done.parent, done.reason, store.current(NAME)) == (2, 1, "because", 2)
    [change] = done.changes
    assert (change.package, change.new, change.cves, change.security) == (
        "tini", "99.0-1", ("CVE-2030-12345",), True,
    )  # fmt: skip
    assert done.packages["tini"] == "99.0-1" == Dpkg().installed(store.root(NAME, 2))["tini"]
    [release] = done.releases
    assert (release.origin, release.suite, len(release.fingerprint)) == ("Test", "stable-security", 40)
    assert treeview.snapshot(str(store.root(NAME, 1))) == before, "the older generation is as it was"
    assert (store.root(NAME, 2) / "usr/bin/tini").read_text() == "#!/bin/sh\n"
    assert fsck.check(store, NAME) == []
    check = store.check(NAME)
    assert check is not None and check.pending == () and check.checked
    assert not (store.directory(NAME) / "stage").exists()


def test_the_manifest_of_an_upgrade_is_what_a_look_at_every_file_gives(
    base: Settings, packages: Repository
) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    made(base)
    store = Store(base)
    root = store.root(NAME, 2)
    whole = survey(root, Dpkg().owners(root))
    kept = store.manifest(NAME, 2)
    assert list(whole.manifest) == list(kept)
    assert whole.size == store.generation(NAME, 2).size
    changed = {change.path for change in store.changes(NAME, 2)}
    assert changed == {change.path for change in kept.changes_from(store.manifest(NAME, 1))}
    assert "/usr/share/tini/version" in changed and "/usr/bin/bash" not in changed
    assert (root / "usr/bin/bash").stat().st_ino == (store.root(NAME, 1) / "usr/bin/bash").stat().st_ino
    assert not [path for path in changed if path.startswith(("/mnt/", "/tmp/", "/run/", "/dev/"))]
    assert "/usr/sbin" not in changed, "nothing of ours is left there"


def test_nothing_pending_makes_nothing(base: Settings, packages: Repository) -> None:
    packages.add("other", "1")
    packages.publish()
    assert upgrade(base, NAME) is None
    assert_no_trace(base)


def test_a_check_changes_nothing_but_its_record(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1", changelog=CHANGELOG)
    packages.publish()
    store = Store(base)
    before = treeview.snapshot(str(store.root(NAME, 1)))
    found = check_sources(base, NAME)
    assert [(one.package, one.cves) for one in found.pending] == [("tini", ("CVE-2030-12345",))]
    assert store.check(NAME) == found
    assert len(plan(base, NAME, found)) == 6
    assert treeview.snapshot(str(store.root(NAME, 1))) == before
    assert_no_trace(base)


def test_a_broken_package_leaves_no_trace_and_the_next_try_works(
    base: Settings, packages: Repository
) -> None:
    packages.add("tini", "99.0-1", scripts={"postinst": "echo oh no >&2; exit 1"})
    packages.publish()
    with pytest.raises(CommandFailed) as caught:
        upgrade(base, NAME)
    assert "tini" in caught.value.why and "exit status 1" in caught.value.why and "log" in caught.value.fix
    log = Path(caught.value.fix.rsplit(" ", 1)[-1])
    assert "oh no" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    assert_no_trace(base)
    packages.add("tini", "99.0-2")
    packages.publish()
    assert made(base).packages["tini"] == "99.0-2"


def test_a_dead_mirror_keeps_the_last_good_answer(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    good = check_sources(base, NAME)
    shutil.move(packages.place, f"{packages.place}.away")
    try:
        with pytest.raises(OnerootError) as caught:
            upgrade(base, NAME)
    finally:
        shutil.move(f"{packages.place}.away", packages.place)
    assert "could not be checked" in caught.value.what
    check = Store(base).check(NAME)
    assert check is not None
    assert (check.checked, check.pending) == (good.checked, good.pending)
    assert check.error
    assert_no_trace(base)
    assert made(base).packages["tini"] == "99.0-1"


def test_one_dead_mirror_of_two_is_no_success(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    use(base, packages.line, f"deb [signed-by={packages.keyring}] http://127.0.0.1:9/debian ./")
    with pytest.raises(OnerootError, match="could not be checked"):
        upgrade(base, NAME)
    assert_no_trace(base)


def test_a_kept_package_file_that_was_changed_is_fetched_again(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    check_sources(base, NAME)
    [kept] = (base.paths.store / "cache/packages").glob("tini*.deb")
    data = bytearray(kept.read_bytes())
    kept.unlink()
    data[-512] ^= 1
    kept.write_bytes(data)
    made(base)
    assert kept.read_bytes() != bytes(data)
    assert kept.read_bytes() == (packages.place / kept.name).read_bytes()


def test_a_package_that_is_gone_from_the_mirror(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    for file in packages.place.glob("tini*.deb"):
        file.unlink()
    with pytest.raises(OnerootError, match="could not be fetched"):
        upgrade(base, NAME)
    assert_no_trace(base)


def test_a_package_that_was_tampered_with(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    [file] = packages.place.glob("tini*.deb")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(OnerootError, match="could not be fetched"):
        upgrade(base, NAME)
    assert_no_trace(base)


def test_expired_lists_are_refused_unless_spoken(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish(valid=timedelta(days=-1))
    with pytest.raises(OnerootError) as caught:
        upgrade(base, NAME)
    assert "expired" in caught.value.why and "--allow-expired" in caught.value.fix
    assert_no_trace(base)
    use(base, packages.line, allow_expired=True)
    assert made(base).packages["tini"] == "99.0-1"


def test_lists_that_are_still_valid_are_taken(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish(valid=timedelta(days=1))
    assert made(base).packages["tini"] == "99.0-1"


def test_unsigned_lists_are_refused_unless_spoken(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish(sign=False)
    with pytest.raises(OnerootError) as caught:
        upgrade(base, NAME)
    assert "not signed" in caught.value.why
    assert_no_trace(base)
    use(base, f"deb [trusted=yes] file:{packages.place} ./", allow_unsigned=True)
    done = made(base)
    assert done.packages["tini"] == "99.0-1"
    assert done.releases[0].fingerprint == ""


def test_a_foreign_signature_is_refused(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    use(base, f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] file:{packages.place} ./")
    with pytest.raises(OnerootError) as caught:
        upgrade(base, NAME)
    assert "NO_PUBKEY" in caught.value.why or "couldn't be verified" in caught.value.why
    assert_no_trace(base)


def test_kept_back_packages_are_told(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1", fields=("Depends: does-not-exist",))
    packages.publish()
    found = check_sources(base, NAME)
    assert found.kept_back == ("tini",) and found.pending == ()
    assert upgrade(base, NAME) is None
    check = Store(base).check(NAME)
    assert check is not None and check.kept_back == ("tini",)


def test_declared_packages_are_never_removed(base: Settings, packages: Repository) -> None:
    packages.add("openssl", "99.0-1", fields=("Conflicts: tini", "Breaks: tini", "Replaces: tini"))
    packages.add("curl", "99.0-1", fields=("Depends: openssl (>= 99)",))
    packages.add("ca-certificates", "99999999", fields=("Depends: openssl (>= 99)",))
    packages.publish()
    found = check_sources(base, NAME)
    if not any(change.package == "tini" and change.new is None for change in found.pending):
        pytest.skip("this apt keeps tini by itself")
    with pytest.raises(OnerootError, match="would remove tini"):
        upgrade(base, NAME)
    assert_no_trace(base)


def test_a_pinned_base_stays(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    store = Store(base)
    with store.holding(NAME, "test"):
        store.pin(NAME, 1, reason="not now")
    with pytest.raises(OnerootError, match="pinned"):
        upgrade(base, NAME)
    assert_no_trace(base)


def test_without_switch_current_stays_and_the_same_packages_are_not_built_twice(
    base: Settings, packages: Repository
) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    store = Store(base)
    first = made(base, switch=False)
    assert (first.number, store.current(NAME)) == (2, 1)
    assert made(base) == first
    assert (store.current(NAME), store.numbers(NAME)) == (2, [1, 2])


def test_a_bad_generation_is_not_made_again(base: Settings, packages: Repository) -> None:
    packages.add("tini", "99.0-1")
    packages.publish()
    store = Store(base)
    made(base)
    with store.holding(NAME, "test"):
        store.mark_bad(NAME, 2)
        store.set_current(NAME, 1)
    with pytest.raises(OnerootError, match="marked bad"):
        upgrade(base, NAME)
    assert store.numbers(NAME) == [1, 2] and store.current(NAME) == 1
    packages.add("tini", "99.0-2")
    packages.publish()
    assert made(base).number == 3


SPY = """
mkdir -p /usr/share/spy; cd /usr/share/spy
env > environment; cat /proc/net/dev > network; grep Cap /proc/self/status > capabilities
cat /proc/mounts > mounts; ls /run > run; hostname > hostname || uname -n > hostname
(echo x > /proc/sys/kernel/hostname) 2> proc-sys || true
(echo x > /sys/kernel/mm/ksm/run) 2> sys || true
(mknod disk b 253 0 && head -c 1 disk) > /dev/null 2> disk-error || true; rm -f disk
invoke-rc.d dbus start > policy 2>&1 || echo $? >> policy
ls -la /tmp > tmp; echo left > /tmp/left; echo left > /run/left
"""


def test_maintainer_scripts_have_little_power(
    base: Settings, packages: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", "secret")
    packages.add("tini", "99.0-1", scripts={"postinst": SPY})
    packages.publish()
    made(base)
    seen = Store(base).root(NAME, 2) / "usr/share/spy"
    assert "PLANTED" not in (seen / "environment").read_text()
    assert "DEBIAN_FRONTEND=noninteractive" in (seen / "environment").read_text()
    interfaces = [line.split(":")[0].strip() for line in (seen / "network").read_text().splitlines()[2:]]
    assert interfaces == ["lo"]
    bounding = next(line for line in (seen / "capabilities").read_text().splitlines() if "CapBnd" in line)
    assert not int(bounding.split()[1], 16) & (1 << 21 | 1 << 16 | 1 << 12), (
        "sys_admin, sys_module, net_admin"
    )
    for name in ("proc-sys", "sys", "disk-error"):
        assert (seen / name).read_text(), f"{name} was refused"
    assert "policy-rc.d denied" in (seen / "policy").read_text()
    root = Store(base).root(NAME, 2)
    assert not list((root / "run").iterdir()) and not list((root / "tmp").iterdir())
    assert not (root / "usr/sbin/policy-rc.d").exists()


def test_secrets_of_maintainer_scripts_are_removed_or_refused(base: Settings, packages: Repository) -> None:
    key = "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw\\nabc=\\n"
    write = "mkdir -p {0}; printf -- '" + key + "' > {0}/{1}"
    host_key = write.format("/etc/ssh", "ssh_host_ed25519_key")
    packages.add("tini", "99.0-1", scripts={"postinst": f"{host_key}; echo 0123 > /etc/machine-id"})
    packages.publish()
    made(base)
    root = Store(base).root(NAME, 2)
    assert not (root / "etc/ssh/ssh_host_ed25519_key").exists()
    assert (root / "etc/machine-id").read_bytes() == b""
    packages.add("tini", "99.0-2", scripts={"postinst": write.format("/etc/tini", "server.key")})
    packages.publish()
    with pytest.raises(OnerootError, match=r"/etc/tini/server\.key"):
        upgrade(base, NAME)
    assert_no_trace(base, 2)


def test_conffiles_that_the_base_changed_stay(base: Settings, packages: Repository) -> None:
    script = {"postinst": "echo changed > /etc/tini.conf"}
    for version, scripts in (("99.0-1", script), ("99.0-2", {})):
        files = {"etc/tini.conf": version, "DEBIAN/conffiles": "/etc/tini.conf\n"}
        packages.add("tini", version, files=files, scripts=scripts)
        packages.publish()
        made(base)
    assert (Store(base).root(NAME, 3) / "etc/tini.conf").read_text() == "changed\n"


def test_a_package_that_turns_directories_into_files_and_back(base: Settings, packages: Repository) -> None:
    """dpkg renames directories for that, which only works with redirect_dir=on."""
    packages.add("tini", "99.0-1", files={"usr/share/tini/d/a": "a", "usr/share/tini/d/b/c": "c"})
    packages.publish()
    made(base)
    packages.add(
        "tini", "99.0-2",
        files={"usr/share/tini/e": "e"},
        scripts={
            "preinst": "if [ -d /usr/share/tini/d ]; then mv /usr/share/tini/d /usr/share/tini/moved; fi",
            "postinst": "ln -s moved /usr/share/tini/d",
        },
    )  # fmt: skip
    packages.publish()
    made(base)
    root = Store(base).root(NAME, 3)
    assert (root / "usr/share/tini/d").readlink() == Path("moved")
    assert fsck.check(Store(base), NAME) == []


def test_current_that_is_gone_is_told(base: Settings, packages: Repository) -> None:
    packages.publish()
    store = Store(base)
    (store.directory(NAME) / "current").unlink()
    (store.directory(NAME) / "current").symlink_to("generations/9")
    with pytest.raises(OnerootError, match="is gone") as caught:
        upgrade(base, NAME)
    assert "base use core 1" in caught.value.fix


def test_a_base_without_sources(base: Settings) -> None:
    store = Store(base)
    with store.holding(NAME, "test"):
        store.save_spec(dataclasses.replace(store.spec(NAME), repositories=()))
    with pytest.raises(OnerootError, match="no package sources"):
        check_sources(base, NAME)
