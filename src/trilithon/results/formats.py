"""Campaigns as files: llama-bench's formats, so that its tools read ours and its results stand beside ours, and
one complete JSON of our own, which loses nothing."""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from trilithon.errors import UserError
from trilithon.measure.records import Campaign
from trilithon.results.llama_bench.extract import extract
from trilithon.results.llama_bench.rows import campaigns_from, rows_of
from trilithon.results.llama_bench.text import RENDERERS, delimiter_of, read_csv, read_sql, typed_rows
from trilithon.results.received import check_received
from trilithon.results.store.codec import from_json, to_json

__all__ = ["FORMATS", "Export", "Format", "export_campaigns", "import_campaigns", "import_file"]

Format = Literal["md", "csv", "json", "jsonl", "sql", "trilithon"]
FORMATS: tuple[Format, ...] = get_args(Format)

_VERSION = 1
_MARK = "trilithon_results"
_MOST_BYTES = 256 << 20
_MOST_VALUES = 16_000_000  # each takes up to 100 bytes once it is read
_GZIP = b"\x1f\x8b"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FIX = "give what llama-bench -o json, jsonl, csv, sql or md wrote, or a `trilithon results export`"


@dataclass(frozen=True, slots=True)
class Export:
    """`rows` counts what `text` holds (campaigns, in our own format); `left_out` has a line for each thing that
    the format cannot say."""

    text: str
    rows: int
    left_out: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """One sentence for the user; empty when nothing was left out."""
        if not self.left_out:
            return ""
        return f"left out, because llama-bench's formats cannot express it: {'; '.join(_counted(self.left_out))}"


def _counted(lines: Sequence[str]) -> list[str]:
    counts = {line: lines.count(line) for line in dict.fromkeys(lines)}
    return [line if count == 1 else f"{line} ({count} times)" for line, count in counts.items()]


def export_campaigns(campaigns: Sequence[Campaign], form: Format) -> Export:
    """`form` "trilithon" is complete; the others are llama-bench's, which know only pp, tg and pg tests. Raises
    UserError for what an imported file says and llama-bench's columns cannot hold."""
    if form == "trilithon":
        body = {_MARK: _VERSION, "campaigns": [to_json(campaign) for campaign in campaigns]}
        return Export(json.dumps(body, indent=1) + "\n", len(campaigns))
    try:
        rows, left_out = rows_of(campaigns)
    except ValueError as error:
        raise UserError(f"these results do not fit llama-bench's columns: {error}; export as trilithon") from error
    return Export(RENDERERS[form](rows), len(rows), tuple(left_out))


def import_file(path: Path) -> list[Campaign]:
    """Raises UserError for a file that cannot be read or is none of the formats."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {_FIX}") from error
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path} is larger than {_MOST_BYTES >> 20} MiB; split it")
    return import_campaigns(data, str(path))


def import_campaigns(data: bytes, name: str) -> list[Campaign]:
    """The campaigns in a file's content, whatever its suffix. Those of llama-bench have the id 0. Of text with other
    lines in it, or that was cut short, the whole rows are read; a note of each campaign says how many lines are not.

    Raises UserError, naming the file as `name`, for anything that is none of the formats."""
    text, clear = _decoded(_unpacked(data, name), name)
    try:
        if clear is not None:
            raise clear
        rows = _whole(text, name)
    except UserError as error:
        extracted = extract(text, name)
        if extracted is None:
            raise error
        note = f"lines of {Path(name).name} left out, because they are no whole rows: {extracted.lines_left_out}"
        notes = [note] * bool(extracted.lines_left_out)
        return campaigns_from(typed_rows(extracted.rows, name), rounded=extracted.rounded, notes=notes)
    if len(rows) == 1 and isinstance(rows[0], dict) and _MARK in rows[0]:
        return _own(rows[0], name)
    if not rows:
        raise UserError(f"{name} holds no results: the run that wrote it may have been interrupted; {_FIX}")
    return campaigns_from(typed_rows(rows, name))


def _whole(text: str, name: str) -> Sequence[Any]:
    """The rows of a file that is one format from its first to its last line."""
    if text.startswith(("{", "[")):
        return _from_json_text(text, name)
    if text[:6].upper() in ("CREATE", "INSERT", "PRAGMA", "BEGIN ", "BEGIN;"):
        return read_sql(text, name)
    if delimiter_of(text.partition("\n")[0]):
        return read_csv(text, name)
    raise UserError(f"{name} holds no results that can be read; {_FIX}")


def _unpacked(data: bytes, name: str) -> bytes:
    """What gzip packed, as far as it goes: a run that was broken off leaves its last block cut short."""
    parts: list[bytes] = []
    size = 0
    while data.startswith(_GZIP):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            parts.append(unpacker.decompress(data, _MOST_BYTES + 1 - size))
        except zlib.error as error:
            raise UserError(f"{name} is damaged: {error}; {_FIX}") from error
        size += len(parts[-1])
        if size > _MOST_BYTES:
            raise UserError(f"{name} holds more than {_MOST_BYTES >> 20} MiB; split it")
        data = unpacker.unused_data
    return b"".join(parts) if parts else data


def _decoded(data: bytes, name: str) -> tuple[str, UserError | None]:
    """The text, and what is wrong with it where it is not all text: a log may have any bytes in it."""
    # A Windows shell writes what it redirects as UTF-16.
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return _ANSI.sub("", data.decode(encoding)).strip(), None
    except UnicodeDecodeError:
        text = _ANSI.sub("", data.decode(encoding, "replace")).strip()
        return text, UserError(f"{name} is not text; {_FIX}")


def _from_json_text(text: str, name: str) -> list[Any]:
    """A JSON value or several one after the other: jsonl, and files that several runs were appended to."""
    if sum(map(text.count, "[{,")) > _MOST_VALUES:
        raise UserError(f"{name} holds more than {_MOST_VALUES:,} values; split it")
    try:
        values = _values(text)
    except RecursionError as error:
        raise UserError(f"{name} is nested too deeply; {_FIX}") from error
    except ValueError as error:
        raise UserError(f"{name} is not complete JSON ({error}); {_FIX}") from error
    return [row for value in values for row in (value if isinstance(value, list) else [value])]


def _values(text: str) -> list[Any]:
    values, position, decoder = [], 0, json.JSONDecoder()
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        values.append(value)
        while position < len(text) and text[position].isspace():
            position += 1
    return values


def _own(body: dict[str, Any], name: str) -> list[Campaign]:
    version, campaigns = body[_MARK], body.get("campaigns")
    if isinstance(version, int) and version > _VERSION:
        raise UserError(f"{name} was written by a newer Trilithon (format {version}); upgrade Trilithon")
    if version != _VERSION or not isinstance(campaigns, list):
        raise UserError(f"{name} is not a complete export; {_FIX}")
    try:
        read = [from_json(Campaign, campaign, f"campaigns[{i}].") for i, campaign in enumerate(campaigns)]
        for campaign in read:
            check_received(campaign)
    except ValueError as error:
        raise UserError(f"{name} is not a complete export: {error}; {_FIX}") from error
    return read
