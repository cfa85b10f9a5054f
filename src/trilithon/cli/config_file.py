"""One value of config.toml changed, and every other line of it left as its owner wrote it."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from trilithon.errors import UserError
from trilithon.files import file_lock, save_text

__all__ = ["change_setting", "toml_literal"]

_HEADER = re.compile(r"\s*\[")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_MODE = 0o644  # a service under another user reads it; keys are kept elsewhere


def change_setting(path: Path, table: str, key: str, value: Any) -> None:
    """Set `key` in `table` (empty: before all tables), or remove it where `value` is None. The file is made with its
    folder where it is missing; a link stays one.

    Raises UserError for a file that is not TOML, cannot be written, or has the key in another form."""
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_name(f".{target.name}.lock")):
            text = target.read_text(encoding="utf-8") if target.exists() else ""
            mode = target.stat().st_mode & 0o777 if target.exists() else _MODE
            changed = _changed(path, text, table, key, value)
            if changed != text:
                save_text(target, changed, mode=mode)
    except OSError as error:
        raise UserError(
            "{path} cannot be changed: {reason}; check its permissions (ls -l)", path=path, reason=error.strerror
        ) from error
    except ValueError as error:  # not UTF-8, not TOML
        raise UserError("{path} is not TOML: {reason}; correct it first", path=path, reason=error) from error


def toml_literal(value: Any) -> str:
    """Of texts, numbers, truth values, lists and tables."""
    if isinstance(value, dict):
        rows = (f"{_key(name)} = {toml_literal(part)}" for name, part in value.items())
        return f"{{{', '.join(rows)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_literal, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _changed(path: Path, text: str, table: str, key: str, value: Any) -> str:
    parsed = tomllib.loads(text)
    wanted: dict[str, Any] = tomllib.loads(text)
    values = wanted.setdefault(table, {}) if table else wanted
    if not isinstance(values, dict):
        raise UserError("{path}: {table} is not a table; write [{table}]", path=path, table=table)
    if value is None:
        values.pop(key, None)
    else:
        values[key] = value
    if parsed == (wanted if values or not table else {**wanted} | ({table: {}} if table in parsed else {})):
        return text
    lines = _edited(text.splitlines(), table, key, None if value is None else f"{key} = {toml_literal(value)}")
    changed = "\n".join(lines) + "\n" if lines else ""
    try:
        fits = _without_empty(tomllib.loads(changed), table) == _without_empty(wanted, table)
    except ValueError:
        fits = False
    if not fits:
        name = f"{table}.{key}" if table else key
        raise UserError(
            "{path} has {name} in a form that cannot be changed here; change it with an editor", path=path, name=name
        )
    return changed


def _without_empty(values: dict[str, Any], table: str) -> dict[str, Any]:
    return {name: part for name, part in values.items() if name != table or part}


def _edited(lines: list[str], table: str, key: str, line: str | None) -> list[str]:
    first, last = _section(lines, table)
    if first is None:
        return [*lines, *([""] if lines else []), f"[{table}]", line] if line else lines
    pattern = re.compile(rf"""\s*(?:{re.escape(key)}|"{re.escape(key)}"|'{re.escape(key)}')\s*=""")
    for number in range(first, last):
        if pattern.match(lines[number]):
            end = _end_of_value(lines, number, last)
            return [*lines[:number], *([line] if line else []), *lines[end:]]
    while last > first and not lines[last - 1].strip():
        last -= 1
    gap = [""] if not table and line and last < len(lines) and lines[last].strip() else []
    return [*lines[:last], *([line] if line else []), *gap, *lines[last:]]


def _section(lines: list[str], table: str) -> tuple[int | None, int]:
    """The lines of a table without its header; None where it has none."""
    first = 0 if not table else None
    header = re.compile(rf"""\s*\[\s*["']?{re.escape(table)}["']?\s*\]\s*(#.*)?""")
    for number, line in enumerate(lines):
        if first is not None and _HEADER.match(line) and _is_whole(lines[first:number]):
            return first, number
        if first is None and header.fullmatch(line):
            first = number + 1
    return first, len(lines)


def _end_of_value(lines: list[str], number: int, last: int) -> int:
    """A value may have several lines."""
    return next((end for end in range(number + 1, last + 1) if _is_whole(lines[number:end])), last)


def _is_whole(lines: list[str]) -> bool:
    try:
        tomllib.loads("\n".join(lines))
    except ValueError:
        return False
    return True
