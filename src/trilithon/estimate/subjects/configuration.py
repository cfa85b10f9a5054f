"""The sizes of a model from its config.json, as the transformers library writes it: for models that are converted, and
have no GGUF."""

from collections.abc import Mapping
from typing import Any

from trilithon.estimate.sizes import ModelSize, size_named

__all__ = ["size_of_configuration"]

_MOST = 1 << 40
_MOST_LAYERS = 10_000
_GATED = ("silu", "swiglu", "gelu_pytorch_tanh")
_STATE_LAYERS = ("linear_attention", "mamba", "conv")


def size_of_configuration(configuration: Mapping[str, Any], name: str) -> ModelSize | None:
    """None where it does not state the sizes of a language model. `name` says what a configuration does not: the kind
    of layers of a known model."""
    nested = configuration.get("text_config") or configuration.get("llm_config")
    text = nested if isinstance(nested, dict) else configuration
    width, layers, vocabulary = (_count(text, key) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads = _count(text, "num_attention_heads")
    if not (width and layers and vocabulary and heads) or layers > _MOST_LAYERS:
        return None
    head_size = _count(text, "head_dim") or width // heads
    keys = (_count(text, "num_key_value_heads") or heads) * head_size
    attention = 2 * width * heads * head_size + 2 * width * keys
    forward, active = _forward(text, width)
    # transformers leaves out what is its default: true in its PreTrainedConfig
    tied = bool(text.get("tie_word_embeddings", configuration.get("tie_word_embeddings", True)))
    kinds = text.get("layer_types")
    kinds = [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else []
    window = _count(text, "sliding_window") if text.get("use_sliding_window", True) else None
    size = ModelSize(
        key=name,
        parameters=float(layers * (attention + forward) + vocabulary * width * (1 if tied else 2)),
        layers=layers,
        embedding=width,
        vocabulary=vocabulary,
        kv=2 * keys,
        queries=heads * head_size,
        active=None if active is None else float(layers * (attention + active)),
        tied=tied,
        attention_layers=sum(kind not in _STATE_LAYERS for kind in kinds) if kinds else None,
        window=window,
        window_layers=kinds.count("sliding_attention") if window else 0,
    )
    known = size_named(name)
    if known is not None and known.exact and abs(known.parameters / size.parameters - 1) < 0.1:
        return known
    return size


def _forward(text: Mapping[str, Any], width: int) -> tuple[int, int | None]:
    """Weights of one layer's feed-forward part, and those that one token reads of a mixture of experts."""
    matrices = 3 if str(text.get("hidden_act", text.get("hidden_activation", "silu"))) in _GATED else 2
    dense = matrices * width * (_count(text, "intermediate_size") or 4 * width)
    experts = next(
        (count for key in ("num_experts", "num_local_experts", "n_routed_experts") if (count := _count(text, key))), 0
    )
    used = next((count for key in ("num_experts_per_tok", "moe_topk") if (count := _count(text, key))), 0)
    if experts < 2 or not 0 < used <= experts:
        return dense, None
    one = matrices * width * (_count(text, "moe_intermediate_size") or _count(text, "intermediate_size") or 4 * width)
    shared = matrices * width * (_count(text, "shared_expert_intermediate_size") or 0)
    shared += one * (_count(text, "n_shared_experts") or 0)
    return experts * one + shared, used * one + shared


def _count(text: Mapping[str, Any], key: str) -> int | None:
    value = text.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST else None
