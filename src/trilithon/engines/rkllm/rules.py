"""What the RKLLM runtime supports: chips, releases, files, settings; fallback steps, and remarks for the user.

Sources: the vendor's header and guide of release 1.3.0, messages of the runtime, and users' reports where an issue of
airockchip/rknn-llm is named."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from trilithon.board.chips import is_unknown_rockchip, platform_of, platforms
from trilithon.board.libraries import KNOWN_RKLLM_VERSIONS, followed_release
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import format_cpu_list, parse_cpu_list
from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.elf import foreign_machine
from trilithon.engines.npu_board import refusal_of_driver
from trilithon.engines.rkllm.options import CONTEXT_STEP, LoadOptions, install_rknnlite
from trilithon.engines.vendor_log import first_error
from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.models.files.model_file import ModelFile
from trilithon.packages import install_line
from trilithon.suggestions import alternatives

__all__ = [
    "KNOWN_VERSIONS",
    "fallback_changes",
    "load_options",
    "refusal_of_board",
    "refusal_of_build",
    "refusal_of_file",
    "refusal_of_settings",
    "remarks_before",
    "remarks_on_log",
]

KNOWN_VERSIONS = tuple(sorted(KNOWN_RKLLM_VERSIONS))
"""The releases whose C interface is known."""

_MOST_CPUS = 8
_DEFAULT_CONTEXT, _LONGEST_CONTEXT, _LEAST_CONTEXT = 4096, 16384, 512
_DRIVER = (0, 9, 8)  # required by the guide; 1.2.1 warns below 0.9.7
_OPTIONS = ("cpus", "domain", "embed_flash", "keep", "lora", "lora_scale", "thinking", "abi")
_SWITCH = {"on": True, "off": False}
_CUT = re.compile(r"the context is cut to (\d+) tokens")  # from Trilithon's server, which then starts again


def load_options(file: ModelFile, settings: Settings, board: Board) -> LoadOptions:
    """The options for the server. Raises UserError for options that are unknown or invalid."""
    options = dict(settings.options)
    for name in options:
        if name == "cores":
            raise UserError("the number of NPU cores is set when the model is converted; leave cores out")
        if name not in _OPTIONS:
            raise UserError(Message("unknown option {name}; {fix}", name=name, fix=alternatives(name, _OPTIONS)))
    values = LoadOptions(
        context=_context(file, settings),
        keep_tokens=_number(options.get("keep", "-1"), "keep", least=-1),
        cpu_mask=_mask(options.get("cpus"), file, settings, board),
        domain=_number(options["domain"], "domain") if "domain" in options else None,
        embed_flash=_switch(options["embed_flash"], "embed_flash") if "embed_flash" in options else None,
        encoder=str(file.vision_encoder or ""),
        chip=platform_of(board.chip),
        lora=str(Path(options["lora"]).expanduser().absolute()) if "lora" in options else "",
        lora_scale=_fraction(options.get("lora_scale", "1"), "lora_scale"),
        thinking=_switch(options.get("thinking", "on"), "thinking"),
        abi=options.get("abi", ""),
    )
    return LoadOptions.parse(values.json())  # checks the ranges


def _context(file: ModelFile, settings: Settings) -> int:
    """At most the context that the file was converted for: otherwise the runtime does not load it."""
    context = min(settings.context or _DEFAULT_CONTEXT, file.context_limit or _LONGEST_CONTEXT)
    return max(context // CONTEXT_STEP, 1) * CONTEXT_STEP


def _mask(cpus: str | None, file: ModelFile, settings: Settings, board: Board) -> int | None:
    """Bit n for CPU n. By default the board's fast CPUs, as many as there are threads, and more where the model's NPU
    cores need more than a CPU quota keeps busy."""
    if cpus is None:
        default = (settings.cpus or board.big_cpus)[: settings.threads or None][:_MOST_CPUS]
        if board.limits.cpu_quota is not None:
            allowed = board.limits.cpus or sorted(cpu for cluster in board.clusters for cpu in cluster.cpus)
            others = [cpu for cpu in reversed(allowed) if cpu not in default]
            default = (*default, *others[: max((file.target_cores or 1) - len(default), 0)])
        return sum(1 << cpu for cpu in default if cpu < 32) or None
    if re.fullmatch(r"0x[0-9a-fA-F]{1,8}", cpus):
        return int(cpus, 16)
    try:
        return sum(1 << cpu for cpu in parse_cpu_list(cpus.replace("+", ","))) or None
    except ValueError:
        raise UserError(f"cpus={cpus}: write CPUs as 4-7 or 4+5, or a mask as 0xF0") from None


def _number(text: str, name: str, *, least: int = 0) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", text) or int(text) < least:
        raise UserError(f"{name}={text}: write a whole number from {least}")
    return int(text)


def _fraction(text: str, name: str) -> float:
    if not re.fullmatch(r"-?[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise UserError(f"{name}={text}: write a number such as 0.8")
    return float(text)


def _switch(text: str, name: str) -> bool:
    if text not in _SWITCH:
        raise UserError(f"{name}={text}: write on or off")
    return _SWITCH[text]


def refusal_of_file(file: ModelFile) -> str:
    if file.format != "rkllm":
        return f"rkllm runs .rkllm files, and {file.path.name} is {file.format}; use one converted with rkllm-toolkit"
    return ""


def refusal_of_board(file: ModelFile, board: Board) -> str:
    npu, platform = board.npu, platform_of(board.chip)
    if board.device_tree_hidden:
        return "the device tree is hidden here, and the chip cannot be told; see trilithon doctor"
    if platform not in platforms() and (npu or is_unknown_rockchip(board.chip)):
        known = ", ".join(platforms())
        return f"the RKLLM runtime does not support the {board.chip}, only {known}; run a GGUF file of it on the CPU"
    if npu is None:
        return f"this machine has no known Rockchip NPU ({board.chip}); use another engine"
    if refusal := refusal_of_driver(npu):
        return refusal
    if file.target_platform and (platform_of(file.target_platform) or file.target_platform) != platform:
        return f"{file.path.name} was converted for the {file.target_platform}; use one for the {platform}"
    return ""


def refusal_of_build(build: Build, options: LoadOptions) -> str:
    known = ", ".join(KNOWN_VERSIONS)
    if options.abi and options.abi not in KNOWN_VERSIONS:
        return Message("abi={abi} is not known; {fix}", abi=options.abi, fix=alternatives(options.abi, KNOWN_VERSIONS))
    if followed_release(build.version) is None and not options.abi:
        release = "states no version" if build.version == "unknown" else f"is of release {build.version}"
        return f"{build.where} {release}, whose interface is unknown; use one of {known}, or try it with abi=RELEASE"
    machine = foreign_machine(Path(build.where))
    return f"{build.where} was compiled for {machine}; use one for this machine" if machine else ""


def refusal_of_settings(file: ModelFile, settings: Settings, options: LoadOptions, board: Board) -> str:
    defaults = Settings()
    for name, option in (("batch", "-b"), ("micro_batch", "-ub"), ("kv_type_k", "-ctk"), ("kv_type_v", "-ctv")):
        if getattr(settings, name) != getattr(defaults, name):
            return f"the RKLLM runtime sets {option} itself; leave {option} out"
    if settings.flash_attention != defaults.flash_attention:
        return "the RKLLM runtime has no setting for flash attention; leave -fa out"
    if settings.slots > 1:
        return "the RKLLM runtime has one KV cache; leave slots at 1"
    if options.lora and not Path(options.lora).is_file():
        return f"the adapter {options.lora} does not exist; name the _lora.rkllm file"
    mask = options.cpu_mask or 0
    existing = {cpu for cluster in board.clusters for cpu in cluster.cpus}
    if unknown := [cpu for cpu in range(32) if mask >> cpu & 1 and cpu not in existing]:
        return f"this machine has no CPU {unknown[0]}, only {format_cpu_list(sorted(existing))}; name others"
    least = min(file.target_cores or 1, len(existing))
    if mask and mask.bit_count() < least:  # the guide: not fewer CPUs than NPU cores
        return f"the model runs on {file.target_cores} NPU cores and needs as many CPUs; name {least} or more"
    if mask.bit_count() > _MOST_CPUS:
        return f"the RKLLM runtime uses {_MOST_CPUS} CPUs at most; name fewer"
    return ""


def fallback_changes(placement: Placement, board: Board) -> Iterator[tuple[str, Callable[[Settings], Settings]]]:
    """From the least to the greatest loss: names, and the change of the settings."""
    file, settings, options = placement.file, placement.settings, dict(placement.settings.options)
    platform = platforms().get(platform_of(board.chip))
    if "domain" not in options and platform and platform.vision_domain:
        name = f"NPU memory domain {platform.vision_domain}"
        yield name, partial(_with_option, name="domain", value=str(platform.vision_domain))
    if options.get("embed_flash") != "on":
        yield "embeddings left on the disk", partial(_with_option, name="embed_flash", value="on")
    context = _context(file, settings)
    while context > _LEAST_CONTEXT:
        context = max(context // 2 // CONTEXT_STEP * CONTEXT_STEP, _LEAST_CONTEXT)
        yield f"context of {context} tokens", partial(_with_context, context=context)
        if context <= _DEFAULT_CONTEXT // 4:
            return


def _with_option(settings: Settings, name: str, value: str) -> Settings:
    return replace(settings, options=tuple((dict(settings.options) | {name: value}).items()))


def _with_context(settings: Settings, context: int) -> Settings:
    return replace(settings, context=context)


def remarks_before(placement: Placement, board: Board) -> Iterator[str]:
    file, build = placement.file, placement.build
    requested, context = placement.settings.context or _DEFAULT_CONTEXT, _context(file, placement.settings)
    if file.context_limit and requested > file.context_limit:
        yield f"context {context} instead of {requested}: {file.path.name} was converted for no more"
    elif requested > _LONGEST_CONTEXT:
        yield f"context {context} instead of {requested}: the RKLLM runtime supports no more"
    driver = board.npu.version if board.npu else None
    if driver and _release(driver) < _DRIVER:
        yield f"NPU driver {driver} is older than 0.9.8, which the RKLLM runtime requires; a newer kernel has it"
    release = followed_release(build.version)
    if release not in (None, build.version) and "abi" not in dict(placement.settings.options):
        yield f"RKLLM runtime {build.version} is used like {release}, after a check of its default parameters"
    yield from _remarks_on_toolkit(file.toolkit or "", build.version)
    if file.tokenizer is None:
        yield f"no tokenizer.json beside {file.path.name}: chat uses the runtime's template, without tools"
    elif any(importlib.util.find_spec(name) is None for name in ("tokenizers", "jinja2")):
        yield f"the model's tokenizer cannot be used; run: {install_line('jinja2', 'tokenizers')}"
    if file.vision_encoder and importlib.util.find_spec("rknnlite") is None:
        yield f"{file.vision_encoder.name} needs the rknnlite package for images; {install_rknnlite()}"


def _remarks_on_toolkit(toolkit: str, runtime: str) -> Iterator[str]:
    toolkit_release, runtime_release = _release(toolkit), _release(runtime)
    if not toolkit_release or not runtime_release:
        return
    if runtime_release < toolkit_release:
        yield f"runtime {runtime} is older than toolkit {toolkit}, which made the file; use the runtime {toolkit}"
    if runtime_release == (1, 3, 0) and toolkit_release < runtime_release:  # airockchip/rknn-llm issue 534
        yield f"runtime {runtime} may miss the end of answers of files from toolkit {toolkit}; use its runtime"


def remarks_on_log(log: str) -> Iterator[str]:
    if "rkllm-runtime version is lower" in log:
        yield "the runtime says that it is older than the file's toolkit; install the runtime of the toolkit's version"
    if match := _CUT.search(log):
        yield f"the context is {match[1]} tokens: the model was converted for no more"
    # Before a cut context the load failed for that reason, and began anew.
    if failure := first_error(log[match.end() :] if match else log):
        yield f"the NPU runtime printed an error: {failure}"


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", version)
    return tuple(int(part) for part in match.groups()) if match else ()
