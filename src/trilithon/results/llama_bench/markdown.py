"""llama-bench's Markdown table: the columns that matter here, in its widths and words."""

from collections.abc import Sequence
from typing import Any

from trilithon.results.llama_bench.columns import COLUMNS, DEFAULTS, SETTINGS, TITLES, WIDTHS

__all__ = ["render_markdown"]

_MANY_BUILDS = ("build_commit", "cpu_info", "gpu_info")


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
