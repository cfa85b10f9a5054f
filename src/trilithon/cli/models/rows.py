"""The rows of `trilithon list`, for people and as JSON."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilithon.cli.machine import figure
from trilithon.cli.models.estimated import estimate_json, memory_text
from trilithon.cli.output import shown
from trilithon.errors import ModelError
from trilithon.language import Message
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.units import format_bytes

if TYPE_CHECKING:
    from trilithon.estimate.answer import SpeedEstimate

__all__ = [
    "FileRow",
    "ModelRow",
    "aligned",
    "as_json",
    "day",
    "model_row",
    "place_of",
    "plain",
    "render",
    "table_or_cards",
]

_TITLES = (*(Message("name"), Message("size"), Message("quant"), Message("format"), Message("since"), Message("from")),)
_UNLIMITED = 1000
_KEPT_SPACE = "\N{FIGURE SPACE}"  # textwrap breaks no line there
_ESTIMATE_TITLES = (Message("tok/s here"), Message("memory"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """`place` is the path of the file; empty when it is missing."""

    role: str
    name: str
    size_bytes: int
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """`complete` means that no file is missing; `read_only` that the model is in a layered store, or belongs to another
    program. `files` is empty unless the paths were requested. `estimate` is that of this machine, where it has a basis;
    `fits` whether its memory holds that."""

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
    files: tuple[FileRow, ...] = ()
    estimate: "SpeedEstimate | None" = None
    fits: bool | None = None


def model_row(manifest: Manifest, root: Path | None, store: ModelStore, *, places: bool = False) -> ModelRow:
    """`root` is the root of the model's store; None when it belongs to another program."""
    weights = manifest.of_role("weights")
    return ModelRow(
        name=str(manifest.name),
        size_bytes=manifest.size_bytes,
        quantizations=_distinct(file.quantization for file in weights),
        formats=_distinct(file.format for file in weights),
        source=manifest.source,
        created=manifest.created,
        adopted=manifest.adopted,
        synthetic=manifest.synthetic,
        read_only=root != store.local.root,
        complete=not store.missing(manifest),
        files=tuple(_file_row(file, store) for file in manifest.files) if places else (),
    )


def place_of(file: StoredFile, store: ModelStore) -> str:
    """The path of a file; empty when it is missing."""
    try:
        return str(store.file_path(file))
    except ModelError:
        return ""


def _file_row(file: StoredFile, store: ModelStore) -> FileRow:
    return FileRow(role=file.role, name=file.name, size_bytes=file.size_bytes, place=place_of(file, store))


def as_json(rows: Sequence[ModelRow]) -> list[dict[str, Any]]:
    """Without an estimate, `estimate` is null."""
    plain_rows = [asdict(replace(row, estimate=None)) for row in rows]
    for row, values in zip(rows, plain_rows, strict=True):
        del values["fits"]
        values["estimate"] = None if row.estimate is None else estimate_json(row.estimate, row.fits)
    return plain_rows


def render(rows: Sequence[ModelRow]) -> str:
    """Columns of text; only the last one is not padded. The files of a model, if known, follow its row."""
    estimated = any(row.estimate is not None for row in rows)
    titles = (*_TITLES[:4], *(_ESTIMATE_TITLES if estimated else ()), *_TITLES[4:])
    cells = [tuple(map(shown, titles)), *(_cells(row, estimated=estimated) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles) - 1)]
    lines = []
    file_lines: list[list[str]] = [[], *([f"    {line}" for line in aligned(_file_cells(row))] for row in rows)]
    for row, files in zip(cells, file_lines, strict=True):
        name, size, *others, last = (*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1])
        lines.append("  ".join([name, size.strip().rjust(widths[1]), *others, last]).rstrip())
        lines += files
    return "".join(f"{line}\n" for line in lines)


def _cells(row: ModelRow, *, estimated: bool) -> tuple[str, ...]:
    marks = [
        *["synthetic"] * row.synthetic,
        *["incomplete"] * (not row.complete),
        *["read only"] * (row.read_only and not row.adopted),
    ]
    return (
        row.name,
        shown(format_bytes(row.size_bytes)),
        plain(", ".join(row.quantizations)),
        ", ".join(row.formats),
        *(_estimate_cells(row) if estimated else ()),
        day(row.created),
        plain(row.source) + (f" ({', '.join(marks)})" if marks else ""),
    )


def _estimate_cells(row: ModelRow) -> tuple[str, str]:
    """Decode with the interval that holds 80% of models, and memory."""
    if row.estimate is None:
        return "", ""
    decode = row.estimate.decode
    low, high = map(figure, decode.within_80)
    return f"{figure(decode.value)} ({low}–{high})", memory_text(row.estimate, row.fits)


def _file_cells(row: ModelRow) -> list[tuple[str, ...]]:
    return [(file.role, format_bytes(file.size_bytes), file.place or f"{file.name} is missing") for file in row.files]


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Pad the cells of each column to the same width."""
    if not rows:
        return []
    cells = [tuple(map(plain, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def table_or_cards(rows: Sequence[tuple[str, ...]], heads: int) -> list[str]:
    """Aligned columns, of which the first row has the titles; where a terminal is too narrow for them, a paragraph for
    each row: its first `heads` cells, then the others with their titles."""
    lines = aligned(rows)
    width = shutil.get_terminal_size((_UNLIMITED, 24)).columns
    if not (sys.stdout.isatty() or "COLUMNS" in os.environ) or max(map(len, lines), default=0) <= width:
        return lines
    titles, *others = rows
    cards = []
    for row in others:
        named = zip(titles[heads:], row[heads:], strict=True)
        body = "; ".join(f"{title}: {cell}".replace(" ", _KEPT_SPACE) for title, cell in named if cell)
        text = textwrap.wrap(body, max(width, 20), initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        cards += [plain("  ".join(row[:heads])), *(plain(line.replace(_KEPT_SPACE, " ")) for line in text)]
    return cards


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


def plain(text: str) -> str:
    """A text of unknown origin without line breaks and control characters."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def day(created: str) -> str:
    """The local time, to the minute."""
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError):  # years at the limits of datetime
        return created[:16]
