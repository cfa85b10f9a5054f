"""Makes a model of 60 kB with the chat template of another one: with it an engine runs the template and little else.

Its weights are zeros, and its vocabulary can encode any text."""

from collections.abc import Mapping
from pathlib import Path

from trilithon.models.files.gguf_writer import ALIGNMENT, Plain, header, size_of
from trilithon.models.synthetic.vocabulary import sentencepiece_vocabulary

__all__ = ["write_twin"]

_WIDTH, _VOCABULARY, _CONTEXT = 32, 512, 2048


def write_twin(path: Path, templates: Mapping[str, str]) -> Path:
    """A GGUF that llama.cpp runs. `templates` are texts by GGUF key. Raises OSError."""
    tensors = tuple((name, shape, "F32" if len(shape) == 1 else "F16") for name, shape in _shapes())
    sizes = (-(-size_of(shape, kind) // ALIGNMENT) * ALIGNMENT for _, shape, kind in tensors)
    path.write_bytes(header({**_values(), **templates}, tensors) + bytes(sum(sizes)))
    return path


def _shapes() -> list[tuple[str, tuple[int, ...]]]:
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return [
        ("token_embd.weight", (_WIDTH, _VOCABULARY)),  # the output matrix, too
        *((name, (_WIDTH,)) for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")),
        *((f"blk.0.{name}.weight", (_WIDTH, _WIDTH)) for name in names),
    ]


def _values() -> dict[str, Plain]:
    vocabulary = sentencepiece_vocabulary(_VOCABULARY)
    return {
        "general.architecture": "llama",
        "general.name": "Twin",
        "general.file_type": 1,  # F16
        "llama.context_length": _CONTEXT,
        "llama.embedding_length": _WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": _WIDTH,
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": _WIDTH,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.scores": vocabulary.scores,
        "tokenizer.ggml.bos_token_id": vocabulary.begin,
        "tokenizer.ggml.eos_token_id": vocabulary.end,
        "tokenizer.ggml.unknown_token_id": vocabulary.unknown,
    }
