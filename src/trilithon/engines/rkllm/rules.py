"""What the RKLLM runtime takes: chips, releases, files, settings; what to try when it fails, and what to say.

The facts are the vendor's (header and guide of release 1.3.0, messages of the runtime), or users' reports where an
issue of airockchip/rknn-llm is named."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from trilithon.board.chips import platform_of, platforms
from trilithon.board.libraries import KNOWN_RKLLM_VERSIONS
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import format_cpu_list, parse_cpu_list
from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.elf import foreign_machine
from trilithon.engines.npu_board import refusal_of_driver
from trilithon.engines.rkllm.options import CONTEXT_STEP, LoadOptions
from trilithon.errors import UserError
from trilithon.models.files.model_file import ModelFile

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
_DRIVER = (0, 9, 8)  # asked for by the guide; 1.2.1 warned below 0.9.7
_OPTIONS = ("cpus", "domain", "embed_flash", "keep", "lora", "lora_scale", "thinking", "abi")
_SWITCH = {"on": True, "off": False}
_CUT = re.compile(r"the context is cut to (\d+) tokens")  # Trilithon's own server, which then starts anew


def load_options(file: ModelFile, settings: Settings, board: Board) -> LoadOptions:
    """What the server is told. Raises UserError for options that are unknown or make no sense."""
    options = dict(settings.options)
    for name in options:
        if name == "cores":
            raise UserError("the number of NPU cores is settled when the model is converted; leave cores out")
        if name not in _OPTIONS:
            raise UserError(f"unknown option {name}; there are {', '.join(_OPTIONS)}")
    values = LoadOptions(
        context=_context(file, settings),
        keep_tokens=_number(options.get("keep", "-1"), "keep", least=-1),
        cpu_mask=_mask(options.get("cpus"), settings, board),
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
    """Never more than the file was converted for: the runtime would not load it."""
    wanted = min(settings.context or _DEFAULT_CONTEXT, file.context_limit or _LONGEST_CONTEXT)
    return max(wanted // CONTEXT_STEP, 1) * CONTEXT_STEP


def _mask(cpus: str | None, settings: Settings, board: Board) -> int | None:
    """Bit n for CPU n. By default the board's fast ones, as many as there are threads."""
    if cpus is None:
        chosen = (settings.cpus or board.big_cpus)[: settings.threads or None][:_MOST_CPUS]
        return sum(1 << cpu for cpu in chosen if cpu < 32) or None
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
        return f"rkllm runs .rkllm files, and {file.path.name} is {file.format}; take one converted with rkllm-toolkit"
    return ""


def refusal_of_board(file: ModelFile, board: Board) -> str:
    npu, platform = board.npu, platform_of(board.chip)
    if npu is None:
        where = "; in a container, mount /proc/device-tree" * board.in_container
        return f"this machine has no Rockchip NPU that is known ({board.chip}); take another engine{where}"
    if platform not in platforms():
        known = ", ".join(platforms())
        return f"the RKLLM runtime refuses the {board.chip}, it takes only {known}; run a GGUF file of it on the CPU"
    if refusal := refusal_of_driver(npu):
        return refusal
    if file.target_platform and (platform_of(file.target_platform) or file.target_platform) != platform:
        return f"{file.path.name} was converted for the {file.target_platform}; take one made for the {platform}"
    return ""


def refusal_of_build(build: Build, options: LoadOptions) -> str:
    known = ", ".join(KNOWN_VERSIONS)
    if options.abi and options.abi not in KNOWN_VERSIONS:
        return f"abi={options.abi} is not known; there are {known}"
    if build.version not in KNOWN_VERSIONS and not options.abi:
        said = "states no version" if build.version == "unknown" else f"is of release {build.version}"
        return f"{build.where} {said}, whose interface is not known; take one of {known}, or try it with abi=RELEASE"
    machine = foreign_machine(Path(build.where))
    return f"{build.where} is made for {machine}; take the one for this machine" if machine else ""


def refusal_of_settings(file: ModelFile, settings: Settings, options: LoadOptions, board: Board) -> str:
    usual = Settings()
    for name, word in (("batch", "-b"), ("micro_batch", "-ub"), ("kv_type_k", "-ctk"), ("kv_type_v", "-ctv")):
        if getattr(settings, name) != getattr(usual, name):
            return f"the RKLLM runtime chooses {word} by itself; leave {word} out"
    if settings.flash_attention != usual.flash_attention:
        return "the RKLLM runtime knows no flash attention to turn on or off; leave -fa out"
    if settings.slots > 1:
        return "the RKLLM runtime keeps one conversation at a time; leave slots at 1"
    if options.lora and not Path(options.lora).is_file():
        return f"the adapter {options.lora} does not exist; name the _lora.rkllm file"
    mask = options.cpu_mask or 0
    have = {cpu for cluster in board.clusters for cpu in cluster.cpus}
    if strange := [cpu for cpu in range(32) if mask >> cpu & 1 and cpu not in have]:
        return f"CPU {strange[0]} is none of this machine, which has {format_cpu_list(sorted(have))}; choose others"
    least = min(file.target_cores or 1, len(have))
    if mask and mask.bit_count() < least:  # the guide: not fewer CPUs than NPU cores
        return f"the model runs on {file.target_cores} NPU cores and needs as many CPUs; give {least} or more"
    if mask.bit_count() > _MOST_CPUS:
        return f"the RKLLM runtime takes {_MOST_CPUS} CPUs at most; name fewer"
    return ""


def fallback_changes(placement: Placement, board: Board) -> Iterator[tuple[str, Callable[[Settings], Settings]]]:
    """From the least loss to the greatest: names, and what each changes."""
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
    wanted, context = placement.settings.context or _DEFAULT_CONTEXT, _context(file, placement.settings)
    if file.context_limit and wanted > file.context_limit:
        yield f"context {context} in place of {wanted}: {file.path.name} was converted for no more"
    elif wanted > _LONGEST_CONTEXT:
        yield f"context {context} in place of {wanted}: the RKLLM runtime takes no more"
    driver = board.npu.version if board.npu else None
    if driver and _release(driver) < _DRIVER:
        yield f"NPU driver {driver} is older than the 0.9.8 that the RKLLM runtime asks for; a newer kernel has it"
    yield from _remarks_on_toolkit(file.toolkit or "", build.version)
    if file.tokenizer is None:
        yield f"no tokenizer.json beside {file.path.name}: chat uses the runtime's own template, without tools"
    elif any(importlib.util.find_spec(name) is None for name in ("tokenizers", "jinja2")):
        yield "the model's tokenizer cannot be used; run: pip install 'trilithon[rkllm]'"
    if file.vision_encoder and importlib.util.find_spec("rknnlite") is None:
        yield f"{file.vision_encoder.name} needs the rknnlite package for images; run: pip install rknn-toolkit-lite2"


def _remarks_on_toolkit(toolkit: str, runtime: str) -> Iterator[str]:
    made, runs = _release(toolkit), _release(runtime)
    if not made or not runs:
        return
    if runs < made:
        yield f"runtime {runtime} is older than toolkit {toolkit}, which made the file; take the runtime {toolkit}"
    if runs == (1, 3, 0) and made < runs:  # airockchip/rknn-llm issue 534
        yield f"runtime {runtime} may miss the end of answers of files from toolkit {toolkit}; take its own runtime"


def remarks_on_log(log: str) -> Iterator[str]:
    if "rkllm-runtime version is lower" in log:
        yield "the runtime says that it is older than the file's toolkit; install the runtime of the toolkit's version"
    if match := _CUT.search(log):
        yield f"the context is {match[1]} tokens: the model was converted for no more"


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", version)
    return tuple(int(part) for part in match.groups()) if match else ()
