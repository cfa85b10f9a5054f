"""Remarks for the user of an rk-llama.cpp placement: before the start, and from its output."""

import re
from collections.abc import Iterator

from trilithon.board.snapshot import Board
from trilithon.engines.base import Placement
from trilithon.engines.rk_llamacpp.backend import Backend, facts
from trilithon.engines.rk_llamacpp.options import choice
from trilithon.engines.vendor_log import first_error
from trilithon.units import format_bytes

__all__ = ["remarks_before", "remarks_on_log"]

_BUFFER = re.compile(r"(\w+) model buffer size\s*=\s*([\d.]+) MiB")
_LOADED = re.compile(r"model loaded|server is listening|listening on")
_LONGEST = 120
_LONG_CONTEXT = 8192  # from this context on, flash attention on the CPU was measured to cost a fifth of prefill


def remarks_before(placement: Placement, backend: Backend, board: Board) -> Iterator[str]:
    yield from _of_types(placement, backend)
    yield from _of_pipeline(placement, backend)
    yield from _of_settings(placement, backend)
    yield from _of_board(board)


def remarks_on_log(placement: Placement, log: str) -> Iterator[str]:
    """Whether the weights are on the NPU, and whether the NPU failed: the fork continues after that."""
    sizes = [(name, float(size)) for name, size in _BUFFER.findall(log)]
    mebibytes = sum(size for name, size in sizes if name == "RKNPU")
    pipeline = choice(placement.settings).pipeline
    if mebibytes:
        yield f"on the NPU: {format_bytes(mebibytes * 2**20)} of weights, {'+'.join(pipeline)}"
    elif sizes and set(pipeline) != {"CPU_STANDARD"}:
        yield "NOT on the NPU: the log shows no weights there, so this is the speed of the CPU"
    elif _LOADED.search(log) and not sizes:
        yield "unknown whether the NPU is used: the log of this build does not say where the weights are"
    if failure := first_error(log):
        yield f"the NPU failed, and what follows may be wrong: {failure[:_LONGEST]}"


def _of_types(placement: Placement, backend: Backend) -> Iterator[str]:
    quantization = placement.file.quantization
    kind = re.sub(r"_[SML]$", "", quantization)
    if kind not in backend.types:
        types = ", ".join(sorted(backend.types))
        yield f"{quantization} mostly runs on the CPU: {backend.lineage} runs {types} on the NPU; get a Q8_0 file"
    elif kind in facts()["silent"] and not choice(placement.settings).by_name:
        pipeline = facts()["silent"][kind]
        yield f"runs in 8 bits: by default the fork would run {kind} in 4; for that, add pipeline={pipeline}"


def _of_pipeline(placement: Placement, backend: Backend) -> Iterator[str]:
    pipeline = choice(placement.settings).pipeline
    for text in dict.fromkeys(facts()["pipelines"].get(name, "") for name in pipeline):
        if text:
            yield text
    for fault in facts()["faults"]:
        affected = any(part in placement.file.architecture for part in fault["architectures"])
        if affected and backend.lineage not in fault["except"] and pipeline != (fault.get("pipeline"),):
            yield fault["text"]


def _of_settings(placement: Placement, backend: Backend) -> Iterator[str]:
    settings, needed = placement.settings, backend.flash_attention_micro_batch
    if settings.flash_attention != "off" and backend.flash_attention and needed not in (None, settings.micro_batch):
        yield f"flash attention runs on the NPU with -ub {needed} only, and this is -ub {settings.micro_batch}"
    if settings.flash_attention != "off" and not backend.flash_attention and (settings.context or 0) >= _LONG_CONTEXT:
        yield "flash attention runs on the CPU in this fork, which costs a fifth of prefill at 8k tokens; try -fa off"
    yield from _of_domains(placement)


def _of_domains(placement: Placement) -> Iterator[str]:
    """The embedding, which is on the CPU, is included: near the limit the weights may still fit."""
    options = choice(placement.settings)
    count = len(options.domains) or facts()["domains"]
    bits = [int(match[1]) for name in options.pipeline if (match := re.match(r"W(\d+)", name))]
    needed = (placement.file.parameters or 0) * sum(bits) // len(options.pipeline) // 8
    room = count * facts()["domain_bytes"]
    if needed > room:
        limit = f"{count} IOMMU domain{'s' * (count > 1)} can hold {format_bytes(room)}"
        yield f"about {format_bytes(needed)} of weights go to the NPU, and {limit}: use more, or a smaller model"
    if options.domains:
        yield "with domains set, a second program on the NPU freezes the whole system: run no other"


def _of_board(board: Board) -> Iterator[str]:
    clock, hard_limit, needed = board.clock("memory"), board.open_files_hard, facts()["open_files"]
    if clock and clock.governor not in ("performance", "userspace"):
        yield (
            f"the memory clock's governor is {clock.governor}, which may lower it during NPU work: that halved decode; "
            f"run: echo performance | sudo tee /sys/class/devfreq/{clock.device}/governor"
        )
    if hard_limit is not None and hard_limit < needed:
        yield f"at most {hard_limit} open files, {needed} are needed: it may crash; raise LimitNOFILE or ulimit -Hn"
    if board.npu and board.npu.version not in (None, facts()["driver"]):
        yield f"the NPU driver is {board.npu.version}; all reports of success are with {facts()['driver']}"
