"""The memory that a model needs on an engine, from its sizes alone."""

from dataclasses import dataclass

from trilithon.estimate.sizes import ModelSize, WeightBytes
from trilithon.tables import table_beside

__all__ = ["MemoryParts", "copied_bytes", "gguf_memory", "vendor_memory"]

_MICRO_BATCH = 512
_MEBIBYTE = 1 << 20
# RKLLM keeps the input embedding out of memory. What it has beside weights and cache, in MiB: a fixed part, per entry
# of the vocabulary, and per number of the embedding. Fitted to the memory column of its maker's benchmark.md.
_FIXED, _PER_TOKEN, _PER_WIDTH = 60, 0.75e-3, 0.012
# llama.cpp's process without a model, and per token of the vocabulary: measured with benchmarks/estimate.py --memory.
_PROCESS_BYTES, _TOKEN_BYTES = 42 * _MEBIBYTE, 200
# Types of blocks of 256 are only in some matrices of a model with other rows (Qwen2.5 0.5B 12%, Gemma 3 270M 20%).
_NARROW = 0.15
_COPIES = table_beside(__file__, "quantizations.toml")["copies"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """Bytes. `copies` are weights that llama.cpp keeps a second time, in the layout of its kernels: the file's pages of
    these may be dropped when memory is short."""

    weights: float
    cache: float
    buffers: float
    copies: float = 0.0

    @property
    def total(self) -> float:
        return self.needed + self.copies

    @property
    def needed(self) -> float:
        """What cannot be dropped."""
        return self.weights + self.cache + self.buffers


def gguf_memory(size: ModelSize, weights: WeightBytes, context: int, *, copies: float = 0.0) -> MemoryParts:
    """llama.cpp on a CPU, as a process has it after a prompt of a micro-batch; the formulas are those of
    models/files/memory.py, without the file. `copies` as `copied_bytes` says."""
    rows, short = min(_MICRO_BATCH, context), size.window_layers
    layers = size.layers if size.attention_layers is None else size.attention_layers
    kept = min(context, (size.window or context) + _MICRO_BATCH)
    cache = size.kv * (max(layers - short, 0) * context + short * kept) * 2
    mask = rows * (context + (kept if short else 0))  # 2 bytes each, and a cache is half full in the middle of its use
    work = 4 * rows * max(3 * size.forward_width + 4 * size.embedding, 6 * size.embedding)
    process = _PROCESS_BYTES + _TOKEN_BYTES * size.vocabulary
    return MemoryParts(weights=weights.held, cache=cache, buffers=mask + work + process, copies=copies)


def copied_bytes(size: ModelSize, weights: WeightBytes, quantization: str, architecture: str) -> float:
    """What llama.cpp's kernels for a CPU copy: the types of the file's tensors, or those that the quantisation usually
    has. `architecture` is the kernel's name of it (uname -m)."""
    kinds = dict(weights.kinds)
    if not kinds:
        body = weights.held - weights.head * (1 if size.tied else 2)
        shares = _COPIES["shares"].get(quantization.upper(), {})
        narrow = _NARROW if size.embedding % 256 else 1.0
        kinds = {kind: body * share * (narrow if kind.endswith("_K") else 1.0) for kind, share in shares.items()}
        head = _COPIES["heads"].get(quantization.upper(), "")
        kinds[head] = kinds.get(head, 0.0) + weights.head
    return sum(kinds.get(kind, 0.0) for kind in _COPIES["architectures"].get(architecture, ()))


def vendor_memory(size: ModelSize, weights: WeightBytes, context: int) -> MemoryParts:
    """RKLLM 1.2.1 and later."""
    held = weights.body * size.body / size.read + weights.head
    buffers = (_FIXED + _PER_TOKEN * size.vocabulary + _PER_WIDTH * size.embedding) * _MEBIBYTE
    return MemoryParts(weights=held, cache=size.cached_numbers(context) * 2, buffers=buffers)
