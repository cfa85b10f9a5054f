"""The command line of ik_llama.cpp's server, and the options of a placement that only this engine has."""

from collections.abc import Mapping
from pathlib import Path

from trilithon.engines.base import Placement, Settings
from trilithon.language import Message
from trilithon.suggestions import alternatives

__all__ = ["KV_TYPES", "hand_argv", "refusal_of_options", "server_argv"]

# Those of kv_cache_type_from_str (common/common.cpp of ik_llama.cpp).
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1", "q6_0", "q8_KV")
# The option of a placement → what the server is told where it is "on".
_SWITCHES: Mapping[str, str] = {
    "rtr": "--run-time-repack",
    "khad": "--k-cache-hadamard",
    "vhad": "--v-cache-hadamard",
    "thp": "--transparent-huge-pages",
    "mqkv": "--merge-qkv",
}


def refusal_of_options(settings: Settings) -> str:
    for name, value in settings.options:
        if name not in _SWITCHES:
            return Message(
                "unknown option {name} for {placement}; {fix}",
                name=name,
                placement="ik_llama.cpp/cpu",
                fix=alternatives(name, _SWITCHES),
            )
        if value not in ("on", "off"):
            return f"{name}={value} is not valid; write {name}=on or {name}=off"
    return ""


def server_argv(placement: Placement, key_file: Path, slots: Path) -> tuple[str, ...]:
    """On a port that the kernel chooses."""
    file = placement.file
    values = {
        "host": "127.0.0.1",
        "port": 0,
        "api-key-file": key_file,
        "slot-save-path": f"{slots}/",
        "webui": "none",
        "chat-template": file.prompt_form.template if file.prompt_form else None,
    }
    # Its log goes to stderr all the same; what --log-disable ends is a file llama.log in the user's folder.
    return (placement.build.where, "--metrics", "--log-disable", *_flags(values), *_settings(placement))


def hand_argv(placement: Placement) -> tuple[str, ...]:
    """As a person would start the server with the same settings, of the wheel too. A template of the prompt is no part
    of them."""
    program = placement.build.where if Path(placement.build.where).is_absolute() else "llama-server"
    return (program, *_settings(placement))


def _settings(placement: Placement) -> list[str]:
    """The prompt cache in RAM, context checkpoints and shifting of the context are off, as with llama.cpp: the first
    takes up to 8 GiB, the last answers from a prompt without its middle."""
    settings = placement.settings
    values = {
        "model": placement.file.path,
        "ctx-size": (settings.context or 4096) * settings.slots,
        "parallel": settings.slots,
        "threads": settings.threads,
        "batch-size": settings.batch,
        "ubatch-size": settings.micro_batch,
        "cache-type-k": settings.kv_type_k,
        "cache-type-v": settings.kv_type_v,
        "flash-attn": settings.flash_attention,
        "cache-ram": 0,
        "ctx-checkpoints": 0,
        "spec-type": settings.speculation,
    }
    argv = ["--jinja", "--no-context-shift"]
    argv += [word for path, _ in placement.file.adapters for word in ("--lora", str(path))]
    argv += [_SWITCHES[name] for name, value in settings.options if value == "on"]
    return argv + _flags(values)


def _flags(values: Mapping[str, object]) -> list[str]:
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]
