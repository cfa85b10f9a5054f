"""Manifests as files: manifests/HOST/NAMESPACE/MODEL/TAG.json below the root of a store."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, require_name
from trilithon.models.store.safe_dir import LinkInStore, SafeDir, read_at

__all__ = ["Listing", "exists", "listing", "parts_of", "read", "remove", "require_structure", "stored_name", "write"]

_FOLDER, _SUFFIX = "manifests", ".json"
_OTHER_FOLDERS = ("blobs", "partial", "links", "locks")
_MOST_BYTES = 16 << 20

_Parts = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Listing:
    """`roots` has the root of the store of each manifest. `problems` are manifests that cannot be read, one line each
    that ends with the fix; `broken` are those of them that concern the store's own folders."""

    manifests: tuple[Manifest, ...]
    roots: tuple[Path, ...]
    problems: tuple[str, ...]
    broken: tuple[str, ...] = ()

    @property
    def digests(self) -> set[str]:
        """Every blob that the manifests use."""
        return {file.digest for manifest in self.manifests for file in manifest.files if file.path is None}


def listing(stores: Sequence[SafeDir]) -> Listing:
    """The models of all stores, by name. A name counts in the first store that has it."""
    manifests: dict[tuple[str, ...], tuple[Manifest, Path]] = {}
    problems: list[str] = []
    broken: list[str] = []

    def on_error(path: Path, error: OSError) -> None:
        if isinstance(error, LinkInStore):
            broken.append(_link_problem(path))
        else:
            problems.append(f"{path} cannot be read: {error.strerror}; check its permissions (ls -l)")

    for safe_dir in stores:
        broken += _structure_problems(safe_dir)
        for (*folders, file), descriptor in safe_dir.walk((_FOLDER,), 3, on_error):
            if file.startswith(".") or not file.endswith(_SUFFIX):
                continue
            parts = (*folders, file.removesuffix(_SUFFIX))
            folded = tuple(map(str.casefold, parts))
            if folded in manifests:
                continue
            try:
                manifests[folded] = _read_at(safe_dir, parts, descriptor), safe_dir.root
            except LinkInStore:
                broken.append(_link_problem(safe_dir.path(_path(parts))))
            except FileNotFoundError:  # removed meanwhile
                continue
            except ModelError as error:
                problems.append(str(error))
    ordered = [manifests[key] for key in sorted(manifests)]
    return Listing(
        tuple(manifest for manifest, _ in ordered),
        tuple(root for _, root in ordered),
        (*broken, *problems),
        tuple(broken),
    )


def _structure_problems(safe_dir: SafeDir) -> list[str]:
    """One line each: folders of the store that are links, and a missing folder of manifests beside blobs. Links below
    `manifests` are found by the walk, as is a root that cannot be read."""
    try:
        links = [name for name in _OTHER_FOLDERS if safe_dir.target((name,)) is not None]
        # In this order: a process that adds the first blob has made the folder before.
        if safe_dir.names((_OTHER_FOLDERS[0],)) and not _has_folder(safe_dir):
            path = safe_dir.path((_FOLDER,))
            missing = (
                f"{path} is missing, and the files of models are there; restore it. To give them up: mkdir '{path}'"
            )
            return [*(_link_problem(safe_dir.path((name,))) for name in links), missing]
    except OSError:
        return []
    return [_link_problem(safe_dir.path((name,))) for name in links]


def require_structure(safe_dir: SafeDir) -> None:
    """Before something is added. Raises ModelError for what `_structure_problems` finds, OSError for a link."""
    if problems := _structure_problems(safe_dir):
        raise ModelError(problems[0])
    with safe_dir.folder((_FOLDER,), create=True):
        pass


def _has_folder(safe_dir: SafeDir) -> bool:
    """Also for a link, which is a problem of its own."""
    try:
        with safe_dir.folder((_FOLDER,)):
            return True
    except FileNotFoundError as error:
        return isinstance(error, LinkInStore)


def _link_problem(path: Path) -> str:
    return (
        f"{path} is a symbolic link, and the store follows none; put what it points to in its place. The folder of the "
        "whole store may be a link"
    )


def read(safe_dir: SafeDir, name: ModelName) -> Manifest | None:
    """None when there is no such model. Raises ModelError for a manifest that cannot be read."""
    try:
        manifest = _read(safe_dir, parts_of(safe_dir, name))
    except FileNotFoundError:
        return None
    if name.digest and name.digest not in {file.digest for file in manifest.files}:
        return None
    return manifest


def exists(safe_dir: SafeDir, name: ModelName) -> bool:
    try:
        safe_dir.status(_path(parts_of(safe_dir, name)))
    except FileNotFoundError:
        return False
    return True


def write(safe_dir: SafeDir, manifest: Manifest) -> None:
    safe_dir.write(_path(manifest.name.parts), manifest.to_json().encode())


def remove(safe_dir: SafeDir, name: ModelName) -> None:
    """Raises FileNotFoundError when there is no such model."""
    path = _path(parts_of(safe_dir, name))
    safe_dir.unlink(path)
    safe_dir.remove_empty(path[:-1])


def stored_name(safe_dir: SafeDir, name: ModelName) -> ModelName:
    """The name as the store writes it: in the case of an existing model that differs by case alone."""
    host, namespace, model, tag = parts_of(safe_dir, name)
    port = name.host.rpartition(":")[2] if ":" in name.host else ""
    host = host.removesuffix(f"_port_{port}") + f":{port}" if port else host
    return replace(name, host=host, namespace=namespace, model=model, tag=tag)


def parts_of(safe_dir: SafeDir, name: ModelName) -> _Parts:
    """The parts of its path, in the case of existing entries: names that differ by case alone are the same. Raises
    ModelError for an invalid name."""
    require_name(name)
    host, namespace, model, tag = name.parts
    try:
        safe_dir.status(_path((host, namespace, model, tag)))
    except FileNotFoundError:
        host = _in_folder(safe_dir, (), host)
        namespace = _in_folder(safe_dir, (host,), namespace)
        model = _in_folder(safe_dir, (host, namespace), model)
        tag = _in_folder(safe_dir, (host, namespace, model), tag + _SUFFIX).removesuffix(_SUFFIX)
    return host, namespace, model, tag


def _in_folder(safe_dir: SafeDir, folder: Sequence[str], name: str) -> str:
    names = safe_dir.names((_FOLDER, *folder))
    return name if name in names else next((entry for entry in names if entry.casefold() == name.casefold()), name)


def _path(parts: Sequence[str]) -> tuple[str, ...]:
    return _FOLDER, *parts[:3], parts[3] + _SUFFIX


def _read(safe_dir: SafeDir, parts: Sequence[str]) -> Manifest:
    """Raises FileNotFoundError, and ModelError for a file that is not a manifest of that name."""
    with safe_dir.folder((_FOLDER, *parts[:3])) as folder:
        return _read_at(safe_dir, parts, folder)


def _read_at(safe_dir: SafeDir, parts: Sequence[str], folder: int) -> Manifest:
    try:
        manifest = Manifest.from_json(read_at(folder, parts[3] + _SUFFIX, _MOST_BYTES))
        if manifest.name.parts != tuple(parts):
            raise ModelError("it is the manifest of {name}", name=manifest.name)
        return manifest
    except FileNotFoundError:
        raise
    except OSError as error:
        path = safe_dir.path(_path(parts))
        raise ModelError(
            "{path} cannot be read: {reason}; check its permissions (ls -l)", path=path, reason=error.strerror
        ) from error
    except ModelError as error:
        path = safe_dir.path(_path(parts))
        fix = "" if "upgrade Trilithon" in str(error) else f"; remove it (rm '{path}') and pull the model again"
        raise ModelError("{path} cannot be used: {reason}{fix}", path=path, reason=error, fix=fix) from error
