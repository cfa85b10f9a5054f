"""What `trilithon list` says of each model, for people and as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trilithon.models.manifest import Manifest
from trilithon.models.store import ModelStore
from trilithon.units import format_bytes

__all__ = ["ModelRow", "aligned", "as_json", "day", "model_row", "render"]

_TITLES = ("name", "size", "quant", "format", "since", "from")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """`complete`: every file of it is there. `read_only` means that it lies in a layered store, or belongs to another
    program."""

    name: str
    size_bytes: int
    quantizations: tuple[str, ...]
    formats: tuple[str, ...]
    source: str
    created: str
    adopted: bool
    synthetic: bool
    read_only: bool
    complete: bool


def model_row(manifest: Manifest, root: Path | None, store: ModelStore) -> ModelRow:
    """`root` is that of the store which it lies in; None where it belongs to another program."""
    weights = manifest.of_role("weights")
    return ModelRow(
        name=str(manifest.name),
        size_bytes=manifest.size_bytes,
        quantizations=_each(file.quantization for file in weights),
        formats=_each(file.format for file in weights),
        source=manifest.source,
        created=manifest.created,
        adopted=manifest.adopted,
        synthetic=manifest.synthetic,
        read_only=root != store.own.root,
        complete=not store.missing(manifest),
    )


def as_json(rows: Sequence[ModelRow]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def render(rows: Sequence[ModelRow]) -> str:
    """Columns of text; the last one is as long as it is."""
    cells = [_TITLES, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_TITLES) - 1)]
    lines = []
    for row in cells:
        name, size, *others, last = (*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1])
        lines.append("  ".join([name, size.strip().rjust(widths[1]), *others, last]).rstrip())
    return "".join(f"{line}\n" for line in lines)


def _cells(row: ModelRow) -> tuple[str, ...]:
    marks = [
        *["synthetic"] * row.synthetic,
        *["incomplete"] * (not row.complete),
        *["read only"] * (row.read_only and not row.adopted),
    ]
    return (
        row.name,
        format_bytes(row.size_bytes),
        _plain(", ".join(row.quantizations)),
        ", ".join(row.formats),
        day(row.created),
        _plain(row.source) + (f" ({', '.join(marks)})" if marks else ""),
    )


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    cells = [tuple(map(_plain, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _each(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


def _plain(text: str) -> str:
    """What others wrote, without what would command a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def day(created: str) -> str:
    """In this machine's time."""
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError):  # near the first and the last year there is
        return created[:16]
