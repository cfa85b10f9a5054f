"""Makes models of the true size of a known architecture with random weights, to measure speed without a download. They
are marked as synthetic, and their answers mean nothing."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from trilithon.errors import ModelError
from trilithon.models.files.gguf import SYNTHETIC_KEY
from trilithon.models.files.gguf_writer import ALIGNMENT, Plain, header, size_of
from trilithon.models.files.hashing import Progress
from trilithon.models.files.quantizations import FILE_TYPES, tensor_type
from trilithon.models.store.staging import publish, staging_dir
from trilithon.models.synthetic.architectures import Architecture, Shape, rope_factors, shapes_of, types_of
from trilithon.models.synthetic.vocabulary import CHAT_TEMPLATE, byte_level_vocabulary, sentencepiece_vocabulary
from trilithon.units import format_bytes

__all__ = ["Synthetic", "plan_synthetic", "write_synthetic"]

# With this deviation, weights of about a thousand columns keep the scale of their input.
_DEVIATION = 0.03
# Random blocks are made once and written repeatedly from different offsets: rows differ, and a file is made as fast as
# the disk can write. The pool is larger than the caches of chips, so that reads are as slow as for real models.
_POOL_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """A file to make. `head` is everything before the weights; `tensors` are names, shapes and types."""

    model: Architecture
    quantization: str
    head: bytes
    tensors: tuple[tuple[str, Shape, str], ...]

    @property
    def size_bytes(self) -> int:
        return len(self.head) + sum(_padded(size_of(shape, kind)) for _, shape, kind in self.tensors)

    @property
    def file_name(self) -> str:
        return f"{self.model.key}-{self.quantization.lower()}-synthetic.gguf"

    def chunks(self, seed: int = 0) -> Iterator[bytes | memoryview]:
        """The file from its first byte to its last, some megabytes at a time; the same seed gives the same bytes."""
        random = np.random.default_rng(seed)
        pools: dict[str, memoryview] = {}
        yield self.head
        for name, shape, kind in self.tensors:
            size = size_of(shape, kind)
            if fixed := _fixed(self.model, name, shape):
                yield fixed
            else:
                if kind not in pools:
                    pools[kind] = _pool(kind, random)
                yield from _random_chunks(pools[kind], kind, size, random)
            yield bytes(_padded(size) - size)


def plan_synthetic(model: Architecture, quantization: str = "F16") -> Synthetic:
    """Raises ModelError for a quantisation that is not in QUANTIZATIONS."""
    quantization = quantization.upper()
    types = types_of(model, quantization)
    tensors = tuple((tensor, shape, types[tensor]) for tensor, shape in shapes_of(model))
    values = _metadata(model, quantization) | _tokenizer(model)
    return Synthetic(model=model, quantization=quantization, head=header(values, tensors), tensors=tensors)


def write_synthetic(
    synthetic: Synthetic, target: Path, progress: Progress | None = None, notes: Path | None = None
) -> Path:
    """Write the file; it gets its name when it is complete and on the disk. `notes` as for `staging_dir`. Raises
    ModelError when it does not fit or exists already."""
    if os.path.lexists(target):
        raise ModelError("{target} exists already; remove it, or name another file with --output", target=target)
    try:
        _require_room(synthetic, target.absolute().parent)
        with staging_dir(target, notes) as staging:
            made = staging.folder / target.name
            with made.open("xb") as file:
                _write(synthetic, file.write, progress)
            publish(made, target)
    except OSError as error:
        raise ModelError(
            "{target} cannot be written: {reason}; name another file with --output",
            target=target,
            reason=error.strerror,
        ) from error
    return target


def _write(synthetic: Synthetic, write: Callable[[bytes | memoryview], object], progress: Progress | None) -> None:
    done = 0
    for chunk in synthetic.chunks():
        write(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, synthetic.size_bytes)


def _require_room(synthetic: Synthetic, folder: Path) -> None:
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if synthetic.size_bytes > free:
        raise ModelError(
            "{size} are needed in {folder}, {free} are free; name a file on another disk with --output",
            size=format_bytes(synthetic.size_bytes),
            folder=folder,
            free=format_bytes(free),
        )


def _metadata(model: Architecture, quantization: str) -> dict[str, Plain]:
    sizes: dict[str, Plain] = {
        "context_length": model.context,
        "embedding_length": model.embedding,
        "block_count": model.layers,
        "feed_forward_length": model.feed_forward,
        "attention.head_count": model.heads,
        "attention.head_count_kv": model.kv_heads,
        "attention.key_length": model.head_size,
        "attention.value_length": model.head_size,
        "attention.layer_norm_rms_epsilon": model.epsilon,
        "rope.freq_base": model.rope_base,
        "rope.dimension_count": model.head_size,
        "vocab_size": model.vocabulary,
    }
    if model.sliding_window:
        sizes["attention.sliding_window"] = model.sliding_window
    return {
        "general.architecture": model.architecture,
        "general.type": "model",
        "general.name": f"{model.title}, synthetic: random weights",
        "general.size_label": model.size_label,
        "general.file_type": next(number for number, (name, _) in FILE_TYPES.items() if name == quantization),
        "general.quantization_version": 2,
        SYNTHETIC_KEY: True,
        **{f"{model.architecture}.{name}": value for name, value in sizes.items()},
    }


def _tokenizer(model: Architecture) -> dict[str, Plain]:
    byte_level = model.tokenizer == "bpe"
    vocabulary = (byte_level_vocabulary if byte_level else sentencepiece_vocabulary)(model.vocabulary)
    values: dict[str, Plain] = {
        "tokenizer.ggml.model": "gpt2" if byte_level else "llama",
        "tokenizer.ggml.pre": model.pre,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.bos_token_id": vocabulary.begin,
        "tokenizer.ggml.eos_token_id": vocabulary.end,
        "tokenizer.ggml.add_bos_token": model.architecture in ("llama", "gemma3"),
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    if byte_level:
        return values | {"tokenizer.ggml.merges": vocabulary.merges}
    space_first = model.architecture != "gemma3"
    return values | {
        "tokenizer.ggml.scores": vocabulary.scores,
        "tokenizer.ggml.unknown_token_id": vocabulary.unknown,
        "tokenizer.ggml.add_space_prefix": space_first,
    }


def _fixed(model: Architecture, name: str, shape: Shape) -> bytes:
    """The content of tensors that are not random: norms of 1, biases of 0, rotary factors; empty for others."""
    if name == "rope_freqs.weight":
        return np.array(rope_factors(model), np.float32).tobytes()
    if len(shape) > 1:
        return b""
    if name.endswith(".bias"):
        return np.zeros(shape, np.float32).tobytes()
    return np.ones(shape, np.float32).tobytes()


def _random_chunks(pool: memoryview, kind: str, size: int, random: np.random.Generator) -> Iterator[memoryview]:
    """`size` bytes of the pool, from random offsets at the beginning of blocks."""
    block_bytes = tensor_type(kind).size_bytes
    while size:
        start = int(random.integers(len(pool) // block_bytes // 2)) * block_bytes
        chunk = pool[start : start + size]
        yield chunk
        size -= len(chunk)


def _pool(kind: str, random: np.random.Generator) -> memoryview:
    blocks = {"Q4_K": _q4_k_blocks, "Q6_K": _q6_k_blocks}
    if kind in blocks:
        content = blocks[kind](random, _POOL_ELEMENTS // 256)
    else:
        numbers = random.standard_normal((_POOL_ELEMENTS // 1024, 1024), np.float32) * np.float32(_DEVIATION)
        content = quants.quantize(numbers, GGMLQuantizationType[kind])
    return memoryview(content.tobytes())


def _q4_k_blocks(random: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Scale and minimum (two F16), 12 bytes of finer ones, 128 of 4-bit numbers: `scale * fine * number - minimum *
    fine`, which has a mean of 0 where the minimum is 7.5 times the scale (ggml-common.h, block_q4_K)."""
    scale = _DEVIATION / 250
    return _blocks(random, count, np.array([scale, 7.5 * scale], np.float16), 140, scales_first=True)


def _q6_k_blocks(random: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """192 bytes of 6-bit numbers, 16 of signed scales, and one F16 scale for them all (block_q6_K)."""
    blocks = _blocks(random, count, np.array([_DEVIATION / 170], np.float16), 208, scales_first=False)
    fine = blocks[:, 192:208].view(np.int8)
    fine >>= 3  # smaller scales, so that F16 keeps enough digits of the common scale
    return blocks


def _blocks(
    random: np.random.Generator, count: int, scales: NDArray[np.float16], rest_bytes: int, *, scales_first: bool
) -> NDArray[np.uint8]:
    rest = random.integers(0, 256, (count, rest_bytes), np.uint8)
    head = np.tile(scales.view(np.uint8), (count, 1))
    return np.concatenate((head, rest) if scales_first else (rest, head), axis=1)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
