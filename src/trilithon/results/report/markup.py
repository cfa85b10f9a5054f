"""HTML that cannot forget to escape: text is escaped unless it is an `Html`, which only these functions make."""

from collections.abc import Container, Iterable, Sequence
from html import escape

__all__ = ["Html", "element", "joined", "rows_of_cells", "table", "trusted"]

_VOID = {"br", "col", "hr", "input"}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def trusted(text: str) -> Html:
    """Take text as HTML, unescaped: only for what this package has written itself."""
    return Html(text)


def element(name: str, *content: str, **attributes: str | None) -> Html:
    """`<name attribute="…">content</name>`. `class_` is class, `aria_label` is aria-label; None leaves one out."""
    pairs = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    start = "".join(f' {key}="{escape(value)}"' for key, value in pairs.items())
    return Html(f"<{name}{start}>" + ("" if name in _VOID else f"{joined(content)}</{name}>"))


def joined(parts: Iterable[str], separator: str = "") -> Html:
    return Html(separator.join(part if isinstance(part, Html) else escape(part) for part in parts))


def rows_of_cells(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Table rows; the first cell of each is its heading. The others say their column's head too, for pages where the
    heads have no room."""
    return joined((_row(heads, row) for row in rows), "\n")


def _row(heads: Sequence[str], row: Sequence[str]) -> Html:
    cells = (
        element("td", cell, class_="text named", data_title=head) for head, cell in zip(heads[1:], row[1:], strict=True)
    )
    return element("tr", element("th", row[0], scope="row"), *cells)


def table(caption: str, heads: Sequence[str], *bodies: str, numbers: Container[str] = ()) -> Html:
    """A table that scrolls by itself where the page is too narrow for it; on a phone each row is a card. `numbers` are
    the heads over numbers."""
    head = element(
        "tr", *(element("th", text, scope="col", class_="number" if text in numbers else None) for text in heads)
    )
    whole = element(
        "table", element("caption", caption), element("thead", head), *(element("tbody", body) for body in bodies)
    )
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")
