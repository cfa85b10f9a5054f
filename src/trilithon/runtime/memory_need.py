"""The memory that a placement needs, before it is loaded: its weights, and its KV caches at full length; and the most
that its child may allocate, so that what a model file makes an engine do ends before the machine's memory does."""

import functools
import os
import resource

from trilithon.board.limits.memory import read_memory
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.engines.base import Placement
from trilithon.errors import ModelError, StartError
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.memory import compute_bytes, kv_cache_bytes
from trilithon.units import format_bytes

__all__ = [
    "available_bytes",
    "bytes_needed",
    "cache_bytes",
    "limit_while_loading",
    "refuse_without_room",
    "spare_while_running",
    "stack_bytes",
]

# For the program itself: libraries and buffers of requests. llama.cpp's server has 130 MiB of private
# memory with a model of 1 MiB, 450 MiB with one of 250 MiB and a vocabulary of 262,144 (xllamacpp 2026.10, x86-64).
_SPARE_BYTES = 1 << 30
# For the caches and work buffers of a format whose header does not describe them, and those of a vision encoder.
_UNKNOWN_BYTES = 2 << 30
_LEAST_STACK_BYTES = 8 << 20
_LOGIT_BYTES = 4


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


def limit_while_loading(placement: Placement) -> int | None:
    """Bytes that one child may allocate until it is ready; None for a file whose header cannot be read (the engine says
    why). Weights count twice: kernels of the CPU and drivers copy them into another layout. The mapped file does not
    count (see `engines.wire.guard`)."""
    file = placement.file
    adapters = sum(path.stat().st_size for path, _ in file.adapters if path.is_file())
    try:
        work = _UNKNOWN_BYTES if file.format != "gguf" else cache_bytes(placement) + _work_bytes(placement)
    except ModelError:
        return None
    return 2 * (file.size_bytes + adapters + work) + _picture_bytes(placement) + _SPARE_BYTES + stack_bytes()


def spare_while_running(placement: Placement) -> int:
    """Bytes that a child may allocate beyond what it has when it is ready: for requests, for a KV cache that is saved,
    and for a vision encoder, which some engines load with the first picture."""
    return cache_bytes(placement) + _picture_bytes(placement) + _SPARE_BYTES + stack_bytes()


def stack_bytes() -> int:
    """The stacks of a server's threads, which count in full: for each CPU one that computes and one for requests."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    one = _LEAST_STACK_BYTES if soft == resource.RLIM_INFINITY else max(soft, _LEAST_STACK_BYTES)
    return 2 * one * (os.cpu_count() or 1)


def _picture_bytes(placement: Placement) -> int:
    """For a vision encoder: its weights, once as read and once in its unit's layout, and its work buffers."""
    encoder = placement.file.vision_encoder
    return 2 * encoder.stat().st_size + _UNKNOWN_BYTES if encoder is not None and encoder.is_file() else 0


@functools.lru_cache(maxsize=64)
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


@functools.lru_cache(maxsize=64)
def _work_bytes(placement: Placement) -> int:
    """The work buffers of a GGUF; one that makes vectors evaluates a whole text at once. Forks and older releases of
    llama.cpp reserve the logits of a whole micro-batch (2 GiB for 4,096 tokens and a vocabulary of 128,256)."""
    settings, facts = placement.settings, read_gguf(placement.file.path)
    context = (settings.context or placement.file.context_train or 0) * settings.slots
    micro_batch = settings.micro_batch if settings.task == "generate" else context
    work = compute_bytes(
        facts,
        context,
        micro_batch=micro_batch,
        flash_attention=settings.flash_attention != "off",
        full_window_cache=settings.full_window_cache,
    )
    logits = min(micro_batch, context) * (facts.vocabulary or 0) * _LOGIT_BYTES if settings.task == "generate" else 0
    return work + logits
