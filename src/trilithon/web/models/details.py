"""Everything there is to say of one model, as `trilithon show` says it: read from its files, as plain data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trilithon.engines.placing import Suitability, what_runs
from trilithon.errors import ModelError, StoreError
from trilithon.models.files.memory import MemoryNeed, memory_by_context
from trilithon.models.files.model_file import ModelFile
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import read_weights, weights_of
from trilithon.results.plan_list import KnownPlan
from trilithon.serve.catalog.catalog import Catalog, CatalogEntry
from trilithon.serve.ollama.about import (
    ModelDescription,
    about,
    license_text,
    model_info,
    modelfile_text,
    parameters_text,
    template_text,
)

__all__ = ["Details", "FileLine", "Weights", "read_details"]

_MOST_SHOWN = 200
_LONGEST_VALUE = 200
_LONGEST_TEXT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLine:
    """`place` is empty where the file is missing, and the path where it is another program's."""

    role: str
    name: str
    size_bytes: int
    kind: str
    place: str
    is_missing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One file of weights: the memory that it takes by context, and every engine's word on it. `problem` says why it
    cannot be read."""

    name: str
    memory: Mapping[int, MemoryNeed]
    verdicts: tuple[Suitability, ...]
    file: ModelFile | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """`header` are the values of a GGUF's header, as text. Texts are empty where there are none."""

    manifest: Manifest
    files: tuple[FileLine, ...]
    weights: tuple[Weights, ...]
    header: tuple[tuple[str, str], ...]
    settings: str
    system: str
    template: str
    license: str
    modelfile: str
    known: KnownPlan | None = None
    problem: str = ""


def read_details(entry: CatalogEntry, shelf: Catalog) -> Details:
    """For a thread. What cannot be read is said in it."""
    manifest = entry.manifest
    with ModelStore.open(shelf.configuration) as store:
        missing = store.missing(manifest)
        whole = [file for file in weights_of(manifest) if file not in missing]
        known, problem = _about(manifest, store)
        return Details(
            manifest=manifest,
            files=tuple(_file_line(file, store, is_missing=file in missing) for file in manifest.files),
            weights=tuple(_weights(manifest, file, store, shelf) for file in whole),
            header=_header(known) if known else (),
            settings=parameters_text(manifest),
            system=manifest.system,
            template=_text(lambda: template_text(manifest, known, store)) if known else manifest.template,
            license=_text(lambda: license_text(manifest, store)),
            modelfile=modelfile_text(manifest),
            known=_known_plan(entry, shelf),
            problem=problem,
        )


def _known_plan(entry: CatalogEntry, shelf: Catalog) -> KnownPlan | None:
    """None where it cannot be read: the row has said why."""
    try:
        return shelf.outlook(entry).known
    except (ModelError, StoreError):
        return None


def _about(manifest: Manifest, store: ModelStore) -> tuple[ModelDescription | None, str]:
    try:
        return about(manifest, store), ""
    except ModelError as error:
        return None, str(error)


def _file_line(file: StoredFile, store: ModelStore, *, is_missing: bool) -> FileLine:
    return FileLine(
        role=file.role,
        name=file.name,
        size_bytes=file.size_bytes,
        kind=" ".join(filter(None, (file.quantization, file.target_platform))),
        place=str(file.path or ""),
        is_missing=is_missing,
    )


def _weights(manifest: Manifest, file: StoredFile, store: ModelStore, shelf: Catalog) -> Weights:
    try:
        read = read_weights(manifest, file, store, None)
        verdicts = what_runs(read, shelf.board, shelf.configuration)
        return Weights(name=file.name, memory=memory_by_context(read), verdicts=tuple(verdicts), file=read)
    except ModelError as error:
        return Weights(name=file.name, memory={}, verdicts=(), problem=str(error))


def _header(known: ModelDescription) -> tuple[tuple[str, str], ...]:
    """Without the lists, which nobody reads."""
    values = ((key, value) for key, value in model_info(known, verbose=False).items() if value is not None)
    return tuple((key, _short(str(value))) for key, value in values)[:_MOST_SHOWN]


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else value[:_LONGEST_VALUE] + "…"


def _text(read: Callable[[], str]) -> str:
    try:
        return read()[:_LONGEST_TEXT]
    except (ModelError, OSError) as error:
        return str(error)
