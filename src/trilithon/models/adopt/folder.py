"""Folders of models, walked to a depth: the user's own, LM Studio's (USER/REPO/FILE), RKLLAMA's (NAME/Modelfile)."""

from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.adopt.bundles import Bundle, bundles, files_below, with_tags
from trilithon.models.adopt.hub_cache import repository_model
from trilithon.models.adopt.rkllama import MODELFILE, adopt_rkllama
from trilithon.models.adopt.scan_root import AdoptedModel, ScanRoot, created
from trilithon.models.names import ModelName, Repository, name_part, parse_reference
from trilithon.models.store.manifest import Manifest

__all__ = ["adopt_folder", "rooms"]

_DEEPEST = 8
_MOST_FOLDERS = 20_000
_MODEL_SUFFIXES = (".gguf", ".rkllm")
_BESIDE_SUFFIXES = (*_MODEL_SUFFIXES, ".rknn", ".json", ".jinja", ".txt", ".model")


def adopt_folder(ground: ScanRoot, others: Set[str]) -> Iterator[AdoptedModel]:
    """Every model below; `others` are folders without links that are looked at on their own, or never."""
    for folder, files in rooms(ground, others):
        yield from _room(ground, folder, files)


def rooms(ground: ScanRoot, others: Set[str]) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder below that holds models, and the files in it that count."""
    left, seen = [(ground.root, 0)], 0
    while left:
        folder, depth = left.pop()
        seen += 1
        if seen > _MOST_FOLDERS:
            ground.pass_over(ground.root, f"has more than {_MOST_FOLDERS} folders; name those that hold models")
            return
        files, below = [], []
        for entry in ground.entries(folder):
            if entry.is_dir(follow_symlinks=False):
                below.append(ground.entered(entry))
            elif entry.name == MODELFILE or Path(entry.name).suffix.lower() in _BESIDE_SUFFIXES:
                files.append(Path(entry.path))
        if any(file.suffix.lower() in _MODEL_SUFFIXES for file in files):
            yield folder, files
        if depth < _DEEPEST:
            left += [(each, depth + 1) for each in reversed(below) if _is_entered(ground, each, others)]


def _is_entered(ground: ScanRoot, folder: Path, others: Set[str]) -> bool:
    if folder.name.startswith("."):
        return False
    return not others or f"{ground.real}{str(folder)[len(str(ground.root)) :]}" not in others


def _room(ground: ScanRoot, folder: Path, paths: Sequence[Path]) -> Iterator[AdoptedModel]:
    files = [found for path in paths if (found := ground.file(path))]
    modelfile = next((each for each in files if each.path.name == MODELFILE), None)
    converted = [each for each in files if each.path.suffix.lower() == ".rkllm"]
    stems = [each.path.stem for each in converted]
    beside = files_below(ground, folder, ["tokenizer", *stems]) if converted else []
    try:
        if modelfile and converted:
            yield adopt_rkllama(ground, modelfile, files, beside)
            return
        repository = _repository(ground, folder)
        for bundle in with_tags(list(bundles(ground, files, beside)), of_one_repository=repository is not None):
            yield _named(ground, folder, repository, bundle)
    except ModelError as error:
        ground.pass_over(folder, str(error))


def _repository(ground: ScanRoot, folder: Path) -> Repository | None:
    """LM Studio keeps the user and the repository of Hugging Face as folders; elsewhere the file's name is all."""
    parts = folder.relative_to(ground.root).parts
    if ground.source != "LM Studio" or len(parts) < 2:
        return None
    found = parse_reference(f"hf.co/{parts[0]}/{parts[1]}")
    return found if isinstance(found, Repository) else None


def _named(ground: ScanRoot, folder: Path, repository: Repository | None, bundle: Bundle) -> AdoptedModel:
    if repository is not None:
        return repository_model(ground, repository, bundle, f"LM Studio's folder {folder}")
    host, namespace, _ = ModelName.DEFAULTS
    manifest = Manifest(
        name=ModelName(host, namespace, name_part(bundle.base), name_part(bundle.tag)),
        files=bundle.files,
        source=f"the folder {folder}",
        created=created(bundle.first),
    )
    return AdoptedModel(manifest=manifest, source=ground.source, place=bundle.first.path)
