"""The manifest of a model: its files, where they came from, and its settings."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, get_args

from trilithon.errors import ModelError
from trilithon.models.names import ModelName, Repository, parse_reference

__all__ = [
    "FileFormat",
    "Manifest",
    "PresetMessage",
    "Role",
    "StoredFile",
    "now",
    "require_digest",
    "require_name",
    "safe_file_name",
]

Role = Literal["weights", "projector", "vision", "draft", "tokenizer", "template", "adapter", "license"]
FileFormat = Literal["gguf", "rkllm", "rknn", "json", "text"]
Parameter = str | int | float | bool | list[str]

_KIND, _NEWEST = "trilithon model", 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME_BYTES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a model. `digest` is its SHA-256; `name` is its file name, unique within the model.

    An adopted file lies at `path`, in another program's folder: it is used in place, and never changed or removed. Its
    digest may be empty, because it takes long to compute. `target_platform` is the chip that a file was converted for.
    Raises ModelError for values that do not fit."""

    role: Role
    digest: str
    size_bytes: int
    name: str
    format: FileFormat
    quantization: str = ""
    target_platform: str = ""
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role) or self.format not in get_args(FileFormat):
            raise ModelError(
                "{name!r}: unknown role {role!r} or format {format!r}",
                name=self.name[:80],
                role=self.role,
                format=self.format,
            )
        if self.digest or self.path is None:
            require_digest(self.digest)
        if not _is_safe(self.name):
            raise ModelError(
                "{name!r} is not a file name; choose one without / and control characters", name=self.name[:80]
            )
        if self.size_bytes < 0:
            raise ModelError("{name}: {size_bytes} bytes is not a size", name=self.name, size_bytes=self.size_bytes)
        if self.path is not None and not (self.path.is_absolute() and "\0" not in str(self.path)):
            raise ModelError(
                "{name}: {path!r} is not the path of a file; write an absolute path",
                name=self.name,
                path=str(self.path),
            )


@dataclass(frozen=True, slots=True)
class PresetMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A model under its name. Of several weights the first that can run is used, so the best stand first.

    `source` is text for people; `created` is wall-clock time in RFC 3339. `parameters`, `system`, `template` (Jinja)
    and `messages` are settings of a Modelfile; empty means the model's own. `placement_options` are options of a
    placement as they are written there (ctk, pipeline), for where no plan and no user says another placement."""

    name: ModelName
    files: tuple[StoredFile, ...]
    source: str
    created: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    system: str = ""
    template: str = ""
    messages: tuple[PresetMessage, ...] = ()
    synthetic: bool = False
    placement_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_name(self.name)
        names = [file.name.casefold() for file in self.files]
        if len(set(names)) < len(names):
            duplicate = next(name for name in names if names.count(name) > 1)
            raise ModelError(
                "{name} has two files named {duplicate!r}; rename one", name=self.name, duplicate=duplicate
            )
        try:
            datetime.fromisoformat(self.created)
        except ValueError:
            raise ModelError(
                "{name}: {created!r} is not a time in RFC 3339", name=self.name, created=self.created[:80]
            ) from None

    @property
    def adopted(self) -> bool:
        """Whether one of its files belongs to another program."""
        return any(file.path is not None for file in self.files)

    @property
    def size_bytes(self) -> int:
        """Of all files; one that is listed twice counts once."""
        return sum({file.digest or str(file.path): file.size_bytes for file in self.files}.values())

    def of_role(self, role: Role) -> tuple[StoredFile, ...]:
        return tuple(file for file in self.files if file.role == role)

    def to_json(self) -> str:
        data = asdict(self) | {name: dict(getattr(self, name)) for name in ("parameters", "placement_options")}
        data["name"] = {part: getattr(self.name, part) for part in ("host", "namespace", "model", "tag")}
        data["files"] = [_packed(file) for file in self.files]
        return json.dumps({"kind": _KIND, "version": _NEWEST} | data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ModelError for a manifest of a newer Trilithon, and for anything that is not a manifest."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError("it is not JSON") from error
        if not isinstance(data, dict) or data.get("kind") != _KIND:
            raise ModelError("it is not a manifest of a model")
        version = data.get("version")
        if type(version) is not int:
            raise ModelError("it does not say its version")
        if version > _NEWEST:
            raise ModelError(
                "a newer Trilithon wrote it (version {version}, this one knows {newest}); upgrade Trilithon",
                version=version,
                newest=_NEWEST,
            )
        try:
            return cls(**_unpacked(data))
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError("a field is missing or has the wrong type: {reason!r}", reason=error) from error


_MANIFEST_FIELDS = tuple(item.name for item in fields(Manifest))
_FILE_FIELDS = frozenset(item.name for item in fields(StoredFile))


def now() -> str:
    """Wall-clock time for `created`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def safe_file_name(text: str) -> str:
    """A safe file name for a text: the last part of a path, with `_` for characters that are not allowed."""
    last = PurePosixPath(text.replace("\\", "/")).name
    name = "".join(char if char.isprintable() and char not in "/\0" else "_" for char in last).strip().lstrip(".-")
    while len(name.encode(errors="replace")) > _LONGEST_NAME_BYTES:
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem[:-1]}.{suffix}" if dot and len(suffix) < 12 else name[:-1]
    return name if _is_safe(name) else "file"


def _is_safe(name: str) -> bool:
    """Whether it can be the name of a link, and printed on a terminal."""
    return (
        bool(name)
        and name.isprintable()
        and "/" not in name
        and name[0] not in ".- "
        and name[-1] != " "
        and len(name.encode()) <= _LONGEST_NAME_BYTES
    )


def require_digest(digest: str) -> None:
    """Raises ModelError for a text that is not a SHA-256."""
    if not _DIGEST.fullmatch(digest):
        raise ModelError("{digest!r} is not a SHA-256; write 64 hexadecimal digits", digest=digest[:80])


def require_name(name: ModelName) -> None:
    """Check a name against the grammar again before it becomes a path. Raises ModelError."""
    parsed = parse_reference(str(name))
    if isinstance(parsed, Repository):
        parsed = parsed.local_name
    if parsed != replace(name, digest=""):
        raise ModelError("model name {name!r} is not allowed; choose another", name=str(name)[:80])


def _packed(file: StoredFile) -> dict[str, Any]:
    packed = {name: value for name, value in asdict(file).items() if value not in ("", None)}
    return packed | ({"path": str(file.path)} if file.path else {})


def _unpacked(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with their types checked: a manifest may have been written by anyone."""
    known = {name: data[name] for name in _MANIFEST_FIELDS if name in data}
    for name in ("source", "created", "system", "template"):
        _require(isinstance(data.get(name, ""), str), name)
    _require(isinstance(data.get("synthetic", False), bool), "synthetic")
    parameters = data.get("parameters", {})
    _require(isinstance(parameters, dict) and all(map(_is_parameter, parameters.values())), "parameters")
    return known | {
        "name": ModelName(**_texts(data["name"])),
        "files": tuple(map(_file, _rows(data["files"]))),
        "placement_options": _texts(data.get("placement_options", {})),
        "messages": tuple(PresetMessage(**_texts(row)) for row in _rows(data.get("messages", []))),
    }


def _file(row: Mapping[str, Any]) -> StoredFile:
    size = row["size_bytes"]
    _require(isinstance(size, int) and not isinstance(size, bool), "size_bytes")
    texts = _texts({name: value for name, value in row.items() if name not in ("size_bytes", "path")})
    path = row.get("path")
    _require(path is None or isinstance(path, str), "path")
    return StoredFile(
        **{"digest": ""} | {name: value for name, value in texts.items() if name in _FILE_FIELDS},  # type: ignore[arg-type]
        size_bytes=size,
        path=Path(path) if path else None,
    )


def _rows(value: object) -> Sequence[Any]:
    _require(isinstance(value, list), "a list")
    return value  # type: ignore[return-value] # checked above


def _texts(value: Mapping[str, Any]) -> dict[str, str]:
    _require(isinstance(value, dict) and all(isinstance(text, str) for text in value.values()), "a text")
    return dict(value)


def _is_parameter(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str | int | float | bool)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise TypeError(what)
