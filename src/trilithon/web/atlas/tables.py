"""The atlas and estimates as HTML, by functions that cannot forget to escape. Pure."""

from collections.abc import Iterable, Sequence

from trilithon.estimate.answer import Range, SpeedEstimate
from trilithon.estimate.recommend import fits
from trilithon.estimate.rows import Measurement, source_address
from trilithon.language import translated
from trilithon.results.report.markup import Html, element, joined
from trilithon.units import format_number
from trilithon.web.atlas.screen import AtlasBar, AtlasScreen
from trilithon.web.quantities import memory_range, number
from trilithon.web.texts import Texts

__all__ = ["bar_list", "estimate_table", "options", "row_table"]

_ROW_COLUMNS = ("model", "chip", "engine", "quantisation", "prompt", "prefill", "decode", "first_token", "source")
_NAMES = ("model", "chip", "engine", "quantisation", "source")
_ESTIMATE_COLUMNS = ("chip", "engine", "quantisation", "decode", "within", "prefill", "memory", "basis")


def options(values: Iterable[str], chosen: str, all_of_them: str = "", *, names: bool = False) -> Html:
    """Of a `<select>`; `all_of_them` is the name of no filter. What an address names is offered even without rows.
    `names` are those of products, in no language of ours."""
    known = list(values)
    known += [chosen] if chosen and chosen not in known else []
    pairs = [*([("", all_of_them)] if all_of_them else []), *((value, value) for value in known)]
    return joined(
        element("option", title, value=value, selected="" if value == chosen else None, lang=_language(names and value))
        for value, title in pairs
    )


def bar_list(bars: Sequence[AtlasBar], text: Texts) -> Html:
    """A chart that is a list: what a bar shows is said beside it."""
    longest = max((bar.value for bar in bars), default=1.0)
    return joined(
        element(
            "li",
            element("span", bar.label, class_="label", lang="en"),
            element(
                "span",
                element("span", class_=f"bar {bar.unit}", style=f"width: {100 * bar.value / longest:.1f}%"),
                element("span", _bar_words(bar, text), class_="figure"),
                class_="line",
            ),
        )
        for bar in bars
    )


def _bar_words(bar: AtlasBar, text: Texts) -> str:
    value = _number(bar.value, text)
    if bar.count == 1:
        return text("atlas.bar_one", value=value)
    return text("atlas.bar", value=value, low=_number(bar.low, text), high=_number(bar.high, text), count=bar.count)


def row_table(screen: AtlasScreen, text: Texts) -> Html:
    """The content of the `<table>`."""
    return _table(_ROW_COLUMNS, (_row_cells(row, text) for row in screen.rows), text)


def _row_cells(row: Measurement, text: Texts) -> tuple[str, ...]:
    seconds = row.ttft_ms / 1000 if row.ttft_ms else None
    figures = (row.prompt_tokens, row.prefill_tps, row.decode_tps, seconds)
    numbers = ("" if figure is None else _number(figure, text) for figure in figures)
    address = source_address(row.source).partition(" ")[0]
    source = element("a", row.source, href=address, rel="noreferrer") if address else joined([row.source])
    return row.model, row.machine, f"{row.engine} / {row.unit}", row.quant, *numbers, joined([source, f" {row.date}"])


def estimate_table(rows: Sequence[SpeedEstimate], room: int | None, text: Texts) -> Html:
    """The fastest first. `room` are the bytes of the board's memory, None where nobody said."""
    ordered = sorted(rows, key=lambda row: -row.decode.value)
    return _table(_ESTIMATE_COLUMNS, (_estimate_cells(row, room, text) for row in ordered), text)


def _estimate_cells(row: SpeedEstimate, room: int | None, text: Texts) -> tuple[str, ...]:
    memory: str = memory_range(row.memory.needed, row.memory.total, text)
    if fits(row, room) is False:
        memory = element("span", text("atlas.too_large", size=memory), class_="bad")
    return (
        row.chip,
        f"{row.engine} / {row.unit}",
        row.quantization,
        element("strong", _number(row.decode.value, text)),
        _interval(row.decode, text),
        _number(row.prefill.value, text),
        memory,
        translated(row.basis, text.language),
    )


def _interval(seen: Range, text: Texts) -> str:
    return "–".join(_number(bound, text) for bound in seen.within_80)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: Texts) -> Html:
    """Each cell says its column's name too, for screens where a line is a card."""
    titles = {name: text(f"atlas.column_{name}") for name in columns}
    head = element("tr", *(element("th", title, scope="col") for title in titles.values()))
    lines = (
        element(
            "tr",
            *(
                element("td", cell, class_=name, data_title=title, lang=_language(name in _NAMES))
                for (name, title), cell in zip(titles.items(), cells, strict=True)
            ),
        )
        for cells in rows
    )
    return joined((element("thead", head), element("tbody", *lines)))


def _language(is_name: object) -> str | None:
    return "en" if is_name else None


def _number(value: float, text: Texts) -> str:
    return number(format_number(value), text)
