"""Which models there are, as the page lists them: read from manifests alone, so that a thousand open at once."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import weights_of
from trilithon.serve.catalog.catalog import Catalog, CatalogEntry

__all__ = [
    "ROWS_ON_A_PAGE",
    "Library",
    "ModelListRow",
    "Order",
    "Place",
    "page_of",
    "pages_of",
    "read_library",
    "selected",
]

Place = Literal["store", "layer", "elsewhere"]
"""Where a model lies: in the store itself, in a layer that is only read, or with its owner or another program."""
Order = Literal["newest", "name", "largest"]

ROWS_ON_A_PAGE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelListRow:
    """One model. `missing` names the files of it that are gone: with one of these it cannot be loaded."""

    entry: CatalogEntry
    place: Place
    quantizations: tuple[str, ...]
    formats: tuple[str, ...]
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def is_removable(self) -> bool:
        return self.place == "store"

    @property
    def searched(self) -> str:
        """What the filter looks into."""
        manifest = self.entry.manifest
        return " ".join((self.name, *self.quantizations, *self.formats, manifest.source)).casefold()


@dataclass(frozen=True, slots=True)
class Library:
    """`problems` are models whose manifest cannot be read, a line each that ends with the fix."""

    rows: tuple[ModelListRow, ...]
    problems: tuple[str, ...]


def read_library(shelf: Catalog) -> Library:
    """What can be served, and what of the store lacks a file. Raises ModelError."""
    entries = shelf.models()
    with ModelStore.open(shelf.configuration) as store:
        listing = store.listing()
        kept = {str(stored.name): (stored, root) for stored, root in zip(listing.manifests, listing.roots, strict=True)}
        served = {entry.name for entry in entries}
        rows = []
        for entry in entries:
            manifest, root = kept.get(entry.name, (None, None))
            place: Place = "elsewhere" if manifest != entry.manifest else _place(root == store.local.root)
            rows.append(_row(entry, place))
        rows += [
            _row(CatalogEntry(name, manifest, ""), _place(root == store.local.root), store.missing(manifest))
            for name, (manifest, root) in kept.items()
            if name not in served
        ]
    return Library(tuple(rows), listing.problems)


def _place(own: bool) -> Place:
    return "store" if own else "layer"


def _row(entry: CatalogEntry, place: Place, missing: Sequence[StoredFile] = ()) -> ModelListRow:
    weights = weights_of(entry.manifest)
    return ModelListRow(
        entry=entry,
        place=place,
        quantizations=_each(file.quantization for file in weights),
        formats=_each(file.format for file in weights),
        missing=tuple(file.name for file in missing) or _without_weights(entry.manifest),
    )


def _without_weights(manifest: Manifest) -> tuple[str, ...]:
    return () if weights_of(manifest) else ("weights",)


def _each(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word))


def selected(rows: Collection[ModelListRow], words: str, order: Order) -> list[ModelListRow]:
    """Those that have every word of the filter in them, in this order, models with random weights last; names decide
    between equals."""
    wanted = words.casefold().split()
    matching = sorted((row for row in rows if all(word in row.searched for word in wanted)), key=_by_name)
    match order:
        case "newest":
            matching.sort(key=lambda row: datetime.fromisoformat(row.entry.modified).timestamp(), reverse=True)
        case "largest":
            matching.sort(key=lambda row: row.entry.size_bytes, reverse=True)
        case "name":
            pass
    matching.sort(key=lambda row: row.entry.manifest.synthetic)  # random weights are no model to choose
    return matching


def _by_name(row: ModelListRow) -> tuple[str, str]:
    return row.name.casefold(), row.name


def pages_of(rows: Collection[ModelListRow]) -> int:
    return max(1, -(-len(rows) // ROWS_ON_A_PAGE))


def page_of(rows: Sequence[ModelListRow], number: int) -> Sequence[ModelListRow]:
    """`number` counts from 0."""
    return rows[number * ROWS_ON_A_PAGE : (number + 1) * ROWS_ON_A_PAGE]
