"""The memory that a model needs: weights, KV cache and work buffers.

The formulas are those of llama.cpp (0c1e570). Compared with what its server reported after loading, the KV cache agrees
to the byte if the context is a multiple of 256, and the work buffers within 7% (seven cases of four models, flash
attention on and off, contexts of 1,024 to 32,768, CPU). For other engines only the weights are known."""

from dataclasses import dataclass

from trilithon.models.files.gguf import GgufFacts, bytes_per_token, layer_kv_bytes, read_gguf
from trilithon.models.files.model_file import ModelFile

__all__ = [
    "MemoryNeed",
    "bytes_per_token",
    "compute_bytes",
    "feed_forward_width",
    "kv_cache_bytes",
    "memory_by_context",
    "memory_need",
]

_CONTEXTS = (2048, 8192, 32_768)
_MICRO_BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes of the weights, of the KV caches at full length, and of the work buffers of one evaluation."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def memory_need(
    facts: GgufFacts,
    context: int,
    *,
    kv_type_k: str = "f16",
    kv_type_v: str = "f16",
    slots: int = 1,
    micro_batch: int = _MICRO_BATCH,
    flash_attention: bool = True,
    full_window_cache: bool = False,
) -> MemoryNeed:
    """The need with `slots` caches of `context` tokens each.

    The weights count with the size of the file: it is mapped, and every page is read. (Where kernels of the CPU need
    another layout of Q4_0, llama.cpp keeps a copy, and the pages that it copied may be dropped from memory.)"""
    kv_bytes = kv_cache_bytes(
        facts,
        context,
        kv_type_k=kv_type_k,
        kv_type_v=kv_type_v,
        micro_batch=micro_batch,
        full_window_cache=full_window_cache,
    )
    work = compute_bytes(
        facts, context, micro_batch=micro_batch, flash_attention=flash_attention, full_window_cache=full_window_cache
    )
    return MemoryNeed(weights_bytes=facts.size_bytes, kv_bytes=slots * kv_bytes, compute_bytes=work)


def memory_by_context(file: ModelFile) -> dict[int, MemoryNeed]:
    """For some usual contexts (tokens), up to the one that the model was trained for; empty for formats of which only
    the engine knows the need."""
    if file.format != "gguf":
        return {}
    facts = read_gguf(file.path)
    longest = facts.context_train or max(_CONTEXTS)
    contexts = [context for context in _CONTEXTS if context <= longest] or [longest]
    return {context: memory_need(facts, context) for context in contexts}


def kv_cache_bytes(
    facts: GgufFacts,
    context: int,
    *,
    kv_type_k: str = "f16",
    kv_type_v: str = "f16",
    micro_batch: int = _MICRO_BATCH,
    full_window_cache: bool = False,
) -> int:
    """Bytes of one cache of `context` positions. A windowed layer keeps the window and one micro-batch, unless
    `full_window_cache` (llama_kv_cache_iswa, which rounds both up to 256 positions). The small state of recurrent
    layers is left out."""
    kept_positions = _kept_of_windowed(facts, context, micro_batch, full_window_cache)
    layers = zip(layer_kv_bytes(facts, kv_type_k, kv_type_v), facts.windowed, strict=True)
    return sum(size * (kept_positions if windowed else context) for size, windowed in layers)


def compute_bytes(
    facts: GgufFacts,
    context: int,
    *,
    micro_batch: int = _MICRO_BATCH,
    flash_attention: bool = True,
    full_window_cache: bool = False,
) -> int:
    """An estimate of llama.cpp's largest work buffer in bytes: the tensors of one micro-batch that are in use at the
    same time, with 4 bytes per number. In the feed-forward part these are three of its vectors and four of the model's;
    in attention six vectors, and all scores without flash attention. The mask (2 or 4 bytes) is in use all the time."""
    rows = min(micro_batch, context)
    width, forward = facts.embedding or 0, feed_forward_width(facts)
    windowed = _kept_of_windowed(facts, context, micro_batch, full_window_cache) if any(facts.windowed) else 0
    mask = rows * (context + windowed) * (2 if flash_attention else 4)
    scores = 0 if flash_attention else (facts.heads or 0) * context
    return mask + 4 * rows * max(3 * forward + 4 * width, scores + 6 * width)


def _kept_of_windowed(facts: GgufFacts, context: int, micro_batch: int, full: bool) -> int:
    window = facts.sliding_window
    return context if full or not window else min(context, window + micro_batch)


def feed_forward_width(facts: GgufFacts) -> int:
    """The width of the feed-forward part, by its weights; with experts, of all that are used at once."""
    rows = [tensor.shape[1] for tensor in facts.tensors if tensor.name.endswith((".ffn_up.weight", ".ffn_gate.weight"))]
    experts = [tensor.shape[1] for tensor in facts.tensors if tensor.name.endswith(".ffn_up_exps.weight")]
    return max([*rows, *(width * max(facts.experts_used, 1) for width in experts)], default=0)
