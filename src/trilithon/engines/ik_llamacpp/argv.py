"""The command line of ik_llama.cpp's server, and the options of a placement that only this engine has."""

from collections.abc import Mapping
from pathlib import Path

from trilithon.engines.base import Placement, Settings
from trilithon.language import Message
from trilithon.suggestions import alternatives

__all__ = ["KV_TYPES", "refusal_of_options", "server_argv"]

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
    """On a port that the kernel chooses. The prompt cache in RAM, context checkpoints and shifting of the context are
    off, as with llama.cpp: the first takes up to 8 GiB, the last answers from a prompt without its middle."""
    settings, file = placement.settings, placement.file
    values = {
        "host": "127.0.0.1",
        "port": 0,
        "api-key-file": key_file,
        "slot-save-path": f"{slots}/",
        "webui": "none",
        "model": file.path,
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
        "chat-template": file.prompt_form.template if file.prompt_form else None,
        "spec-type": settings.speculation,
    }
    # Its log goes to stderr all the same; what --log-disable ends is a file llama.log in the user's folder.
    argv = [placement.build.where, "--metrics", "--jinja", "--no-context-shift", "--log-disable"]
    argv += [word for path, _ in file.adapters for word in ("--lora", str(path))]
    argv += [_SWITCHES[name] for name, value in settings.options if value == "on"]
    return (*argv, *(word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))))
