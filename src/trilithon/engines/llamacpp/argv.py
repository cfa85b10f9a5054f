"""The command line of llama.cpp's server in both forms: a llama-server program, and the server inside the wheel."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trilithon.engines.base import Placement

__all__ = ["COMMON_PARAMS", "FLASH_ATTENTION", "embedded_argv", "hand_argv", "server_argv"]

FLASH_ATTENTION = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}


def _parameters(placement: Placement) -> Mapping[str, Any]:
    """The parameters of both forms, by llama-server's long option names.

    The prompt cache in RAM and context checkpoints are off: the first takes up to 8 GiB by default, the second
    evaluates the last tokens of a prompt in a separate batch."""
    settings = placement.settings
    # A text is pooled from one batch, so a batch needs room for a full context. A model without pooling uses the mean;
    # one that ranks may not say so.
    pools = settings.task != "generate"
    least_batch = (settings.context or 4096) if pools else 0
    return {
        "model": str(placement.file.path),
        "ctx-size": (settings.context or 4096) * settings.slots,
        "parallel": settings.slots,
        "threads": settings.threads,
        "threads-batch": settings.batch_threads or settings.threads,
        "batch-size": max(settings.batch, least_batch),
        "ubatch-size": max(settings.micro_batch, least_batch),
        "cache-type-k": settings.kv_type_k,
        "cache-type-v": settings.kv_type_v,
        "flash-attn": settings.flash_attention,
        "cache-ram": 0,
        "ctx-checkpoints": 0,
        "chat-template": placement.file.prompt_form.template if placement.file.prompt_form else "",
        "n-gpu-layers": 0,
        "swa-full": settings.full_window_cache,
        "embedding": pools,
        "pooling": "rank" if settings.task == "rank" else "mean" if pools and not placement.file.pooling else "",
        "mmproj": str(placement.file.vision_encoder or ""),
        "lora": [str(path) for path, _ in placement.file.adapters],
        "spec-type": "" if pools else settings.speculation,
    }


def server_argv(placement: Placement, socket: Path, slots: Path, more: Mapping[str, str | bool]) -> tuple[str, ...]:
    """`more` are further options: long names and values."""
    argv = [
        placement.build.where,
        *("--host", str(socket)),
        *("--slot-save-path", f"{slots}/"),
        *("--no-webui", "--slots", "--metrics", "--jinja", "--offline"),
    ]
    return (*argv, *_flags({**_parameters(placement), **more}))


def hand_argv(placement: Placement, more: Mapping[str, str | bool]) -> tuple[str, ...]:
    """As a person would start the server with the same settings, of the wheel too. A template of the prompt is no part
    of them."""
    program = placement.build.where if Path(placement.build.where).is_absolute() else "llama-server"
    return (program, "--jinja", *_flags({**_parameters(placement), **more, "chat-template": ""}))


def _flags(values: Mapping[str, Any]) -> list[str]:
    argv: list[str] = []
    for name, value in values.items():
        if isinstance(value, list):
            argv += [word for item in value for word in (f"--{name}", item)]
        elif value is True:
            argv += [f"--{name}"]
        elif value is not None and value is not False and value != "":
            argv += [f"--{name}", str(value)]
    return argv


# llama-server's option → the names of xllamacpp's CommonParams (2026.10).
COMMON_PARAMS = {
    "model": ("model.path",),
    "ctx-size": ("n_ctx",),
    "parallel": ("n_parallel",),
    "threads": ("cpuparams.n_threads",),
    "threads-batch": ("cpuparams_batch.n_threads",),
    "batch-size": ("n_batch",),
    "ubatch-size": ("n_ubatch",),
    "cache-type-k": ("cache_type_k",),
    "cache-type-v": ("cache_type_v",),
    "flash-attn": ("flash_attn_type",),
    "cache-ram": ("cache_ram_mib",),
    "ctx-checkpoints": ("n_ctx_checkpoints",),
    "chat-template": ("chat_template",),
    "n-gpu-layers": ("n_gpu_layers",),
    "swa-full": ("swa_full",),
    "embedding": ("embedding",),
    "pooling": ("pooling_type",),
    "mmproj": ("mmproj.path",),
    "lora": ("lora_adapters",),
    "spec-type": ("speculative.types",),
}


def embedded_argv(placement: Placement, socket: Path, slots: Path) -> tuple[str, ...]:
    values: dict[str, Any] = {
        "socket": str(socket),
        "slot_save_path": f"{slots}/",
        "endpoint_slots": True,
        "endpoint_metrics": True,
        "use_jinja": True,
        "ui": False,
        "offline": True,
    }
    for name, value in _parameters(placement).items():
        if value in (None, "", []):
            continue
        if name.startswith("cache-type"):
            value = f"GGML_TYPE_{value.upper()}"
        if name == "flash-attn":
            value = f"LLAMA_FLASH_ATTN_TYPE_{FLASH_ATTENTION[value]}"
        if name == "pooling":
            value = f"LLAMA_POOLING_TYPE_{value.upper()}"
        if name == "spec-type":
            value = f"COMMON_SPECULATIVE_TYPE_{value.upper().replace('-', '_')}"
        values |= dict.fromkeys(COMMON_PARAMS[name], value)
    # -P: a json.py in the current folder must not be imported.
    return (sys.executable, "-P", "-m", "trilithon.engines.llamacpp.child.embedded", json.dumps(values))
