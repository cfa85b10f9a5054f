"""Scans folders of models: the user's own, LM Studio's (USER/REPO/FILE) and RKLLAMA's (NAME/Modelfile, config.ini)."""

from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.adopt.bundles import Bundle, bundles, files_below, with_tags
from trilithon.models.adopt.hub_cache import repository_model
from trilithon.models.adopt.rkllama import MODELFILE, adopt_rkllama
from trilithon.models.adopt.rkllama_gguf import CONFIGURATION, adopt_gguf_folder
from trilithon.models.adopt.scan_root import AdoptedModel, ScanResult, ScanRoot, created
from trilithon.models.names import ModelName, Repository, name_part, parse_reference
from trilithon.models.store.manifest import Manifest

__all__ = ["adopt_folder", "model_folders"]

_DEEPEST = 8
_MOST_FOLDERS = 20_000
_MODEL_SUFFIXES = (".gguf", ".rkllm")
_BESIDE_SUFFIXES = (*_MODEL_SUFFIXES, ".rknn", ".json", ".jinja", ".txt", ".model")


def adopt_folder(scan_root: ScanRoot, others: Set[str]) -> Iterator[AdoptedModel]:
    """Every model below the root. `others` are real paths of folders that are scanned separately, or not at all."""
    for folder, files in model_folders(scan_root, others):
        yield from _folder_models(scan_root, folder, files)


def model_folders(scan_root: ScanRoot, others: Set[str]) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder below the root that has models, and the relevant files in it."""
    pending, count = [(scan_root.root, 0)], 0
    while pending:
        folder, depth = pending.pop()
        count += 1
        if count > _MOST_FOLDERS:
            scan_root.skip(scan_root.root, f"has more than {_MOST_FOLDERS} folders; name those that have models")
            return
        files, subfolders = [], []
        for entry in scan_root.entries(folder):
            if entry.is_dir(follow_symlinks=False):
                subfolders.append(scan_root.subfolder(entry))
            elif entry.name in (MODELFILE, CONFIGURATION) or Path(entry.name).suffix.lower() in _BESIDE_SUFFIXES:
                files.append(Path(entry.path))
        if any(file.suffix.lower() in _MODEL_SUFFIXES for file in files):
            yield folder, files
        if depth < _DEEPEST:
            pending += [
                (subfolder, depth + 1)
                for subfolder in reversed(subfolders)
                if _is_scanned(scan_root, subfolder, others)
            ]


def _is_scanned(scan_root: ScanRoot, folder: Path, others: Set[str]) -> bool:
    if folder.name.startswith("."):
        return False
    return not others or f"{scan_root.real}{str(folder)[len(str(scan_root.root)) :]}" not in others


def _folder_models(scan_root: ScanRoot, folder: Path, paths: Sequence[Path]) -> Iterator[AdoptedModel]:
    files = [result for path in paths if (result := scan_root.file(path))]
    modelfile = next((file for file in files if file.path.name == MODELFILE), None)
    converted = [file for file in files if file.path.suffix.lower() == ".rkllm"]
    stems = [file.path.stem for file in converted]
    below = files_below(scan_root, folder, ["tokenizer", *stems]) if converted else []
    try:
        if modelfile and converted:
            yield adopt_rkllama(scan_root, modelfile, files, below)
            return
        if not converted and _is_rkllamas(scan_root, folder, files):
            yield from adopt_gguf_folder(scan_root, files)
            return
        repository = _repository(scan_root, folder)
        for bundle in with_tags(list(bundles(scan_root, files, below)), of_one_repository=repository is not None):
            yield _adopted(scan_root, folder, repository, bundle)
    except ModelError as error:
        scan_root.skip(folder, str(error))


def _is_rkllamas(scan_root: ScanRoot, folder: Path, files: Sequence[ScanResult]) -> bool:
    """Whether the folder is the model: any below RKLLAMA's own folder, elsewhere those with its configuration."""
    if scan_root.source == "LM Studio":
        return False
    in_rkllama = scan_root.source == "RKLLAMA" and folder != scan_root.root
    return in_rkllama or any(file.path.name == CONFIGURATION for file in files)


def _repository(scan_root: ScanRoot, folder: Path) -> Repository | None:
    """LM Studio keeps files in folders for user and repository of Hugging Face; None for other sources."""
    parts = folder.relative_to(scan_root.root).parts
    if scan_root.source != "LM Studio" or len(parts) < 2:
        return None
    reference = parse_reference(f"hf.co/{parts[0]}/{parts[1]}")
    return reference if isinstance(reference, Repository) else None


def _adopted(scan_root: ScanRoot, folder: Path, repository: Repository | None, bundle: Bundle) -> AdoptedModel:
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
