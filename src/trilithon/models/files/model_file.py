"""One weight file as an engine has to know it: the contract between what there is to run and what runs it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trilithon.errors import ModelError
from trilithon.models.files.capabilities import Capability, capabilities_of, has_vision_weights
from trilithon.models.files.gguf import bytes_per_token, read_gguf
from trilithon.models.files.hashing import Progress, file_sha256
from trilithon.models.files.prompt_form import JINJA_TEMPLATE, PromptForm, prompt_form_for
from trilithon.models.files.rkllm import companion, read_rkllm

__all__ = ["ModelFile", "read_model_file"]

_MOST_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One weight file, as far as an engine has to know it. `prompt_form` is the chat template to impose where
    the file carries none, or another lies beside it. `bytes_per_token` counts the bytes of weights that one decode
    step reads.

    What a converted file was made for, where it says so: `target_platform` (a chip), `target_cores` of its NPU,
    `context_limit` and the `toolkit` version. `tokenizer` is the tokenizer.json, `vision_encoder` what lets it see, in
    a file beside it (.rknn, or mmproj…gguf). `adapters` are LoRA files, each with its scale. `draft_layers` only guess
    further tokens, for speculation.

    Of a model in several files `path` is the first of `parts`, and size and SHA-256 are of all of them. `pooling` is
    how it makes one vector of a text, empty where it does not say. A `synthetic` one has random weights: its speed is a
    real one's, and what it says means nothing.
    """

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
    pooling: str = ""
    synthetic: bool = False


def read_model_file(path: Path, cache: Path | None, progress: Progress | None = None) -> ModelFile:
    """Read the header and hash the file (remembered in `cache`; without one nothing is hashed, and `sha256` is empty,
    which is for saying what it is). Raises ModelError.

    A GGUF is known by its content, whatever its name; an RKLLM file, whose beginning is masked, by its name.
    """
    return (_read_rkllm if _is_rkllm(path) else _read_gguf)(path, cache, progress)


def _is_rkllm(path: Path) -> bool:
    if path.suffix.lower() != ".rkllm" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) != b"GGUF"
    except OSError:  # told by whoever reads the header
        return True


def _read_gguf(path: Path, cache: Path | None, progress: Progress | None) -> ModelFile:
    facts = read_gguf(path.absolute())
    # One folder may hold many models: only where the template knows images, the projector can be this one's.
    imposed = _imposed_template(facts.parts)
    template = imposed or facts.chat_template
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
        prompt_form=prompt_form_for(facts, imposed),
        vision_encoder=projector,
        parts=facts.parts,
        capabilities=capabilities_of(
            template,
            sees=projector is not None or has_vision_weights(tensor.name for tensor in facts.tensors),
        ),
        pooling=facts.pooling,
        synthetic=facts.synthetic,
    )


def _imposed_template(parts: Sequence[Path]) -> str:
    """The template beside a model, which a Modelfile or the model's maker put there; where several models share the
    folder, it is nobody's."""
    beside = parts[0].with_name(JINJA_TEMPLATE)
    if not beside.is_file() or beside.stat().st_size > _MOST_TEMPLATE_BYTES:
        return ""
    if any(each not in parts for each in beside.parent.glob("*.gguf") if "mmproj" not in each.name.lower()):
        return ""
    try:
        return beside.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ModelError(f"{beside} cannot be read: {error.strerror}; check its permissions (ls -l)") from error


def _read_rkllm(path: Path, cache: Path | None, progress: Progress | None) -> ModelFile:
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
        capabilities=capabilities_of(facts.chat_template, sees=encoder is not None),
    )


def _sha256_of(parts: Sequence[Path], size_bytes: int, cache: Path | None, progress: Progress | None) -> str:
    """The file's; of several, that of their digests one after the other."""
    if cache is None:
        return ""
    if len(parts) == 1:
        return file_sha256(parts[0], cache, progress)
    digests, done = [], 0
    for part in parts:
        digests.append(file_sha256(part, cache, _further(progress, done, size_bytes)))
        done += part.stat().st_size
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _further(progress: Progress | None, done: int, size_bytes: int) -> Progress | None:
    """Tells of one part as of the whole."""
    return progress and (lambda at, _: progress(done + at, size_bytes))
