"""What a stranger's text must not do to a terminal: move the cursor, write the clipboard, change the title."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

__all__ = ["plain", "plain_console"]

# All control characters but line feeds and tabs, which are text: C0, DEL and C1.
_COMMANDING = dict.fromkeys([*range(9), *range(11, 32), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}")


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
            for segment in super().render(renderable, options):
                if segment.control or not self.is_terminal:
                    yield segment
                else:
                    yield Segment(plain(segment.text), segment.style)

    return PlainConsole(**options)
