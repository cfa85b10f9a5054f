"""llama-bench's rows as its own output formats, byte for byte where it is exact, and read back from any of them."""

import csv
import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trilithon.errors import UserError
from trilithon.results.llama_bench.columns import COLUMNS, FIGURES, LISTS, typed
from trilithon.results.llama_bench.markdown import render_markdown
from trilithon.results.llama_bench.rows import Row

__all__ = ["RENDERERS", "delimiter_of", "looks_like_rows", "plain_cells", "read_csv", "read_sql", "typed_rows"]

_MOST_ROWS = 100_000
_MOST_REPETITIONS = 1_000_000
_SQL_TYPES = {"text": "TEXT", "bool": "INTEGER", "int": "INTEGER", "float": "REAL"}
_DELIMITERS = (",", ";", "\t")
_OBSERVED = ("n_prompt", "n_gen")
_TABLE = "llama_bench"
_MOST_STATEMENT = 1 << 20
_MOST_LINES = 1000
_COLUMN = r'\s*"?\w+"?\s+(?:TEXT|INTEGER|REAL)\s*'
_PLAIN_TABLE = re.compile(
    rf'\s*CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?"?{_TABLE}"?\s*\({_COLUMN}(?:,{_COLUMN})*\)\s*;\s*', re.IGNORECASE
)


def looks_like_rows(names: Sequence[str] | Mapping[str, Any]) -> bool:
    """Whether these column names are llama-bench's, of any age."""
    return all(name in names for name in _OBSERVED) and any(name in names for name in (*FIGURES, "samples_ns"))


def typed_rows(rows: Sequence[Any], name: str) -> list[Row]:
    """Rows with every value of its column's type. Raises UserError, naming the row of the file `name`."""
    if len(rows) > _MOST_ROWS:
        raise UserError(f"{name} has more than {_MOST_ROWS} rows; split it")
    result = []
    for number, row in enumerate(rows, 1):
        try:
            result.append(_typed_row(row))
        except ValueError as error:
            message = f"{name}: row {number}: {error}; write the file again with llama-bench -o json"
            raise UserError(message) from None
    return result


def _typed_row(row: Any) -> Row:
    if not isinstance(row, Mapping) or not looks_like_rows(row):
        raise ValueError("it is not one of llama-bench's")
    # A column that is not known may hold anything; only plain values are kept.
    plain = {column: value for column, value in row.items() if column in COLUMNS or not isinstance(value, list | dict)}
    result = {column: typed(column, value) for column, value in plain.items() if column not in LISTS}
    if min(result["n_prompt"], result["n_gen"], result.get("n_depth", 0)) < 0:
        raise ValueError("a negative number of tokens")
    if not result["n_prompt"] + result["n_gen"]:
        raise ValueError("a test without tokens")
    if row.get("samples_ns"):
        result["samples_ns"] = _durations(row["samples_ns"])
    elif not result.get("avg_ns"):
        result["avg_ns"] = _average(result)
    if result.get("avg_ns", 1) <= 0:
        raise ValueError("avg_ns is not more than 0")
    return result


def _durations(values: Any) -> list[int]:
    if not isinstance(values, list) or len(values) > _MOST_REPETITIONS:
        raise ValueError("samples_ns is not a list of durations")
    durations = [typed("avg_ns", value) for value in values]
    if min(durations) <= 0:
        raise ValueError("samples_ns has a duration that is not more than 0")
    return durations


def _average(row: Row) -> int:
    rate = row.get("avg_ts") or 0.0
    if not 0 < rate < 1e18:
        raise ValueError("neither samples_ns nor avg_ns nor avg_ts")
    return typed("avg_ns", round((row["n_prompt"] + row["n_gen"]) / rate * 1e9))  # type: ignore[no-any-return]


def delimiter_of(line: str) -> str:
    """What stands between the column names of a csv's first line; empty for a line that is none."""
    names = line.replace('"', "").replace(" ", "").strip()
    return next((mark for mark in _DELIMITERS if looks_like_rows(names.split(mark))), "")


def plain_cells(row: Mapping[str, str], delimiter: str) -> dict[str, str]:
    """A spreadsheet that puts another mark than a comma between cells may have a comma in its numbers."""
    names = {column: column.strip() for column in row}
    if delimiter == ",":
        return {names[column]: cell for column, cell in row.items()}
    numbers = {column for column in row if COLUMNS.get(names[column]) in ("int", "float")}
    return {names[column]: cell.replace(",", ".") if column in numbers else cell for column, cell in row.items()}


def read_csv(text: str, name: str) -> list[dict[str, str]]:
    """Rows as they were written. Raises UserError for text that is not csv."""
    delimiter = delimiter_of(text.partition("\n")[0])
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        # A file that several runs were appended to has its header several times.
        rows = [row for row in reader if "n_prompt" not in row.values()]
    except csv.Error as error:
        raise UserError(f"{name} is not csv: {error}; write the file again with llama-bench -o csv") from error
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{name}: a line is cut short or too long; write the file again with llama-bench -o csv")
    return [plain_cells(row, delimiter) for row in rows]


def read_sql(text: str, name: str) -> list[dict[str, Any]]:
    """Runs the statements in memory. The file may be hostile: it can create the table llama_bench and insert
    plain values into it, and nothing else. Raises UserError for any other statement."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        connection.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, 200)
        connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 10)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_STATEMENT)
        connection.set_authorizer(_may_write)
        for statement in _statements(text):
            connection.execute(statement)
        connection.set_authorizer(_may_read)
        rows = connection.execute(f"SELECT * FROM {_TABLE} LIMIT {_MOST_ROWS + 1}").fetchall()
    except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError, ValueError) as error:
        message = f"{name} is not llama-bench's sql: {error}; write the file again with llama-bench -o json"
        raise UserError(message) from error
    finally:
        connection.close()
    return [{column: row[column] for column in row.keys() if row[column] is not None} for row in rows]  # noqa: SIM118 - a Row iterates over values


def _statements(text: str) -> Iterator[str]:
    """Each statement ends a line, as llama-bench and `sqlite3 .dump` write them. Raises ValueError for a table with
    more than columns: a default or a check is an expression that the authorizer is not asked about."""
    pending: list[str] = []
    for line in text.splitlines(keepends=True):
        pending.append(line)
        statement = "".join(pending)
        if len(pending) > _MOST_LINES or len(statement) > _MOST_STATEMENT:
            raise ValueError("a statement is too long")
        if not sqlite3.complete_statement(statement):
            continue
        if statement.lstrip()[:6].upper() == "CREATE" and not _PLAIN_TABLE.fullmatch(statement):
            raise ValueError("it creates something other than a table llama_bench of plain columns")
        yield statement
        pending = []
    if "".join(pending).strip():
        raise ValueError("its last statement is cut short")


def _may_write(action: int, first: str | None, _second: str | None, _database: str | None, _by: str | None) -> int:
    # Creating a table is itself written into the schema's table; SQLite refuses to let a statement do that.
    schema = first in ("sqlite_master", "sqlite_schema")
    allowed = (
        (action == sqlite3.SQLITE_CREATE_TABLE and first == _TABLE)
        or (action == sqlite3.SQLITE_INSERT and (first == _TABLE or schema))
        or (action in (sqlite3.SQLITE_READ, sqlite3.SQLITE_UPDATE) and schema)
        or action == sqlite3.SQLITE_TRANSACTION
        or (action == sqlite3.SQLITE_PRAGMA and first == "foreign_keys")  # heads what `sqlite3 .dump` writes
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _may_read(action: int, first: str | None, _second: str | None, _database: str | None, _by: str | None) -> int:
    allowed = action == sqlite3.SQLITE_SELECT or (action == sqlite3.SQLITE_READ and first == _TABLE)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _render_json(rows: Sequence[Row]) -> str:
    return "[\n" + ",\n".join(f"  {{\n    {_members(row, ',' + chr(10) + '    ')}\n  }}" for row in rows) + "\n]\n"


def _render_jsonl(rows: Sequence[Row]) -> str:
    return "".join(f"{{{_members(row, ', ')}}}\n" for row in rows)


def _members(row: Row, separator: str) -> str:
    members = [f'"{column}": {_json_value(column, row[column])}' for column in COLUMNS]
    lists = [("samples_ns", map(str, row["samples_ns"])), ("samples_ts", (f"{rate:g}" for rate in row["samples_ts"]))]
    # llama-bench puts no space between its two lists on one line.
    written = [f'"{name}": [ {", ".join(values)} ]' for name, values in lists]
    return separator.join([*members, (separator.rstrip(" ") if separator == ", " else separator).join(written)])


def _json_value(column: str, value: Any) -> str:
    return _fixed(value) if COLUMNS[column] == "float" else json.dumps(value, ensure_ascii=False)


def _fixed(value: float) -> str:
    return f"{value:.6f}"


def _field(column: str, value: Any) -> str:
    """As text in csv and sql: truth is 1 or 0."""
    match COLUMNS[column]:
        case "float":
            return _fixed(value)
        case "bool":
            return str(int(value))
        case _:
            return str(value)


def _render_csv(rows: Sequence[Row]) -> str:
    output = io.StringIO(newline="")
    output.write(",".join(COLUMNS) + "\n")
    writer = csv.writer(output, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([_field(column, row[column]) for column in COLUMNS] for row in rows)
    return output.getvalue()


def _render_sql(rows: Sequence[Row]) -> str:
    columns = ",\n".join(f"  {column} {_SQL_TYPES[kind]}" for column, kind in COLUMNS.items())
    lines = [f"CREATE TABLE IF NOT EXISTS {_TABLE} (\n{columns}\n);\n\n"]
    for row in rows:
        values = ", ".join("'" + _field(column, row[column]).replace("'", "''") + "'" for column in COLUMNS)
        lines.append(f"INSERT INTO {_TABLE} ({', '.join(COLUMNS)}) VALUES ({values});\n")
    return "".join(lines)


RENDERERS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "json": _render_json,
    "jsonl": _render_jsonl,
    "csv": _render_csv,
    "sql": _render_sql,
    "md": render_markdown,
}
"""By the name that llama-bench's -o takes."""
