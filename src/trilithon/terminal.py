"""What a stranger's text must not do to a terminal: move the cursor, write the clipboard, change the title. And what a
terminal cannot show: signs beyond ASCII, on old ones."""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table

__all__ = ["ascii_signs", "fitting", "plain", "plain_console", "shows_signs"]

# All control characters but line feeds and tabs, which are text: C0, DEL and C1.
_COMMANDING = dict.fromkeys([*range(9), *range(11, 32), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}")

# Signs of our texts on terminals that have ASCII alone; their letters are printed as they are.
_ASCII_SIGNS = str.maketrans(
    {
        "✓": "ok",
        "✗": "no",
        "→": "->",
        "·": "-",
        "×": "x",
        "…": "...",
        "–": "-",
        "—": "-",
        "±": "+/-",
        "≥": ">=",
        "≤": "<=",
    }
    | {
        "─": "-",
        "━": "-",
        "═": "=",
        "│": "|",
        "█": "#",
        "░": ".",
        "▲": "^",
        "«": '"',
        "»": '"',
        "°": "",
        "\N{NO-BREAK SPACE}": " ",
    }
)
_OLD_TERMINALS = ("dumb", "linux", "vt100", "vt102", "vt220")


def shows_signs(stream: Any = None) -> bool:
    """Whether a stream, by default stdout, takes signs such as ✓: not one that has another encoding than UTF-8, nor a
    terminal in the C locale (which Python writes UTF-8 to), nor the kernel's console, whose font lacks them."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if not encoding.lower().replace("-", "").startswith("utf"):
        return False
    if not getattr(stream, "isatty", bool)():
        return True
    locale, terminal = os.environ.get("LC_ALL", ""), os.environ.get("TERM", "")
    return locale not in ("C", "POSIX") and terminal not in _OLD_TERMINALS


def ascii_signs(text: str) -> str:
    return text.translate(_ASCII_SIGNS)


def plain(text: str) -> str:
    """Without what would command a terminal."""
    return text.replace("\r\n", "\n").translate(_COMMANDING)


def plain_console(**options: Any) -> "Console":
    """A console of rich that writes to a terminal only its own control characters, and to a pipe the texts as they are.

    rich takes 0.1 s to import, and `--help` does without it."""
    from rich.console import Console
    from rich.segment import Segment

    class PlainConsole(Console):
        def render(self, renderable: "RenderableType", options: "ConsoleOptions | None" = None) -> "Iterable[Segment]":
            with_signs = shows_signs(self.file)
            for segment in super().render(renderable, options):
                if segment.control or (with_signs and not self.is_terminal):
                    yield segment
                    continue
                text = plain(segment.text) if self.is_terminal else segment.text
                yield Segment(text if with_signs else ascii_signs(text), segment.style)

    return PlainConsole(**options)


def fitting(table: "Table", console: "Console") -> "RenderableType":
    """The table where it has room for every word; else the cells of each row one below the other, with their titles."""
    from rich.measure import Measurement

    wishes = []
    for column in table.columns:
        lines = [line for text in (column.header, *column.cells) for line in str(text).splitlines()]
        # rich would also make a column narrower than its longest word.
        column.width = max((len(word) for line in lines for word in line.split()), default=0)
        column.width = max(column.width, column.min_width or 0)
        longest = max(map(len, lines), default=0)
        wishes.append(max(min(longest, column.max_width or longest) - column.width, 0))
    roomy = console.options.update(max_width=10_000)  # a measurement is never larger than the console
    spare = console.width - Measurement.get(console, roomy, table).minimum
    if spare < 0:
        return _one_cell_a_line(table, console.width)
    # What little is wished for is given whole: names stay in one line, and long texts are wrapped.
    by_wish = sorted(zip(wishes, range(len(wishes)), strict=True))
    for place, (wish, index) in enumerate(by_wish):
        width = min(wish, spare // (len(by_wish) - place))
        table.columns[index].width = (table.columns[index].width or 0) + width
        spare -= width
    return table


def _one_cell_a_line(table: "Table", width: int) -> "RenderableType":
    import textwrap

    from rich.console import Group
    from rich.text import Text

    wrapper = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    lines = []
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            if text := str(cell).strip():
                parts = wrapper.wrap(f"{column.header}: {'; '.join(text.splitlines())}")
                lines += [Text(part, no_wrap=True, overflow="ignore") for part in parts]
        lines.append(Text())
    return Group(*lines)
