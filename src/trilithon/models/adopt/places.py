"""Finds models on this disk: of Ollama, Hugging Face, LM Studio and RKLLAMA, and in folders of the user.

Every call scans again, by names, sizes and at most the first bytes of a file: a thousand models take a fraction of a
second."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.adopt.folder import adopt_folder
from trilithon.models.adopt.hub_cache import adopt_hub, is_hub_cache
from trilithon.models.adopt.ollama import adopt_ollama, is_ollama_store
from trilithon.models.adopt.remembered import adopted_folders
from trilithon.models.adopt.scan_root import AdoptedModel, ScanRoot, Skipped, Source
from trilithon.models.files.gguf import SYNTHETIC_KEY
from trilithon.models.files.gguf_writer import pair
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest
from trilithon.settings import Configuration

__all__ = ["Adoption", "Place", "find_adopted", "places"]

# The store of the system service, by Ollama's installer, distributions and snap.
_OLLAMA = (
    *("usr/share/ollama/.ollama/models", "var/lib/ollama", "var/lib/ollama/models"),
    *("var/lib/ollama/.ollama/models", "var/snap/ollama/common/models"),
)
# By RKLLAMA's installer and its container image; newer versions take the folder from a setting.
_RKLLAMA = ("RKLLAMA/models", "rkllama/models")
_RKLLAMA_SYSTEM = ("opt/rkllama/models",)
_SYNTHETIC = pair(SYNTHETIC_KEY, True)
_BEGINNING_BYTES = 4096  # general metadata comes before the vocabulary


@dataclass(frozen=True, slots=True)
class Place:
    """A folder to scan. `named` means that the user named it, so that a missing one is reported."""

    source: Source
    folder: Path
    named: bool = False


@dataclass(frozen=True, slots=True)
class Adoption:
    """The models of other programs, with unique names; what was skipped; and the scanned places."""

    models: tuple[AdoptedModel, ...]
    skipped: tuple[Skipped, ...]
    places: tuple[Place, ...]

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        return tuple(model.manifest for model in self.models)

    def get(self, name: ModelName) -> AdoptedModel | None:
        return next((model for model in self.models if model.manifest.name.same_as(name)), None)

    def refuse_removal(self, name: ModelName) -> None:
        """Raises ModelError when the model belongs to another program."""
        if (model := self.get(name)) is None:
            return
        if model.source == "folder":
            raise ModelError(
                "{name} is {place}, in a folder that is only read; remove it there", name=name, place=model.place
            )
        raise ModelError(
            "{name} belongs to {source} ({place}); remove it with that program",
            name=name,
            source=model.source,
            place=model.place,
        )


def find_adopted(
    configuration: Configuration, environment: Mapping[str, str] = os.environ, system: Path = Path("/")
) -> Adoption:
    """Scan all places. Raises UserError for a damaged list of folders; unusable models are in `skipped`."""
    models: list[AdoptedModel] = []
    skipped: list[Skipped] = []
    scanned = _existing(places(configuration, environment, system))
    excluded = {os.path.realpath(configuration.data), os.path.realpath(configuration.cache)}
    excluded |= {os.path.realpath(folder) for folder in configuration.stores}
    reals = {os.path.realpath(place.folder) for place in scanned}
    for place in scanned:
        scan_root = ScanRoot(place.folder, place.source)
        if place.named and not _is_folder(place):
            scan_root.skip(place.folder, f"is not a folder; trilithon adopt --forget '{place.folder}'")
        models += (
            _with_synthetic_mark(scan_root, model)
            for model in _models(scan_root, (reals | excluded) - {scan_root.real})
        )
        skipped += scan_root.skipped
    unique, duplicates = _distinct(models)
    return Adoption(tuple(unique), (*skipped, *duplicates), tuple(scanned))


def places(configuration: Configuration, environment: Mapping[str, str], system: Path) -> Iterator[Place]:
    """Where programs keep models, whether or not the folders exist; the user's own folders come last."""
    home = Path(environment.get("HOME") or "~").expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")

    def variable_folders(*variables: str) -> Iterator[Path]:
        return (Path(environment[name]).expanduser() for name in variables if environment.get(name))

    for folder in (*variable_folders("OLLAMA_MODELS"), home / ".ollama/models", *(system / name for name in _OLLAMA)):
        yield Place("Ollama", folder)
    hub = next(variable_folders("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"), None)
    for folder in (
        hub or next(variable_folders("HF_HOME"), cache / "huggingface") / "hub",
        home / ".cache/huggingface/hub",
    ):
        yield Place("Hugging Face", folder)
    for folder in (home / ".lmstudio/models", home / ".cache/lm-studio/models"):
        yield Place("LM Studio", folder)
    rkllama_folders = (*(home / name for name in _RKLLAMA), *(system / name for name in _RKLLAMA_SYSTEM))
    for folder in (*variable_folders("RKLLAMA_PATHS_MODELS"), *rkllama_folders):
        yield Place("RKLLAMA", folder)
    for folder in (*configuration.models, *adopted_folders(configuration)):
        yield Place("folder", folder, named=True)


def _existing(candidates: Iterator[Place]) -> list[Place]:
    """The places that exist, or that the user named; each folder once, also if several links lead to it."""
    chosen: dict[str, Place] = {}
    for place in candidates:
        if place.named or _is_folder(place):
            chosen.setdefault(os.path.realpath(place.folder), place)
    return list(chosen.values())


def _is_folder(place: Place) -> bool:
    """False also for a folder that cannot be read: the home of the user `ollama` is closed on many systems."""
    return os.path.isdir(place.folder)  # noqa: PTH112 - Path.is_dir raises there


def _models(scan_root: ScanRoot, others: set[str]) -> list[AdoptedModel]:
    """The models of a place. A folder that the user named may belong to any program."""
    if scan_root.source == "Ollama" or (scan_root.source == "folder" and is_ollama_store(scan_root.root)):
        return list(adopt_ollama(scan_root))
    if scan_root.source == "Hugging Face" or (scan_root.source == "folder" and is_hub_cache(scan_root.root)):
        return list(adopt_hub(scan_root))
    return list(adopt_folder(scan_root, others))


def _with_synthetic_mark(scan_root: ScanRoot, model: AdoptedModel) -> AdoptedModel:
    """Mark a model with synthetic weights: the metadata says so, the file name may not."""
    weights = next((candidate for candidate in model.manifest.of_role("weights") if candidate.format == "gguf"), None)
    file = scan_root.file(weights.path) if weights and weights.path else None
    beginning = scan_root.read(file, _BEGINNING_BYTES) if file else None
    if _SYNTHETIC not in (beginning or b""):
        return model
    return replace(model, manifest=replace(model.manifest, synthetic=True))


def _distinct(models: Sequence[AdoptedModel]) -> tuple[list[AdoptedModel], list[Skipped]]:
    """The first model of each name; others are skipped, unless they are the same model."""
    unique: dict[tuple[str, ...], AdoptedModel] = {}
    duplicates = []
    for model in models:
        key = tuple(part.casefold() for part in model.manifest.name.parts)
        first = unique.setdefault(key, model)
        if first is not model and os.path.realpath(first.place) != os.path.realpath(model.place):
            name = model.manifest.name
            duplicates.append(
                Skipped(model.place, f"{name} is already the name of {first.place}; use this one by its path")
            )
    return list(unique.values()), duplicates
