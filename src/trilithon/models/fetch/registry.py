"""Models of an Ollama registry: a manifest, and blobs by digest as in registries of container images.

Paths and media types are those of Ollama (server/images.go, manifest/ of Ollama 0.33)."""

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trilithon.errors import ModelError
from trilithon.models.fetch.download_list import DownloadItem, DownloadList, PullOptions
from trilithon.models.fetch.http_client import DownloadSource, PlainHttp, RetryPolicy, fetch_small, is_loopback
from trilithon.models.files.file_names import quantization_of
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import PresetMessage, Role, safe_file_name
from trilithon.models.store.parameters import Parameter, check_parameter

__all__ = ["plan_from_registry"]

_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_LAYER = "application/vnd.ollama.image."
_ROLES: Mapping[str, Role] = {"model": "weights", "projector": "projector", "adapter": "adapter"}
_TEXTS = ("template", "params", "system", "license", "messages", "prompt")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MOST_MANIFEST_BYTES = 4 << 20
_MOST_TEXT_BYTES = 4 << 20
_MOST_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    digest: str
    size_bytes: int


def plan_from_registry(name: ModelName, options: PullOptions) -> DownloadList:
    """Raises ModelError when the model does not exist or cannot run here, DownloadError when the registry or the
    network fails."""
    registry = _Registry(name, options)
    manifest = registry.manifest()
    layers = _layers(manifest.get("layers"), name)
    if name.digest and name.digest not in {layer.digest for layer in layers}:
        raise ModelError(
            "{name} has no file sha256:{digest}… in the registry any more; leave the digest out",
            name=name,
            digest=name.digest[:12],
        )
    if not any(layer.kind == "model" for layer in layers):
        kinds = ", ".join(dict.fromkeys(layer.kind for layer in layers)) or "nothing"
        raise ModelError(
            "{name} has no weights, only {kinds}: it runs elsewhere, or is not a GGUF; choose another",
            name=name,
            kinds=kinds,
        )
    texts = registry.texts([layer for layer in layers if layer.kind in _TEXTS])
    config = _object(registry.text(config_layer)) if (config_layer := _layer(manifest.get("config"))) else {}
    file_type = config.get("file_type")
    parameters, notes = _parameters(layers, texts)
    return DownloadList(
        name=name,
        items=tuple(registry.items(layers, quantization_of(file_type) if isinstance(file_type, str) else "")),
        origin=f"{name.host}/{name.namespace}/{name.model}:{name.tag}",
        notes=notes,
        parameters=parameters,
        system="\n\n".join(texts[layer.digest].strip() for layer in layers if layer.kind == "system"),
        messages=_messages(layers, texts),
    )


class _Registry:
    def __init__(self, name: ModelName, options: PullOptions):
        self._name, self._options = name, options
        self._scheme = "http" if options.insecure and is_loopback(f"//{name.host}") else "https"
        self._base = f"{name.host}/v2/{name.namespace}/{name.model}"

    def manifest(self) -> dict[str, Any]:
        try:
            content = self._manifest_text()
        except PlainHttp:
            if not self._options.insecure:
                raise
            self._scheme = "http"  # the user allowed it; a registry that speaks https is asked over https all the same
            content = self._manifest_text()
        try:
            manifest = json.loads(content)
        except (ValueError, RecursionError):
            manifest = None
        if not isinstance(manifest, dict) or not isinstance(manifest.get("layers"), list):
            raise ModelError(
                "{host} sends no manifest for {name}; check that it is a registry",
                host=self._name.host,
                name=self._name,
            )
        return manifest

    def _manifest_text(self) -> bytes:
        source = self._source(f"/manifests/{self._name.tag}")
        return self._get(source, {"Accept": _MANIFEST_TYPE}, _MOST_MANIFEST_BYTES)

    def texts(self, layers: Sequence[_Layer]) -> dict[str, str]:
        """The small files by digest, each fetched once."""
        size_bytes = sum(layer.size_bytes for layer in layers)
        if size_bytes > _MOST_TEXT_BYTES:
            raise ModelError(
                "{name}: its texts have {size_bytes} bytes, which is too long; choose another model",
                name=self._name,
                size_bytes=size_bytes,
            )
        return {digest: self.text(layer) for digest, layer in {layer.digest: layer for layer in layers}.items()}

    def text(self, layer: _Layer) -> str:
        if layer.size_bytes > _MOST_TEXT_BYTES:
            raise ModelError(
                "{name}: its {kind} has {size_bytes} bytes, which is too long; choose another model",
                name=self._name,
                kind=layer.kind,
                size_bytes=layer.size_bytes,
            )
        content = self._get(self._source(f"/blobs/sha256:{layer.digest}"), {}, layer.size_bytes)
        if hashlib.sha256(content).hexdigest() != layer.digest:
            raise ModelError(
                "{name}: the SHA-256 of its {kind} is wrong; pull it again", name=self._name, kind=layer.kind
            )
        return content.decode(errors="replace")

    def items(self, layers: Sequence[_Layer], quantization: str) -> list[DownloadItem]:
        """The files to store: weights and what belongs to them, the Go template, licences."""
        items, seen = [], dict[str, int]()
        for layer in dict.fromkeys(layers):
            role = _ROLES.get(layer.kind)
            known: Role | None = role or {"template": "template", "license": "license"}.get(layer.kind)  # type: ignore[assignment]
            if known is None:
                continue
            number = seen[layer.kind] = seen.get(layer.kind, 0) + 1
            items.append(
                DownloadItem(
                    source=self._source(f"/blobs/sha256:{layer.digest}"),
                    name=self._file_name(layer.kind, number),
                    role=known,
                    format="gguf" if role else "text",
                    size_bytes=layer.size_bytes,
                    digest=layer.digest,
                    quantization=quantization if layer.kind == "model" else "",
                )
            )
        return items

    def _file_name(self, kind: str, number: int) -> str:
        stem = safe_file_name(f"{self._name.model}-{self._name.tag}")
        count = "" if number == 1 else f"-{number}"
        match kind:
            case "model":
                return f"{stem}{count}.gguf"
            case "template":
                return f"ollama-template{count}.txt"
            case "license":
                return f"license{count}.txt"
            case _:
                return f"{stem}-{kind}{count}.gguf"

    def _source(self, path: str) -> DownloadSource:
        host = self._name.host
        messages = {
            401: f"{host} requires a login for {self._name}; only public models can be pulled, check its name",
            403: f"{host} denies access to {self._name}; check its name",
            404: f"{host} has no model {self._name}; check its name and tag",
        }
        return DownloadSource(
            url=f"{self._scheme}://{self._base}{path}",
            messages=messages,
            insecure=self._scheme == "http" and not is_loopback(f"//{host}"),
            hosts=self._options.hosts,
        )

    def _get(self, source: DownloadSource, headers: Mapping[str, str], most_bytes: int) -> bytes:
        retry: RetryPolicy = self._options.transfer.retry
        return asyncio.run(fetch_small(source, most_bytes=most_bytes, retry=retry, headers=headers))


def _layers(rows: object, name: ModelName) -> list[_Layer]:
    """Raises ModelError for invalid layers: a digest becomes the name of a file."""
    if not isinstance(rows, list) or len(rows) > _MOST_LAYERS:
        raise ModelError(
            "the manifest of {name} has no valid list of files; check that {host} is a registry",
            name=name,
            host=name.host,
        )
    parsed = [_layer(row) for row in rows]
    layers = [layer for layer in parsed if layer is not None]
    if len(layers) < len(rows):
        raise ModelError(
            "the manifest of {name} has a file without a valid SHA-256; check that {host} is a registry",
            name=name,
            host=name.host,
        )
    return layers


def _layer(row: object) -> _Layer | None:
    if not isinstance(row, dict):
        return None
    match = _DIGEST.fullmatch(str(row.get("digest")))
    size, kind = row.get("size"), row.get("mediaType")
    if match is None or type(size) is not int or size < 0 or not isinstance(kind, str):
        return None
    return _Layer(kind.removeprefix(_LAYER), match[1], size)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _parameters(layers: Sequence[_Layer], texts: Mapping[str, str]) -> tuple[dict[str, Parameter], tuple[str, ...]]:
    """The valid parameters, and a note for each other one: a newer Ollama may have added it."""
    parameters: dict[str, Parameter] = {}
    notes = []
    for layer in layers:
        for name, value in (_object(texts[layer.digest]) if layer.kind == "params" else {}).items():
            try:
                parameters[name] = check_parameter(name, value)
            except ModelError as error:
                notes.append(f"left out: {error}")
    return parameters, tuple(notes)


def _messages(layers: Sequence[_Layer], texts: Mapping[str, str]) -> tuple[PresetMessage, ...]:
    rows: list[Any] = []
    for layer in layers:
        if layer.kind == "messages":
            try:
                messages = json.loads(texts[layer.digest])
            except (ValueError, RecursionError):
                continue
            rows += messages if isinstance(messages, list) else []
    return tuple(
        PresetMessage(row["role"], row["content"])
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("role"), str) and isinstance(row.get("content"), str)
    )
