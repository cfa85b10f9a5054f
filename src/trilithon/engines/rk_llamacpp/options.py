"""The options of an rk-llama.cpp placement, and the environment variables for them.

Commas separate options, so lists are written with +: `pipeline=W8A8_STANDARD+W4A4_HADAMARD,cores=0+2`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from trilithon.board.chips import chips
from trilithon.board.sysfs import format_cpu_list
from trilithon.engines.base import Settings
from trilithon.engines.rk_llamacpp.backend import Backend, facts
from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.suggestions import alternatives
from trilithon.units import parse_integers

__all__ = ["RkOptions", "choice", "refusal_of_options", "with_option"]

_PREFIX = "RKNPU_"
# Variables with an option.
_OPTION_OF = {
    "RKNPU_HYBRID": "pipeline",
    "RKNPU_CORES": "cores",
    "RKNPU_DOMAINS": "domains",
    "RKNPU_CPU_DECODE": "cpu_decode",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RkOptions:
    """The parsed options. `by_name` means that the user named the pipeline; `cores` and `domains` are empty for all.
    `environment` is without RKNPU_DEVICE, which comes from the board."""

    pipeline: tuple[str, ...]
    by_name: bool
    cores: tuple[int, ...]
    domains: tuple[int, ...]
    cpu_decode: int | None
    repack: bool
    environment: Mapping[str, str]


def choice(settings: Settings) -> RkOptions:
    """Parses the options. Raises UserError for options that `refusal_of_options` refuses on any board."""
    options = dict(settings.options)
    pipeline = tuple(options.get("pipeline", facts()["default_pipeline"]).split("+"))
    cores, domains = _numbers(options, "cores"), _numbers(options, "domains")
    environment = {name: value for name, value in options.items() if name.startswith(_PREFIX)}
    environment["RKNPU_HYBRID"] = ",".join(pipeline)
    if cores:
        environment["RKNPU_CORES"] = ",".join(map(str, cores))
    if domains:
        environment["RKNPU_DOMAINS"] = format_cpu_list(domains)
    if "cpu_decode" in options:
        environment["RKNPU_CPU_DECODE"] = options["cpu_decode"]
    return RkOptions(
        pipeline=pipeline,
        by_name="pipeline" in options,
        cores=cores,
        domains=domains,
        cpu_decode=int(options["cpu_decode"]) if "cpu_decode" in options else None,
        repack=options.get("repack", "on") == "on",
        environment=environment,
    )


def with_option(settings: Settings, name: str, value: str) -> Settings:
    return replace(settings, options=tuple((dict(settings.options) | {name: value}).items()))


def refusal_of_options(settings: Settings, backend: Backend, device: str) -> str:
    """Why these options are not valid for the back end or the device (RKNPU_DEVICE); empty when they are."""
    for name, value in settings.options:
        if name in _CHECKS:
            refusal = _CHECKS[name](value, backend, device)
        elif name.startswith(_PREFIX):
            refusal = _refused_variable(name, value, backend)
        else:
            refusal = Message(
                "unknown option {name}; {fix}, and the variables of the build (RKNPU_…)",
                name=name,
                fix=alternatives(name, _CHECKS),
            )
        if refusal:
            return refusal
    return ""


def _numbers(options: Mapping[str, str], name: str) -> tuple[int, ...]:
    """ "0-2" or "0+2"; empty where the option is not set. Raises UserError."""
    if name not in options:
        return ()
    return tuple(sorted(parse_integers(options[name].replace("+", ","), name=f"{name}=")))


def _refused_pipeline(text: str, _: Backend, device: str) -> str:
    known = facts()["devices"][device]["pipelines"]
    # For an unknown name the fork uses the CPU, without a message.
    unknown = next((name for name in text.split("+") if name not in known), None)
    if unknown is None:
        return ""
    fix = alternatives(unknown, known)
    return Message(
        "pipeline {name} does not exist for the {device}; {fix}, joined by +",
        name=unknown or "(empty)",
        device=device,
        fix=fix,
    )


def _refused_numbers(name: str, count: Callable[[str], int]) -> Callable[[str, Backend, str], str]:
    def check(text: str, _: Backend, device: str) -> str:
        try:
            numbers = _numbers({name: text}, name)
        except UserError:
            return f"{name}={text} is not valid; write {name}=0 or {name}=0-1 or {name}=0+2"
        if numbers[-1] >= count(device):
            return f"{name}={text}: the {device} has {name} 0 to {count(device) - 1}"
        return ""

    return check


def _refused_cpu_decode(text: str, backend: Backend, _: str) -> str:
    if "RKNPU_CPU_DECODE" not in backend.variables:
        return f"{backend.lineage} cannot decode on the CPU; leave cpu_decode out, or use unimatrix099's fork"
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10**7):
        return f"cpu_decode={text} is not valid; write the rows from which the NPU is used, for example cpu_decode=32"
    return ""


def _refused_repack(text: str, _: Backend, __: str) -> str:
    return "" if text in ("on", "off") else f"repack={text} is not valid; write repack=on or repack=off"


def _refused_variable(name: str, value: str, backend: Backend) -> str:
    if name == "RKNPU_DEVICE":
        return "RKNPU_DEVICE comes from the board; leave it out"
    if name in _OPTION_OF:
        return f"{name} has an option; write {_OPTION_OF[name]}="
    if name not in backend.variables:
        return f"this build ({backend.lineage}) does not read {name}; leave it out"
    if name in backend.presence and value.lower() in ("", "0", "no", "off", "false"):
        return f"{name}={value} would turn it on, because the build only checks whether it is set; leave it out"
    return ""


_CHECKS: Mapping[str, Callable[[str, Backend, str], str]] = {
    "pipeline": _refused_pipeline,
    "cores": _refused_numbers("cores", lambda device: chips()[device].npu_cores),
    "domains": _refused_numbers("domains", lambda _: int(facts()["domains"])),
    "cpu_decode": _refused_cpu_decode,
    "repack": _refused_repack,
}
