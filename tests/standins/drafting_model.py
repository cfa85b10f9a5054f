"""A tiny model with a layer that guesses a further token (multi-token prediction), of GLM-4.5's architecture."""

from pathlib import Path

import gguf
import numpy as np

from trilithon.models.synthetic.tiny import write_tiny_model

_EMBEDDING, _HEADS, _VOCABULARY, _EXPERTS, _HIDDEN = 64, 4, 512, 2, 64


def write_drafting_model(path: Path, *, right: bool, seed: int = 0) -> Path:
    """One block and one layer that guesses. With `right`, attention and feed-forward add nothing and the guessing layer
    looks at the token alone, as then the whole model does: all it guesses is right. Else its weights are random, and
    what it guesses is mostly wrong."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "glm4moe")
    _copy_vocabulary(write_tiny_model(path.with_suffix(".words"), vocabulary=_VOCABULARY), writer)
    _describe(writer)

    def matrix(name: str, *shape: int, silent: bool = False) -> None:
        weights = np.zeros(shape) if silent else random.standard_normal(shape) * 0.3
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(_EMBEDDING, np.float32))

    matrix("token_embd", _VOCABULARY, _EMBEDDING)
    norm("output_norm")
    matrix("output", _VOCABULARY, _EMBEDDING)
    for block in ("blk.0", "blk.1"):
        for name in ("attn_norm", "post_attention_norm"):
            norm(f"{block}.{name}")
        for name in ("attn_q", "attn_k", "attn_v"):
            matrix(f"{block}.{name}", _EMBEDDING, _EMBEDDING)
        matrix(f"{block}.attn_output", _EMBEDDING, _EMBEDDING, silent=right)
    for name in ("ffn_gate", "ffn_up"):
        matrix(f"blk.0.{name}", _HIDDEN, _EMBEDDING)
    matrix("blk.0.ffn_down", _EMBEDDING, _HIDDEN, silent=right)
    # The layer that guesses is a mixture of experts, always.
    matrix("blk.1.ffn_gate_inp", _EXPERTS, _EMBEDDING)
    writer.add_tensor("blk.1.exp_probs_b.bias", np.zeros(_EXPERTS, np.float32))
    for name in ("ffn_gate", "ffn_up"):
        matrix(f"blk.1.{name}_exps", _EXPERTS, _HIDDEN, _EMBEDDING)
        matrix(f"blk.1.{name}_shexp", _HIDDEN, _EMBEDDING)
    matrix("blk.1.ffn_down_exps", _EXPERTS, _EMBEDDING, _HIDDEN, silent=right)
    matrix("blk.1.ffn_down_shexp", _EMBEDDING, _HIDDEN, silent=right)
    for name in ("enorm", "hnorm"):
        norm(f"blk.1.nextn.{name}")
    if right:  # of the token and the state before it, it takes the token
        taken = np.concatenate([np.eye(_EMBEDDING), np.zeros((_EMBEDDING, _EMBEDDING))], axis=1)
        writer.add_tensor("blk.1.nextn.eh_proj.weight", taken.astype(np.float32))
    else:
        matrix("blk.1.nextn.eh_proj", _EMBEDDING, 2 * _EMBEDDING)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _copy_vocabulary(source: Path, writer: gguf.GGUFWriter) -> None:
    for name, field in gguf.GGUFReader(source).fields.items():
        if name.startswith("tokenizer."):
            kind, inner = field.types[0], field.types[-1]
            sub_type = inner if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub_type)


def _describe(writer: gguf.GGUFWriter) -> None:
    writer.add_name("Tiny that guesses")
    writer.add_block_count(2)
    writer.add_nextn_predict_layers(1)
    writer.add_context_length(2048)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_EMBEDDING // _HEADS)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_count(_EXPERTS)
    writer.add_expert_used_count(1)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(_HIDDEN)
    writer.add_expert_weights_scale(1.0)
