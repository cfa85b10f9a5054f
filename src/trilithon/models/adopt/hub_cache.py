"""Scans the cache of huggingface_hub: models--USER--REPO/snapshots/REVISION, with links into blobs/.

The library has a scan of its own, but its import takes longer than everything here."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.adopt.bundles import Bundle, bundles, with_tags
from trilithon.models.adopt.scan_root import AdoptedModel, ScanResult, ScanRoot, created
from trilithon.models.names import Repository, parse_reference
from trilithon.models.store.manifest import Manifest

__all__ = ["adopt_hub", "is_hub_cache", "repository_model"]

_PREFIX = "models--"
_DEEPEST = 4  # folders in a repository, for quantisations and companions
_CONVERTIBLE = (".safetensors", ".bin", ".pth")


def is_hub_cache(folder: Path) -> bool:
    with suppress(OSError):  # the folder cannot be read
        return any((repository / "snapshots").is_dir() for repository in folder.glob(f"{_PREFIX}*"))
    return False


def adopt_hub(scan_root: ScanRoot) -> Iterator[AdoptedModel]:
    for folder in scan_root.folders(scan_root.root):
        user, separator, name = folder.name.removeprefix(_PREFIX).partition("--")
        if not folder.name.startswith(_PREFIX) or not separator:
            continue
        try:
            repository = parse_reference(f"hf.co/{user}/{name}")
        except ModelError as error:
            scan_root.skip(folder, str(error))
            continue
        if isinstance(repository, Repository):
            yield from _models(scan_root, folder, repository)


def _models(scan_root: ScanRoot, folder: Path, repository: Repository) -> Iterator[AdoptedModel]:
    files, convertible = _newest(scan_root, folder)
    models = [bundle for group in _by_folder(files).values() for bundle in bundles(scan_root, group, files)]
    for bundle in with_tags(models, of_one_repository=True):
        yield repository_model(scan_root, repository, bundle, f"the cache of huggingface_hub, {folder}")
    if convertible and not models:
        scan_root.skip(convertible.path, _convertible(convertible.path.parent, repository))


def _convertible(snapshot: Path, repository: Repository) -> str:
    command = f"trilithon convert '{snapshot}' --to gguf --output {repository.name}-f16.gguf"
    return f"is not a GGUF or RKLLM file; convert it with: {command}"


def repository_model(scan_root: ScanRoot, repository: Repository, bundle: Bundle, source: str) -> AdoptedModel:
    """A model in folders that are named by user and repository. Raises ModelError for invalid names."""
    name = Repository(repository.user, repository.name, bundle.tag).local_name
    manifest = Manifest(name=name, files=bundle.files, source=source, created=created(bundle.first))
    return AdoptedModel(manifest=manifest, source=scan_root.source, place=bundle.first.path)


def _newest(scan_root: ScanRoot, folder: Path) -> tuple[list[ScanResult], ScanResult | None]:
    """Each file of the repository from the newest revision that has it, and a file that can be converted."""
    files: dict[str, ScanResult] = {}
    convertible = None
    for snapshot in _revisions(scan_root, folder):
        for path in _files_below(scan_root, snapshot):
            relative = str(path.relative_to(snapshot))
            if relative in files or not _is_relevant(path):
                continue
            if (file := scan_root.file(path)) is None:
                continue
            if path.suffix in _CONVERTIBLE:
                convertible = convertible or file
            else:
                files[relative] = file
    return list(files.values()), convertible


def _is_relevant(path: Path) -> bool:
    return path.suffix.lower() in (".gguf", ".rkllm", ".rknn", ".json", ".jinja", ".txt", ".model", *_CONVERTIBLE)


def _revisions(scan_root: ScanRoot, folder: Path) -> list[Path]:
    """The snapshots: the one of `main` first, then the newest."""
    main = ""
    if os.path.isfile(folder / "refs" / "main") and (reference := scan_root.file(folder / "refs" / "main")):  # noqa: PTH113
        main = (scan_root.read(reference, 200) or b"").decode(errors="replace").strip()
    return sorted(
        scan_root.folders(folder / "snapshots"), key=lambda path: (path.name == main, _changed(path)), reverse=True
    )


def _changed(folder: Path) -> float:
    """The modification time in seconds since 1970; 0 for a folder that cannot be read."""
    with suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _files_below(scan_root: ScanRoot, folder: Path, depth: int = 0) -> Iterator[Path]:
    for entry in scan_root.entries(folder):
        if not entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)
        elif depth < _DEEPEST and not entry.name.startswith("."):
            yield from _files_below(scan_root, scan_root.subfolder(entry), depth + 1)


def _by_folder(files: list[ScanResult]) -> Mapping[Path, list[ScanResult]]:
    groups: dict[Path, list[ScanResult]] = {}
    for file in files:
        groups.setdefault(file.path.parent, []).append(file)
    return groups
