"""The memory that a model needs on an engine, from its sizes alone."""

from dataclasses import dataclass

from trilithon.estimate.sizes import ModelSize, WeightBytes

__all__ = ["MemoryParts", "gguf_memory", "vendor_memory"]

_MICRO_BATCH = 512
_MEBIBYTE = 1 << 20
# RKLLM keeps the input embedding out of memory. What it has beside weights and cache, in MiB: a fixed part, per entry
# of the vocabulary, and per number of the embedding. Fitted to the memory column of its maker's benchmark.md.
_FIXED, _PER_TOKEN, _PER_WIDTH = 60, 0.75e-3, 0.012


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """Bytes."""

    weights: float
    cache: float
    buffers: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.buffers


def gguf_memory(size: ModelSize, weights: WeightBytes, context: int) -> MemoryParts:
    """llama.cpp on a CPU: the whole file is mapped; see models/files/memory.py for files that are here. The width of
    the feed-forward part is taken as four times the embedding's."""
    rows = min(_MICRO_BATCH, context)
    kept = size.cached_numbers(context) * 2
    return MemoryParts(weights=weights.held, cache=kept, buffers=rows * (2 * context + 4 * 16 * size.embedding))


def vendor_memory(size: ModelSize, weights: WeightBytes, context: int) -> MemoryParts:
    """RKLLM 1.2.1 and later."""
    held = weights.body * size.body / size.read + weights.head
    buffers = (_FIXED + _PER_TOKEN * size.vocabulary + _PER_WIDTH * size.embedding) * _MEBIBYTE
    return MemoryParts(weights=held, cache=size.cached_numbers(context) * 2, buffers=buffers)
