"""Scans Ollama's store: manifests/HOST/NAMESPACE/MODEL/TAG, with layers in blobs/ by their SHA-256."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trilithon.errors import ModelError
from trilithon.models.adopt.scan_root import AdoptedModel, ScanResult, ScanRoot, created, stored
from trilithon.models.files.kinds import kind_of_beginning
from trilithon.models.files.prompt_form import GO_TEMPLATE
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import FileFormat, Manifest, PresetMessage, Role, StoredFile
from trilithon.models.store.parameters import IGNORED_PARAMETERS, Parameter, check_parameter

__all__ = ["adopt_ollama", "is_ollama_store"]

_MANIFESTS, _BLOBS = "manifests", "blobs"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_KIND = "application/vnd.ollama.image."
_BEGINNING_BYTES = 4096  # general metadata comes before the vocabulary
_MOST_MANIFEST_BYTES, _MOST_TEXT_BYTES = 4 << 20, 1 << 20
# Layer → role, format, and the end of its file name, as blobs have no names.
_FILES: Mapping[str, tuple[Role, FileFormat, str]] = {
    "model": ("weights", "gguf", ".gguf"),
    "projector": ("projector", "gguf", "-mmproj.gguf"),
    "adapter": ("adapter", "gguf", "-adapter.gguf"),
    "license": ("license", "text", "-license.txt"),
    "template": ("template", "text", GO_TEMPLATE),
    "prompt": ("template", "text", GO_TEMPLATE),
}


def is_ollama_store(folder: Path) -> bool:
    return all(os.path.isdir(folder / name) for name in (_MANIFESTS, _BLOBS))  # noqa: PTH112 - never raises


def adopt_ollama(scan_root: ScanRoot) -> Iterator[AdoptedModel]:
    for path in _manifests(scan_root):
        try:
            yield _adopted(scan_root, path)
        except ModelError as error:
            scan_root.skip(path, str(error))


def _manifests(scan_root: ScanRoot) -> Iterator[Path]:
    for host in scan_root.folders(scan_root.root / _MANIFESTS):
        for namespace in scan_root.folders(host):
            for model in scan_root.folders(namespace):
                for entry in scan_root.entries(model):
                    if not entry.name.startswith("."):
                        yield Path(entry.path)


def _adopted(scan_root: ScanRoot, path: Path) -> AdoptedModel:
    """Raises ModelError, with a reason for `Skipped`, for a model that cannot be used."""
    manifest_file = scan_root.file(path)
    if manifest_file is None:
        raise ModelError("is not a file of Ollama's store")
    data = _json(scan_root.read(manifest_file, _MOST_MANIFEST_BYTES), dict, "its manifest")
    layers = _layers(data.get("layers"))
    host, namespace, model, tag = path.parts[-4:]
    name = ModelName(host, namespace.replace(".", "-"), model, tag)  # as Repository.local_name spells users
    config = _config(scan_root, data.get("config"))
    if not any(kind == "model" for kind, _, _ in layers):
        raise ModelError(_no_weights(layers, config))
    manifest = Manifest(
        name=name,
        files=_files(scan_root, name, layers, str(config.get("file_type") or "")),
        source=f"Ollama's store {scan_root.root}",
        created=created(manifest_file),
        parameters=_parameters(scan_root, path, layers),
        system=(_small_layer(scan_root, layers, "system") or b"").decode(errors="replace"),
        messages=_messages(scan_root, layers),
    )
    return AdoptedModel(manifest=manifest, source=scan_root.source, place=path)


_Layer = tuple[str, str, int]
"""The media type without the common prefix, the digest, and the size in bytes."""


def _layers(given: object) -> list[_Layer]:
    if not isinstance(given, list) or not given:
        raise ModelError("its manifest has no layers; pull it again with Ollama")
    layers = []
    for row in given:
        kind, digest, size = (
            (row.get(key) for key in ("mediaType", "digest", "size")) if isinstance(row, dict) else ("",) * 3
        )
        match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None or not isinstance(kind, str) or not isinstance(size, int) or size < 0:
            raise ModelError("its manifest has a layer without type, digest or size; pull it again with Ollama")
        layers.append((kind.removeprefix(_KIND), match[1], size))
    return layers


def _no_weights(layers: Sequence[_Layer], config: Mapping[str, Any]) -> str:
    if config.get("remote_host") or config.get("remote_model"):
        return "runs on Ollama's servers; pull one that runs here"
    if any(kind == "tensor" for kind, _, _ in layers):
        return "is stored as separate tensors, which only Ollama's MLX engine runs; pull a GGUF of it"
    return "has no weights; pull it again with Ollama"


def _files(scan_root: ScanRoot, name: ModelName, layers: Sequence[_Layer], quantization: str) -> tuple[StoredFile, ...]:
    files: list[StoredFile] = []
    for kind, digest, size in layers:
        if kind not in _FILES:
            continue
        role, form, suffix = _FILES[kind]
        blob = _blob(scan_root, digest, size)
        stated = kind_of_beginning(scan_root.read(blob, _BEGINNING_BYTES) or b"") if role == "weights" else None
        if stated is not None and stated.problem:
            raise ModelError("is {label}: {problem}", label=stated.label, problem=stated.problem)
        number = sum(file.role == role for file in files) + 1
        file_name = suffix if role == "template" else f"{name.model}-{name.tag}{suffix}"
        file_name = file_name if number == 1 else f"{number}-{file_name}"
        weights = quantization if role == "weights" else ""
        files.append(stored(blob, role, form, name=file_name, digest=digest, quantization=weights))
    return tuple(files)


def _blob(scan_root: ScanRoot, digest: str, size: int) -> ScanResult:
    blob = scan_root.file(scan_root.root / _BLOBS / f"sha256-{digest}")
    if blob is None:
        raise ModelError("its file sha256-{digest}… is missing; pull it again with Ollama", digest=digest[:12])
    if blob.size_bytes != size:
        raise ModelError(
            "its file sha256-{digest}… has {size_bytes} of {size} bytes; pull it again with Ollama",
            digest=digest[:12],
            size_bytes=blob.size_bytes,
            size=size,
        )
    return blob


def _small_layer(scan_root: ScanRoot, layers: Sequence[_Layer], media_type: str) -> bytes | None:
    """The content of the last layer of a type; None when there is none."""
    for kind, digest, size in reversed(layers):
        if kind == media_type:
            if size > _MOST_TEXT_BYTES:
                raise ModelError(
                    "its {kind} has {size} bytes, which is too long; pull it again with Ollama", kind=kind, size=size
                )
            return scan_root.read(_blob(scan_root, digest, size), _MOST_TEXT_BYTES)
    return None


def _parameters(scan_root: ScanRoot, path: Path, layers: Sequence[_Layer]) -> dict[str, Parameter]:
    content = _small_layer(scan_root, layers, "params")
    given = {} if content is None else _json(content, dict, "its parameters")
    parameters = {}
    for name, value in given.items():
        if name in IGNORED_PARAMETERS:
            continue
        try:
            parameters[name] = check_parameter(name, value)
        except ModelError as error:
            scan_root.skip(path, f"is used without one parameter: {error}")
    return parameters


def _messages(scan_root: ScanRoot, layers: Sequence[_Layer]) -> tuple[PresetMessage, ...]:
    content = _small_layer(scan_root, layers, "messages")
    given = [] if content is None else _json(content, list, "its messages")
    return tuple(map(_message, given))


def _message(given: object) -> PresetMessage:
    role, text = (given.get("role"), given.get("content")) if isinstance(given, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(text, str):
        raise ModelError("its messages are damaged; pull it again with Ollama")
    return PresetMessage(role, text)


def _config(scan_root: ScanRoot, given: object) -> Mapping[str, Any]:
    """Ollama's description of the weights; empty when it cannot be read."""
    digest = given.get("digest") if isinstance(given, dict) else None
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    blob = scan_root.file(scan_root.root / _BLOBS / f"sha256-{match[1]}") if match else None
    content = scan_root.read(blob, _MOST_TEXT_BYTES) if blob else None
    return {} if content is None else _json(content, dict, "its description")


def _json(content: bytes | None, kind: type, what: str) -> Any:
    try:
        data = json.loads(content or b"")
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, kind):
        raise ModelError("{what} is damaged; pull it again with Ollama", what=what)
    return data
