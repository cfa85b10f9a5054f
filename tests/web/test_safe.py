"""Whatever a model writes, its HTML does nothing."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.web.safe import safe_markdown

TAGS = {
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "hr",
    "br", "a", "table", "thead", "tbody", "tr", "th", "td", "div",
}  # fmt: skip
ATTRIBUTES = {"href", "title", "target", "rel", "class", "start", "style", "tabindex"}


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, name
            assert name != "style" or re.fullmatch(r"text-align:(left|right|center)", value or "")
            if name == "href":
                self.links.append(value or "")


PIECES = st.sampled_from(
    ["<script>", "</script>", "<img src=x onerror=a()>", "[a](", "javascript:", "data:text/html,x", ")", "![", "](",
     "`", "```", "\n", "\n\n", "|", "|-|", "<", ">", "&lt;", '"', "'", "http://e.vil/", "<svg/onload=a()>",
     "- ", "> ", "\0"]
)  # fmt: skip


@given(st.lists(PIECES | st.text(max_size=8), max_size=30).map("".join))
def test_nothing_but_plain_markup_comes_out(text: str) -> None:
    for link in Seen(safe_markdown(text)).links:
        assert not re.match(r"\s*(javascript|vbscript|data|file):", link, re.IGNORECASE)


@pytest.mark.parametrize(
    "text", ["<b>x</b>", "<script>alert(1)</script>", '<a href="javascript:alert(1)">x</a>', "<!-- x -->"]
)
def test_html_is_shown_as_it_is(text: str) -> None:
    assert (
        safe_markdown(text).strip()
        == f"<p>{text.replace('<', '&lt;').replace('>', '&gt;').replace(chr(34), '&quot;')}</p>"
    )


def test_markdown_is_drawn() -> None:
    drawn = safe_markdown("# A\n\n**b** [c](https://example.com)\n\n|x|\n|-|\n|y|\n\n![d](http://e.vil/d.png)")
    assert "<h1>A</h1>" in drawn and "<strong>b</strong>" in drawn and "<td>y</td>" in drawn
    assert 'rel="noopener noreferrer nofollow"' in drawn
    assert "<img" not in drawn
