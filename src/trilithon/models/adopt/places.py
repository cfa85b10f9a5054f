"""Models that are on this disk already: Ollama's, Hugging Face's cache, LM Studio's, RKLLAMA's, the user's folders.

They are found anew each time, by names and sizes and at most a file's first bytes, so that a thousand take a fraction
of a second.
"""

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

# Where Ollama's installer, distributions and snap put the store of the system's service.
_OLLAMA = (
    *("usr/share/ollama/.ollama/models", "var/lib/ollama", "var/lib/ollama/models"),
    *("var/lib/ollama/.ollama/models", "var/snap/ollama/common/models"),
)
# RKLLAMA's own installer and its container image; newer versions take the folder from a setting.
_RKLLAMA = ("RKLLAMA/models", "rkllama/models")
_RKLLAMA_SYSTEM = ("opt/rkllama/models",)
_SYNTHETIC = pair(SYNTHETIC_KEY, True)
_BEGINNING_BYTES = 4096  # what a model says of itself stands before its vocabulary


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that is looked into. `named`: the user named it, so that its absence is worth a word."""

    source: Source
    folder: Path
    named: bool = False


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was found, by source; no name twice."""

    models: tuple[AdoptedModel, ...]
    skipped: tuple[Skipped, ...]
    places: tuple[Place, ...]

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        return tuple(model.manifest for model in self.models)

    def get(self, name: ModelName) -> AdoptedModel | None:
        return next((model for model in self.models if model.manifest.name.same_as(name)), None)

    def refuse_removal(self, name: ModelName) -> None:
        """Raises ModelError where the model belongs to another program."""
        if (model := self.get(name)) is None:
            return
        if model.source == "folder":
            raise ModelError(f"{name} is {model.place}, in a folder of yours where nothing is changed; remove it there")
        raise ModelError(f"{name} is {model.source}'s, in {model.place}, where nothing is changed; remove it with that")


def find_adopted(
    configuration: Configuration, environment: Mapping[str, str] = os.environ, system: Path = Path("/")
) -> Adoption:
    """Raises UserError for a damaged list of folders; whatever is wrong with models is in `skipped`."""
    models: list[AdoptedModel] = []
    passed: list[Skipped] = []
    looked = _once(places(configuration, environment, system))
    never = {os.path.realpath(configuration.data), os.path.realpath(configuration.cache)}
    never |= {os.path.realpath(folder) for folder in configuration.stores}
    reals = {os.path.realpath(place.folder) for place in looked}
    for place in looked:
        scan_root = ScanRoot(place.folder, place.source)
        if place.named and not _is_folder(place):
            scan_root.skip(place.folder, f"is no folder; trilithon adopt --forget '{place.folder}'")
        models += (_marked(scan_root, each) for each in _models(scan_root, (reals | never) - {scan_root.real}))
        passed += scan_root.skipped
    kept, twice = _distinct(models)
    return Adoption(tuple(kept), (*passed, *twice), tuple(looked))


def places(configuration: Configuration, environment: Mapping[str, str], system: Path) -> Iterator[Place]:
    """Where programs keep models, whether or not there is anything; the user's own folders last."""
    home = Path(environment.get("HOME") or "~").expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")

    def named(*variables: str) -> Iterator[Path]:
        return (Path(environment[each]).expanduser() for each in variables if environment.get(each))

    for folder in (*named("OLLAMA_MODELS"), home / ".ollama/models", *(system / each for each in _OLLAMA)):
        yield Place("Ollama", folder)
    hub = next(named("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"), None)
    for folder in (hub or next(named("HF_HOME"), cache / "huggingface") / "hub", home / ".cache/huggingface/hub"):
        yield Place("Hugging Face", folder)
    for folder in (home / ".lmstudio/models", home / ".cache/lm-studio/models"):
        yield Place("LM Studio", folder)
    theirs = (*(home / each for each in _RKLLAMA), *(system / each for each in _RKLLAMA_SYSTEM))
    for folder in (*named("RKLLAMA_PATHS_MODELS"), *theirs):
        yield Place("RKLLAMA", folder)
    for folder in (*configuration.models, *adopted_folders(configuration)):
        yield Place("folder", folder, named=True)


def _once(looked: Iterator[Place]) -> list[Place]:
    """Those that are there, or that the user named; each folder once, whatever links lead to it."""
    chosen: dict[str, Place] = {}
    for place in looked:
        if place.named or _is_folder(place):
            chosen.setdefault(os.path.realpath(place.folder), place)
    return list(chosen.values())


def _is_folder(place: Place) -> bool:
    """Not where nobody lets us look: the home of Ollama's own user is closed to others on many systems."""
    return os.path.isdir(place.folder)  # noqa: PTH112 - Path.is_dir raises there


def _models(scan_root: ScanRoot, others: set[str]) -> list[AdoptedModel]:
    """A folder that the user names may be any program's."""
    if scan_root.source == "Ollama" or (scan_root.source == "folder" and is_ollama_store(scan_root.root)):
        return list(adopt_ollama(scan_root))
    if scan_root.source == "Hugging Face" or (scan_root.source == "folder" and is_hub_cache(scan_root.root)):
        return list(adopt_hub(scan_root))
    return list(adopt_folder(scan_root, others))


def _marked(scan_root: ScanRoot, model: AdoptedModel) -> AdoptedModel:
    """Synthetic weights say so at their beginning; the name of their file may not."""
    weights = next((each for each in model.manifest.of_role("weights") if each.format == "gguf"), None)
    found = scan_root.file(weights.path) if weights and weights.path else None
    beginning = scan_root.read(found, _BEGINNING_BYTES) if found else None
    if _SYNTHETIC not in (beginning or b""):
        return model
    return replace(model, manifest=replace(model.manifest, synthetic=True))


def _distinct(models: Sequence[AdoptedModel]) -> tuple[list[AdoptedModel], list[Skipped]]:
    """Each name and each place once: the first that has it."""
    kept: dict[tuple[str, ...], AdoptedModel] = {}
    twice = []
    for model in models:
        key = tuple(part.casefold() for part in model.manifest.name.parts)
        first = kept.setdefault(key, model)
        if first is not model and os.path.realpath(first.place) != os.path.realpath(model.place):
            name = model.manifest.name
            twice.append(Skipped(model.place, f"{name} is the name of {first.place} already; use this one by its path"))
    return list(kept.values()), twice
