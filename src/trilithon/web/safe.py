"""A model's words as HTML that does nothing: whatever they hold is shown, and nothing of it is run or loaded.

markdown-it escapes HTML and leaves links alone that are none of http, https, mailto and the like; pictures are left
out, since a picture's address tells its host who reads."""

from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

__all__ = ["safe_markdown"]

_MOST_NESTING = 20


def _link_open(self: RendererHTML, tokens: Sequence[Token], at: int, options: OptionsDict, env: EnvType) -> str:
    tokens[at].attrSet("target", "_blank")
    tokens[at].attrSet("rel", "noopener noreferrer nofollow")
    return self.renderToken(tokens, at, options, env)


def _table_open(self: RendererHTML, tokens: Sequence[Token], at: int, options: OptionsDict, env: EnvType) -> str:
    """In a box that scrolls, by keyboard too."""
    return f'<div class="table" tabindex="0">{self.renderToken(tokens, at, options, env)}'


def _table_close(self: RendererHTML, tokens: Sequence[Token], at: int, options: OptionsDict, env: EnvType) -> str:
    return f"{self.renderToken(tokens, at, options, env)}</div>"


def _made() -> Any:
    made = MarkdownIt("js-default", {"maxNesting": _MOST_NESTING, "linkify": False, "typographer": False})
    made.disable("image")
    for name, rule in (("link_open", _link_open), ("table_open", _table_open), ("table_close", _table_close)):
        made.add_render_rule(name, rule)
    return made


_MARKDOWN = _made()


def safe_markdown(text: str) -> str:
    """HTML of Markdown (CommonMark, with tables and strikethrough)."""
    return str(_MARKDOWN.render(text.replace("\0", "\ufffd")))
