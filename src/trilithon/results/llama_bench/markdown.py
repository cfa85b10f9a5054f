"""llama-bench's Markdown table: the columns that matter here, in its widths and words, and read back from there."""

import re
from collections.abc import Sequence
from typing import Any

from trilithon.results.llama_bench.columns import COLUMNS, DEFAULTS, SETTINGS, TITLES, WIDTHS

__all__ = ["read_markdown", "render_markdown"]

_MANY_BUILDS = ("build_commit", "cpu_info", "gpu_info")
_COLUMNS = {title: column for column, title in TITLES.items()} | {"model": "model_type", "th": "n_threads"}
_TEST = re.compile(r"(?:pp ?(\d+))?\+?(?:tg ?(\d+))?(?: ?@ ?d ?(\d+))?")
# The mark in the middle is ± where the page or the terminal left it so.
_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:[^\d.]+(\d+(?:\.\d+)?))?")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([KMGTB]?)(?:iB)?")
_BUILD = re.compile(r"[\s*`>]*build: *`?(\w+)`? *\((\d+)\)[\s*`]*")
_EXPONENTS = {"": 0, "K": 1, "M": 2, "G": 3, "B": 3, "T": 4}


def render_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A setting has a column where it varies or is not the default; so do build and machine where they vary."""
    columns = ["model", "size", "params", "backends"]
    columns += [column for column in SETTINGS if _is_shown(column, rows)]
    columns += [column for column in _MANY_BUILDS if _varies(column, rows)]
    columns += ["test", "t/s"]
    lines = [_line(columns, [TITLES.get(column, column) for column in columns])]
    rules = ["-" * (abs(_width(column)) - 1) + (":" if _width(column) > 0 else "-") for column in columns]
    lines.append(_line(columns, rules))
    lines += [_line(columns, [_cell(column, row) for column in columns]) for row in rows]
    builds = dict.fromkeys(f"{row['build_commit']} ({row['build_number']})" for row in rows)
    return "\n".join([*lines, "", *(f"build: {build}" for build in builds), ""])


def _varies(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    return len({str(row[column]) for row in rows}) > 1


def _is_shown(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    if column == "n_threads":  # its default is the machine's own, so it says something only where it decides
        return _varies(column, rows) or any("CPU" in row["backends"] or "BLAS" in row["backends"] for row in rows)
    if column == "n_gpu_layers" and any("CPU" not in row["backends"] for row in rows):
        return True
    return any(row[column] != DEFAULTS[column] for row in rows)


def _width(column: str) -> int:
    if column in WIDTHS:
        return WIDTHS[column]
    width = max(len(column), 10)
    return -width if column == "backends" or COLUMNS[column] == "text" else width


def _line(columns: Sequence[str], cells: Sequence[str]) -> str:
    padded = [
        cell.rjust(_width(column)) if _width(column) > 0 else cell.ljust(-_width(column))
        for column, cell in zip(columns, cells, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"


def _cell(column: str, row: dict[str, Any]) -> str:
    match column:
        case "model":
            return str(row["model_type"])
        case "size":
            return _size(row["model_size"])
        case "params":
            count = row["model_n_params"]
            return f"{count / 1e6:.2f} M" if count < 1e9 else f"{count / 1e9:.2f} B"
        case "test":
            return _test(row)
        case "t/s":
            return f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"
        case _:
            value = row[column]
            return str(int(value) if isinstance(value, bool) else value)


def _size(count: int) -> str:
    return f"{count / 1024**2:.2f} MiB" if count < 1024**3 else f"{count / 1024**3:.2f} GiB"


def _test(row: dict[str, Any]) -> str:
    parts = [f"{name}{row[column]}" for name, column in (("pp", "n_prompt"), ("tg", "n_gen")) if row[column]]
    return "+".join(parts) + (f" @ d{row['n_depth']}" if row["n_depth"] else "")


def read_markdown(lines: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The rows of the tables in these lines, and the number of lines that are part of none. A table gives rounded
    averages, sizes and numbers of parameters; the build stands below it."""
    rows: list[dict[str, Any]] = []
    titles: list[str] = []
    left_out = without_build = 0
    closed = False
    for line in lines:
        unquoted = line.strip(" \t>")
        cells = [cell.strip(" *`") for cell in unquoted.strip("|").split("|")]
        if {"test", "t/s"} <= set(cells):
            titles, closed = cells, line.rstrip().endswith("|")
        elif (row := _read_row(titles, cells)) is not None and line.rstrip().endswith("|") >= closed:
            rows.append(row)
        elif build := _BUILD.fullmatch(line):
            for row in rows[without_build:]:
                row.setdefault("build_commit", build[1])
                row["build_number"] = int(build[2])
            without_build = len(rows)
        else:
            left_out += not set(unquoted) <= set("|:- ")
    return rows, left_out


def _read_row(titles: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | None:
    """None for a line that is not a whole row of such a table."""
    named = dict(zip(titles, cells, strict=False))
    test, rate = _TEST.fullmatch(named.get("test", "")), _RATE.fullmatch(named.get("t/s", ""))
    if len(cells) != len(titles) or test is None or rate is None or not any(test.groups()):
        return None
    row: dict[str, Any] = {
        _COLUMNS.get(title, title): cell
        for title, cell in named.items()
        if title not in ("size", "params", "test", "t/s")
    }
    row |= {"model_size": _amount(named.get("size"), 1024), "model_n_params": _amount(named.get("params"), 1000)}
    prompt, generated, depth = (int(count or 0) for count in test.groups())
    row |= {"n_prompt": prompt, "n_gen": generated, "n_depth": depth}
    return row | {"avg_ts": float(rate[1]), "stddev_ts": float(rate[2] or 0)}


def _amount(cell: str | None, step: int) -> int:
    """ "403.20 MiB" and "630.17 M"; 0, as llama-bench has it for what is not known, for anything else."""
    amount = _AMOUNT.fullmatch(cell or "")
    return round(float(amount[1]) * step ** _EXPONENTS[amount[2]]) if amount else 0
