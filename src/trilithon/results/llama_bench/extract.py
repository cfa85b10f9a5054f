"""llama-bench's rows from text with other lines among them: what a shell's 2>&1 put there, a run that was broken off,
a table pasted from a page. Only whole rows are read, and the lines that are no part of one are counted."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trilithon.results.llama_bench.markdown import read_markdown
from trilithon.results.llama_bench.text import delimiter_of, looks_like_rows, plain_cells, read_sql

__all__ = ["Extract", "extract"]

_DECODER = json.JSONDecoder()
_LONGEST_REPAIR = 1 << 16
_MOST_REPAIRS = 50
_REPAIR_COST = 4096  # in characters read
_MEMBER = re.compile(r'\s*(?:"\w+"\s*:|[-\d.eE+,\s]+$|[\[\]{},\s]+$)')
_ROW = re.compile(r'\{\s{0,80}"')
_BRACKETS = re.compile(r"[\[\],\s]*")
_STATEMENT = re.compile(r"\s*(?:CREATE\s+TABLE|INSERT\s+INTO|PRAGMA|BEGIN|COMMIT)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Extract:
    """Rows as they were written, not yet typed; `rounded` where they are a table's averages."""

    rows: Sequence[Any]
    lines_left_out: int
    rounded: bool = False


def extract(text: str, name: str) -> Extract | None:
    """The whole rows of the first format that has any, the most exact first; None where none has. Raises UserError
    for SQL that does more than create and fill the one table."""
    rows, left_out = _objects(text)
    if rows:
        return Extract(rows, left_out)
    lines = text.splitlines()
    rows, left_out = _csv_rows(lines)
    if rows:
        return Extract(rows, left_out)
    if any(_STATEMENT.match(line) and "llama_bench" in line for line in lines):
        kept = list(_statement_lines(lines))
        rows = read_sql("\n".join(kept) + "\n", name) if kept else []
        return Extract(rows, _count(lines) - _count(kept)) if rows else None
    rows, left_out = read_markdown(lines)
    return Extract(rows, left_out, rounded=True) if rows else None


def _count(lines: Sequence[str]) -> int:
    return sum(bool(line.strip()) for line in lines)


def _objects(text: str) -> tuple[list[Any], int]:
    """JSON objects that are rows, wherever they begin: llama-bench ends a row without a new line, so that a log line
    may follow it on its last one."""
    rows: list[Any] = []
    left_out = position = searched = 0
    # What failed to be an object is read again from the next brace, and every error counts the lines before it.
    # Hostile text could make that quadratic.
    patience = 8 * len(text) + (64 << 20)
    begun = _ROW.search(text)
    while begun and patience > 0:
        start = begun.start()
        row, end, foreign = _object(text, start)
        if isinstance(row, dict) and looks_like_rows(row):
            rows.append(row)
            left_out += _foreign_lines(text[position:start]) + foreign
            position = searched = end
        else:
            patience -= end - start + end // 16
            searched = start + 1
        begun = _ROW.search(text, searched)
    return rows, left_out + _foreign_lines(text[position:])


def _object(text: str, start: int) -> tuple[Any, int, int]:
    """The object that starts there, where it ends, and the foreign lines within it; None and how far it was read
    where it is none."""
    try:
        row, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if "\n" not in text[start : error.pos]:
            return None, error.pos + 1, 0
        return _repaired(text, start, error.pos)
    except (ValueError, RecursionError):
        return None, start + _LONGEST_REPAIR, 0
    return row, end, 0


def _repaired(text: str, start: int, failed: int) -> tuple[Any, int, int]:
    """The object without the foreign lines inside it. A line that might be the row's is never left out of it."""
    first, last = text.rfind("\n", start, failed) + 1, text.find("\n", failed)
    if last < 0 or failed - start > _LONGEST_REPAIR or _MEMBER.match(text[first:last]):
        return None, failed + 1, 0
    block, removed = text[start : start + _LONGEST_REPAIR], 0
    error_at, foreign = failed - start, 0
    for foreign in range(1, _MOST_REPAIRS):
        first = block.rfind("\n", 0, error_at) + 1
        last = block.find("\n", error_at)
        if first <= 0 or last < 0 or _MEMBER.match(block[first:last]):
            break
        removed += last + 1 - first
        block = block[:first] + block[last + 1 :]
        try:
            row, end = _UNIQUE.raw_decode(block)
        except json.JSONDecodeError as error:
            error_at = error.pos
        except (ValueError, RecursionError):
            break
        else:
            return row, start + end + removed, foreign
    return None, failed + 1 + foreign * _REPAIR_COST, 0


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a column that comes twice: two halves of rows are not a row."""
    row = dict(members)
    if len(row) != len(members):
        raise ValueError("a column comes twice")
    return row


_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique)


def _foreign_lines(between: str) -> int:
    """Brackets and commas between rows are the array's, unless they end a row that was cut short."""
    count, in_a_row = 0, False
    for line in between.splitlines():
        in_a_row = in_a_row or line.strip() == "{"
        count += bool(line.strip()) if in_a_row else not _BRACKETS.fullmatch(line)
    return count


def _csv_rows(lines: Sequence[str]) -> tuple[list[dict[str, str]], int]:
    """Lines with as many cells as the header before them."""
    rows: list[dict[str, str]] = []
    columns: list[str] = []
    delimiter, left_out = ",", 0
    for line in lines:
        begun = delimiter_of(line)
        if begun:
            delimiter, columns = begun, _cells(line, begun)
            continue
        cells = _cells(line, delimiter) if columns else []
        if cells and len(cells) == len(columns):
            rows.append(plain_cells(dict(zip(columns, cells, strict=True)), delimiter))
        else:
            left_out += bool(line.strip())
    return rows, left_out


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _statement_lines(lines: Sequence[str]) -> Iterator[str]:
    """The lines of statements that are whole. Whatever else ends like a statement goes along, and is refused."""
    pending: list[str] = []
    for line in lines:
        if _STATEMENT.match(line):
            pending = [line]
        elif pending:
            pending.append(line)
        elif line.rstrip().endswith(";"):
            yield line
        if pending and line.rstrip().endswith(";"):
            yield from pending
            pending = []
