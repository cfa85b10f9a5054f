"""What the store keeps of a model beside its bytes: its files, where they came from, and how to talk to it."""

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
    """One file of a model. `digest` is its SHA-256; `name` is what people call it, unique within the model.

    An adopted file lies at `path`, in another program's folder: it is used there, never changed and never removed, and
    its digest may be empty, for it takes long to compute. `target_platform` is the chip that a file was converted for.
    """

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
            raise ModelError(f"{self.name[:80]!r}: unknown role {self.role!r} or format {self.format!r}")
        if self.digest or self.path is None:
            require_digest(self.digest)
        if not _is_safe(self.name):
            raise ModelError(f"{self.name[:80]!r} is no name for a file; choose one without / and control characters")
        if self.size_bytes < 0:
            raise ModelError(f"{self.name}: a size of {self.size_bytes} bytes cannot be")
        if self.path is not None and not (self.path.is_absolute() and "\0" not in str(self.path)):
            raise ModelError(f"{self.name}: {str(self.path)!r} is not where a file lies; write an absolute path")


@dataclass(frozen=True, slots=True)
class PresetMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A model under its name. Of several weights the first that suits is taken, so that the best stand in front.

    `source` says where it came from, as text for people; `created` is wall-clock time in RFC 3339. `parameters`,
    `system`, `template` (Jinja) and `messages` are what a Modelfile says; empty means the model's own.
    """

    name: ModelName
    files: tuple[StoredFile, ...]
    source: str
    created: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    system: str = ""
    template: str = ""
    messages: tuple[PresetMessage, ...] = ()
    synthetic: bool = False

    def __post_init__(self) -> None:
        require_name(self.name)
        names = [file.name.casefold() for file in self.files]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"{self.name} has two files named {twice!r}; give one another name")
        try:
            datetime.fromisoformat(self.created)
        except ValueError:
            raise ModelError(f"{self.name}: {self.created[:80]!r} is no time in RFC 3339") from None

    @property
    def adopted(self) -> bool:
        """Whether a file of it belongs to another program."""
        return any(file.path is not None for file in self.files)

    @property
    def size_bytes(self) -> int:
        return sum({file.digest or str(file.path): file.size_bytes for file in self.files}.values())

    def of_role(self, role: Role) -> tuple[StoredFile, ...]:
        return tuple(file for file in self.files if file.role == role)

    def to_json(self) -> str:
        data = asdict(self) | {"parameters": dict(self.parameters)}
        data["name"] = {part: getattr(self.name, part) for part in ("host", "namespace", "model", "tag")}
        data["files"] = [_packed(file) for file in self.files]
        return json.dumps({"kind": _KIND, "version": _NEWEST} | data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ModelError for a manifest of a newer Trilithon and for what is none."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError("it is not JSON") from error
        if not isinstance(data, dict) or data.get("kind") != _KIND:
            raise ModelError("it is not the manifest of a model")
        version = data.get("version")
        if type(version) is not int:
            raise ModelError("it does not say its version")
        if version > _NEWEST:
            raise ModelError(
                f"a newer Trilithon wrote it (version {version}, this one knows {_NEWEST}); upgrade Trilithon"
            )
        try:
            return cls(**_unpacked(data))
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"something in it is not as it should be: {error!r}") from error


_MANIFEST_FIELDS = tuple(each.name for each in fields(Manifest))
_FILE_FIELDS = frozenset(each.name for each in fields(StoredFile))


def now() -> str:
    """Wall-clock time for `created`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def safe_file_name(text: str) -> str:
    """The nearest name for people that is safe for a file: the last part of a path, odd characters as `_`."""
    last = PurePosixPath(text.replace("\\", "/")).name
    name = "".join(char if char.isprintable() and char not in "/\0" else "_" for char in last).strip().lstrip(".-")
    while len(name.encode(errors="replace")) > _LONGEST_NAME_BYTES:
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem[:-1]}.{suffix}" if dot and len(suffix) < 12 and len(stem) > 1 else name[:-1]
    return name if _is_safe(name) else "file"


def _is_safe(name: str) -> bool:
    """Fit for a folder of links, and for a line on a terminal."""
    return (
        bool(name)
        and name.isprintable()
        and "/" not in name
        and name[0] not in ".- "
        and name[-1] != " "
        and not any(0xD800 <= ord(char) < 0xE000 for char in name)
        and len(name.encode()) <= _LONGEST_NAME_BYTES
    )


def require_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise ModelError(f"{digest[:80]!r} is no SHA-256; write 64 hexadecimal digits")


def require_name(name: ModelName) -> None:
    """A name is put together by whoever pulls: compared with the grammar again before it becomes a path."""
    found = parse_reference(str(name))
    if isinstance(found, Repository):
        found = found.local_name
    if found != replace(name, digest=""):
        raise ModelError(f"model name {str(name)[:80]!r} does not fit the store; choose another")


def _packed(file: StoredFile) -> dict[str, Any]:
    packed = {name: value for name, value in asdict(file).items() if value not in ("", None)}
    return packed | ({"path": str(file.path)} if file.path else {})


def _unpacked(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, each of its type: a manifest may have been written by anyone."""
    known = {name: data[name] for name in _MANIFEST_FIELDS if name in data}
    for name in ("source", "created", "system", "template"):
        _require(isinstance(data.get(name, ""), str), name)
    _require(isinstance(data.get("synthetic", False), bool), "synthetic")
    parameters = data.get("parameters", {})
    _require(isinstance(parameters, dict) and all(map(_is_parameter, parameters.values())), "parameters")
    return known | {
        "name": ModelName(**_texts(data["name"])),
        "files": tuple(map(_file, _rows(data["files"]))),
        "messages": tuple(PresetMessage(**_texts(each)) for each in _rows(data.get("messages", []))),
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
    return value  # type: ignore[return-value] # required to be one


def _texts(value: Mapping[str, Any]) -> dict[str, str]:
    _require(isinstance(value, dict) and all(isinstance(text, str) for text in value.values()), "a text")
    return dict(value)


def _is_parameter(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return isinstance(value, str | int | float | bool)


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise TypeError(what)
