"""What a model's own header and manifest say of it, in the form of Ollama's tags and show.

Headers are read once and remembered by the file's identity: clients list models before every request, some of them."""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from trilithon.errors import ModelError
from trilithon.models.create.modelfile import to_modelfile
from trilithon.models.files.gguf_header import SkippedArray, Value
from trilithon.models.files.gguf_parts import read_header
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.models.files.prompt_form import GO_TEMPLATE
from trilithon.models.store.manifest import Manifest
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import openable_path, weights_of

__all__ = [
    "ModelDescription",
    "about",
    "capabilities",
    "details",
    "expires_at",
    "license_text",
    "model_info",
    "modelfile_text",
    "parameters_text",
    "plain_values",
    "rfc3339",
    "template_text",
]

_MOST_REMEMBERED: Final = 128
_TEMPLATE: Final = "tokenizer.chat_template"
_FILLING: Final = ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")
_MOST_TEXT_BYTES: Final = 1 << 20
_UNKNOWN: Final = "unknown"
_SILENT: Final = {"embedding": "embedding", "reranker": "rerank"}
_SIZE_IN_NAME = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
# What Ollama says of a model that stays for ever: its longest duration from now on, in the year 2318. Later years would
# be beyond what some clients can convert.
_FOR_EVER = timedelta(seconds=2**63 // 10**9)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The weights that stand first, and the values of a GGUF's header, empty for another format."""

    file: ModelFile
    values: Mapping[str, Value]

    def number(self, key: str) -> int | None:
        """Of the model's architecture."""
        value = self.values.get(f"{self.file.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def about(manifest: Manifest, store: ModelStore) -> ModelDescription:
    """Raises ModelError for what cannot be read."""
    weights = weights_of(manifest)
    if not weights:
        raise ModelError(f"{manifest.name} has no weights; pull it again")
    path = openable_path(manifest, weights[0], store)
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; check its permissions (ls -l)") from error
    return _read(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _read(path: Path, *identity: int) -> ModelDescription:
    file = read_model_file(path, None)
    return ModelDescription(file, read_header(path).values if file.format == "gguf" else {})


def details(manifest: Manifest, known: ModelDescription | None) -> dict[str, Any]:
    """Every field filled; `known` is None where the header cannot be read, and the manifest has to do."""
    first = next(iter(weights_of(manifest)), None)
    file = known.file if known else None
    family = file.architecture if file else _UNKNOWN
    return {
        "parent_model": "",
        "format": file.format if file else first.format if first else _UNKNOWN,
        "family": family,
        "families": [family],
        "parameter_size": _parameter_size(manifest, file),
        "quantization_level": (file.quantization if file else first.quantization if first else "") or _UNKNOWN,
        "context_length": (file.context_train if file else None) or 0,
        "embedding_length": (known.number("embedding_length") if known else None) or 0,
    }


def _parameter_size(manifest: Manifest, file: ModelFile | None) -> str:
    """As Ollama writes it: "494.03M", "7.6B"; of what a converted file does not say, what its name does."""
    if file is not None and file.parameters:
        count = file.parameters
        if count >= 10**9:
            return f"{count / 1e9:.1f}B"
        return f"{count / 1e6:.2f}M" if count >= 10**6 else f"{count / 1e3:.2f}K"
    named = _SIZE_IN_NAME.search(f"{manifest.name} {file.path.name if file else ''}")
    return f"{named[1]}{named[2].upper()}" if named else _UNKNOWN


def capabilities(known: ModelDescription) -> list[str]:
    """In Ollama's words, which has none for a model that ranks texts. One that only makes vectors completes nothing."""
    if known.file.kind in _SILENT:
        return [_SILENT[known.file.kind]]
    can = known.file.capabilities
    names = ["completion"]
    names += [word for word in ("vision", "tools") if word in can]
    if any(key in known.values for key in _FILLING):
        names.append("insert")
    return [*names, *(["thinking"] if "thinking" in can else [])]


def model_info(known: ModelDescription, *, verbose: bool) -> dict[str, Any]:
    """The header's values; arrays only where asked for, and those that nobody keeps as null."""
    file = known.file
    info = {"general.architecture": file.architecture} | plain_values(known.values, verbose=verbose)
    if file.parameters:
        info["general.parameter_count"] = file.parameters
    if file.context_train and known.number("context_length") is None:
        info[f"{file.architecture}.context_length"] = file.context_train
    return info


def plain_values(values: Mapping[str, Value], *, verbose: bool) -> dict[str, Any]:
    """As JSON can hold them; without the chat template, which has a field of its own."""
    return {key: _plain(value, verbose=verbose) for key, value in sorted(values.items()) if key != _TEMPLATE}


def _plain(value: Value, *, verbose: bool) -> Any:
    if isinstance(value, SkippedArray):
        return None
    if isinstance(value, tuple):
        return [_plain(item, verbose=True) for item in value] if verbose else None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def template_text(manifest: Manifest, known: ModelDescription, store: ModelStore) -> str:
    """The one that is obeyed; where nobody here has one, Ollama's own in Go's language."""
    if manifest.template:
        return manifest.template
    if known.file.prompt_form is not None:
        return known.file.prompt_form.template
    own = known.values.get(_TEMPLATE)
    if isinstance(own, str) and own:
        return own
    return "\n".join(_texts(manifest, store, "template", GO_TEMPLATE))


def license_text(manifest: Manifest, store: ModelStore) -> str:
    return "\n".join(_texts(manifest, store, "license"))


def _texts(manifest: Manifest, store: ModelStore, role: str, name: str = "") -> list[str]:
    files = [file for file in manifest.files if file.role == role and name in ("", file.name)]
    small = [file for file in files if file.size_bytes <= _MOST_TEXT_BYTES]
    return [store.file_path(file).read_text(encoding="utf-8", errors="replace") for file in small]


def parameters_text(manifest: Manifest) -> str:
    """A line for each value, as Ollama lays them out."""
    lines = []
    for name, value in sorted(manifest.parameters.items()):
        for item in value if isinstance(value, list) else [value]:
            shown = f'"{item}"' if isinstance(value, list) else str(item).lower() if isinstance(item, bool) else item
            lines.append(f"{name:<30} {shown}")
    return "\n".join(lines)


def modelfile_text(manifest: Manifest) -> str:
    try:
        return to_modelfile(manifest)
    except ModelError as error:
        return f"# {error}\nFROM {manifest.name}\n"


def rfc3339(text: str) -> str:
    """A time that a manifest says, with its zone."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()


def expires_at(seconds: float | None, now: datetime) -> str:
    """`seconds` from now; None is for ever."""
    longest = _FOR_EVER.total_seconds()
    after = _FOR_EVER if seconds is None or not seconds < longest else timedelta(seconds=max(seconds, 0.0))
    return (now + after).isoformat(timespec="microseconds")
