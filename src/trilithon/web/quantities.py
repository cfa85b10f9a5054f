"""Quantities in the reader's language: "2.35 GHz" in English, "2,35 ГГц" in Russian. The decimal mark is the one of
the phrases of `results`, the units are in the catalogue `units`."""

import functools

from trilithon.results.phrases import Phrases
from trilithon.units import format_byte_range, format_bytes, format_duration
from trilithon.web.texts import Texts

__all__ = [
    "HOT_CELSIUS",
    "celsius",
    "clock",
    "duration",
    "heat",
    "memory_range",
    "number",
    "percent",
    "quantity",
    "sensor_value",
    "size",
    "watts",
]

HOT_CELSIUS = 80.0
"""As the bench warns: boards lose 15-20% to throttling from about there."""

_phrases = functools.cache(Phrases)


def number(value: str, text: Texts) -> str:
    """ "23.5", "1.2–1.4" or "45%"."""
    return _phrases(text.language).number(value)


def quantity(value: str, text: Texts) -> str:
    """A number and a unit, as `trilithon.units` writes them: "23.5 GiB", "20 s". "3:05" has no unit."""
    digits, _, unit = value.partition(" ")
    return f"{number(digits, text)} {text(f'units.{unit}')}" if unit else digits


def size(count: float, text: Texts) -> str:
    return quantity(format_bytes(count), text)


def memory_range(least: float, most: float, text: Texts) -> str:
    """ "4.9–9.0 GiB": what cannot be dropped, and with what can."""
    return quantity(format_byte_range(least, most), text)


def duration(seconds: float, text: Texts) -> str:
    return quantity(format_duration(seconds), text)


def percent(share: float, text: Texts) -> str:
    return number(f"{share:.0%}", text)


def celsius(value: float, text: Texts) -> str:
    return quantity(f"{value:.0f} °C", text)


def watts(value: float, text: Texts) -> str:
    return quantity(f"{value:.1f} W", text)


def clock(hertz: float, text: Texts, top_hz: float | None = None) -> str:
    """ "2.35 GHz", or "1.01 of 2.35 GHz"; in MHz where the highest is below 1 GHz."""
    unit, scale, digits = ("GHz", 1e9, 2) if max(hertz, top_hz or 0.0) >= 1e9 else ("MHz", 1e6, 0)
    now = f"{hertz / scale:.{digits}f}"
    if not top_hz or round(top_hz / 1e6) == round(hertz / 1e6):
        return quantity(f"{now} {unit}", text)
    return text("board.of", value=number(now, text), most=quantity(f"{top_hz / scale:.{digits}f} {unit}", text))


def sensor_value(kind: str, value: float, text: Texts) -> str:
    """A value of a chart: load as a share, memory in bytes, temperature, power, clock, or a count."""
    match kind:
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
    """The temperature and the class of its colour. A mark shows heat too, for readers who do not see the colour."""
    shown = celsius(value, text)
    return (f"▲ {shown}", "chip-hot") if value >= HOT_CELSIUS else (shown, "chip-ink")
