"""Draw a recorded terminal session as an SVG picture: docs/images/patch.svg from patch.txt.

    draw_terminal.py [RECORDING PICTURE]

The recording is the output of real commands, each behind a line ``# COMMAND``; of progress that counts up,
the last line is kept. Record one with ``make demo 2>&1 | tee demo.txt`` and keep the part that is to be
seen. Colours are added here by rules; no text is.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

IMAGES = Path(__file__).parent.parent / "docs/images"
_STYLES = (
    (re.compile(r"^# .*"), "bold"),
    (re.compile(r"(?<!\d )\bnot proven\b|\bFAIL\b"), "bold red"),
    (re.compile(r"(?<!not )\bproven\b|\bRUNNING\b"), "green"),
    (re.compile(r"^[A-Z][a-z]+(?: [a-z]+)?:"), "cyan"),
)
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_SPACES_AT_END = re.compile(r"[ \t]+$", re.MULTILINE)


def draw(recording: str, *, title: str) -> str:
    """Return the picture of a recorded session."""
    lines = recording.expandtabs().rstrip().splitlines()
    width = max(map(len, lines), default=1)
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        text = Text(line)
        for pattern, style in _STYLES:
            text.highlight_regex(pattern, style)
        console.print(text, soft_wrap=True)
    picture = console.export_svg(title=title, theme=MONOKAI, unique_id="session")
    # A picture must not fetch fonts from somebody else's server.
    return _SPACES_AT_END.sub("", _FONT.sub("", picture)).rstrip() + "\n"


def main() -> int:
    given = [Path(word) for word in sys.argv[1:]]
    recording, picture = given or (IMAGES / "patch.txt", IMAGES / "patch.svg")
    picture.write_text(draw(recording.read_text(encoding="utf-8"), title="oneroot"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
