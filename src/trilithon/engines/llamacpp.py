"""llama.cpp: the server inside the xllamacpp wheel, and llama-server programs in folders that the user named."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trilithon.engines.base import Build, Feature, Launch, Placement, Rung, Settings, Unit
from trilithon.engines.programs import programs
from trilithon.models.file import ModelFile
from trilithon.settings import Configuration

__all__ = ["LlamaCpp"]

_EMBEDDED = "embedded"
_FEATURES: frozenset[Feature] = frozenset({"logprobs", "handover", "grammar", "vision", "embeddings", "speculation"})

# The KV types that llama-server takes (common/arg.cpp).
_KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
# Options that llama-server would take from the user's environment, unrecorded, and a key that nobody here has.
_VARIABLES = ("LLAMA_ARG_", "LLAMA_API_KEY")
_FLASH_ATTENTION = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}


class LlamaCpp:
    name = "llama.cpp"
    only_when_named = False

    def __init__(self, configuration: Configuration):
        self._configuration = configuration

    def builds(self) -> list[Build]:
        return self._native() + self._embedded()  # one compiled for this CPU is the better one

    def missing(self) -> str:
        if self.builds():
            return ""
        return "the xllamacpp package is not installed; run: pip install xllamacpp"

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        if file.format != "gguf":
            return f"{self.name} runs GGUF files, and {file.path.name} is {file.format}; take a GGUF file of this model"
        if unit not in build.units:
            return f"build {build.name} has no {unit}; it has {', '.join(build.units)}"
        for kind in (settings.kv_type_k, settings.kv_type_v):
            if kind not in _KV_TYPES:
                return f"unknown KV type {kind}; there are {', '.join(_KV_TYPES)}"
        if settings.kv_type_v not in ("f32", "f16", "bf16") and settings.flash_attention == "off":
            return f"KV type {settings.kv_type_v} for V needs flash attention; use -fa on"
        if settings.options:
            return f"unknown option {settings.options[0][0]} for {self.name}; leave it out"
        return ""

    def launch(self, placement: Placement, folder: Path) -> Launch:
        socket = folder / "wire.sock"
        slots = folder / "slots"
        slots.mkdir(exist_ok=True)
        make = _embedded_argv if placement.build.name == _EMBEDDED else _server_argv
        return Launch(
            argv=make(placement, socket, slots), socket=socket, hidden=_VARIABLES, cpus=placement.settings.cpus
        )

    def ladder(self, placement: Placement) -> tuple[Rung, ...]:
        return ()

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        return ()

    def _embedded(self) -> list[Build]:
        if importlib.util.find_spec("xllamacpp") is None:
            return []
        return [
            Build(
                engine=self.name,
                name=_EMBEDDED,
                version=f"xllamacpp {version('xllamacpp')}",
                units=("cpu",),
                features=_FEATURES,
                where="package xllamacpp",
            )
        ]

    def _native(self) -> list[Build]:
        builds: list[Build] = []
        for program in programs(self._configuration):
            number = "" if not builds else str(len(builds) + 1)
            builds.append(
                Build(
                    engine=self.name,
                    name=program.name or f"native{number}",
                    version=program.version,
                    fingerprint=program.fingerprint,
                    units=("cpu",),
                    features=_FEATURES,
                    where=str(program.path),
                )
            )
        return builds


def _parameters(placement: Placement) -> Mapping[str, Any]:
    """What both forms of the server are told, by llama-server's long option names.

    Prompt cache in RAM and context checkpoints are off: the first takes up to 8 GiB by default, the second
    splits the last tokens of a prompt off into a batch of their own.
    """
    settings = placement.settings
    return {
        "model": str(placement.file.path),
        "ctx-size": settings.context or 4096,
        "parallel": 1,
        "threads": settings.threads,
        "batch-size": settings.batch,
        "ubatch-size": settings.micro_batch,
        "cache-type-k": settings.kv_type_k,
        "cache-type-v": settings.kv_type_v,
        "flash-attn": settings.flash_attention,
        "cache-ram": 0,
        "ctx-checkpoints": 0,
        "chat-template": placement.file.prompt_form.template if placement.file.prompt_form else "",
        "n-gpu-layers": 0,
        "swa-full": settings.full_window_cache,
    }


def _server_argv(placement: Placement, socket: Path, slots: Path) -> tuple[str, ...]:
    words = [
        placement.build.where,
        *("--host", str(socket)),
        *("--slot-save-path", f"{slots}/"),
        *("--no-webui", "--slots", "--metrics", "--jinja", "--offline"),
    ]
    for name, value in _parameters(placement).items():
        if value is True:
            words += [f"--{name}"]
        elif value is not None and value is not False and value != "":
            words += [f"--{name}", str(value)]
    return tuple(words)


# llama-server's option → the names of xllamacpp's CommonParams (2026.10).
_COMMON_PARAMS = {
    "model": ("model.path",),
    "ctx-size": ("n_ctx",),
    "parallel": ("n_parallel",),
    "threads": ("cpuparams.n_threads", "cpuparams_batch.n_threads"),
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
}


def _embedded_argv(placement: Placement, socket: Path, slots: Path) -> tuple[str, ...]:
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
        if value in (None, ""):
            continue
        if name.startswith("cache-type"):
            value = f"GGML_TYPE_{value.upper()}"
        if name == "flash-attn":
            value = f"LLAMA_FLASH_ATTN_TYPE_{_FLASH_ATTENTION[value]}"
        values |= dict.fromkeys(_COMMON_PARAMS[name], value)
    # -P: a json.py in the folder that the user happens to be in is not ours.
    return (sys.executable, "-P", "-m", "trilithon.children.embedded", json.dumps(values))
