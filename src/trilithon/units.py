"""Format and parse sizes, durations, numbers, and llama-bench's ranges."""

import re
from datetime import timedelta

from trilithon.errors import UserError
from trilithon.language import Message

__all__ = [
    *("format_byte_range", "format_bytes", "format_duration", "format_number"),
    *("parse_bytes", "parse_duration", "parse_integers"),
]

_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18})(?:([+*])(\d{1,18}))?)?")
_DURATION = re.compile(r"(\d{1,12}(?:\.\d+)?)(ms|s|m|h|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([KMGT]?)(?:I?B)?", re.IGNORECASE)
_MAX_VALUES = 1000
_BYTE_UNITS = (Message("B"), Message("KiB"), Message("MiB"), Message("GiB"), Message("TiB"))
_NEXT_UNIT_FROM = 1023.95  # with one decimal, this would be written as 1024.0


def parse_integers(text: str, *, name: str, least: int = 0) -> list[int]:
    """llama-bench's value lists: "512", "512,1024", "128-512+128" and "128-1024*2" (both ends included).

    Raises UserError, which names the option `name`, for anything else and for values below `least`."""
    values: list[int] = []
    for part in text.split(","):
        values.extend(_expand(part.strip(), text, name))
    if min(values) < least:
        raise UserError("{name} {text}: {min} is less than {least}", name=name, text=text, min=min(values), least=least)
    return list(dict.fromkeys(values))


def _expand(part: str, text: str, name: str) -> list[int]:
    match = _RANGE.fullmatch(part)
    if match is None:
        raise UserError("{name} {text}: write 512 or 512,1024 or 128-512+128 or 128-1024*2", name=name, text=text)
    first, last = int(match[1]), int(match[2] or match[1])
    step = int(match[4] or 1)
    multiply = match[3] == "*"
    if last < first or step < 1 or (multiply and (step < 2 or first == 0)):
        raise UserError(
            "{name} {text}: {part} never reaches its end; write for example 128-512+128 or 128-1024*2",
            name=name,
            text=text,
            part=part,
        )
    values = []
    while first <= last:
        values.append(first)
        if len(values) > _MAX_VALUES:
            raise UserError(
                "{name} {text}: more than {max_values} values; take a larger step",
                name=name,
                text=text,
                max_values=_MAX_VALUES,
            )
        first = first * step if multiply else first + step
    return values


def parse_duration(text: str, *, name: str) -> float:
    """Seconds in "90", "90s", "1.5m", "2h" or "250ms". Raises UserError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UserError("{name} {text}: write 90, 90s, 5m or 1h", name=name, text=text)
    return float(match[1]) * _SECONDS[match[2]]


def parse_bytes(text: str, *, name: str) -> int:
    """Bytes in "4096M", "3.5G", "4 GiB" or "4GB": every unit is binary. Raises UserError for anything else."""
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise UserError("{name} {text}: write 4096M, 3.5G or 4GiB", name=name, text=text)
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def format_bytes(count: float) -> str:
    """ "234.5 MiB": binary units, one decimal from KiB on."""
    for unit in _BYTE_UNITS:
        if abs(count) < _NEXT_UNIT_FROM or unit == "TiB":
            if unit == "B":
                return Message("{count:.0f} {unit}", count=count, unit=unit)
            return Message("{count:.1f} {unit}", count=count, unit=unit)
        count /= 1024
    raise AssertionError("unreachable")


def format_byte_range(least: float, most: float) -> str:
    """ "4.9–9.0 GiB" in the unit of the larger; "4.9 GiB" where the two are written alike."""
    whole = format_bytes(most)
    assert isinstance(whole, Message)
    scaled = least * whole.values["count"] / most if most else 0.0
    if f"{scaled:.1f}" == f"{whole.values['count']:.1f}":
        return whole
    return Message("{least:.1f}–{most}", least=scaled, most=whole)


def format_duration(seconds: float) -> str:
    """ "0.35 s", "12 s", "3:05", "1:02:09"."""
    if seconds < 9.995:  # the bounds are where rounding gives the next form
        return f"{seconds:.2f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").lstrip("0") if seconds < 3600 else text


def format_number(value: float) -> str:
    """Three significant digits, or all digits before the decimal point: "0.0123", "4.56", "78.9", "1234"."""
    if value == 0:
        return "0"
    magnitude = abs(float(f"{value:.3g}"))  # rounded first: 9.999 is "10.0"
    for bound, digits in ((100, 0), (10, 1), (1, 2), (0.1, 3)):
        if magnitude >= bound:
            return f"{value:.{digits}f}"
    return f"{value:.3g}"
