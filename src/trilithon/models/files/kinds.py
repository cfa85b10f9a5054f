"""What a GGUF is: a model that chats, completes, makes vectors or ranks, or one of the files that no engine runs alone.

The one check for all commands and the server. The header decides; the table beside this module has its words."""

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trilithon.errors import ModelError
from trilithon.models.files.gguf_header import HeaderReader, Value
from trilithon.tables import table_beside

__all__ = ["PROJECTORS", "FileKind", "kind_of", "kind_of_beginning", "pooling_of", "read_kind"]

PROJECTORS = ("projector", "audio projector")

_TABLE = table_beside(__file__, "kinds.toml")
_NOT_MODELS: Mapping[str, tuple[str, str]] = {name: (label, why) for name, (label, why) in _TABLE["not_models"].items()}
_POOLING = {1: "mean", 2: "cls", 3: "last", 4: "rank"}  # llama.cpp's llama_pooling_type; 0 is none
# Tensors of files that a converter gave no type: llama.cpp's LoRA, cvector-generator and llama-imatrix.
_BY_TENSOR = (
    (re.compile(r".+\.lora_[ab]"), "adapter"),
    (re.compile(r"direction\.\d+"), "control vector"),
    (re.compile(r".+\.(?:in_sum2|counts)"), "imatrix"),
)
_ENCODER = re.compile(r"(?:v|mm|a)\..+|resampler\..+|model\.image_newline")
_CLASSIFIER = re.compile(r"cls(?:\.output)?\.weight")
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class FileKind:
    """`name` is "chat", "base", "embedding" or "reranker" for a model, else a key of the table. `label` is what a
    message calls it. `problem` says why no engine runs it and what to do; it is empty for a model."""

    name: str
    label: str = ""
    problem: str = ""

    @classmethod
    def of(cls, name: str) -> Self:
        """The kind of that name, of a model or of the table."""
        return cls(name, *_NOT_MODELS.get(name, ()))

    def sentence(self, path: Path | str) -> str:
        return f"{path} is {self.label}: {self.problem}"


def read_kind(path: Path) -> FileKind:
    """By the header of one file. Raises ModelError for a file whose header cannot be read."""
    with HeaderReader(path) as header:
        values, names = header.values(), None
        with suppress(ModelError):  # a type of tensor that is not known here; the values say enough
            names = frozenset(tensor.name for tensor in header.tensors(1))
    count = values.get("split.count")
    return kind_of(values, None if isinstance(count, int) and count > 1 else names)


def kind_of_beginning(content: bytes) -> FileKind | None:
    """By the first bytes of a file; None where they do not say what it is. A model is known only by its type, as an
    old adapter may have the architecture alone."""
    values, tensors = HeaderReader.beginning(content)
    if "general.architecture" not in values and "general.type" not in values:
        return None
    kind = kind_of(values, frozenset() if not tensors and "split.count" not in values else None)
    return kind if kind.problem or "general.type" in values else None


def kind_of(values: Mapping[str, Value], tensors: Collection[str] | None) -> FileKind:
    """`tensors` are the names of all tensors; None where they are not known."""
    name = _kind_name(values, tensors)
    if name:
        return FileKind.of(name)
    stated = _text(values, "general.type") or _text(values, "general.architecture")
    return FileKind("other", f"a file of the kind {stated[:40]!r}", "no engine here runs it; download the model itself")


def pooling_of(values: Mapping[str, Value], tensors: Collection[str] | None) -> str:
    """How a model makes one vector of a text, or "rank" for a score; empty where the file does not say. A BERT with a
    classifier ranks, also where its converter wrote no pooling."""
    architecture = _text(values, "general.architecture")
    number = values.get(f"{architecture}.pooling_type")
    stated = _POOLING.get(number, "") if isinstance(number, int) and not isinstance(number, bool) else ""
    ranks = "bert" in architecture.lower() and any(_CLASSIFIER.fullmatch(name) for name in tensors or ())
    return stated or ("rank" if ranks else "")


def _kind_name(values: Mapping[str, Value], tensors: Collection[str] | None) -> str:
    """A key of the table, the name of a model's kind, or empty for a file that is unknown and no model by its
    tensors."""
    stated = re.sub(r"[^a-z0-9]+", "", _text(values, "general.type").lower())
    architecture = _text(values, "general.architecture").lower().replace("_", "-")
    kind: str = _TABLE["types"].get(stated) or _TABLE["architectures"].get(architecture, "")
    if kind == "projector" and values.get("clip.has_audio_encoder") is True:
        kind = kind if values.get("clip.has_vision_encoder") is True else "audio projector"
    kind = kind or _by_tensors(values, architecture, tensors)
    if kind not in ("", "embedding"):
        return kind
    if tensors and stated not in ("", "model") and "token_embd.weight" not in tensors:
        return ""
    pooling = pooling_of(values, tensors)
    if pooling == "rank":
        return "reranker"
    if kind or pooling or "bert" in architecture:
        return "embedding"
    return "chat" if _text(values, "tokenizer.chat_template").strip() else "base"


def _by_tensors(values: Mapping[str, Value], architecture: str, tensors: Collection[str] | None) -> str:
    if tensors is None:
        return ""
    if not tensors:
        return "vocabulary" if architecture else ""
    for pattern, kind in _BY_TENSOR:
        if any(pattern.fullmatch(name) for name in tensors):
            return kind
    if all(_ENCODER.fullmatch(name) for name in tensors):
        return "projector"
    return "draft head" if _is_draft_head(values, architecture, tensors) else ""


def _is_draft_head(values: Mapping[str, Value], architecture: str, tensors: Collection[str]) -> bool:
    """Whether all blocks are layers for speculative decoding: mtp-MODEL.gguf has the metadata of the whole model."""
    total, drafts = (values.get(f"{architecture}.{key}") for key in ("block_count", "nextn_predict_layers"))
    if not (isinstance(total, int) and isinstance(drafts, int) and 0 < drafts < total):
        return False
    blocks = {int(match[1]) for name in tensors if (match := _BLOCK.match(name))}
    return bool(blocks) and min(blocks) >= total - drafts


def _text(values: Mapping[str, Value], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""
