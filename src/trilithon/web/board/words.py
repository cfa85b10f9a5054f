"""Quantities as a reader writes them: 2.35 GHz in English, 2,35 ГГц in Russian."""

from trilithon.web.texts import Texts

__all__ = ["HOT_CELSIUS", "celsius", "clock", "figure", "heat", "number", "percent", "size", "watts"]

HOT_CELSIUS = 80.0
"""As the bench warns: boards lose 15-20% to throttling from about there."""

_KIBI = 1024.0
_SIZES = ("bytes", "kibibytes", "mebibytes", "gibibytes", "tebibytes")


def number(value: float, digits: int, text: Texts) -> str:
    """A float with so many digits after the point."""
    return f"{value:.{digits}f}".replace(".", text("board.point"))


def percent(share: float, text: Texts) -> str:
    return text("board.percent", value=f"{share * 100:.0f}")


def celsius(value: float, text: Texts) -> str:
    return text("board.celsius", value=f"{value:.0f}")


def watts(value: float, text: Texts) -> str:
    return text("board.watts", value=number(value, 1, text))


def clock(hertz: float, text: Texts, top_hz: float | None = None) -> str:
    """ "2.35 GHz", or "1.01 of 2.35 GHz"; what is below 1 GHz at its top in MHz."""
    highest = max(hertz, top_hz or 0.0)
    name, scale, digits = ("gigahertz", 1e9, 2) if highest >= 1e9 else ("megahertz", 1e6, 0)
    value = number(hertz / scale, digits, text)
    if top_hz and round(top_hz / 1e6) != round(hertz / 1e6):
        value = text("board.of", value=value, most=number(top_hz / scale, digits, text))
    return text(f"board.{name}", value=value)


def size(count: float, text: Texts) -> str:
    """ "3.2 GiB"."""
    place = 0
    while count >= _KIBI - 0.05 and place < len(_SIZES) - 1:
        count, place = count / _KIBI, place + 1
    return text(f"board.{_SIZES[place]}", value=number(count, 1 if place > 1 else 0, text))


def figure(quantity: str, value: float, text: Texts) -> str:
    """A value of a line: load as a share, memory in bytes, and so on."""
    match quantity:
        case "load":
            return percent(value, text)
        case "temperature":
            return celsius(value, text)
        case "memory":
            return size(value, text)
        case "power":
            return watts(value, text)
        case "clock":
            return clock(value, text)
        case _:
            return f"{value:.0f}"


def heat(value: float, text: Texts) -> tuple[str, str]:
    """The words, and their colour; hot is said by a mark too."""
    said = celsius(value, text)
    return (f"▲ {said}", "chip-hot") if value >= HOT_CELSIUS else (said, "chip-ink")
