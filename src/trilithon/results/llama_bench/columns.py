"""llama-bench's columns: their order, types and defaults, and what the backend columns say about the unit."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from trilithon.results.store.codec import LARGEST_INTEGER
from trilithon.tables import table_beside

__all__ = [
    "COLUMNS",
    "DEFAULTS",
    "FIGURES",
    "LISTS",
    "SETTINGS",
    "TEST_COLUMNS",
    "TITLES",
    "WIDTHS",
    "Kind",
    "typed",
    "unit_of",
]

Kind = Literal["text", "bool", "int", "float"]

FIGURES = ("avg_ns", "stddev_ns", "avg_ts", "stddev_ts")
LISTS = ("samples_ns", "samples_ts")
TEST_COLUMNS = frozenset(("n_prompt", "n_gen", "n_depth", "test_time", *FIGURES, *LISTS))
"""What differs between the tests of one configuration."""

_TABLE: Mapping[str, Any] = table_beside(__file__, "columns.toml")

COLUMNS: Mapping[str, Kind] = {name: column["kind"] for name, column in _TABLE["columns"].items()}
DEFAULTS: Mapping[str, Any] = {name: column["default"] for name, column in _TABLE["columns"].items()}
TITLES: Mapping[str, str] = {name: column.get("title", name) for name, column in _TABLE["columns"].items()}
WIDTHS: Mapping[str, int] = _TABLE["shown"] | {
    name: column["width"] for name, column in _TABLE["columns"].items() if "width" in column
}
"""Of the Markdown table, in characters; negative: to the left."""
SETTINGS: tuple[str, ...] = tuple(_TABLE["settings"])
"""The settings that may have a column in the Markdown table, in its order."""

# Backends that compute on the CPU itself, and those of neural processors; every other one is a GPU's. RPC names the
# plug-in, which is there with and without another machine to speak to, and no GPU.
_ON_CPU = frozenset(("CPU", "BLAS", "ZENDNN", "AMX", "RPC"))
_ON_NPU = frozenset(("RKNPU", "RKNPU2", "ROCKET", "CANN", "HTP", "HEXAGON"))
# Before there was a `backends` column (2024), there was a true-or-false column for each.
_OLD_BACKENDS = ("cuda", "vulkan", "kompute", "metal", "sycl", "opencl")


def typed(column: str, value: Any) -> Any:
    """A value from a file as this column's type; a column that is not known is text.

    Raises ValueError, saying what does not fit."""
    kind = COLUMNS.get(column)
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"{column} is not a plain value")
    if kind is None or kind == "text":
        return "" if value is None else str(value)
    if kind == "bool":
        return _truth(column, value)
    return _integer(column, value) if kind == "int" else _float(column, value)


def _truth(column: str, value: Any) -> bool:
    word = str(value).lower()
    if word not in ("0", "1", "true", "false"):
        raise ValueError(f"{column} is neither true nor false")
    return word in ("1", "true")


def _integer(column: str, value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{column} is not a whole number")
    # An old file's true or false, as flash_attn was, may also be a word (csv).
    word = str(value).strip().lower()
    try:
        number = int({"true": 1, "false": 0}.get(word, value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{column} is not a whole number") from None
    if abs(number) > LARGEST_INTEGER:
        raise ValueError(f"{column} is too large")
    return number


def _float(column: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{column} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{column} is not a finite number")
    return number


def unit_of(row: Mapping[str, Any]) -> Literal["cpu", "gpu", "npu"]:
    """Where a row was measured. An NPU backend takes its work whatever is asked of the GPU; a GPU's does not
    when no layer or no device was given to it, or when the list of GPUs, which is as old as `backends`, is empty."""
    names = str(row.get("backends") or "").split(",")
    if not row.get("backends"):
        names = [name for name in _OLD_BACKENDS if str(row.get(name)).lower() in ("1", "true")]
    backends = {name.strip().upper() for name in names} - {""}
    if backends & _ON_NPU:
        return "npu"
    no_device = row.get("devices") == "none" or (row.get("backends") and row.get("gpu_info") == "")
    return "cpu" if not backends - _ON_CPU or no_device or row.get("n_gpu_layers") == 0 else "gpu"
