"""Manifests as files: manifests/HOST/NAMESPACE/MODEL/TAG.json below the root of a store."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, require_name
from trilithon.models.store.safe_dir import SafeDir, read_at

__all__ = ["Listing", "exists", "listing", "parts_of", "read", "remove", "spelled", "write"]

_FOLDER, _SUFFIX = "manifests", ".json"
_MOST_BYTES = 16 << 20

_Parts = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Listing:
    """`roots` says of each of the manifests in which store it lies; `problems` are manifests that cannot be read, one
    line each that ends with the fix."""

    manifests: tuple[Manifest, ...]
    roots: tuple[Path, ...]
    problems: tuple[str, ...]

    @property
    def digests(self) -> set[str]:
        """Every blob that they use."""
        return {file.digest for manifest in self.manifests for file in manifest.files if file.path is None}


def listing(stores: Sequence[SafeDir]) -> Listing:
    """Of one name the first store's."""
    found: dict[tuple[str, ...], tuple[Manifest, Path]] = {}
    problems: list[str] = []

    def closed(path: Path, error: OSError) -> None:
        problems.append(f"{path} cannot be read: {error.strerror}; check its permissions (ls -l)")

    for rooted in stores:
        for (*folders, file), descriptor in rooted.walk((_FOLDER,), 3, closed):
            if file.startswith(".") or not file.endswith(_SUFFIX):
                continue
            parts = (*folders, file.removesuffix(_SUFFIX))
            folded = tuple(map(str.casefold, parts))
            if folded in found:
                continue
            try:
                found[folded] = _read_at(rooted, parts, descriptor), rooted.root
            except FileNotFoundError:  # removed meanwhile
                continue
            except ModelError as error:
                problems.append(str(error))
    ordered = [found[key] for key in sorted(found)]
    return Listing(tuple(each for each, _ in ordered), tuple(root for _, root in ordered), tuple(problems))


def read(rooted: SafeDir, name: ModelName) -> Manifest | None:
    """None where there is none. Raises ModelError for one that cannot be read."""
    try:
        found = _read(rooted, parts_of(rooted, name))
    except FileNotFoundError:
        return None
    if name.digest and name.digest not in {file.digest for file in found.files}:
        return None
    return found


def exists(rooted: SafeDir, name: ModelName) -> bool:
    try:
        rooted.status(_path(parts_of(rooted, name)))
    except FileNotFoundError:
        return False
    return True


def write(rooted: SafeDir, manifest: Manifest) -> None:
    rooted.write(_path(manifest.name.parts), manifest.to_json().encode())


def remove(rooted: SafeDir, name: ModelName) -> None:
    """Raises FileNotFoundError where there is none."""
    path = _path(parts_of(rooted, name))
    rooted.unlink(path)
    rooted.remove_empty(path[:-1])


def spelled(rooted: SafeDir, name: ModelName) -> ModelName:
    """The name as the store writes it: as it is, but for the case of what is there already."""
    host, namespace, model, tag = parts_of(rooted, name)
    port = name.host.rpartition(":")[2] if ":" in name.host else ""
    host = host.removesuffix(f"_port_{port}") + f":{port}" if port else host
    return replace(name, host=host, namespace=namespace, model=model, tag=tag)


def parts_of(rooted: SafeDir, name: ModelName) -> _Parts:
    """The parts of its path, in the case of what is there already: names that differ by case alone are one.
    Raises ModelError for a name that is none."""
    require_name(name)
    host, namespace, model, tag = name.parts
    try:
        rooted.status(_path((host, namespace, model, tag)))
    except FileNotFoundError:
        host = _in_folder(rooted, (), host)
        namespace = _in_folder(rooted, (host,), namespace)
        model = _in_folder(rooted, (host, namespace), model)
        tag = _in_folder(rooted, (host, namespace, model), tag + _SUFFIX).removesuffix(_SUFFIX)
    return host, namespace, model, tag


def _in_folder(rooted: SafeDir, folder: Sequence[str], name: str) -> str:
    names = rooted.names((_FOLDER, *folder))
    return name if name in names else next((each for each in names if each.casefold() == name.casefold()), name)


def _path(parts: Sequence[str]) -> tuple[str, ...]:
    return _FOLDER, *parts[:3], parts[3] + _SUFFIX


def _read(rooted: SafeDir, parts: Sequence[str]) -> Manifest:
    """Raises FileNotFoundError, and ModelError for what is not our manifest of that name."""
    with rooted.folder((_FOLDER, *parts[:3])) as folder:
        return _read_at(rooted, parts, folder)


def _read_at(rooted: SafeDir, parts: Sequence[str], folder: int) -> Manifest:
    try:
        manifest = Manifest.from_json(read_at(folder, parts[3] + _SUFFIX, _MOST_BYTES))
        if manifest.name.parts != tuple(parts):
            raise ModelError(f"it is that of {manifest.name}")
        return manifest
    except FileNotFoundError:
        raise
    except OSError as error:
        path = rooted.path(_path(parts))
        raise ModelError(f"{path} cannot be read: {error.strerror}; check its permissions (ls -l)") from error
    except ModelError as error:
        path = rooted.path(_path(parts))
        fix = "" if "upgrade Trilithon" in str(error) else f"; remove it (rm '{path}') and pull the model again"
        raise ModelError(f"{path} cannot be used: {error}{fix}") from error
