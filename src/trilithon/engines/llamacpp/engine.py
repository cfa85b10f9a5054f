"""llama.cpp: the server inside the xllamacpp wheel, and llama-server programs in folders that the user named."""

import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from trilithon.board.processors import cpu_features
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import THIS_MACHINE
from trilithon.engines.base import Build, FallbackStep, Feature, Launch, Placement, Settings, Unit
from trilithon.engines.llamacpp.argv import embedded_argv, hand_argv, server_argv
from trilithon.engines.llamacpp.gpu import (
    PLAIN_V_TYPES,
    chosen_device,
    gpu_environment,
    gpu_fallback_steps,
    gpu_options,
    gpu_refusal,
    no_gpu_environment,
    no_gpu_options,
)
from trilithon.engines.llamacpp.kernels import ADVICE, embedded_system_line, lacking, system_line
from trilithon.engines.llamacpp.linking import missing_libraries
from trilithon.engines.llamacpp.programs import IK, Program, programs
from trilithon.engines.llamacpp.variables import cpu_variables
from trilithon.engines.placement_spec import SHORT_NAMES
from trilithon.engines.variables import Variable, shell_line
from trilithon.language import Message
from trilithon.models.files.model_file import ModelFile
from trilithon.models.files.quantizations import FORK_ONLY
from trilithon.packages import install_line
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives

__all__ = ["LlamaCpp"]

_EMBEDDED = "embedded"
_PACKAGED = "vulkan"
_MISSING = Message("the xllamacpp package is not installed")
_FEATURES: frozenset[Feature] = frozenset({"logprobs", "handover", "grammar", "vision", "embeddings", "speculation"})

# The KV types that llama-server takes (common/arg.cpp).
_KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
# llama-server would take options, and an API key, from these variables of the user.
_VARIABLES = ("LLAMA_ARG_", "LLAMA_API_KEY", "GGML_VK_")


class LlamaCpp:
    name = "llama.cpp"
    only_when_named = False

    def __init__(self, configuration: Configuration):
        self._configuration = configuration

    def builds(self) -> list[Build]:
        """Builds that were compiled for this CPU, or choose their kernels for it, come first; those of Python packages
        are for the GPU only."""
        # Those with a back end for the NPU, and forks, are other engines'.
        every = programs(self._configuration)
        plain = [program for program in every if not program.npu_backend and not program.fork]
        native = [
            (number, p) for number, p in _numbered([p for p in plain if not p.packaged]) if not p.libraries_missing
        ]
        builds = [self._build(p, p.name or f"native{number or ''}", ("cpu",)) for number, p in native]
        packaged = [self._build(p, _PACKAGED, ()) for p in plain if p.packaged and not p.libraries_missing]
        for_cpu = sorted([*builds, *self._embedded()], key=lambda build: len(build.lacks))
        return for_cpu + [build for build in packaged if build.units]

    def missing(self) -> str:
        if self.builds():
            return ""
        return _package_trouble() or f"{_MISSING}; run: {install_line('xllamacpp')}"

    def problems(self) -> tuple[str, ...]:
        package = _package_trouble() if self.builds() else ""  # without any build, `missing` says it
        return tuple(filter(None, [*map(_trouble, programs(self._configuration)), package]))

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        if file.format != "gguf":
            return f"{self.name} runs GGUF files, and {file.path.name} is {file.format}; take a GGUF file of this model"
        if file.quantization in FORK_ONLY:
            return f"{file.quantization} is a quantization of {IK} alone; use {IK}/cpu, or take a common quantization"
        if unit not in build.units:
            return f"build {build.name} has no {unit}; it has {', '.join(build.units)}"
        for kind in (settings.kv_type_k, settings.kv_type_v):
            if kind not in _KV_TYPES:
                return Message("unknown KV type {kind}; {fix}", kind=kind, fix=alternatives(kind, _KV_TYPES))
        if settings.kv_type_v not in PLAIN_V_TYPES and settings.flash_attention == "off":
            return f"KV type {settings.kv_type_v} for V needs flash attention; use -fa on"
        if unit == "gpu":
            return gpu_refusal(build, settings)
        if settings.options:
            name = settings.options[0][0]
            fix = alternatives(name, SHORT_NAMES)
            return Message(
                "unknown option {name} for {placement}; {fix}", name=name, placement=f"{self.name}/{unit}", fix=fix
            )
        return ""

    def launch(self, placement: Placement, folder: Path) -> Launch:
        socket = folder / "wire.sock"
        slots = folder / "slots"
        slots.mkdir(exist_ok=True)
        if placement.build.name == _EMBEDDED:
            argv, environment = embedded_argv(placement, socket, slots), {}
        elif placement.unit == "gpu":
            device = chosen_device(placement.build, placement.settings)
            argv = server_argv(placement, socket, slots, gpu_options(device, placement.settings))
            environment = gpu_environment(device, placement.settings)
        else:
            argv = server_argv(placement, socket, slots, no_gpu_options(placement.build))
            environment = no_gpu_environment()
        cpus = placement.settings.cpus
        return Launch(
            argv=argv, socket=socket, environment=environment, hidden=_VARIABLES, cpus=cpus, runs_template=True
        )

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        return tuple(gpu_fallback_steps(placement)) if placement.unit == "gpu" else ()

    def variables(self, placement: Placement, board: Board, depth: int) -> tuple[Variable, ...]:
        return cpu_variables(placement, board, depth)

    def by_hand(self, placement: Placement) -> str:
        if placement.unit == "gpu":
            device = chosen_device(placement.build, placement.settings)
            argv = hand_argv(placement, gpu_options(device, placement.settings))
            return shell_line(argv, placement, gpu_environment(device, placement.settings))
        return shell_line(hand_argv(placement, no_gpu_options(placement.build)), placement)

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        if placement.unit == "gpu":
            device = chosen_device(placement.build, placement.settings)
            if device.software:
                return (f"{device.name} runs on the CPU: these figures say nothing about a GPU",)
            return ()
        return tuple(_remarks_on_kernels(placement.build, log))

    def _embedded(self) -> list[Build]:
        if importlib.util.find_spec("xllamacpp") is None or _package_trouble():
            return []
        features = cpu_features(THIS_MACHINE)
        return [
            Build(
                engine=self.name,
                name=_EMBEDDED,
                version=f"xllamacpp {version('xllamacpp')}",
                units=("cpu",),
                features=_FEATURES | {"llguidance"},
                where=Message("package {name}", name="xllamacpp"),
                lacks=lacking(embedded_system_line(self._configuration.cache, features), "", features),
            )
        ]

    def _build(self, program: Program, name: str, units: tuple[Unit, ...]) -> Build:
        gpus = tuple(device for device in program.devices if device.unit == "gpu")
        return Build(
            engine=self.name,
            name=name,
            version=program.version,
            fingerprint=program.fingerprint,
            units=(*units, "gpu") if gpus else units,
            features=_FEATURES,
            where=str(program.path),
            devices=gpus,
            kernels=program.variant,
            lacks=lacking("", program.variant, cpu_features(THIS_MACHINE)),
        )


def _remarks_on_kernels(build: Build, log: str) -> Iterator[str]:
    """The log of a program without plug-ins may be the only place that says for which CPU it was compiled."""
    lacks = build.lacks or lacking(system_line(log), "", cpu_features(THIS_MACHINE))
    if lacks:
        yield (
            f"this llama.cpp was compiled without {' and '.join(lacks)}, which this CPU has: prefill can take 2 to 3 "
            f"times as long; run: {ADVICE}"
        )


def _trouble(program: Program) -> str:
    if program.libraries_missing:
        return f"{program.path} cannot be started: {program.libraries_missing}"
    if program.trouble:
        return f"{program.path} does not list its devices: {program.trouble}; run: {program.path} --list-devices"
    return ""


def _package_trouble() -> str:
    """Why the installed xllamacpp cannot be loaded, which only the child process does; empty where it can be."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = spec.submodule_search_locations or () if spec else ()
    extensions = [file for folder in folders for file in sorted(Path(folder).glob("*.so"))]
    lacks = next(filter(None, map(missing_libraries, extensions)), "")
    return f"the xllamacpp package cannot be loaded: {lacks}" if lacks else ""


def _numbered(native: list[Program]) -> list[tuple[int, Program]]:
    """Those without a name of their own are native, native2, …: by their place among all."""
    return [(0 if at == 1 else at, program) for at, program in enumerate(native, 1)]
