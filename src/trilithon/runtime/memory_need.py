"""The memory that a placement needs, before it is loaded: its weights, and its KV caches at full length."""

from trilithon.board.limits.memory import read_memory
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.engines.base import Placement
from trilithon.errors import StartError
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.memory import kv_cache_bytes
from trilithon.units import format_bytes

__all__ = ["available_bytes", "bytes_needed", "cache_bytes", "refuse_without_room"]


def bytes_needed(placement: Placement) -> int:
    """Weights and KV caches, of both halves of a handover. Two CPU halves map one file, which is in memory once. Work
    buffers are left out: they are small in comparison, and the header does not state them."""
    prefill = placement.prefill
    decoder = placement.file.size_bytes + cache_bytes(placement)
    if prefill is None:
        return decoder
    shared = prefill.unit == placement.unit == "cpu" and prefill.file.sha256 == placement.file.sha256
    return decoder + cache_bytes(prefill) + (0 if shared else prefill.file.size_bytes)


def refuse_without_room(placement: Placement, machine: Machine = THIS_MACHINE) -> None:
    """Raises StartError when the placement needs more than what is available now, where that is known."""
    needed, available = bytes_needed(placement), available_bytes(machine)
    if available is not None and needed > available:
        raise StartError(
            f"{placement.name} needs about {format_bytes(needed)} of memory for both halves, but "
            f"only {format_bytes(available)} are available",
            cause="not enough memory for a handover",
            advice="choose a smaller quantization or a shorter context, or run one half alone",
        )


def available_bytes(machine: Machine = THIS_MACHINE) -> int | None:
    """What is available without swapping, within the limits of cgroups; None where the kernel does not report it."""
    return read_memory(machine).available_bytes


def cache_bytes(placement: Placement) -> int:
    """The KV caches of all slots; 0 for a file whose header does not describe them."""
    settings = placement.settings
    if placement.file.format != "gguf":
        return 0
    bytes_per_slot = kv_cache_bytes(
        read_gguf(placement.file.path),
        settings.context or placement.file.context_train or 0,
        kv_type_k=settings.kv_type_k,
        kv_type_v=settings.kv_type_v,
        micro_batch=settings.micro_batch,
        full_window_cache=settings.full_window_cache,
    )
    return bytes_per_slot * settings.slots
