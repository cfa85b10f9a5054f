"""Fills the RKLLM runtime's structs, in each version's form, with Python's values."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilithon.engines.rkllm.child import binding as c
from trilithon.engines.rkllm.options import LoadOptions
from trilithon.errors import UserError

__all__ = [
    "ADAPTER",
    "GREEDY",
    "Filled",
    "Picture",
    "Prompt",
    "RkllmSampling",
    "fill_infer_param",
    "fill_input",
    "fill_param",
]

ADAPTER = b"adapter"
"""The name of the LoRA adapter: there is one at most."""

_MARKS = (b"<|vision_start|>", b"<|vision_end|>", b"<|image_pad|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class RkllmSampling:
    """The runtime's sampling parameters. By default the most probable token is taken (greedy)."""

    top_k: int = 1
    top_p: float = 1.0
    temperature: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1


GREEDY = RkllmSampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A text with `<image>` for each picture, and their embeddings by the encoder: floats of the shape (pictures,
    tokens per picture, size of an embedding). `marks` are the model's texts before, after and for a picture."""

    text: str
    embeddings: NDArray[np.float32]
    width: int
    height: int
    marks: tuple[bytes, bytes, bytes] = _MARKS


Prompt = str | Sequence[int] | Picture
"""Text gets the runtime's chat template; token ids are used as they are."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A struct for C. `kept` is what it points to, and must exist as long as C reads it."""

    struct: Any
    kept: tuple[Any, ...] = ()


def fill_param(param: Any, model: Path, context: int, options: LoadOptions, sampling: RkllmSampling) -> None:
    """`param` comes from the runtime with its defaults; what is not set here keeps them."""
    param.model_path = bytes(model)
    param.max_context_len = context
    param.max_new_tokens = -1  # every run has a limit
    param.skip_special_token = True
    param.is_async = False
    _set_sampling(param, sampling)
    if hasattr(param, "n_keep"):
        param.n_keep = options.keep_tokens
    extend = param.extend_param
    if options.domain is not None:
        extend.base_domain_id = options.domain
    if not hasattr(extend, "enabled_cpus_mask"):
        return
    if options.cpu_mask is not None:
        extend.enabled_cpus_mask = options.cpu_mask
        extend.enabled_cpus_num = options.cpu_mask.bit_count()
    if options.embed_flash is not None:
        extend.embed_flash = options.embed_flash


def fill_input(abi: c.Abi, prompt: Prompt, thinking: bool) -> Filled:
    filled = abi.input()
    if hasattr(filled, "role"):
        filled.role = b"user"
        filled.enable_thinking = thinking
    if isinstance(prompt, str):
        filled.input_type = c.PROMPT
        filled.data.prompt = _text(prompt)
        return Filled(filled)
    if isinstance(prompt, Picture):
        filled.input_type = c.MULTIMODAL
        return Filled(filled, _set_picture(filled.data.multimodal, prompt))
    ids = (ctypes.c_int32 * len(prompt))(*prompt)
    filled.input_type = c.TOKEN
    filled.data.token.input_ids = ids
    filled.data.token.n_tokens = len(prompt)
    return Filled(filled, (ids,))


def fill_infer_param(
    abi: c.Abi, mode: int, *, limit: int, sampling: RkllmSampling, adapter: bool, save: Path | None
) -> Filled:
    """keep_history is 0: each run has its whole list of tokens, and the runtime reuses the part that it has evaluated
    before (rknn-llm#432)."""
    infer = abi.infer_param(mode=mode)
    kept: list[Any] = []
    if adapter:
        kept.append(c.STRUCTS["LoraParam"](ADAPTER))
        infer.lora_params = ctypes.pointer(kept[-1])
    if save is not None:
        kept.append(c.STRUCTS["PromptCacheParam"](1, bytes(save)))
        infer.prompt_cache_params = ctypes.pointer(kept[-1])
    if abi.has_sampling:
        kept.append(c.STRUCTS["SamplingParam"]())
        _set_sampling(kept[-1], sampling)
        infer.sampling_params = ctypes.pointer(kept[-1])
        infer.max_new_tokens = limit
    return Filled(infer, tuple(kept))


def _text(text: str) -> bytes:
    """Without zeros, which end a text in C, and half surrogates, which UTF-8 cannot encode."""
    return text.encode(errors="replace").replace(b"\0", b"")


def _set_sampling(target: Any, sampling: RkllmSampling) -> None:
    for name in RkllmSampling.__slots__:
        setattr(target, name, getattr(sampling, name))


def _set_picture(target: Any, picture: Picture) -> tuple[Any, ...]:
    embeddings = np.ascontiguousarray(picture.embeddings, dtype=np.float32)
    pointer = embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    target.prompt = _text(picture.text)
    image = getattr(target, "image", target)  # a nested struct since 1.3.0
    if len(embeddings) > 1 and not hasattr(image, "n_image"):
        raise UserError("the RKLLM runtime takes one picture per request before 1.2.1; send one, or use a newer one")
    image.image_embed = pointer
    image.n_image_tokens = embeddings.shape[1]
    if hasattr(image, "n_image"):
        image.n_image, image.image_width, image.image_height = len(embeddings), picture.width, picture.height
    if hasattr(image, "image_start"):
        image.image_start, image.image_end, image.image_content = picture.marks
    return embeddings, pointer
