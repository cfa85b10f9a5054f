"""What the user of an rk-llama.cpp placement should know: before it starts, and from what it wrote."""

import re
from collections.abc import Iterator

from trilithon.board.snapshot import Board
from trilithon.engines.base import Placement
from trilithon.engines.rk_llamacpp.backend import Backend, facts
from trilithon.engines.rk_llamacpp.options import choice
from trilithon.units import format_bytes

__all__ = ["remarks_before", "remarks_on_log"]

_BUFFER = re.compile(r"(\w+) model buffer size\s*=\s*([\d.]+) MiB")
_LOADED = re.compile(r"model loaded|server is listening|listening on")
_TROUBLE = re.compile(r"RKNN error|RKNN: failed|RKNPU ERROR")
_LONGEST = 120
_LONG_CONTEXT = 8192  # from here on flash attention on the CPU was measured to cost a fifth


def remarks_before(placement: Placement, backend: Backend, board: Board) -> Iterator[str]:
    yield from _of_types(placement, backend)
    yield from _of_pipeline(placement, backend)
    yield from _of_settings(placement, backend)
    yield from _of_board(board)


def remarks_on_log(placement: Placement, log: str) -> Iterator[str]:
    """Whether the model really went to the NPU, and whether work was refused there: the fork goes on after that."""
    sizes = [(name, float(size)) for name, size in _BUFFER.findall(log)]
    mebibytes = sum(size for name, size in sizes if name == "RKNPU")
    pipeline = choice(placement.settings).pipeline
    if mebibytes:
        yield f"on the NPU: {format_bytes(mebibytes * 2**20)} of weights, {'+'.join(pipeline)}"
    elif sizes and set(pipeline) != {"CPU_STANDARD"}:
        yield "NOT on the NPU: the log shows no weights there, so that this is the CPU's speed"
    elif _LOADED.search(log) and not sizes:
        yield "whether the NPU had work is not known: this build's log does not say where the weights are"
    if trouble := next((line.strip() for line in log.splitlines() if _TROUBLE.search(line)), ""):
        yield f"the NPU failed at some work, and what follows may be wrong: {trouble[:_LONGEST]}"


def _of_types(placement: Placement, backend: Backend) -> Iterator[str]:
    written = placement.file.quantization
    kind = re.sub(r"_[SML]$", "", written)
    if kind not in backend.types:
        taken = ", ".join(sorted(backend.types))
        yield f"{written} mostly stays on the CPU: {backend.lineage} takes {taken} to the NPU; get a Q8_0 file"
    elif kind in facts()["silent"] and not choice(placement.settings).by_name:
        own = facts()["silent"][kind]
        yield f"runs in 8 bits: unasked, the fork would run {kind} in 4; if you want that, add pipeline={own}"


def _of_pipeline(placement: Placement, backend: Backend) -> Iterator[str]:
    pipeline = choice(placement.settings).pipeline
    for text in dict.fromkeys(facts()["pipelines"].get(name, "") for name in pipeline):
        if text:
            yield text
    for fault in facts()["faults"]:
        concerned = any(part in placement.file.architecture for part in fault["architectures"])
        if concerned and backend.lineage not in fault["except"] and pipeline != (fault.get("pipeline"),):
            yield fault["text"]


def _of_settings(placement: Placement, backend: Backend) -> Iterator[str]:
    settings, wanted = placement.settings, backend.flash_attention_micro_batch
    if settings.flash_attention != "off" and backend.flash_attention and wanted not in (None, settings.micro_batch):
        yield f"flash attention runs on the NPU with -ub {wanted} only, and this is -ub {settings.micro_batch}"
    if settings.flash_attention != "off" and not backend.flash_attention and (settings.context or 0) >= _LONG_CONTEXT:
        yield "flash attention runs on the CPU in this fork, which costs a fifth of prefill at 8k tokens; try -fa off"
    yield from _of_domains(placement)


def _of_domains(placement: Placement) -> Iterator[str]:
    """The embedding, which stays on the CPU, is counted in: near the limit it may still fit."""
    chosen = choice(placement.settings)
    count = len(chosen.domains) or facts()["domains"]
    bits = [int(match[1]) for name in chosen.pipeline if (match := re.match(r"W(\d+)", name))]
    needed = (placement.file.parameters or 0) * sum(bits) // len(chosen.pipeline) // 8
    room = count * facts()["domain_bytes"]
    if needed > room:
        held = f"{count} IOMMU domain{'s' * (count > 1)} can hold {format_bytes(room)}"
        yield f"about {format_bytes(needed)} of weights go to the NPU, and {held}: take more, or a smaller model"
    if chosen.domains:
        yield "with domains of its own, a second program computing on the NPU freezes the whole system: let none run"


def _of_board(board: Board) -> Iterator[str]:
    clock, hard, wanted = board.clock("memory"), board.open_files_hard, facts()["open_files"]
    if clock and clock.governor not in ("performance", "userspace"):
        yield (
            f"the memory clock's governor is {clock.governor}, which may idle while the NPU works: that halved decode; "
            f"run: echo performance | sudo tee /sys/class/devfreq/{clock.device}/governor"
        )
    if hard is not None and hard < wanted:
        yield f"only {hard} files may be open and {wanted} are asked for: it may crash; raise LimitNOFILE or ulimit -Hn"
    if board.npu and board.npu.version not in (None, facts()["driver"]):
        yield f"the NPU's driver is {board.npu.version}; every report of success is from {facts()['driver']}"
