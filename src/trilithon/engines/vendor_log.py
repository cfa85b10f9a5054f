"""Lines that Rockchip's libraries and the forks' NPU back ends print: which component, how severe, when, and the text.
A library that prints an error may go on, and return success with a wrong result.

librknnrt prints `E RKNN: [17:19:34.670] failed to submit!, …`, librkllmrt `E rkllm: matmul(w8a8) run failed`; the
forks of rk-llama.cpp print `RKNPU ERROR: …`, `RKNN error -1 at FILE:LINE: …` and `RKNPU: rknn_matmul_run failed …`."""

import os
import re
from dataclasses import dataclass

__all__ = ["VendorErrors", "VendorLine", "first_error", "vendor_errors", "vendor_line", "without_time"]

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
_LINE_END = re.compile(r"[\r\n]+")  # str.splitlines also splits at characters that a quoted text may have
_BLOCK_BYTES = 1 << 16
_LONGEST_LINE = 300
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
    lines = map(vendor_line, _LINE_END.split(log))
    return tuple(line for line in lines if line is not None and line.level == "E")


def without_time(line: str) -> str:
    """The line without the time of day, so that parts of it can be compared. Other lines are as they are."""
    return _TIME_IN_LINE.sub(r"\1", line, count=1)


class VendorErrors:
    """The first error in what is appended to a log. `file` is an open descriptor of it, which `close` closes; None for
    no log."""

    def __init__(self, file: int | None) -> None:
        """Counts from the present end of the log."""
        self._file = file
        self._at = 0 if file is None else os.fstat(file).st_size
        self._rest = b""
        self._first = ""

    def first(self) -> str:
        """The line without its time; empty as long as there is none."""
        while not self._first and (block := self._appended()):
            *lines, rest = (self._rest + block).split(b"\n")
            self._rest = rest[:_LONGEST_LINE]
            self._first = first_error(b"\n".join(lines).decode(errors="replace"))
        return self._first or (first_error(self._rest.decode(errors="replace")) if self._rest else "")

    def close(self) -> None:
        """What was seen until now stays."""
        self.first()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _appended(self) -> bytes:
        block = b"" if self._file is None else os.pread(self._file, _BLOCK_BYTES, self._at)
        self._at += len(block)
        return block


def first_error(log: str) -> str:
    """The first line that is an error, without its time; empty where there is none."""
    return next(filter(None, map(_error, _LINE_END.split(log))), "")


def _error(line: str) -> str:
    line = line[:_LONGEST_LINE].strip()
    read = vendor_line(line)
    return without_time(line) if read is not None and read.level == "E" else ""
