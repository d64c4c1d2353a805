"""What ``doctor --fix`` changes, and how ``doctor --undo`` takes it back.

Values are only ever raised. What was there before is written down first, in the store; a later
fix keeps the oldest note, so that undo leads back to the host as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from pathlib import Path

from oneroot.errors import HostError
from oneroot.host import idpool, limits, subids, sysctl
from oneroot.host.check import Status
from oneroot.host.limits import Load
from oneroot.settings import Settings
from oneroot.work import files, rundir
from oneroot.work.progress import SILENT, Progress
from oneroot.work.steps import Step, apply_all

log = logging.getLogger(__name__)

SCHEMA = 1
SYSCTL_FILE = Path("/etc/sysctl.d/60-oneroot.conf")
_HEADER = "# Written by oneroot doctor --fix; oneroot doctor --undo removes it.\n"
_FORWARDING = "net.ipv4.ip_forward"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Undo:
    """What was before, and what we made of it."""

    parameters: dict[str, tuple[str, str]]
    """Name to the value before and the value that we set."""
    ranges: tuple[tuple[str, int, int], ...]
    """Ids given to root: file name, first, count."""


def undo_file(settings: Settings) -> Path:
    return settings.paths.store / "doctor-undo.json"


def plan(settings: Settings, containers: int) -> list[Step]:
    """Return the steps that mend what can be mended; none if nothing is wrong."""
    load = Load(containers=containers, units=containers)
    wanted = {
        limit.name: str(limits.rounded(limit.need(load)))
        for limit in limits.LIMITS
        if limits.check(limit, load).status in (Status.FAIL, Status.WARN)
    }
    if sysctl.read(_FORWARDING) == "0":
        wanted[_FORWARDING] = "1"
    directories = _Directories(settings)
    steps: list[Step] = [directories] if rundir.lacking(directories.wanted) else []
    gaps = [(file, *gap) for file in idpool.FILES for gap in idpool.missing(idpool.read(file), settings.ids)]
    if wanted or gaps:
        steps.append(_Note(settings, wanted, tuple((file.name, first, count) for file, first, count in gaps)))
    steps += [_SetParameter(name, value) for name, value in wanted.items()]
    if wanted:
        steps.append(_KeepParameters(wanted))
    steps += [_GiveIds(file, first, count) for file, first, count in gaps]
    return steps


def fix(settings: Settings, containers: int, *, progress: Progress = SILENT) -> list[Step]:
    """Mend what can be mended, and return the steps that were done."""
    steps = plan(settings, containers)
    apply_all(steps, progress=progress)
    return steps


def plan_undo(settings: Settings) -> list[Step]:
    """Return the steps that take every fix back; none if there is nothing to take back."""
    noted = load_undo(settings)
    if noted is None:
        return []
    steps: list[Step] = [
        _ResetParameter(name, before, after) for name, (before, after) in noted.parameters.items()
    ]
    if noted.parameters:
        steps.append(_RemoveFile(SYSCTL_FILE))
    steps += [_TakeIds(Path("/etc") / name, first, count, settings) for name, first, count in noted.ranges]
    return [*steps, _RemoveFile(undo_file(settings))]


def undo(settings: Settings, *, progress: Progress = SILENT) -> list[Step]:
    """Take back what `fix` did, as far as nobody changed it since."""
    steps = plan_undo(settings)
    apply_all(steps, progress=progress)
    return steps


def load_undo(settings: Settings) -> Undo | None:
    """Return what was noted, None if there was no fix.

    :raises CorruptState: the note is damaged.
    """
    with contextlib.suppress(FileNotFoundError):
        return files.load(undo_file(settings), Undo, schema=SCHEMA)
    return None


def parse_parameters(text: str) -> dict[str, str]:
    """Return the settings of a sysctl.d file."""
    pairs = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def merge_parameters(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """Return both, the greater value where both have one."""
    merged = dict(old)
    for name, value in new.items():
        before = merged.get(name, "")
        merged[name] = before if before.isdigit() and int(before) > int(value) else value
    return merged


@dataclasses.dataclass(frozen=True)
class _Directories:
    """The store, the run directory and what lies in it, with the modes that they must have."""

    settings: Settings

    @property
    def wanted(self) -> list[rundir.Wanted]:
        return [(self.settings.paths.store, 0o700), *rundir.wanted(self.settings.paths)]

    def describe(self) -> str:
        return f"make {self.settings.paths.store} and {self.settings.paths.run} as they must be"

    def apply(self) -> None:
        rundir.make(self.wanted)

    def undo(self) -> None:
        """Empty directories harm nobody."""


@dataclasses.dataclass(frozen=True)
class _Note:
    settings: Settings
    wanted: dict[str, str]
    ranges: tuple[tuple[str, int, int], ...]

    def describe(self) -> str:
        return f"note the values of now in {undo_file(self.settings)}"

    def apply(self) -> None:
        noted = load_undo(self.settings) or Undo(parameters={}, ranges=())
        parameters = dict(noted.parameters)
        for name, value in self.wanted.items():
            before = parameters[name][0] if name in parameters else sysctl.read(name)
            if before is not None:
                parameters[name] = (before, value)
        self.settings.paths.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        ranges = tuple(dict.fromkeys((*noted.ranges, *self.ranges)))
        files.save(undo_file(self.settings), Undo(parameters=parameters, ranges=ranges), schema=SCHEMA)

    def undo(self) -> None:
        """The note stands: undoing what was not done does nothing."""


@dataclasses.dataclass
class _SetParameter:
    name: str
    value: str
    before: str | None = None

    def describe(self) -> str:
        return f"sysctl -w {self.name}={self.value}"

    def apply(self) -> None:
        found = sysctl.read(self.name)
        if found is None or int(found) >= int(self.value):
            return
        try:
            sysctl.write(self.name, self.value)
        except HostError as error:
            # One that the kernel keeps must not take the others back; doctor names it again.
            log.warning("%s", error)
            return
        self.before = found

    def undo(self) -> None:
        if self.before is not None:
            sysctl.write(self.name, self.before)


@dataclasses.dataclass
class _KeepParameters:
    wanted: dict[str, str]
    before: bytes | None = None

    def describe(self) -> str:
        return f"write {SYSCTL_FILE}, so that they hold after a boot"

    def apply(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.before = SYSCTL_FILE.read_bytes()
        kept = parse_parameters((self.before or b"").decode("utf-8", "replace"))
        lines = [f"{name} = {value}\n" for name, value in sorted(merge_parameters(kept, self.wanted).items())]
        SYSCTL_FILE.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(SYSCTL_FILE, (_HEADER + "".join(lines)).encode("ascii"), mode=0o644)

    def undo(self) -> None:
        if self.before is None:
            SYSCTL_FILE.unlink(missing_ok=True)
        else:
            files.write_atomic(SYSCTL_FILE, self.before, mode=0o644)


@dataclasses.dataclass
class _GiveIds:
    file: Path
    first: int
    count: int
    done: bool = False

    def describe(self) -> str:
        return f"give root the ids {self.first} to {self.first + self.count - 1} in {self.file}"

    def apply(self) -> None:
        self.done = subids.give(self.file, self.first, self.count)

    def undo(self) -> None:
        if self.done:
            subids.take(self.file, self.first, self.count)


@dataclasses.dataclass
class _TakeIds:
    file: Path
    first: int
    count: int
    settings: Settings
    done: bool = False

    def describe(self) -> str:
        return f"take the ids {self.first} to {self.first + self.count - 1} from root in {self.file}"

    def apply(self) -> None:
        lxc = self.settings.paths.lxc
        if any(lxc.glob("*/oneroot.json")):
            raise HostError(
                f"The ids in {self.file} cannot be taken back",
                why=f"there are containers below {lxc} that use them",
                fix="oneroot rm '*', then oneroot doctor --undo",
            )
        self.done = subids.take(self.file, self.first, self.count)

    def undo(self) -> None:
        if self.done:
            subids.give(self.file, self.first, self.count)


@dataclasses.dataclass
class _ResetParameter:
    name: str
    before: str
    after: str
    done: bool = False

    def describe(self) -> str:
        return f"sysctl -w {self.name}={self.before}"

    def apply(self) -> None:
        # What somebody has changed since is his.
        if sysctl.read(self.name) == self.after:
            sysctl.write(self.name, self.before)
            self.done = True

    def undo(self) -> None:
        if self.done:
            sysctl.write(self.name, self.after)


@dataclasses.dataclass
class _RemoveFile:
    file: Path
    before: bytes | None = None

    def describe(self) -> str:
        return f"remove {self.file}"

    def apply(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.before = self.file.read_bytes()
            self.file.unlink()

    def undo(self) -> None:
        if self.before is not None:
            files.write_atomic(self.file, self.before)
