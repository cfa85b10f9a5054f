"""The facts of a weight file that an engine needs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trilithon.errors import ModelError, NotAModel
from trilithon.models.files.capabilities import Capability, capabilities_of, has_vision_weights
from trilithon.models.files.gguf import bytes_per_token, read_gguf
from trilithon.models.files.hashing import Progress, file_sha256
from trilithon.models.files.kinds import FileKind
from trilithon.models.files.prompt_form import JINJA_TEMPLATE, PromptForm, prompt_form_for
from trilithon.models.files.rkllm import companion, read_rkllm

__all__ = ["ModelFile", "read_model_file"]

_MOST_TEMPLATE_BYTES = 1 << 20
_CONVERTED_ADAPTER = "_lora"  # rkllm-toolkit's export_rkllm writes MODEL_lora.rkllm beside MODEL.rkllm


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A weight file, as far as an engine needs to know it. `prompt_form` is the chat template to use instead of the
    file's own, when the file has none or another one lies beside it. `bytes_per_token` are the bytes of weights that
    one decode step reads.

    `target_platform` (a chip), `target_cores` (of its NPU), `context_limit` and the version of the `toolkit` are what a
    converted file was made for, if it says so. `tokenizer` is the path of tokenizer.json, `vision_encoder` that of a
    file beside the weights (.rknn, or mmproj…gguf). `adapters` are LoRA files with their scales. `draft_layers` are
    for speculative decoding only.

    A split model has several `parts`: `path` is the first, and size and SHA-256 are of all. `kind` is what the model
    does: it chats, completes text without a chat template, makes vectors of texts, or ranks them; `pooling` is how it
    makes one vector of a text. `synthetic` means random weights: the speed is that of a real model,
    and the answers mean nothing. With `space_prefix` the tokenizer puts a space before every text."""

    path: Path
    format: Literal["gguf", "rkllm"]
    name: str
    architecture: str
    quantization: str
    size_bytes: int
    sha256: str
    parameters: int | None = None
    context_train: int | None = None
    vocabulary: int | None = None
    bytes_per_token: int | None = None
    sliding_window: int | None = None
    draft_layers: int = 0
    prompt_form: PromptForm | None = None
    target_platform: str | None = None
    target_cores: int | None = None
    context_limit: int | None = None
    toolkit: str | None = None
    tokenizer: Path | None = None
    vision_encoder: Path | None = None
    adapters: tuple[tuple[Path, float], ...] = ()
    parts: tuple[Path, ...] = ()
    capabilities: frozenset[Capability] = frozenset()
    kind: Literal["chat", "base", "embedding", "reranker"] = "chat"
    pooling: str = ""
    synthetic: bool = False
    space_prefix: bool = False


def read_model_file(path: Path, cache: Path | None, progress: Progress | None = None) -> ModelFile:
    """Read the header and hash the file; the digest is remembered in the folder `cache`. Without a cache nothing is
    hashed, and `sha256` is empty. Raises NotAModel for an adapter and the like, and ModelError.

    A GGUF is recognised by its content, an RKLLM file (whose beginning is masked) by its name."""
    return (_read_rkllm if _is_rkllm(path) else _read_gguf)(path, cache, progress)


def _is_rkllm(path: Path) -> bool:
    if path.suffix.lower() != ".rkllm" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) != b"GGUF"
    except OSError:  # reported when the header is read
        return True


def _read_gguf(path: Path, cache: Path | None, progress: Progress | None) -> ModelFile:
    facts = read_gguf(path.absolute())
    # A folder may have many models: a projector belongs to this one only if its template knows images.
    beside = _template_beside(facts.parts)
    template = beside or facts.chat_template
    projector = companion(facts.path, "*mmproj*.gguf") if "image" in template else None
    return ModelFile(
        path=facts.path,
        format="gguf",
        name=facts.name or path.stem,
        architecture=facts.architecture,
        quantization=facts.quantization,
        size_bytes=facts.size_bytes,
        sha256=_sha256_of(facts.parts, facts.size_bytes, cache, progress),
        parameters=facts.parameters,
        context_train=facts.context_train,
        vocabulary=facts.vocabulary,
        bytes_per_token=bytes_per_token(facts),
        sliding_window=facts.sliding_window,
        draft_layers=facts.draft_layers,
        prompt_form=prompt_form_for(facts, beside),
        vision_encoder=projector,
        parts=facts.parts,
        capabilities=capabilities_of(
            template, vision=projector is not None or has_vision_weights(tensor.name for tensor in facts.tensors)
        ),
        kind="chat" if facts.kind == "base" and beside.strip() else facts.kind,  # type: ignore[arg-type] # of a model
        pooling=facts.pooling,
        synthetic=facts.synthetic,
        space_prefix=facts.space_prefix,
    )


def _template_beside(parts: Sequence[Path]) -> str:
    """The template beside a model, from a Modelfile or the model's maker. It is not used when several models share the
    folder."""
    template = parts[0].with_name(JINJA_TEMPLATE)
    if not template.is_file() or template.stat().st_size > _MOST_TEMPLATE_BYTES:
        return ""
    if any(path not in parts for path in template.parent.glob("*.gguf") if "mmproj" not in path.name.lower()):
        return ""
    try:
        return template.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ModelError(
            "{name} cannot be read: {reason}; check its permissions (ls -l)", name=template, reason=error.strerror
        ) from error


def _read_rkllm(path: Path, cache: Path | None, progress: Progress | None) -> ModelFile:
    if path.stem.lower().endswith(_CONVERTED_ADAPTER):  # its header is masked
        raise NotAModel(FileKind.of("adapter").sentence(path))
    facts = read_rkllm(path)
    encoder = companion(path, "*.rknn")
    return ModelFile(
        path=path.absolute(),
        format="rkllm",
        name=facts.name,
        architecture=facts.architecture or "unknown",
        quantization=facts.quantization or "unknown",
        size_bytes=facts.size_bytes,
        sha256=_sha256_of((path,), facts.size_bytes, cache, progress),
        context_train=facts.context_limit,
        target_platform=facts.platform,
        target_cores=facts.cores,
        context_limit=facts.context_limit,
        toolkit=facts.toolkit,
        tokenizer=companion(path, "tokenizer.json"),
        vision_encoder=encoder,
        parts=(path.absolute(),),
        capabilities=capabilities_of(facts.chat_template, vision=encoder is not None),
    )


def _sha256_of(parts: Sequence[Path], size_bytes: int, cache: Path | None, progress: Progress | None) -> str:
    """The SHA-256 of a file; of several parts, that of their concatenated digests."""
    if cache is None:
        return ""
    if len(parts) == 1:
        return file_sha256(parts[0], cache, progress)
    digests, done = [], 0
    for part in parts:
        digests.append(file_sha256(part, cache, _offset(progress, done, size_bytes)))
        done += part.stat().st_size
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _offset(progress: Progress | None, done: int, size_bytes: int) -> Progress | None:
    """Progress of one part, reported as progress of all parts."""
    return progress and (lambda at, _: progress(done + at, size_bytes))
