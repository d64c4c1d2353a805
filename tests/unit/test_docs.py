"""The documentation says what the program does: commands parse, links lead somewhere, defaults agree."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from oneroot.cli.main import _spread_global_options, cli
from oneroot.errors import ExitCode
from oneroot.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = DOCS / "reference/commands.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`(oneroot [^`\n]+)`")
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_FIELDS = re.compile(r"<!-- fields: ([\w.]+)\.(\w+) -->\n\n((?:\|.*\n)+)")
_SHELL_ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>"}


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def written_commands() -> Iterator[tuple[str, bool]]:
    """Yield each command line as `page: line`, and whether it is whole (a span in prose may be a part)."""
    for page in PAGES:
        if page == GENERATED:
            continue
        for language, body in _FENCE.findall(text_of(page)):
            for line in body.replace("\\\n", " ").splitlines() if language in ("console", "sh") else ():
                command = line.removeprefix("# ").removeprefix("$ ")
                if (command.startswith("oneroot ") and command != line) or language == "sh":
                    for part in re.split(r"(?<= )(?=oneroot )", command):
                        if part.startswith("oneroot "):
                            yield f"{relative(page)}: {part}", True
        for span in _SPAN.findall(_FENCE.sub("", text_of(page))):
            yield f"{relative(page)}: {span}", False


def words_of(line: str) -> list[str]:
    """Split a command line as a shell would, up to the first operator, with placeholders filled in."""
    lexer = shlex.shlex(line.replace("…", "x"), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in lexer:
        if word in _SHELL_ENDS:
            break
        words.append("1" if word in ("N", "A", "B", "SECONDS") else word)
    return words


def parse(words: list[str]) -> None:
    """Parse a command line to its end without running it."""
    front, rest = _spread_global_options(words[1:])
    command: click.Command = cli
    context = cli.make_context("oneroot", [*front, *rest])
    while isinstance(command, click.Group):
        # click before 8.2 has no underscore there
        protected = vars(context).get("_protected_args", vars(context).get("protected_args", ()))
        left = [*protected, *context.args]
        if not left:
            return
        name, found, arguments = command.resolve_command(context, left)
        assert found is not None
        command, context = found, found.make_context(name, arguments, parent=context)


@pytest.mark.parametrize(("where", "whole"), sorted(set(written_commands())))
def test_every_command_that_is_written_parses(where: str, whole: bool) -> None:
    line = where.partition(": ")[2]
    try:
        parse(words_of(line))
    except click.exceptions.Exit:
        pass  # --help and --version
    except click.MissingParameter as error:
        if whole:
            raise AssertionError(f"{where}: {error.format_message()}") from error
    except click.UsageError as error:
        if not whole and error.message.startswith("Missing command"):
            return
        raise AssertionError(f"{where}: {error.format_message()}") from error


def test_there_are_commands_to_parse() -> None:
    found = list(written_commands())
    assert sum(whole for _, whole in found) > 60
    assert len({relative(page) for page in PAGES if any(w.startswith(relative(page)) for w, _ in found)}) > 12


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", text_of(page))):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{relative(page)}: {target}"
        assert file.is_relative_to(ROOT), f"{relative(page)}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{relative(page)}: {target}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as forges make them."""
    headings = _HEADING.findall(_FENCE.sub("", text_of(page)))
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_page_has_one_title(page: Path) -> None:
    assert len(re.findall(r"^# ", _FENCE.sub("", text_of(page)), re.MULTILINE)) == 1


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_prose_does_not_belittle(page: Path) -> None:
    text = _FENCE.sub("", text_of(page))
    found = re.search(r".*\b(?:simply|easily|obviously)\b.*", text, re.IGNORECASE)
    assert found is None, found and found[0]


def test_the_generated_reference_is_up_to_date() -> None:
    generate = tool("generate_reference")
    assert text_of(GENERATED) == generate.text(), "run tools/generate_reference.py"


def test_the_generated_reference_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = tool("generate_reference")
    monkeypatch.setenv("COLUMNS", "40")
    narrow = generate.text()
    monkeypatch.setenv("COLUMNS", "300")
    assert generate.text() == narrow


def test_the_picture_shows_the_recording() -> None:
    recording = text_of(DOCS / "images/patch.txt")
    picture = text_of(DOCS / "images/patch.svg")
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+|https://www\.textualize\.io", "", picture)
    shown = re.sub(r"<[^>]+>", "", picture).replace("&#160;", " ").replace("&lt;", "<").replace("&gt;", ">")
    for line in recording.splitlines():
        for word in line.split():
            assert word in shown, line


def test_every_setting_is_documented_with_its_default() -> None:
    documented: dict[str, str] = {}
    for keys, values in re.findall(
        r"^\| (`[^|]+`) \| ([^|]+) \|", text_of(DOCS / "reference/settings.md"), re.MULTILINE
    ):
        names = re.findall(r"`([^`]+)`", keys)
        defaults = [value.strip("` ") for value in (values.split(",") if len(names) > 1 else [values])]
        documented |= dict(zip(names, defaults, strict=True))
    assert documented == {name: shown(value) for name, value in flat(Settings(), "")}


def flat(value: object, prefix: str) -> Iterator[tuple[str, object]]:
    assert dataclasses.is_dataclass(value)
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from flat(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", inner


def shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def test_every_exit_code_is_documented() -> None:
    codes = re.findall(r"^\| ([0-9]+) \|", text_of(DOCS / "reference/exit-codes.md"), re.MULTILINE)
    assert sorted(map(int, codes)) == sorted(code.value for code in ExitCode)


@pytest.mark.parametrize(
    ("module", "name", "table"),
    _FIELDS.findall(text_of(DOCS / "reference/json.md")),
    ids=lambda text: text[:40],
)
def test_the_json_reference_names_every_field(module: str, name: str, table: str) -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    documented = [field for row in rows for field in re.findall(r"`([^`]+)`", row)]
    fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    assert sorted(documented) == sorted(field.name for field in fields)


def tool(name: str):  # type: ignore[no-untyped-def]
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))
