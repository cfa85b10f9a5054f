"""Makes tiny runnable models with random weights, and copies of models that are damaged or requantised.

With them everything that needs a real engine is tested in milliseconds, and also that a damaged model is detected."""

import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from numpy.typing import NDArray

from trilithon.errors import ModelError
from trilithon.files import sync
from trilithon.models.files.gguf import GgufFacts, read_gguf
from trilithon.models.files.gguf_header import HeaderReader, Tensor
from trilithon.models.files.gguf_writer import tensor_table
from trilithon.models.files.quantizations import tensor_type

__all__ = ["requantise", "scramble_block", "write_tiny_model"]

_HEADS, _KV_HEADS = 4, 2
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
_ROWS_AT_ONCE = 4096
_EXTRA_NORMS: Mapping[str, tuple[str, ...]] = {
    "llama": (),
    "qwen2": (),
    "qwen3": (),
    "gemma3": ("post_attention_norm", "post_ffw_norm"),
}
_HEAD_NORMS = ("qwen3", "gemma3")  # of Q and K


def write_tiny_model(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    embedding: int = 64,
    vocabulary: int = 512,
    context: int = 2048,
    architecture: str = "llama",
    template: str | None = None,
    pooling: int | None = None,
) -> Path:
    """A GGUF that llama.cpp runs: random F16 weights, a SentencePiece vocabulary with all bytes.

    `architecture` is "llama", "qwen2", "qwen3" or "gemma3" (windowed attention); of the latter three the output is
    tied to the embedding. `embedding` is a multiple of 32;
    `vocabulary` at least 300. With `pooling` (llama.cpp's llama_pooling_type) it makes vectors. The same arguments give
    the same bytes."""
    if architecture not in _EXTRA_NORMS or embedding % 32 or vocabulary < 300:
        raise ValueError(f"no tiny model for {architecture}, embedding {embedding}, vocabulary {vocabulary}")
    writer = GGUFWriter(path, architecture)
    _describe(writer, layers, embedding, context)
    _add_vocabulary(writer, vocabulary)
    if template is not None:
        writer.add_chat_template(template)
    if pooling is not None:
        writer.add_uint32(f"{architecture}.pooling_type", pooling)
    for name, weights in _random_weights(architecture, seed, layers, embedding, vocabulary):
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def scramble_block(source: Path, target: Path, *, block: int, seed: int = 0) -> Path:
    """A copy whose weights of block `block` are shuffled: quantisation blocks change places, so that the file is valid
    and its numbers are plausible, but the block computes nonsense. Raises ModelError."""
    tensors = [tensor for tensor in _read_single(source).tensors if tensor.name.startswith(f"blk.{block}.")]
    if not tensors:
        raise ModelError("{source} has no block {block}; choose a smaller number", source=source, block=block)
    random = np.random.default_rng(seed)
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        for tensor in tensors:
            blocks = _bytes_of(file, tensor).reshape(-1, tensor_type(tensor.type).size_bytes)
            file.seek(tensor.offset)
            file.write(random.permutation(blocks).tobytes())
    return target


def requantise(source: Path, target: Path, quantization: str = "Q8_0") -> Path:
    """A copy with every matrix in `quantization`: one that the gguf library can write (Q8_0, Q4_0, Q5_0, F16, F32 …).

    Vectors (norms, biases) are unchanged. Takes seconds for the demo model. Raises ModelError for other quantisations.
    """
    try:
        file_type = LlamaFileType["ALL_F32" if quantization == "F32" else f"MOSTLY_{quantization}"]
        quants.quantize(np.zeros((1, 256), np.float32), GGMLQuantizationType[quantization])
    except (KeyError, NotImplementedError):
        raise ModelError(
            "cannot requantise to {quantization}; choose Q8_0, Q5_0, Q4_0, F16 or F32", quantization=quantization
        ) from None
    _read_single(source)
    with HeaderReader(source) as header:
        values = header.values()
        alignment = values.get("general.alignment", 32)
        tensors = header.tensors(alignment if isinstance(alignment, int) else 32)
    types = {tensor.name: quantization if _fits(tensor, quantization) else tensor.type for tensor in tensors}
    with source.open("rb") as before, target.open("wb") as after:
        head = bytearray(before.read(header.table_offset))
        if "general.file_type" in values:
            struct.pack_into("<I", head, header.value_offsets["general.file_type"], file_type)
        after.write(head)
        table = ((tensor.name, tensor.shape, types[tensor.name]) for tensor in tensors)
        after.write(tensor_table(table, alignment if isinstance(alignment, int) else 32))
        for tensor in tensors:
            _pad(after, alignment if isinstance(alignment, int) else 32)
            for part in _converted(before, tensor, types[tensor.name]):
                after.write(part)
    sync(target)
    return target


def _read_single(source: Path) -> GgufFacts:
    facts = read_gguf(source)
    if len(facts.parts) > 1:
        raise ModelError(
            "{source} is one of several parts; join them with: llama-gguf-split --merge FIRST_PART MODEL", source=source
        )
    return facts


def _describe(writer: GGUFWriter, layers: int, embedding: int, context: int) -> None:
    head_size = embedding // _HEADS
    writer.add_name("Tiny")
    writer.add_size_label("tiny")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_feed_forward_length(3 * embedding)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head_size)
    if writer.arch == "gemma3":
        writer.add_sliding_window(256)


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    """SentencePiece: three special tokens, 256 bytes, then letters and pairs of letters, with and without a space."""
    pieces = ["\u2581", *_LETTERS, *(f"\u2581{letter}" for letter in _LETTERS)]
    pieces += [first + second for first in _LETTERS for second in _LETTERS]
    pieces += [f"piece{number}" for number in range(size)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces][:size]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(size - 259)])
    writer.add_token_types(types + [TokenType.NORMAL] * (size - 259))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def _random_weights(
    architecture: str, seed: int, layers: int, embedding: int, vocabulary: int
) -> Iterator[tuple[str, NDArray[np.float16] | NDArray[np.float32]]]:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float16]:
        weights: NDArray[np.float64] = random.standard_normal((rows, columns)) / np.sqrt(columns)
        return weights.astype(np.float16)

    def norm(length: int = embedding) -> NDArray[np.float32]:
        return np.ones(length, np.float32)

    hidden, keys = 3 * embedding, embedding // _HEADS * _KV_HEADS
    yield "token_embd.weight", matrix(vocabulary, embedding)
    yield "output_norm.weight", norm()
    if architecture == "llama":  # the others' output matrix is their embedding
        yield "output.weight", matrix(vocabulary, embedding)
    for layer in range(layers):
        block = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm", *_EXTRA_NORMS[architecture]):
            yield f"{block}{name}.weight", norm()
        if architecture in _HEAD_NORMS:
            yield f"{block}attn_q_norm.weight", norm(embedding // _HEADS)
            yield f"{block}attn_k_norm.weight", norm(embedding // _HEADS)
        if architecture == "qwen2":
            for name, length in (("attn_q", embedding), ("attn_k", keys), ("attn_v", keys)):
                yield f"{block}{name}.bias", (random.standard_normal(length) / 10).astype(np.float32)
        yield f"{block}attn_q.weight", matrix(embedding, embedding)
        yield f"{block}attn_k.weight", matrix(keys, embedding)
        yield f"{block}attn_v.weight", matrix(keys, embedding)
        yield f"{block}attn_output.weight", matrix(embedding, embedding)
        yield f"{block}ffn_gate.weight", matrix(hidden, embedding)
        yield f"{block}ffn_up.weight", matrix(hidden, embedding)
        yield f"{block}ffn_down.weight", matrix(embedding, hidden)


def _bytes_of(file: BinaryIO, tensor: Tensor) -> NDArray[np.uint8]:
    file.seek(tensor.offset)
    return np.frombuffer(file.read(tensor.size_bytes), np.uint8)


def _fits(tensor: Tensor, quantization: str) -> bool:
    return len(tensor.shape) > 1 and tensor.shape[0] % tensor_type(quantization).elements == 0


def _converted(file: BinaryIO, tensor: Tensor, quantization: str) -> Iterator[bytes]:
    """The bytes of a tensor in another type, some thousand rows at a time: an embedding in F32 may take gigabytes."""
    content = _bytes_of(file, tensor)
    if quantization == tensor.type:
        yield content.tobytes()
        return
    rows = content.reshape(tensor.elements // tensor.shape[0], -1)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        numbers = quants.dequantize(rows[start : start + _ROWS_AT_ONCE], GGMLQuantizationType[tensor.type])
        yield quants.quantize(numbers, GGMLQuantizationType[quantization]).tobytes()


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
