"""What a Python server says about itself: `/props`, `/v1/models` and `/slots`, with llama-server's field names."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trilithon.engines.wire.generation import GenerationRequest
from trilithon.engines.wire.slot import WireSlot

__all__ = ["ServedModel", "models_body", "props_body", "slots_body"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What does not change while the server runs. `context` and `trained_context` are in tokens; `more` is added to
    `/props` under the name of the engine."""

    name: str
    engine: str
    build: str
    context: int
    trained_context: int
    quantization: str
    media_marker: str
    size_bytes: int = 0
    embedding_size: int = 0
    vision: bool = False
    tools: bool = False
    chat_template: str = ""
    bos: str = ""
    eos: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))


def props_body(model: ServedModel, slots: int) -> dict[str, Any]:
    return {
        "default_generation_settings": {"params": {"temperature": 0.8, "n_predict": -1}, "n_ctx": model.context},
        "total_slots": slots,
        "model_alias": model.name,
        "model_ftype": model.quantization,
        "model_path": model.name,
        "modalities": {"vision": model.vision, "video": False, "audio": False},
        "media_marker": model.media_marker,
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "ui": False,
        "ui_settings": {},
        "chat_template": model.chat_template,
        "chat_template_caps": {"supports_system_role": True, "supports_tools": model.tools},
        "bos_token": model.bos,
        "eos_token": model.eos,
        "build_info": model.build,
        "is_sleeping": False,
        "cors_proxy_enabled": False,
        **({model.engine: model.more} if model.more else {}),
    }


def models_body(model: ServedModel, vocabulary: int) -> dict[str, Any]:
    """`vocabulary` is the number of token ids."""
    meta = {
        "vocab_type": 1,
        "n_vocab": vocabulary,
        "n_ctx": model.context,
        "n_ctx_train": model.trained_context,
        "n_embd": model.embedding_size,
        "n_params": 0,
        "size": model.size_bytes,
        "ftype": model.quantization,
    }
    entry = {"id": model.name, "aliases": [model.name], "tags": [], "object": "model", "created": model.created}
    return {
        "models": [{"name": model.name, "model": model.name, "type": "model", "capabilities": ["completion"]}],
        "object": "list",
        "data": [{**entry, "owned_by": model.engine, "meta": meta}],
    }


def slots_body(slots: Sequence[WireSlot[Any]]) -> list[dict[str, Any]]:
    def body(number: int, slot: WireSlot[GenerationRequest]) -> dict[str, Any]:
        state = {"id": number, "n_ctx": slot.context, "speculative": False, "is_processing": slot.processing}
        if not slot.totals.requests:
            return state
        task = {"id_task": slot.totals.requests, "n_prompt_tokens": len(slot.tokens)}
        return state | task | {"next_token": [{"n_decoded": slot.decoded}]}

    return [body(number, slot) for number, slot in enumerate(slots)]
