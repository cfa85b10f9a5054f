"""Lines that Rockchip's libraries and the forks' NPU back ends print: which component, how severe, when, and the text.

librknnrt prints `E RKNN: [17:19:34.670] failed to submit!, …`, librkllmrt `E rkllm: matmul(w8a8) run failed`; the
forks of rk-llama.cpp print `RKNPU ERROR: …`, `RKNN error -1 at FILE:LINE: …` and `RKNPU: rknn_matmul_run failed …`."""

import re
from dataclasses import dataclass

__all__ = ["VendorLine", "vendor_errors", "vendor_line", "without_time"]

_TIME = r"\[(?P<time>\d{1,2}:\d\d:\d\d(?:[.,]\d+)?)\]"
# llama.cpp's dots of progress and a colour may stand before it. A quotation within another line does not count.
_START = r"^[\s.]*(?:\x1b\[[\d;]*m)*\s*"
_NAME = r"(?P<component>rk(?:nn|llm|npu)\w*)"
_FORMS = tuple(
    re.compile(_START + form, re.IGNORECASE)
    for form in (
        rf"(?P<level>[EWIDF]) {_NAME}:\s*(?:{_TIME}\s*)?(?P<text>.*)",
        rf"{_NAME} (?P<level>ERROR|WARNING)\b:?\s*(?P<text>.*)",
        rf"{_NAME}: (?P<text>.*(?P<level>failed|error)\b.*)",
        r"(?P<text>(?P<component>rknn)_\w+ (?P<level>failed)\b.*)",
    )
)
_LEVELS = {"WARNING": "W", "ERROR": "E", "FAILED": "E", "F": "E"}
_TIME_IN_LINE = re.compile(rf"({_NAME}: ){_TIME}\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class VendorLine:
    """`component` is in lower case ("rknn", "rkllm", "rknpu"); `level` is "E", "W", "I" or "D"; `time` is the time of
    day, None where the line has none; `text` is what follows the prefix."""

    component: str
    level: str
    time: str | None
    text: str


def vendor_line(line: str) -> VendorLine | None:
    """None for a line of another origin."""
    match = next((match for form in _FORMS if (match := form.match(line))), None)
    if match is None:
        return None
    parts, level = match.groupdict(), match["level"].upper()
    return VendorLine(match["component"].lower(), _LEVELS.get(level, level), parts.get("time"), match["text"].strip())


def vendor_errors(log: str) -> tuple[VendorLine, ...]:
    lines = map(vendor_line, log.splitlines())
    return tuple(line for line in lines if line is not None and line.level == "E")


def without_time(line: str) -> str:
    """The line without the time of day, so that parts of it can be compared. Other lines are as they are."""
    return _TIME_IN_LINE.sub(r"\1", line, count=1)
