"""One weight file as an engine has to know it: the contract between what there is to run and what runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trilithon.models.gguf import bytes_per_token, read_gguf
from trilithon.models.hashing import file_sha256
from trilithon.models.template import PromptForm, prompt_form_for

__all__ = ["ModelFile", "read_model_file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One weight file, as far as an engine has to know it. `prompt_form` is the chat template to impose where
    the file carries none. `bytes_per_token` counts the bytes of weights that one decode step reads."""

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
    prompt_form: PromptForm | None = None


def read_model_file(path: Path, cache: Path, progress: Callable[[int, int], None] | None = None) -> ModelFile:
    """Read a GGUF's header and hash the file (remembered in `cache`). Raises ModelError."""
    facts = read_gguf(path)
    return ModelFile(
        path=path.absolute(),
        format="gguf",
        name=facts.name or path.stem,
        architecture=facts.architecture,
        quantization=facts.quantization,
        size_bytes=path.stat().st_size,
        sha256=file_sha256(path, cache, progress),
        parameters=facts.parameters,
        context_train=facts.context_train,
        vocabulary=facts.vocabulary,
        bytes_per_token=bytes_per_token(facts),
        sliding_window=facts.sliding_window,
        prompt_form=prompt_form_for(facts),
    )
