"""The tensors of known models, as in their GGUF files: names, shapes and types, from a table of their sizes."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from trilithon.errors import ModelError
from trilithon.language import Message
from trilithon.models.files.quantizations import UNQUANTISED, tensor_type
from trilithon.suggestions import alternatives
from trilithon.tables import table_beside

__all__ = [
    "QUANTIZATIONS",
    "Architecture",
    "Shape",
    "architectures",
    "find_architecture",
    "rope_factors",
    "shapes_of",
    "types_of",
]

Shape = tuple[int, ...]
"""In GGUF's order: the length of a row comes first."""

QUANTIZATIONS = (*UNQUANTISED, "Q8_0", "Q5_0", "Q4_0", "Q4_K_M", "Q6_K")
"""The quantisations for which this module knows the types of tensors."""

# The types that llama-quantize takes for rows that are not multiples of a block of 256.
_FALLBACKS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of a model. `parameters` is the published number; `rope_stretch` how Llama 3 scales its rotary
    frequencies; `pre` llama.cpp's name of the pre-tokenizer."""

    key: str
    title: str
    architecture: Literal["qwen2", "qwen3", "llama", "gemma3"]
    parameters: int
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    rope_base: float
    epsilon: float
    tied: bool
    tokenizer: Literal["bpe", "spm"]
    pre: str
    file_parameters: int | None = None
    sliding_window: int | None = None
    rope_stretch: Mapping[str, float] | None = None

    @property
    def size_label(self) -> str:
        return self.key.rpartition("-")[2].upper()


@cache
def architectures() -> Mapping[str, Architecture]:
    table = table_beside(__file__, "architectures.toml")
    return {key: Architecture(key=key, **values) for key, values in table.items()}


def find_architecture(name: str) -> Architecture:
    """Find a model as "qwen2.5-0.5b", "qwen2.5:0.5b" or "Qwen2.5 0.5B". Raises ModelError with the known ones."""
    key = name.strip().lower()
    for sign in (":", "_", " "):
        key = key.replace(sign, "-")
    try:
        return architectures()[key]
    except KeyError:
        fix = alternatives(key, architectures())
        raise ModelError(Message("unknown architecture {name!r}; {fix}", name=name[:80], fix=fix)) from None


def shapes_of(model: Architecture) -> Iterator[tuple[str, Shape]]:
    """The name and shape of every tensor, as llama.cpp's converter names and orders them."""
    yield "token_embd.weight", (model.embedding, model.vocabulary)
    for layer in range(model.layers):
        for name, shape in _block(model):
            yield f"blk.{layer}.{name}", shape
    yield "output_norm.weight", (model.embedding,)
    if not model.tied:
        yield "output.weight", (model.embedding, model.vocabulary)
    if model.rope_stretch:
        yield "rope_freqs.weight", (model.head_size // 2,)


def types_of(model: Architecture, quantization: str) -> dict[str, str]:
    """Tensor name → type, as llama-quantize chooses them without an importance matrix (llama-quant.cpp of 0c1e570).

    Vectors stay F32. The output matrix (the embedding if the two are tied) gets Q6_K in files with fewer bits than
    Q8_0. Rows that are not multiples of a block of 256 get the next type that fits. Raises ModelError."""
    if quantization not in QUANTIZATIONS:
        raise ModelError(
            "cannot synthesise {quantization}; choose one of {names}",
            quantization=quantization,
            names=", ".join(QUANTIZATIONS),
        )
    output = "token_embd.weight" if model.tied else "output.weight"
    return {
        name: "F32" if len(shape) == 1 else _fitting(_preferred_type(model, name, quantization, output), shape)
        for name, shape in shapes_of(model)
    }


def rope_factors(model: Architecture) -> list[float]:
    """The factor by which each rotary frequency is divided: Llama 3.1's rule (Meta's reference code), else empty."""
    stretch = model.rope_stretch
    if not stretch:
        return []
    factors = []
    for at in range(0, model.head_size, 2):
        turns = stretch["original_context"] / (2 * math.pi * model.rope_base ** (at / model.head_size))
        share = min(max((turns - stretch["low"]) / (stretch["high"] - stretch["low"]), 0.0), 1.0)
        factors.append(1 / ((1 - share) / stretch["factor"] + share))
    return factors


def _block(model: Architecture) -> Iterator[tuple[str, Shape]]:
    width, queries, keys = model.embedding, model.heads * model.head_size, model.kv_heads * model.head_size
    yield "attn_norm.weight", (width,)
    for name, rows in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
        yield f"{name}.weight", (width, rows)
        if model.architecture == "qwen2":
            yield f"{name}.bias", (rows,)
    if model.architecture in ("qwen3", "gemma3"):
        yield "attn_q_norm.weight", (model.head_size,)
        yield "attn_k_norm.weight", (model.head_size,)
    yield "attn_output.weight", (queries, width)
    if model.architecture == "gemma3":
        yield "post_attention_norm.weight", (width,)
    yield "ffn_norm.weight", (width,)
    yield "ffn_gate.weight", (width, model.feed_forward)
    yield "ffn_up.weight", (width, model.feed_forward)
    yield "ffn_down.weight", (model.feed_forward, width)
    if model.architecture == "gemma3":
        yield "post_ffw_norm.weight", (width,)


def _preferred_type(model: Architecture, name: str, quantization: str, output: str) -> str:
    if quantization in UNQUANTISED or quantization == "Q8_0":
        return quantization
    if name == output:
        return "Q6_K"
    if quantization != "Q4_K_M":
        return quantization
    layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
    finer = name.endswith(("attn_v.weight", "ffn_down.weight")) and _gets_more_bits(layer, model.layers)
    return "Q6_K" if finer else "Q4_K"


def _gets_more_bits(layer: int, layers: int) -> bool:
    """llama-quantize uses more bits for the first and the last eighth of the layers, and every third in between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting(kind: str, shape: Shape) -> str:
    while shape[0] % tensor_type(kind).elements:
        kind = _FALLBACKS.get(kind, "F16")
    return kind
