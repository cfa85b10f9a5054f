"""Small GGUF files of every kind, as converters write them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from trilithon.models.files.gguf_writer import Plain, header, size_of

__all__ = ["write_adapter", "write_gguf", "write_imatrix", "write_projector"]

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
