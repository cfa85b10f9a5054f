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

__all__ = ["adopt_folder", "model_folders"]

_DEEPEST = 8
_MOST_FOLDERS = 20_000
_MODEL_SUFFIXES = (".gguf", ".rkllm")
_BESIDE_SUFFIXES = (*_MODEL_SUFFIXES, ".rknn", ".json", ".jinja", ".txt", ".model")


def adopt_folder(scan_root: ScanRoot, others: Set[str]) -> Iterator[AdoptedModel]:
    """Every model below; `others` are folders without links that are looked at on their own, or never."""
    for folder, files in model_folders(scan_root, others):
        yield from _room(scan_root, folder, files)


def model_folders(scan_root: ScanRoot, others: Set[str]) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder below that holds models, and the files in it that count."""
    left, seen = [(scan_root.root, 0)], 0
    while left:
        folder, depth = left.pop()
        seen += 1
        if seen > _MOST_FOLDERS:
            scan_root.skip(scan_root.root, f"has more than {_MOST_FOLDERS} folders; name those that hold models")
            return
        files, below = [], []
        for entry in scan_root.entries(folder):
            if entry.is_dir(follow_symlinks=False):
                below.append(scan_root.entered(entry))
            elif entry.name == MODELFILE or Path(entry.name).suffix.lower() in _BESIDE_SUFFIXES:
                files.append(Path(entry.path))
        if any(file.suffix.lower() in _MODEL_SUFFIXES for file in files):
            yield folder, files
        if depth < _DEEPEST:
            left += [(each, depth + 1) for each in reversed(below) if _is_entered(scan_root, each, others)]


def _is_entered(scan_root: ScanRoot, folder: Path, others: Set[str]) -> bool:
    if folder.name.startswith("."):
        return False
    return not others or f"{scan_root.real}{str(folder)[len(str(scan_root.root)) :]}" not in others


def _room(scan_root: ScanRoot, folder: Path, paths: Sequence[Path]) -> Iterator[AdoptedModel]:
    files = [found for path in paths if (found := scan_root.file(path))]
    modelfile = next((each for each in files if each.path.name == MODELFILE), None)
    converted = [each for each in files if each.path.suffix.lower() == ".rkllm"]
    stems = [each.path.stem for each in converted]
    beside = files_below(scan_root, folder, ["tokenizer", *stems]) if converted else []
    try:
        if modelfile and converted:
            yield adopt_rkllama(scan_root, modelfile, files, beside)
            return
        repository = _repository(scan_root, folder)
        for bundle in with_tags(list(bundles(scan_root, files, beside)), of_one_repository=repository is not None):
            yield _named(scan_root, folder, repository, bundle)
    except ModelError as error:
        scan_root.skip(folder, str(error))


def _repository(scan_root: ScanRoot, folder: Path) -> Repository | None:
    """LM Studio keeps the user and the repository of Hugging Face as folders; elsewhere the file's name is all."""
    parts = folder.relative_to(scan_root.root).parts
    if scan_root.source != "LM Studio" or len(parts) < 2:
        return None
    found = parse_reference(f"hf.co/{parts[0]}/{parts[1]}")
    return found if isinstance(found, Repository) else None


def _named(scan_root: ScanRoot, folder: Path, repository: Repository | None, bundle: Bundle) -> AdoptedModel:
    if repository is not None:
        return repository_model(scan_root, repository, bundle, f"LM Studio's folder {folder}")
    host, namespace, _ = ModelName.DEFAULTS
    manifest = Manifest(
        name=ModelName(host, namespace, name_part(bundle.base), name_part(bundle.tag)),
        files=bundle.files,
        source=f"the folder {folder}",
        created=created(bundle.first),
    )
    return AdoptedModel(manifest=manifest, source=scan_root.source, place=bundle.first.path)
