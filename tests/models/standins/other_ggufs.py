"""Small GGUF files of every kind, as converters write them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from trilithon.models.files.gguf_writer import Plain, header, size_of

__all__ = ["write_adapter", "write_bert", "write_gguf", "write_imatrix", "write_projector"]

_LLAMA = {"general.architecture": "llama"}


def write_gguf(path: Path, values: Mapping[str, Plain], tensors: Sequence[str] = ("token_embd.weight",)) -> Path:
    """`tensors` are names; each has 32 numbers in F16."""
    rows = [(name, (32,), "F16") for name in tensors]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header(values, rows) + bytes(size_of((32,), "F16") * len(rows)))
    return path


def write_adapter(path: Path) -> Path:
    """As convert_lora_to_gguf.py of llama.cpp writes it."""
    kind: dict[str, Plain] = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 16.0}
    return write_gguf(path, _LLAMA | kind, [f"blk.0.attn_q.weight.lora_{half}" for half in "ab"])


def write_projector(path: Path) -> Path:
    """As convert_hf_to_gguf.py --mmproj writes it."""
    kind: dict[str, Plain] = {"general.type": "mmproj", "clip.has_vision_encoder": True, "clip.projector_type": "mlp"}
    return write_gguf(path, {"general.architecture": "clip"} | kind, ["v.patch_embd.weight"])


def write_imatrix(path: Path) -> Path:
    """As llama-imatrix writes it: without an architecture."""
    kind: dict[str, Plain] = {"general.type": "imatrix", "imatrix.datasets": ["a.txt"], "imatrix.chunk_count": 1}
    return write_gguf(path, kind, ["blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"])


def write_bert(path: Path, *, pooling: int | None = None, ranks: bool = False) -> Path:
    """A BERT with random weights that llama.cpp runs. With `ranks` it has a classifier."""
    writer, random = GGUFWriter(path, "bert"), np.random.default_rng(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{letter}" for letter in letters), *letters]
    size, hidden, longest = 64, 128, 128
    writer.add_block_count(1)
    writer.add_context_length(longest)
    writer.add_embedding_length(size)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_uint32("bert.pooling_type", pooling)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 5 + [1] * (len(tokens) - 5))
    writer.add_token_type_count(2)
    for add, number in (
        (writer.add_bos_token_id, 2), (writer.add_eos_token_id, 3), (writer.add_unk_token_id, 1),
        (writer.add_pad_token_id, 0), (writer.add_sep_token_id, 3), (writer.add_mask_token_id, 4),
    ):  # fmt: skip
        add(number)
    shapes = {"token_embd": (len(tokens), size), "token_types": (2, size), "position_embd": (longest, size)}
    layers = {"ffn_up": (hidden, size), "ffn_down": (size, hidden)}
    layers |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (size, size))
    biased = {f"blk.0.{name}": shape for name, shape in layers.items()}
    biased |= {"cls": (size, size), "cls.output": (1, size)} if ranks else {}
    for name, shape in (shapes | biased).items():
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) / 8).astype(np.float32))
    for name, shape in biased.items():
        writer.add_tensor(f"{name}.bias", np.zeros(shape[0], np.float32))
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
