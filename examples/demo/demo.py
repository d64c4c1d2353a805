"""The main job, shown on real parts: 100 Apache containers, one real security update, the proof.

    demo.py run     everything from an empty host to the proof, and back and forth once
    demo.py clean   take away what ``run`` made

It uses the command line alone, as an operator would, and prints every command that it runs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import http.client
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
ONEROOT = Path(sys.executable).with_name("oneroot")
BASE = "core"
PACKAGES = (
    *("apache2", "libapache2-mod-php", "php-curl", "libapache2-mod-wsgi-py3"),
    *("python3", "python3-pip", "ruby", "ca-certificates"),
)
COMMAND = "apache2ctl -D FOREGROUND"


@dataclasses.dataclass(frozen=True)
class App:
    """One language's application: what an operator's developers put on top of the base."""

    name: str
    replicas: int
    setup: str = ""
    """Run by the shell in each container, once."""

    @property
    def pattern(self) -> str:
        return f"{self.name}*"


APPS = (
    App("php", 34),
    App("python", 33, "pip install --quiet --root-user-action=ignore --disable-pip-version-check --no-index"
        " --find-links /srv/app/wheels --target /srv/app/lib --requirement /srv/app/requirements.txt"
        " && touch /srv/app/app.wsgi"),
    App("ruby", 33),
)  # fmt: skip
TOTAL = sum(app.replicas for app in APPS)

out = Console(highlight=False)


class Failed(Exception):
    """A command of the demo failed; says which."""


def oneroot(*words: str, ok: Sequence[int] = (0,)) -> int:
    """Run a command as an operator would, its output on the screen."""
    out.print(f"\n[bold]# oneroot {shlex.join(words)}[/bold]", soft_wrap=True)
    code = subprocess.run([ONEROOT, *words], check=False).returncode
    if code not in ok:
        raise Failed(f"oneroot {shlex.join(words)} ended with {code}")
    return code


def read(*words: str, ok: Sequence[int] = (0,)) -> Any:
    """Run a command and return its JSON result."""
    done = subprocess.run(
        [ONEROOT, "--format", "json", "--progress", "none", *words], check=False, stdout=subprocess.PIPE
    )
    if done.returncode not in ok:
        raise Failed(f"oneroot {shlex.join(words)} ended with {done.returncode}")
    return json.loads(done.stdout)


def headline(text: str) -> None:
    out.print()
    out.rule(f"[bold]{text}", align="left")


def run() -> None:
    """Show the whole job."""
    begun = time.monotonic()
    headline("1  A host that is fit for 100 containers")
    oneroot("doctor", "--containers", str(TOTAL), "--fix")
    headline("2  One base: Debian with Apache, PHP, Python and Ruby, as released, without later updates")
    make_base(())
    if not pending():
        out.print("\nNo security update is pending today: a real library is rebuilt with a higher version.")
        oneroot("base", "rm", BASE, "--yes")
        make_base(("--repository", rebuilt_library()))
    headline(f"3  {TOTAL} containers over it, unprivileged, each with its own writable layer")
    make_containers()
    before = ask_all("before the patch")
    headline("4  What waits to be patched")
    oneroot("plan", BASE)
    headline("5  Patch: upgrade the base, restart the containers, prove it")
    patch_begun = time.monotonic()
    oneroot("patch", BASE, "--yes", "--batch", "50%")
    seconds = time.monotonic() - patch_begun
    after = ask_all("after the patch")
    headline("6  Back, and forth again")
    oneroot("rollback", BASE, "--reason", "to show the way back", "--yes", "--batch", "50%", ok=(0, 3))
    ask_all("after the rollback")
    oneroot("base", "unpin", BASE)
    oneroot("patch", BASE, "--yes", "--batch", "50%")
    headline("7  The proof")
    oneroot("verify")
    summary(before, after, seconds, time.monotonic() - begun)


def make_base(extra: Sequence[str]) -> None:
    packages = [word for package in PACKAGES for word in ("--package", package)]
    suites = ("--suite", "bookworm", "--suite", "bookworm-security", "--initial-suite", "bookworm")
    oneroot("base", "create", BASE, "--source", "debian:bookworm", *suites, *packages, *extra)


def pending() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read("plan", BASE)[0]["pending"]
    return found


def make_containers() -> None:
    for app in APPS:
        oneroot(
            *("create", "--base", BASE, "--replicas", str(app.replicas)),
            *("--command", COMMAND, "--health", "http:80/", "--memory", "256M", app.name),
        )
    stopped = [container["name"] for container in read("ls") if container["state"] == "STOPPED"]
    fresh = [app for app in APPS if any(name.startswith(app.name) for name in stopped)]
    for app in fresh:
        # A container whose application is missing would not pass its health check: it is put
        # into the stopped container's own layer first.
        install(app)
    oneroot("start", *(app.pattern for app in APPS))
    for app in fresh:
        if app.setup:
            oneroot("exec", app.pattern, "--", "sh", "-c", app.setup)
    oneroot("ls", f"{APPS[0].name}00*")


def install(app: App) -> None:
    """Copy an application into the layer of every container of its kind."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "app")
        subprocess.run(["cp", "-r", HERE / app.name, source], check=True)
        site = Path(directory, "000-default.conf")
        Path(source, "site.conf").rename(site)
        if (source / "requirements.txt").exists():
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
            wheels = ["--python-version", "3.11", "--dest", source / "wheels"]
            words = [*download, *wheels, "-r", source / "requirements.txt"]
            done = subprocess.run(words, check=False, capture_output=True, text=True)
            if done.returncode:
                raise Failed(f"pip could not fetch the wheels: {done.stderr.strip()}")
        oneroot("cp", str(source), f"{app.pattern}:/srv/app")
        oneroot("cp", str(site), f"{app.pattern}:/etc/apache2/sites-enabled/000-default.conf")


def ask_all(when: str) -> Counter[tuple[str, str]]:
    """Ask every container over HTTP, and show which OpenSSL its own process answers with."""
    containers = [
        container for container in read("ls") if container["name"].startswith(("php", "python", "ruby"))
    ]
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(ask, containers))
    counted = Counter((answer["language"], answer["openssl"]) for answer in answers)
    table = Table(title=f"{len(answers)} of {TOTAL} answered, {when}", title_justify="left", box=None)
    for column in ("containers", "language", "OpenSSL in the running process"):
        table.add_column(column)
    for (language, openssl), number in sorted(counted.items()):
        table.add_row(str(number), language, openssl)
    out.print()
    out.print(table)
    if len(answers) != TOTAL:
        raise Failed(f"{len(answers)} of {TOTAL} containers answered")
    return counted


def ask(container: dict[str, Any]) -> dict[str, str]:
    connection = http.client.HTTPConnection(container["addresses"][0], 80, timeout=20)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    said: dict[str, str] = json.loads(body) if answer.status == 200 else {}
    if said.get("name") != container["name"]:
        raise Failed(f"{container['name']} answered {answer.status}: {body[:200]!r}")
    return {**said, "openssl": " ".join(said["openssl"].replace("/", " ").split()[:2])}


def summary(before: Counter[Any], after: Counter[Any], patch: float, total: float) -> None:
    bases = [base for base in read("verify") if base["base"] == BASE]
    containers = [container for base in bases for container in base["containers"]]
    table = Table(title="oneroot", title_style="bold", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("containers", str(len(containers)))
    table.add_row("over one base, generation", str(bases[0]["generation"]))
    table.add_row("proven to run the fix", str(sum(container["proven"] is True for container in containers)))
    table.add_row("OpenSSL before", ", ".join(sorted({version for _, version in before})))
    table.add_row("OpenSSL after", ", ".join(sorted({version for _, version in after})))
    table.add_row("seconds from “patch” to the proof", f"{patch:.1f}")
    table.add_row("seconds for this whole demo", f"{total:.0f}")
    out.print()
    out.print(table)
    out.print("The containers keep running. [bold]make demo-clean[/bold] takes all of it away.")


def rebuilt_library() -> str:
    """Rebuild libssl3 with a higher version into a signed repository; return its source line."""
    place = Path(tempfile.mkdtemp(prefix="oneroot-demo-"))
    place.chmod(0o755)
    home = place / "gnupg"
    home.mkdir(mode=0o700)

    def sh(*words: str | Path, **more: Any) -> str:
        done = subprocess.run(
            words, check=True, cwd=place, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "GNUPGHOME": str(home)}, **more,
        )  # fmt: skip
        return str(done.stdout)

    sh("apt-get", "download", "libssl3")
    [package] = place.glob("libssl3_*.deb")
    sh("dpkg-deb", "-R", package, "tree")
    control = place / "tree/DEBIAN/control"
    lines = control.read_text().splitlines()
    lines = [line + "+demo1" if line.startswith("Version:") else line for line in lines]
    control.write_text("\n".join(lines) + "\n")
    package.unlink()
    sh("dpkg-deb", "--root-owner-group", "-b", "tree", place)
    (place / "Packages").write_text(sh("apt-ftparchive", "packages", "."))
    (place / "Release").write_text(sh("apt-ftparchive", "release", "."))
    sh("gpg", "--batch", "--passphrase", "", "--quick-generate-key", "oneroot demo", "default", "sign")
    sh("gpg", "--batch", "--clearsign", "--output", "InRelease", "Release")
    sh("gpg", "--batch", "--export", "--output", "key.gpg")
    return f"deb [signed-by={place}/key.gpg] file:{place} ./"


def clean() -> None:
    """Remove the demo's containers and its base."""
    names = [container["name"] for container in read("ls")]
    mine = [app.pattern for app in APPS if any(name.startswith(app.name) for name in names)]
    if mine:
        oneroot("rm", "--force", "--yes", "--purge", *mine)
    if any(base["name"] == BASE for base in read("base", "ls")):
        oneroot("base", "rm", BASE, "--yes")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "clean"))
    try:
        {"run": run, "clean": clean}[parser.parse_args().what]()
    except (Failed, OSError) as error:
        out.print(f"[bold red]The demo stopped:[/bold red] {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
