"""The facts of an RKLLM file, as far as they can be read.

The layout is not published. This reader follows a published description of files of toolkit 1.3.1: the layout of a GGUF
of version 3, with magic and texts masked (XOR) by 256 bytes that start again at each text; numbers are plain. The mask
is recovered from the names of keys that every file should have, and from a long text that is known from elsewhere (the
chat template). It was never tested with a real file, so every fact is optional, and a file that cannot be read like
this is accepted: the runtime decides."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.files.file_names import quantization_of
from trilithon.models.files.gguf_header import HeaderReader, Value, describe_content

__all__ = ["RkllmFacts", "companion", "companion_folders", "read_rkllm"]

_PLATFORM, _CORES, _VERSION = "rkllm.platform", "rkllm.core_num", "rkllm.version"
_LIMIT, _TEMPLATE = "rkllm.max_context", "tokenizer.chat_template"
_ARCHITECTURE, _NAME, _FILE_TYPE = "general.architecture", "general.name", "general.file_type"
# The first group are strings of the runtime; the others are llama.cpp's, on which the format is based.
_KNOWN_KEYS = (
    *(_PLATFORM, _CORES, _VERSION, _LIMIT),
    *(f"rkllm.chat_template.{part}" for part in ("system", "pre", "post")),
    *(_ARCHITECTURE, _FILE_TYPE, _TEMPLATE, _NAME),
    *("general.alignment", "general.quantization_version"),
    *(f"tokenizer.ggml.{part}" for part in ("model", "pre", "tokens", "scores", "token_type", "merges")),
    *(f"tokenizer.ggml.{part}_token_id" for part in ("bos", "eos", "unknown", "padding")),
)
_MASK_BYTES = 256
_KEPT_BYTES = 1024  # of one text: four periods of the mask, and longer than any text that is used
_MOST_KEYS_TRIED = 96
_LEAST_MATCHES = 3  # names that agree on one mask; fewer may be chance
_MOST_CONFIGURATION_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RkllmFacts:
    """`readable` means that the header has the layout described above. `quantization` ("w8a8") and `name` are from the
    header, else from the file name. `cores` are the NPU cores that it was converted for, `toolkit` the version that
    converted it, `context_limit` the longest context in tokens. `chat_template` is from the header, else from
    tokenizer_config.json beside the file."""

    path: Path
    size_bytes: int
    readable: bool
    name: str
    architecture: str = ""
    quantization: str = ""
    platform: str | None = None
    cores: int | None = None
    context_limit: int | None = None
    toolkit: str | None = None
    chat_template: str = ""


def read_rkllm(path: Path) -> RkllmFacts:
    """Raises ModelError for a missing file and for one that is clearly something else. A header that cannot be read
    gives no facts."""
    template = _known_template(path)
    with _MaskedHeader(path) as header:
        size_bytes = header.size_bytes
        try:
            values = _unmasked(header.values(), header.magic, template) if header.plausible else {}
            readable = header.plausible
        except ModelError:  # the description of the layout does not fit this file
            values, readable = {}, False
    return RkllmFacts(
        path=path,
        size_bytes=size_bytes,
        readable=readable,
        name=_text(values, _NAME) or path.stem,
        architecture=_text(values, _ARCHITECTURE),
        quantization=_text(values, _FILE_TYPE).lower() or quantization_of(path.stem, "rkllm"),
        platform=_text(values, _PLATFORM).upper() or None,
        cores=_number(values, _CORES),
        context_limit=_number(values, _LIMIT),
        toolkit=_text(values, _VERSION) or None,
        chat_template=_text(values, _TEMPLATE) or template,
    )


def companion_folders(model: Path) -> tuple[Path, ...]:
    """The folders that may have the companions of a model, the most specific first."""
    return (model.parent / model.name.removesuffix(".rkllm"), model.parent / "tokenizer", model.parent)


def companion(model: Path, pattern: str) -> Path | None:
    """The file of that name (or glob) that belongs to the model; None when there is none, or several in one folder."""
    for folder in companion_folders(model):
        files = [file for file in folder.glob(pattern) if file.is_file()]
        if files:
            return files[0] if len(files) == 1 else None
    return None


class _MaskedHeader(HeaderReader):
    """`plausible`: the bytes after the magic can be the header of such a file. Texts are returned as Latin-1, one
    character for each stored byte."""

    def start(self) -> None:
        self._fill(0)
        self.magic = self._window[:4]
        if self.magic == b"RKLL":
            raise ModelError(
                "{path} was written by the converter of RKLLAMA, and no runtime loads it; convert the model "
                "with rkllm-toolkit",
                path=self.path,
            )
        instead = describe_content(self._window)
        if self.magic == b"GGUF" or not instead.startswith("is not a GGUF"):
            raise ModelError(
                "{path} {content}",
                path=self.path,
                content="is a GGUF; name it .gguf" if self.magic == b"GGUF" else instead,
            )
        self.plausible = self._window[4:8] == b"\3\0\0\0"
        if self.plausible:
            self._at = 8
            try:
                self._read_counts()
            except ModelError:
                self.plausible = False

    def _text(self, stored: bytes) -> str:
        return stored[:_KEPT_BYTES].decode("latin-1")


def _unmasked(masked: Mapping[str, Value], magic: bytes, template: str) -> dict[str, Value]:
    """The values of the known keys, as far as they can be unmasked."""
    masked_values = {key.encode("latin-1"): value for key, value in masked.items()}
    mask = _mask(list(masked_values), magic)
    values: dict[str, Value] = {}
    for name in _KNOWN_KEYS:
        if (key := _xor(name.encode(), mask)) in masked_values:
            values[name] = masked_values[key]
    mask = _longer_mask(mask, values.get(_TEMPLATE), template)
    return {name: _plain(value, mask) if isinstance(value, str) else value for name, value in values.items()}


def _mask(keys: Iterable[bytes], magic: bytes) -> bytes:
    """The beginning of the mask with which most keys become known names; empty when too few do.

    Each pair of a key and a known name of the same length gives a candidate, which the other keys confirm."""
    names = [name.encode() for name in _KNOWN_KEYS]
    tried = [key for key in keys if any(len(key) == len(name) for name in names)][:_MOST_KEYS_TRIED]
    best, most = b"", _LEAST_MATCHES - 1
    for mask in dict.fromkeys(_xor(key, name) for key in tried for name in names if len(key) == len(name)):
        matches = [_xor(key, name) for key in tried for name in names if _agree(key, name, mask)]
        if len(matches) > most or (len(matches) == most and _xor(magic, mask) == b"GGUF"):
            best, most = max((mask, *matches), key=len), len(matches)
    return best


def _agree(key: bytes, name: bytes, mask: bytes) -> bool:
    return len(key) == len(name) and all(k ^ n == m for k, n, m in zip(key, name, mask, strict=False))


def _longer_mask(mask: bytes, masked: Value | None, known: str) -> bytes:
    """A longer mask, by a text whose plain form is known; the same mask if the two do not agree."""
    if not isinstance(masked, str):
        return mask
    longer = _xor(masked.encode("latin-1"), known.encode())[:_MASK_BYTES]
    return longer if len(longer) > len(mask) and longer.startswith(mask) else mask


def _plain(masked: str, mask: bytes) -> str:
    """The plain text; empty when the mask is too short or the result is not a text."""
    stored = masked.encode("latin-1")
    if len(mask) < min(len(stored), _MASK_BYTES):
        return ""
    repeated = mask * (len(stored) // _MASK_BYTES + 1)
    text = _xor(stored, repeated).decode(errors="replace").strip("\0 \n")
    return text if text.isprintable() and "�" not in text else ""


def _xor(one: bytes, other: bytes) -> bytes:
    """As long as the shorter one."""
    return bytes(a ^ b for a, b in zip(one, other, strict=False))


def _known_template(path: Path) -> str:
    """The chat template beside the file; empty when there is none, or it is damaged."""
    for folder in companion_folders(path):
        config = folder / "tokenizer_config.json"
        try:
            if not config.is_file() or config.stat().st_size > _MOST_CONFIGURATION_BYTES:
                continue
            template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if isinstance(template, str):
            return template
    return ""


def _text(values: Mapping[str, Value], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _number(values: Mapping[str, Value], key: str) -> int | None:
    """A count, which may be stored as a text."""
    value = values.get(key)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
