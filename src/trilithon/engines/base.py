"""The interface of an engine: it finds builds, checks files, and turns a placement into a child process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from trilithon.engines.wire.dialect import Dialect
from trilithon.models.files.model_file import ModelFile

__all__ = [
    "Build",
    "Device",
    "Engine",
    "FallbackStep",
    "Feature",
    "FlashAttention",
    "Launch",
    "ModelFile",
    "Placement",
    "Settings",
    "Task",
    "Unit",
]

Unit = Literal["cpu", "gpu", "npu", "server"]
"""What computes. "server" is whatever a server computes on that Trilithon did not start (see `engines.remote`)."""
Feature = Literal["logprobs", "handover", "grammar", "vision", "embeddings", "speculation", "llguidance"]
FlashAttention = Literal["auto", "on", "off"]
Task = Literal["generate", "embed", "rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that a build can compute on besides the CPU. `id` is the build's name for it ("Vulkan0"), `name` the
    device's own. `software` is a software renderer, which runs on the CPU (Mesa's llvmpipe). `driver` is its name and
    version, or empty."""

    id: str
    unit: Unit
    name: str
    driver: str = ""
    software: bool = False
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One installed copy of an engine. `name` is the BUILD of `ENGINE@BUILD/UNIT`; `where` is a path or a package;
    `fingerprint` distinguishes copies of one version. `kernels` names what a copy with run-time dispatch has chosen for
    this CPU. `lacks` are instruction sets that this CPU has and the copy was compiled without, in words.
    `simulated`: it only plays a runtime, and its figures are those of no hardware."""

    engine: str
    name: str
    version: str
    units: tuple[Unit, ...]
    features: frozenset[Feature]
    where: str
    fingerprint: str = ""
    devices: tuple[Device, ...] = ()
    kernels: str = ""
    lacks: tuple[str, ...] = ()
    simulated: bool = False

    def only_when_named(self, unit: Unit) -> bool:
        """Whether the unit's only devices are software: it is used where the user names it, and never by default."""
        devices = [device for device in self.devices if device.unit == unit]
        return bool(devices) and all(device.software for device in devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a placement. None means that the engine or the board decides.

    `threads` generate; `batch_threads` evaluate prompts, None: as many. `cpus` are the CPU numbers that the child may
    use; `options` are names and values that only one engine knows. `context`, `batch` and `micro_batch` are in tokens.
    `slots` is the number of KV caches of `context` tokens each. With the task `embed` the model computes vectors of
    texts, with `rank` scores of texts for a query; then it does not generate. `full_window_cache` keeps the KV cache of
    sliding-window layers in full: only then can a prefix be used again. `speculation` is the method of speculative
    decoding (see `speculation.SPECULATIONS`)."""

    threads: int | None = None
    batch_threads: int | None = None
    cpus: tuple[int, ...] | None = None
    context: int | None = None
    batch: int = 2048
    micro_batch: int = 512
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: FlashAttention = "auto"
    full_window_cache: bool = False
    slots: int = 1
    task: Task = "generate"
    speculation: str | None = None
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One way to run a model: file × build × unit × settings. `name` is unique within a campaign.

    With `prefill` it is a handover: that placement prefills, and this one decodes."""

    name: str
    file: ModelFile
    build: Build
    unit: Unit
    settings: Settings
    prefill: "Placement | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackStep:
    """Safer settings for a placement; `name` is what is given up ("flash attention off")."""

    name: str
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a placement's child process, which serves the wire on the Unix socket `socket`.

    `environment` is added to the caller's, without variables whose names begin with one of `hidden`; `open_files` is
    the soft limit of open files to set, up to the hard limit. `exclusive` is a device that only one process of the
    machine may use at a time: the runner has its lock while the child loads and during every request.
    `memory_bytes` is the most private memory of the child (mapped files do not count; None: by the placement's need),
    `cpu_seconds` the most CPU time. `runs_template`: it executes the chat template of a GGUF, which is tried out first.
    `reports_errors` says that the child itself ends a request with an error when a library prints one meanwhile (see
    `errors.TaintedAnswer`); otherwise Trilithon reads the log for that. With `loopback_key` the child serves on a port
    of 127.0.0.1 that the kernel chooses instead of on `socket`, and every request carries that key. `dialect` is for a
    server that does not speak the wire itself."""

    argv: tuple[str, ...]
    socket: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    cpus: tuple[int, ...] | None = None
    open_files: int | None = None
    exclusive: Literal["npu"] | None = None
    memory_bytes: int | None = None
    cpu_seconds: int | None = None
    runs_template: bool = False
    reports_errors: bool = False
    loopback_key: str = ""
    dialect: Dialect | None = None


@runtime_checkable
class Engine(Protocol):
    """What every engine implements. `engines.table` lists the engines, and constructs them with the configuration."""

    name: str
    only_when_named: bool
    """True for an engine that is used where the user names it, and never by default."""

    def builds(self) -> list[Build]:
        """The copies of this engine that are usable now. Called often: no native library is loaded."""

    def missing(self) -> str:
        """Why there is no build, ending with "; run: COMMAND" where one helps; empty when there is a build."""

    def problems(self) -> tuple[str, ...]:
        """What is wrong with installed copies, one line each, ending as `missing`."""

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        """Why this file cannot run on the unit with these settings, ending with a fix; empty when it can."""

    def launch(self, placement: Placement, folder: Path) -> Launch:
        """The child to start. `folder` is private to it, and is deleted when it ends. Raises PlacementError."""

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        """Safer settings to try when the placement dies, hangs or answers wrongly, the least loss first. Each step
        includes what the ones before it gave up. Empty where nothing is known to help."""

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        """What the user should know about this placement, one line each. `log` is the output of its child so far,
        empty before the start."""
