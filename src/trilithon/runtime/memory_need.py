"""How much memory a placement will take, before anything is loaded: its weights, and its KV caches at full length."""

from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.engines.base import Placement
from trilithon.errors import StartError
from trilithon.models.gguf import kv_bytes_per_position, read_gguf
from trilithon.units import format_bytes

__all__ = ["bytes_needed", "refuse_without_room"]


def bytes_needed(placement: Placement) -> int:
    """Weights and KV caches of both halves of a handover. Two CPU halves map one file, which is then in memory once.
    Work buffers are left out: they are small beside these, and no header tells them."""
    prefill = placement.prefill
    own = placement.file.size_bytes + _cache_bytes(placement)
    if prefill is None:
        return own
    shared = prefill.unit == placement.unit == "cpu" and prefill.file.sha256 == placement.file.sha256
    return own + _cache_bytes(prefill) + (0 if shared else prefill.file.size_bytes)


def refuse_without_room(placement: Placement, machine: Machine = THIS_MACHINE) -> None:
    """Raises StartError when it cannot fit into what is available now; unknown memory refuses nothing."""
    text = machine.fields("/proc/meminfo").get("MemAvailable", "").removesuffix(" kB")
    needed = bytes_needed(placement)
    if text.isdecimal() and needed > int(text) * 1024:
        raise StartError(
            f"{placement.name} needs about {format_bytes(needed)} of memory for both halves, and "
            f"{format_bytes(int(text) * 1024)} are available",
            cause="not enough memory for a handover",
            advice="choose a smaller quantization or a shorter context, or run one half alone",
        )


def _cache_bytes(placement: Placement) -> int:
    settings = placement.settings
    if placement.file.format != "gguf":
        return 0
    per_position = kv_bytes_per_position(read_gguf(placement.file.path), settings.kv_type_k, settings.kv_type_v)
    return per_position * (settings.context or placement.file.context_train or 0) * settings.slots
