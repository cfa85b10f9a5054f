"""The cache of huggingface_hub: models--USER--REPO/snapshots/REVISION, whose files are links into blobs/ beside it.

Its own scan needs the library, whose import takes longer than everything here.
"""

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
_DEEPEST = 4  # folders in a repository: quantisations, and what is beside them
_CONVERTIBLE = (".safetensors", ".bin", ".pth")


def is_hub_cache(folder: Path) -> bool:
    with suppress(OSError):  # nobody lets us look
        return any((each / "snapshots").is_dir() for each in folder.glob(f"{_PREFIX}*"))
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
    found = [bundle for group in _by_folder(files).values() for bundle in bundles(scan_root, group, files)]
    for bundle in with_tags(found, of_one_repository=True):
        yield repository_model(scan_root, repository, bundle, f"the cache of huggingface_hub, {folder}")
    if convertible and not found:
        scan_root.skip(convertible.path, _convertible(convertible.path.parent, repository))


def _convertible(snapshot: Path, repository: Repository) -> str:
    words = f"trilithon convert '{snapshot}' --to gguf --output {repository.name}-f16.gguf"
    return f"is no GGUF and no RKLLM; one is made of it by: {words}"


def repository_model(scan_root: ScanRoot, repository: Repository, bundle: Bundle, source: str) -> AdoptedModel:
    """A model that lies in folders named by user and repository. Raises ModelError for names that do not fit."""
    name = Repository(repository.user, repository.name, bundle.tag).local_name
    manifest = Manifest(name=name, files=bundle.files, source=source, created=created(bundle.first))
    return AdoptedModel(manifest=manifest, source=scan_root.source, place=bundle.first.path)


def _newest(scan_root: ScanRoot, folder: Path) -> tuple[list[ScanResult], ScanResult | None]:
    """Each file of the repository once, from the newest revision that has it; and one that could be converted."""
    files: dict[str, ScanResult] = {}
    convertible = None
    for snapshot in _revisions(scan_root, folder):
        for path in _below(scan_root, snapshot):
            relative = str(path.relative_to(snapshot))
            if relative in files or not _is_wanted(path):
                continue
            if (found := scan_root.file(path)) is None:
                continue
            if path.suffix in _CONVERTIBLE:
                convertible = convertible or found
            else:
                files[relative] = found
    return list(files.values()), convertible


def _is_wanted(path: Path) -> bool:
    return path.suffix.lower() in (".gguf", ".rkllm", ".rknn", ".json", ".jinja", ".txt", ".model", *_CONVERTIBLE)


def _revisions(scan_root: ScanRoot, folder: Path) -> list[Path]:
    """Snapshots, the one that `main` is first, then the newest."""
    main = ""
    if os.path.isfile(folder / "refs" / "main") and (found := scan_root.file(folder / "refs" / "main")):  # noqa: PTH113
        main = (scan_root.read(found, 200) or b"").decode(errors="replace").strip()
    return sorted(
        scan_root.folders(folder / "snapshots"), key=lambda each: (each.name == main, _age(each)), reverse=True
    )


def _age(folder: Path) -> float:
    """When it was last changed; of one that may not be looked at, never."""
    with suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _below(scan_root: ScanRoot, folder: Path, depth: int = 0) -> Iterator[Path]:
    for entry in scan_root.entries(folder):
        if not entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)
        elif depth < _DEEPEST and not entry.name.startswith("."):
            yield from _below(scan_root, scan_root.entered(entry), depth + 1)


def _by_folder(files: list[ScanResult]) -> Mapping[Path, list[ScanResult]]:
    groups: dict[Path, list[ScanResult]] = {}
    for each in files:
        groups.setdefault(each.path.parent, []).append(each)
    return groups
